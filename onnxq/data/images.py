"""Image files as samples: decoded, cut to size and scaled when they are asked for.

An image goes through these steps:

1. decoded to RGB, or to grey where the model's input has one channel; turned as its EXIF says
2. `resize`, 3. `crop`, 4. `size`; none of them given: to the height and width of the input
5. x * scale, minus `mean`, through `std`, in float32, in the order of `channels`; an input of uint8
   gets the pixels as they are

Pillow decodes. It is an optional dependency, imported where it is used.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from onnxq.data.feeds import Feed, InputSpec, cause_of, checked, quoted, reading
from onnxq.errors import DataError, OptionError
from onnxq.qtypes import Array, Float32Array, IntArray

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["IMAGE_TYPES", "ImageOptions", "ImageSamples", "image_files", "open_images"]

Layout = Literal["NCHW", "NHWC"]
Channels = Literal["RGB", "BGR"]

IMAGE_TYPES = frozenset(
    (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff")
    + (".webp",)
)
INPUT_TYPES = ("float32", "float16", "float64", "uint8")
COUNTS = (1, 3)  # channels of an image


@dataclass(frozen=True)
class ImageOptions:
    """How an image file becomes the input of a model.

    size: height and width of the input, to which the image is stretched last.
    resize: an integer for the shorter side, where the longer keeps the aspect ratio (rounded down);
        or height and width. Bilinear with antialiasing, as all resizing here.
    crop: height and width, cut from the centre (half a pixel over goes to the bottom and right).
    mean, std: of x * scale, one number or one a channel in the order of `channels`.
    scale: factor of the pixel, 0 to 255; 1 if `mean` and `std` are for such pixels.
    layout: NCHW or NHWC; None takes it from the input's shape.
    channels: the order the model was trained with.

    Raises OptionError for a value that is not valid.
    """

    size: tuple[int, int] | None = None
    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    layout: Layout | None = None
    channels: Channels = "RGB"

    def __post_init__(self) -> None:
        _check_pair("size", self.size)
        if not _is_length(self.resize):
            _check_pair("resize", self.resize, or_number=True)
        _check_pair("crop", self.crop)
        object.__setattr__(self, "mean", _per_channel("mean", self.mean))
        object.__setattr__(self, "std", _per_channel("std", self.std))
        if 0 in self.std:
            raise OptionError(f"std divides, so no value may be 0; got {self.std}")
        if not (isinstance(self.scale, int | float) and math.isfinite(self.scale) and self.scale):
            raise OptionError(f"scale must be a number other than 0, got {self.scale!r}")
        if self.layout not in (None, *get_args(Layout)):
            raise OptionError(f"layout must be NCHW or NHWC, got {self.layout!r}")
        if self.channels not in get_args(Channels):
            raise OptionError(f"channels must be RGB or BGR, got {self.channels!r}")

    @property
    def changes_size(self) -> bool:
        return (self.size, self.resize, self.crop) != (None, None, None)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width of every result; None where they are those of the image or unknown."""
        exact = self.resize if isinstance(self.resize, tuple) else None
        return self.size or self.crop or exact


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_pair(name: str, value: object, *, or_number: bool = False) -> None:
    valid = isinstance(value, tuple) and len(value) == 2 and all(map(_is_length, value))
    if value is not None and not valid:
        number = "a number or " if or_number else ""
        raise OptionError(
            f"{name} must be {number}a pair (height, width) of integers from 1, got {value!r}"
        )


def _per_channel(name: str, values: Sequence[float]) -> tuple[float, ...]:
    """The values as a tuple, also of a list or an array."""
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) not in COUNTS or not all(map(math.isfinite, numbers)):
        raise OptionError(f"{name} must be 1 or 3 finite numbers, one a channel, got {values!r}")
    return numbers


