"""Samples: what calibration and verification run the model on, opened from any source.

`open_samples` is the way in. Feeds and their checks are in `onnxq.data.feeds`, the sources in
`onnxq.data.sources` and, for image files, in `onnxq.data.images`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.data.feeds import (
    DataLike,
    Feed,
    InputSpec,
    Reader,
    Samples,
    as_feed,
    cause_of,
    is_single,
    labels_of,
    reading,
)
from onnxq.data.images import IMAGE_TYPES, ImageOptions, image_files, open_images
from onnxq.data.prefetch import prefetched
from onnxq.data.sources import (
    FILE_TYPES,
    NOTHING_WRITTEN,
    Files,
    Items,
    Spooled,
    Stacked,
    Subset,
    read_all,
    read_file,
)
from onnxq.errors import DataError, OptionError

__all__ = [
    "DataLike",
    "Feed",
    "InputSpec",
    "Reader",
    "Samples",
    "Subset",
    "input_specs",
    "labels_of",
    "open_samples",
    "prefetched",
]


def input_specs(model: ir.Model) -> list[InputSpec]:
    """The inputs that a caller has to give, in order.

    Raises DataError for an input that is not a tensor.
    """
    specs = []
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            kind = type(value.type).__name__.removesuffix("Type").lower()
            raise DataError(
                f"input {value.name!r} is of type {kind}: samples can be given for tensors only; "
                "dynamic mode needs none"
            )
        dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        shape = None
        if value.shape is not None:
            # exporters write unknown dimensions as names, as nothing, and as 0 or less
            shape = tuple(d if isinstance(d, int) and d > 0 else None for d in value.shape)
        specs.append(InputSpec(value.name or "", np.dtype(dtype), shape))
    return specs


def open_samples(
    data: DataLike,
    specs: Sequence[InputSpec],
    limit: int | None = None,
    images: ImageOptions | None = None,
) -> Samples:
    """Samples of any source, at most `limit` of them. `labels_of` gives their labels, if any.

    data: an array or a mapping of arrays with the samples along axis 0; an iterable or a sequence
        of dicts, of single arrays or of tuples in input order; a reader with `get_next()`; or a
        path: an .npy or .npz file (samples along axis 0), a directory of them (a file a sample), a
        directory of images, or a .csv file that lists images (columns `file` and maybe `label`).
    images: how images become an input; for the last two alone.

    Raises DataError for an empty source, for what does not fit the inputs and for whatever the
    source itself raises; OptionError for image options where there are no images.
    """
    if limit is not None and limit < 1:
        raise DataError(f"samples must be at least 1, got {limit}")
    samples = _open(data, specs, limit, images)
    if len(samples) == 0:
        raise DataError("the data source is empty: at least one sample is needed")
    # A mistake in the first is a mistake in all: find it before anything runs
    list(prefetched(samples, range(1), note=NOTHING_WRITTEN))
    if limit is not None and len(samples) > limit:
        return Subset(samples, range(limit))
    return samples


def _open(
    data: DataLike, specs: Sequence[InputSpec], limit: int | None, images: ImageOptions | None
) -> Samples:
    if isinstance(data, str | Path):
        return _open_path(Path(data), specs, images)
    if images is not None:
        raise _no_images(f"a {type(data).__name__}")
    if isinstance(data, np.ndarray):
        return Stacked({"": data}, specs, "data")
    if isinstance(data, Mapping):
        return Stacked(dict(data), specs, "data")
    if isinstance(data, Reader):
        return Spooled(read_all(data), specs, limit)
    if isinstance(data, Samples):
        return _open_sequence(data, specs, limit)
    if isinstance(data, Iterable):
        return Spooled(data, specs, limit)
    raise DataError(f"cannot read samples from a {type(data).__name__}")


def _open_sequence(data: Samples, specs: Sequence[InputSpec], limit: int | None) -> Samples:
    try:
        count = len(data)
    except Exception as error:
        # __len__ is the source's own code and may raise anything; the cause is chained and named
        raise DataError(
            f"the source cannot tell how many samples it has ({cause_of(error)}); "
            f"nothing was read{NOTHING_WRITTEN}"
        ) from error
    if count == 0:
        return Items(data, specs)
    with reading(0, f"; it is the first{NOTHING_WRITTEN}"):
        single = is_single(as_feed(data[0], specs, "sample 0"), specs)
    return Items(data, specs) if single else Spooled((data[i] for i in range(count)), specs, limit)


def _open_path(path: Path, specs: Sequence[InputSpec], images: ImageOptions | None) -> Samples:
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    if path.is_dir():
        return _open_directory(path, specs, images)
    if path.suffix.lower() == ".csv":
        return open_images(path, specs, images or ImageOptions())
    if path.suffix not in FILE_TYPES:
        raise DataError(
            f"{path}: not a data file; {', '.join(FILE_TYPES)} and a .csv file that lists images "
            "can be read, and a directory of arrays or of images"
        )
    if images is not None:
        raise _no_images(str(path))
    content = read_file(path)
    return Stacked(content if isinstance(content, dict) else {"": content}, specs, str(path))


def _open_directory(path: Path, specs: Sequence[InputSpec], images: ImageOptions | None) -> Samples:
    arrays = sorted(p for p in path.iterdir() if p.suffix in FILE_TYPES)
    pictures = image_files(path)
    if arrays and pictures:
        raise DataError(
            f"{path}: holds arrays ({arrays[0].name}, {len(arrays)} in all) and images "
            f"({pictures[0].name}, {len(pictures)} in all); put either in a directory of its own"
        )
    if pictures:
        return open_images(path, specs, images or ImageOptions())
    if not arrays:
        below = any(p.is_dir() for p in path.iterdir())
        raise DataError(
            f"{path}: holds no {' or '.join(FILE_TYPES)} file and no image "
            f"({', '.join(sorted(IMAGE_TYPES))})"
            + ("; its subdirectories are not searched: list their files in a .csv" if below else "")
        )
    if images is not None:
        raise _no_images(f"{path}, a directory of arrays")
    return Files(arrays, specs)


def _no_images(source: str) -> OptionError:
    return OptionError(
        f"image options are given, but the data is {source}: they are for a directory of images "
        "and for a .csv file that lists them; prepare arrays yourself"
    )
