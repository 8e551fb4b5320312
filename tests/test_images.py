"""Image files as samples, against an independent transcription in numpy and against Pillow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from PIL import Image

import onnxq
from benchmarks import assets
from onnxq.data.images import ImageOptions, open_images
from onnxq.data.samples import InputSpec, Samples, Subset, input_specs, labels_of, open_samples
from onnxq.errors import DataError, OptionError
from tests.models import build, normal

Pixels = npt.NDArray[np.uint8]

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.25, 0.5)


def labels(samples: Samples) -> list[Any] | None:
    found = labels_of(samples)
    assert found is None or found.dtype == np.int64
    return None if found is None else found.tolist()


def spec(*shape: int | None, dtype: str = "float32") -> list[InputSpec]:
    return [InputSpec("image", np.dtype(dtype), shape)]


NCHW, NHWC, GREY = spec(None, 3, 12, 16), spec(None, 12, 16, 3), spec(None, 1, 12, 16)
ANY = spec(None, 3, None, None)


def pixels(height: int = 12, width: int = 16, seed: int = 0) -> Pixels:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(folder: Path, *images: Pixels, suffix: str = ".png") -> Path:
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}{suffix}")
    return folder


def first(path: Path, specs: list[InputSpec], **options: Any) -> Any:
    return open_samples(path, specs, images=ImageOptions(**options))[0]["image"]


def literal(image: Pixels, mean: Any, std: Any, scale: float, *, bgr: bool) -> Any:
    """[3, height, width], pixel by pixel in float32."""
    out = np.zeros((3, *image.shape[:2]), np.float32)
    for channel in range(3):
        m, s = np.float32(mean[channel]), np.float32(std[channel])
        for y, x in np.ndindex(*image.shape[:2]):
            value = image[y, x, 2 - channel if bgr else channel]
            out[channel, y, x] = (np.float32(value) * np.float32(scale) - m) / s
    return out


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("specs", [NCHW, NHWC], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("scale", [1 / 255, 1, 1 / 127.5])
def test_values(tmp_path: Path, specs: list[InputSpec], bgr: bool, scale: float) -> None:
    image = pixels()
    folder = write(tmp_path / "in", image)
    order: Any = "BGR" if bgr else "RGB"
    found = first(folder, specs, mean=MEAN, std=STD, scale=scale, channels=order)
    wanted = literal(image, MEAN, STD, scale, bgr=bgr)
    wanted = wanted if specs is NCHW else wanted.transpose(1, 2, 0)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert np.array_equal(found, wanted[None])


def test_one_mean_serves_all_channels_and_a_list_is_taken(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", pixels())
    mean: Any = [0.5]
    wanted = literal(pixels(), (0.5,) * 3, (2.0,) * 3, 1 / 255, bgr=False)
    assert np.array_equal(first(folder, NCHW, mean=mean, std=(2.0,)), wanted[None])


def test_default_is_zero_to_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", pixels())
    found = open_samples(folder, NCHW)[0]["image"]
    assert np.array_equal(found[0], pixels().transpose(2, 0, 1) * np.float32(1 / 255))


def test_crop_is_of_the_centre(tmp_path: Path) -> None:
    image = pixels(15, 21)
    folder = write(tmp_path / "in", image)
    found = first(folder, NCHW, crop=(12, 16), scale=1)
    assert np.array_equal(found[0], image[1:13, 2:18].transpose(2, 0, 1))


def resized(image: Pixels, height: int, width: int) -> Pixels:
    drawn = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(drawn)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((30, 47), (16, 25)), ((47, 30), (25, 16)), ((30, 30), (16, 16)), ((30, 46), (16, 24))],
)
def test_resize_of_the_shorter_side(
    tmp_path: Path, shape: tuple[int, int], size: tuple[int, int]
) -> None:
    image = pixels(*shape)
    found = first(write(tmp_path / "in", image), ANY, resize=16, scale=1)
    assert np.array_equal(found[0], resized(image, *size).transpose(2, 0, 1))


def test_resize_crop_and_size_in_this_order(tmp_path: Path) -> None:
    image = pixels(40, 50)
    folder = write(tmp_path / "in", image)
    found = first(folder, NCHW, resize=(30, 36), crop=(20, 20), size=(12, 16), scale=1)
    wanted = resized(resized(image, 30, 36)[5:25, 8:28], 12, 16)
    assert np.array_equal(found[0], wanted.transpose(2, 0, 1))


def test_without_options_the_size_is_that_of_the_input_or_of_the_image(tmp_path: Path) -> None:
    image = pixels(40, 50)
    folder = write(tmp_path / "in", image)
    exact = first(folder, NHWC, scale=1)
    assert np.array_equal(exact[0], resized(image, 12, 16))
    assert first(folder, ANY).shape == (1, 3, 40, 50)


def test_grey_input_and_grey_files(tmp_path: Path) -> None:
    image = pixels()
    grey = np.asarray(Image.fromarray(image).convert("L"))
    found = first(write(tmp_path / "a", image), GREY, mean=(0.5,), scale=1)
    assert np.array_equal(found[0, 0], grey.astype(np.float32) - np.float32(0.5))
    found = first(write(tmp_path / "b", grey), NCHW, scale=1)
    assert np.array_equal(found[0], np.stack([grey] * 3))


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_uint8_input_gets_the_pixels(tmp_path: Path, order: Any) -> None:
    image = pixels(13, 18)
    folder = write(tmp_path / "in", image)
    found = first(folder, spec(None, 12, 16, 3, dtype="uint8"), crop=(12, 16), channels=order)
    step = 1 if order == "RGB" else -1
    assert found.dtype == np.uint8
    assert np.array_equal(found[0], image[:12, 1:17, ::step])


def test_float16_is_cast_at_the_end(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", pixels())
    found = first(folder, spec(1, 3, 12, 16, dtype="float16"), mean=MEAN, std=STD)
    assert found.dtype == np.float16
    wanted = literal(pixels(), MEAN, STD, 1 / 255, bgr=False).astype(np.float16)
    assert np.array_equal(found[0], wanted)
    with pytest.raises(DataError, match=r"sample 0: .*0\.png: .*NaN or Inf"):
        first(folder, spec(1, 3, 12, 16, dtype="float16"), std=(1e-7,))


def test_layout_is_given_where_the_shape_does_not_tell(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", pixels(3, 5))
    for specs in (spec(None, None, None, None), spec(None, 3, 5, 3), [InputSpec("image", *BARE)]):
        with pytest.raises(OptionError, match=r"'image'.*NCHW or NHWC"):
            first(folder, specs)
        assert first(folder, specs, layout="NHWC").shape == (1, 3, 5, 3)


BARE = (np.dtype("float32"), None)


def test_exif_orientation(tmp_path: Path) -> None:
    image = Image.fromarray(pixels())
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the file is shown turned clockwise
    image.save(tmp_path / "a.png", exif=exif)
    found = first(tmp_path, ANY, scale=1)
    assert np.array_equal(found[0], np.rot90(pixels(), -1).transpose(2, 0, 1))


def test_transparency_and_palettes(tmp_path: Path) -> None:
    alpha = np.dstack([pixels(), np.full((12, 16), 9, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "a.png")
    palette = Image.fromarray(pixels()).quantize(8)
    palette.save(tmp_path / "b.png", transparency=bytes(range(8)))
    samples = open_samples(tmp_path, NCHW, images=ImageOptions(scale=1))
    assert np.array_equal(samples[0]["image"][0], pixels().transpose(2, 0, 1))
    assert np.array_equal(
        samples[1]["image"][0], np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
    )


def test_directory_is_sorted_and_other_files_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "bilder grün 数据"
    names = ["b.bmp", "A.PNG", "c d é.jpeg", "Z.webp", "0.ppm"]
    folder.mkdir()
    for i, name in enumerate(names):
        Image.fromarray(pixels(seed=i)).save(folder / name)
    (folder / "notes.txt").write_text("x")
    (folder / "._A.png").write_bytes(b"of another system")
    samples = open_images(folder, NCHW, ImageOptions(scale=1))
    assert [file.name for file in samples.files] == sorted(names)
    assert labels_of(samples) is None
    assert np.array_equal(samples[1]["image"][0], pixels(seed=1).transpose(2, 0, 1))
    with pytest.raises(IndexError):
        samples[5]


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "list.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_csv(tmp_path: Path) -> None:
    write(tmp_path / "ein ordner ü", pixels(seed=0), pixels(seed=1))
    write(tmp_path / "other", pixels(seed=2))
    absolute = tmp_path / "other" / "0.png"
    text = f'file,size,label\nein ordner ü/1.png,1,7\n\n"{absolute}",2,-1\nein ordner ü/0.png,3,5\n'
    for encoding in ("utf-8", "utf-8-sig"):
        samples = open_samples(table(tmp_path, text, encoding), NCHW, None, ImageOptions(scale=1))
        for i, seed in enumerate((1, 2, 0)):
            assert np.array_equal(samples[i]["image"][0], pixels(seed=seed).transpose(2, 0, 1))
        assert labels(samples) == [7, -1, 5]
        few = open_samples(table(tmp_path, text), NCHW, limit=2)
        assert labels(few) == [7, -1]
        assert labels(Subset(few, [1])) == [-1]
        assert labels(open_samples(samples, NCHW)) == [7, -1, 5]  # opened again, as a sequence
    unlabelled = open_samples(table(tmp_path, "file\nother/0.png\n"), NCHW)
    assert labels_of(unlabelled) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,label\na.png,1\n", ["'file'", "'name', 'label'"]),
        ("", ["'file'", "empty"]),
        ("file,label\n", ["list.csv", "empty"]),
        ("file,label\na.png,1\nb.png,2\n", ["line 3", "b.png", "no such file"]),
        ("file,label\na.png,cat\n", ["line 2", "'cat'", "integer"]),
        ("file,label\na.png\n", ["line 2", "label", "''"]),
        ("file,label\n,1\n", ["line 2", "'file' is empty"]),
        ("file,label\na,b.png,1\n", ["line 2", "comma"]),
        ("file,label\n\u00fc.png,1\n", ["UTF-8"]),
    ],
)
def test_csv_errors(tmp_path: Path, text: str, words: list[str]) -> None:
    write(tmp_path, pixels())
    (tmp_path / "0.png").rename(tmp_path / "a.png")
    path = table(tmp_path, text, "latin-1")
    with pytest.raises(DataError) as caught:
        open_samples(path, NCHW)
    for word in words:
        assert word in str(caught.value)


TWO = [*spec(None, 3, 12, 16), InputSpec("mask", np.dtype("float32"), (None, 1))]


@pytest.mark.parametrize(
    ("specs", "options", "error", "words"),
    [
        (TWO, {}, DataError, ["'image', 'mask'", ".npz"]),
        (spec(None, 3), {}, DataError, ["'image'", "4 dimensions"]),
        (spec(None, 4, 8, 8), {}, DataError, ["[?, 4, 8, 8]", "1 or 3"]),
        (spec(None, 4, 8, 8), {"layout": "NCHW"}, DataError, ["4 channels"]),
        (spec(None, 3, 8, 8, dtype="int64"), {}, DataError, ["int64", "uint8"]),
        (spec(4, 3, 8, 8), {}, DataError, ["fixed at 4"]),
        (NCHW, {"size": (16, 12)}, OptionError, ["16 x 12", "'image'", "12, 16"]),
        (NCHW, {"resize": (9, 9)}, OptionError, ["9 x 9"]),
        (NCHW, {"resize": 9}, DataError, ["0.png", "9 x 12", "12, 16"]),
        (NCHW, {"resize": (99, 99), "crop": (9, 9)}, OptionError, ["9 x 9"]),
        (ANY, {"crop": (12, 17)}, DataError, ["0.png", "12 x 17", "12 x 16", "resize"]),
        (GREY, {"mean": MEAN}, OptionError, ["mean", "1 channel"]),
        (spec(1, 8, 8, 3, dtype="uint8"), {"std": STD}, OptionError, ["uint8", "no effect"]),
        (spec(1, 8, 8, 3, dtype="uint8"), {"scale": 2}, OptionError, ["uint8", "no effect"]),
        (spec(None, 3, 12, None), {"size": (11, 99)}, OptionError, ["11 x 99"]),
    ],
)
def test_what_does_not_fit(
    tmp_path: Path, specs: Any, options: Any, error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        first(write(tmp_path / "in", pixels()), specs, **options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"size": (0, 5)},
        {"size": 5},
        {"size": (5, 5, 5)},
        {"size": (5.0, 5)},
        {"resize": 0},
        {"resize": True},
        {"resize": (5, -1)},
        {"crop": "5x5"},
        {"mean": 0.5},
        {"mean": (0.1, 0.2)},
        {"mean": (float("nan"),)},
        {"std": (1.0, 0.0, 1.0)},
        {"std": ()},
        {"scale": 0},
        {"scale": "1/255"},
        {"layout": "CHW"},
        {"channels": "rgb"},
    ],
)
def test_options_that_are_not_valid(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        ImageOptions(**options)


@pytest.mark.parametrize("what", ["text", "truncated", "empty", "16 bits", "png header"])
def test_not_an_image(tmp_path: Path, what: str) -> None:
    write(tmp_path, pixels(), pixels(64, 64))
    bad = tmp_path / "1.png"
    if what == "16 bits":
        Image.fromarray(np.zeros((12, 16), np.uint16)).save(bad)
    else:
        whole = bad.read_bytes()
        contents = {"text": b"hello", "truncated": whole[:2000], "empty": b""}
        bad.write_bytes(contents.get(what, whole[:40]))
    samples = open_samples(tmp_path, NCHW)
    with pytest.raises(DataError) as caught:
        samples[1]
    assert str(caught.value).startswith(f"sample 1: {bad}: ")
    assert "\n" not in str(caught.value)


def test_directories_without_or_with_both(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.npy or \.npz file and no image"):
        open_samples(tmp_path, NCHW)
    write(tmp_path / "below", pixels())
    with pytest.raises(DataError, match="subdirectories are not searched"):
        open_samples(tmp_path, NCHW)
    np.save(tmp_path / "below" / "a.npy", np.zeros((1, 3, 12, 16), np.float32))
    with pytest.raises(DataError, match=r"a\.npy.*0\.png"):
        open_samples(tmp_path / "below", NCHW)
    (tmp_path / "below" / "0.png").unlink()
    assert len(open_samples(tmp_path / "below", NCHW)) == 1
    with pytest.raises(DataError, match=r"\.csv"):
        open_samples(write(tmp_path / "one", pixels()) / "0.png", NCHW)


def test_image_options_without_images(tmp_path: Path) -> None:
    array = np.zeros((2, 3, 12, 16), np.float32)
    np.save(tmp_path / "a.npy", array)
    sources: list[Any] = [array, {"image": array}, iter(array), tmp_path, tmp_path / "a.npy"]
    for source in sources:
        with pytest.raises(OptionError, match="image options are given"):
            open_samples(source, NCHW, images=ImageOptions())


def test_pillow_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "in", pixels())
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(DataError, match=r"pip install onnxq\[images\]"):
        open_samples(folder, NCHW)


def test_calibration_on_images_is_that_on_their_arrays(tmp_path: Path) -> None:
    model = build(
        "(float[N,3,12,16] image) => (float[N,4,10,14] y) { c = Conv(image, w) y = Relu(c) }",
        {"w": normal(4, 3, 3, 3)},
    )
    images = [pixels(seed=i) for i in range(20)]
    folder = write(tmp_path / "in", *images)
    paths = sorted(folder.iterdir())
    arrays = np.stack([np.asarray(Image.open(path)) for path in paths])
    stacked = arrays.transpose(0, 3, 1, 2).astype(np.float32) * np.float32(1 / 255)
    for batch_size in (1, 3):
        found = onnxq.calibrate(model, folder, batch_size=batch_size)
        found.save(tmp_path / "a")
        onnxq.calibrate(model, stacked).save(tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("name", ["mobilenet_v2_1.0", "squeezenet_v1.1", "tinydarknet"])
def test_real_networks_get_what_the_benchmarks_give(
    networks: dict[str, assets.Network], name: str
) -> None:
    listed = assets.ASSETS / "data" / "imagenet" / "calibration.csv"
    if name not in networks or not listed.is_file():
        pytest.skip(f"no {name} or no images in {assets.ASSETS}")
    network = networks[name]
    specs = input_specs(ir.load(network.file))
    options = ImageOptions(
        scale=1,
        mean=network.mean,
        std=network.std,
        crop=(network.crop, network.crop) if network.crop else None,
        channels="BGR" if network.bgr else "RGB",
    )
    samples = open_samples(listed, specs, 6, options)
    wanted = assets.load_images(network, "calibration", 6, specs[0].name)
    assert len(samples) == len(wanted) == 6
    for i in range(6):
        assert np.array_equal(samples[i][specs[0].name], wanted[i][specs[0].name])
    if name != "tinydarknet":  # whose classes are in an order of its own
        assert labels(samples) == wanted.labels.tolist()