class ImageSamples:
    """Image files as feeds of batch size 1.

    files: the images, in order. labels: int64, one an image, or None.

    Raises DataError if the model's input takes no images; OptionError for options that do not fit
    it. Reading a sample raises DataError for a file that is missing, damaged or too small.
    """

    reads_concurrently = True

    def __init__(
        self,
        files: Sequence[Path],
        specs: Sequence[InputSpec],
        options: ImageOptions,
        labels: IntArray | None = None,
    ) -> None:
        _check_pillow()
        self.files = tuple(files)
        self.labels = labels
        self._spec, self._options = _image_input(specs), options
        self._layout = _layout(self._spec, options.layout)
        shape = self._spec.shape or (None,) * 4
        channel, height, width = (1, 2, 3) if self._layout == "NCHW" else (3, 1, 2)
        self._channels = shape[channel] or 3
        if self._channels not in COUNTS:
            raise _no_image(self._spec, f"{self._layout} has {self._channels} channels, not 1 or 3")
        self._wanted = (shape[height], shape[width])
        self._size = options.size
        if not options.changes_size and shape[height] and shape[width]:
            self._size = (shape[height] or 0, shape[width] or 0)
        self._check_options()

    def _check_options(self) -> None:
        options, name = self._options, self._spec.name
        for option, values in (("mean", options.mean), ("std", options.std)):
            if len(values) not in (1, self._channels):
                raise OptionError(
                    f"{option} has {len(values)} values; input {name!r} has {self._channels} "
                    "channel, so give 1"
                )
        fixed = options.fixed_size
        if fixed and not _fits(fixed, self._wanted):
            raise OptionError(
                f"image options give {fixed[0]} x {fixed[1]} (height x width); "
                f"the model's input {name!r} wants {self._spec}"
            )
        plain = set(options.mean) == {0.0} and set(options.std) == {1.0}
        plain = plain and options.scale in (ImageOptions.scale, 1)
        if self._spec.dtype == np.uint8 and not plain:
            raise OptionError(
                f"the model's input {name!r} is uint8 and gets the pixels as they are: "
                "mean, std and scale have no effect"
            )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Feed:
        if not 0 <= index < len(self.files):
            raise IndexError(index)
        with reading(index):
            return self._feed(self.files[index])

    def _feed(self, path: Path) -> Feed:
        pixels = self._pixels(path)
        height, width = pixels.shape[:2]
        if not _fits((height, width), self._wanted):
            done = "after resize and crop" if self._options.changes_size else "as it is"
            raise DataError(
                f"{path}: the image is {height} x {width} (height x width) "
                f"{done}; the model's input {self._spec.name!r} wants {self._spec}: give a size"
            )
        array = self._scaled(pixels)
        if self._layout == "NCHW":
            array = array.transpose(2, 0, 1)
        feed = {self._spec.name: np.ascontiguousarray(array[None])}
        return checked(feed, [self._spec], str(path))

    def _pixels(self, path: Path) -> npt.NDArray[np.uint8]:
        """[height, width, channels], steps 1 to 4."""
        image = _decoded(path, "RGB" if self._channels == 3 else "L")
        options = self._options
        if isinstance(options.resize, int):
            short, long = sorted(image.size)
            other = max(int(options.resize * long / short), 1)
            wide = image.width > image.height
            image = _resized(image, (options.resize, other) if wide else (other, options.resize))
        elif options.resize is not None:
            image = _resized(image, options.resize)
        if options.crop is not None:
            image = _cropped(image, options.crop, path)
        if self._size is not None:
            image = _resized(image, self._size)
        pixels: npt.NDArray[np.uint8] = np.asarray(image)
        return pixels if self._channels == 3 else pixels[..., None]

    def _scaled(self, pixels: npt.NDArray[np.uint8]) -> Array:
        """[height, width, channels] in the input's dtype, step 5."""
        if self._channels == 3 and self._options.channels == "BGR":
            pixels = pixels[..., ::-1]
        if self._spec.dtype == np.uint8:
            return pixels
        mean = np.asarray(self._options.mean, np.float32)
        std = np.asarray(self._options.std, np.float32)
        scaled: Float32Array = pixels.astype(np.float32) * np.float32(self._options.scale)
        with np.errstate(over="ignore"):  # an Inf is reported with the name of the image
            return ((scaled - mean) / std).astype(self._spec.dtype, copy=False)


def open_images(path: Path, specs: Sequence[InputSpec], options: ImageOptions) -> ImageSamples:
    """The images of a directory, sorted by name, or those that a CSV file lists.

    A CSV has the column `file`, relative to the directory of the CSV or absolute, and may have the
    column `label`, an integer. Others are ignored. A directory is not searched below.

    Raises DataError and OptionError as `ImageSamples`, DataError for what is wrong with the CSV.
    """
    if path.is_dir():
        return ImageSamples(image_files(path), specs, options)
    files, labels = _listed(path)
    return ImageSamples(files, specs, options, labels)


def image_files(folder: Path) -> list[Path]:
    """The image files of a directory, sorted by name; hidden ones are left out."""
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in IMAGE_TYPES and not p.name.startswith(".")
    )


def _listed(path: Path) -> tuple[list[Path], IntArray | None]:
    """Files and labels of a CSV."""
    files: list[Path] = []
    labels: list[int] = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            if "file" not in columns:
                raise DataError(
                    f"{path}: there is no column 'file' in its first line; "
                    f"the columns are {quoted(columns) or 'none: the file is empty'}"
                )
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                files.append(_listed_file(row, path.parent, where))
                if "label" in columns:
                    labels.append(_listed_label(row["label"], where))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV in UTF-8: {error}") from error
    if not files:
        raise DataError(f"{path}: the list is empty: at least one image is needed")
    return files, np.array(labels, np.int64) if "label" in columns else None


def _listed_file(row: dict[str, str], folder: Path, where: str) -> Path:
    if None in row:  # where csv puts the values beyond the last column
        raise DataError(f"{where}: more values than columns; a name with a comma needs quotes")
    if not row["file"]:
        raise DataError(f"{where}: column 'file' is empty")
    file = folder / row["file"]
    if not file.is_file():
        raise DataError(f"{where}: {file}: no such file")
    return file


def _listed_label(text: str | None, where: str) -> int:
    try:
        return int(text or "")
    except ValueError:
        raise DataError(f"{where}: label must be an integer, got {text or ''!r}") from None


def _check_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401 (whether it is there)
    except ImportError as error:
        raise DataError(
            f"images are read with Pillow, which cannot be imported ({error}): "
            "pip install onnxq[images]"
        ) from error


def _image_input(specs: Sequence[InputSpec]) -> InputSpec:
    """The one input of the model, if it can take an image."""
    if len(specs) != 1:
        raise DataError(
            f"images can feed a model with one input; this one has {quoted(s.name for s in specs)}:"
            " give an .npz file with an array for each"
        )
    spec = specs[0]
    if spec.dtype.name not in INPUT_TYPES:
        raise _no_image(spec, f"an image can be {', '.join(INPUT_TYPES)}")
    if spec.shape is not None and len(spec.shape) != 4:
        raise _no_image(spec, "an image has 4 dimensions: batch, channels, height and width")
    if spec.shape is not None and spec.shape[0] not in (None, 1):
        raise _no_image(spec, f"its batch is fixed at {spec.shape[0]}, and images come one by one")
    return spec


def _no_image(spec: InputSpec, why: str) -> DataError:
    return DataError(
        f"the model's input {spec.name!r} is {spec}, which takes no image: {why}; "
        "give arrays as .npy or .npz"
    )


def _layout(spec: InputSpec, given: Layout | None) -> Layout:
    if given is not None:
        return given
    shape = spec.shape or (None,) * 4
    found: list[Layout] = []
    if shape[1] in COUNTS:
        found.append("NCHW")
    if shape[3] in COUNTS:
        found.append("NHWC")
    if len(found) == 1:
        return found[0]
    known = [size for size in shape[1:] if size is not None]
    if not found and len(known) == 3:
        raise _no_image(spec, "neither dimension 1 nor dimension 3 has 1 or 3 channels")
    raise OptionError(
        f"the model's input {spec.name!r} is {spec}: which dimension is the channels cannot be "
        "told from that; give the layout, NCHW or NHWC"
    )


def _fits(size: tuple[int, int], wanted: tuple[int | None, int | None]) -> bool:
    return all(want is None or have == want for have, want in zip(size, wanted, strict=True))


def _decoded(path: Path, mode: Literal["RGB", "L"]) -> Image.Image:
    """The image, upright, in 8 bits a channel."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(
                    f"{path}: has more than 8 bits a channel (mode {image.mode}), which a "
                    "conversion would clip: save it with 8"
                )
            upright = ImageOps.exif_transpose(image)
            if upright.mode == "P" and "transparency" in upright.info:
                upright = upright.convert("RGBA")  # the one way that Pillow takes without a warning
            return upright.convert(mode)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not an image, or of a format that Pillow cannot read") from error
    except Exception as error:
        # Decoders raise OSError, SyntaxError, ValueError, struct.error and more for damaged files
        raise DataError(
            f"{path}: the image is damaged or cannot be decoded ({cause_of(error)})"
        ) from error


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """size: height, width."""
    from PIL import Image

    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def _cropped(image: Image.Image, size: tuple[int, int], path: Path) -> Image.Image:
    """size: height, width."""
    height, width = size
    if height > image.height or width > image.width:
        raise DataError(
            f"{path}: a crop of {height} x {width} is larger than the image, which is "
            f"{image.height} x {image.width} (height x width); give a resize before it"
        )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
