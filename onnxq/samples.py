"""Samples: what calibration and verification run the model on.

Whatever the source, a sample is a feed (input name -> array) of batch size 1 where the model has a
batch dimension; a batch is taken apart. A source that can be read only once is written to a
temporary directory as it is read, so that every later stage can read it again, in any order.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir

from onnxq.errors import DataError
from onnxq.qtypes import Array

__all__ = ["DataLike", "InputSpec", "Reader", "Samples", "Subset", "input_specs", "open_samples"]

Feed = Mapping[str, Array]
FILE_TYPES = (".npy", ".npz")


@runtime_checkable
class Samples(Protocol):
    """Deterministic, re-iterable, indexable: the same index gives the same feed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Feed: ...


@runtime_checkable
class Reader(Protocol):
    """A one-shot source in onnxruntime's style: a feed a call, None at the end."""

    def get_next(self) -> Feed | None: ...


DataLike = str | Path | Samples | Array | Mapping[str, Array] | Reader | Iterable[Any]


@dataclass(frozen=True)
class InputSpec:
    """An input of the model. A dimension is None where it is dynamic."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None

    @property
    def batched(self) -> bool:
        """Whether the leading dimension takes any size."""
        return bool(self.shape) and self.shape is not None and self.shape[0] is None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype} of any shape"
        return f"{self.dtype} [{', '.join('?' if d is None else str(d) for d in self.shape)}]"


def input_specs(model: ir.Model) -> list[InputSpec]:
    """The inputs that a caller has to give, in order."""
    specs = []
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        shape = None
        if value.shape is not None:
            # exporters write unknown dimensions as names, as nothing, and as 0 or less
            shape = tuple(d if isinstance(d, int) and d > 0 else None for d in value.shape)
        specs.append(InputSpec(value.name or "", np.dtype(dtype), shape))
    return specs


class Subset:
    """Some of the samples, in the order given."""

    def __init__(self, samples: Samples, indices: Sequence[int]) -> None:
        self._samples, self._indices = samples, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int, /) -> Feed:
        return self._samples[self._indices[index]]


class _Stacked:
    """Arrays whose leading axis is the samples; may be memory-mapped files."""

    def __init__(self, arrays: Mapping[str, Array], specs: Sequence[InputSpec], label: str) -> None:
        self._specs, self._label = specs, label
        self._arrays = {spec.name: _stack(arrays[spec.name], spec, label) for spec in specs}
        lengths = {name: len(a) for name, a in self._arrays.items()}
        if len(set(lengths.values())) != 1:
            counted = ", ".join(f"{n}: {k}" for n, k in lengths.items())
            raise DataError(f"{label}: the inputs have different numbers of samples ({counted})")
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int, /) -> Feed:
        if not 0 <= index < self._length:
            raise IndexError(index)
        feed = {name: np.ascontiguousarray(a[index]) for name, a in self._arrays.items()}
        return _checked(feed, self._specs, f"{self._label}, sample {index}")


class _Files:
    """Samples in files of their own: .npy, or .npz with one array an input."""

    def __init__(self, paths: Sequence[Path], specs: Sequence[InputSpec]) -> None:
        self._paths, self._specs = paths, specs

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int, /) -> Feed:
        path = self._paths[index]
        content = _read(path)
        item = _by_name(content, self._specs, str(path)) if isinstance(content, dict) else content
        return _feed(item, self._specs, str(path))


class _Items:
    """A sequence of single samples."""

    def __init__(self, items: Samples, specs: Sequence[InputSpec]) -> None:
        self._items, self._specs = items, specs

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int, /) -> Feed:
        return _feed(self._items[index], self._specs, f"sample {index}")


class _Spooled:
    """Samples of a one-shot source, kept in a temporary directory as long as this lives."""

    def __init__(self, items: Iterable[Any], specs: Sequence[InputSpec], limit: int | None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="onnxq-samples-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._names = [spec.name for spec in specs]
        self._length = 0
        for number, item in enumerate(items):
            for feed in _split(_feed(item, specs, f"sample {number}"), specs):
                for i, name in enumerate(self._names):
                    np.save(self._path(self._length, i), feed[name], allow_pickle=False)
                self._length += 1
                if self._length == limit:
                    return

    def _path(self, index: int, part: int) -> Path:
        return self._folder / f"{index}-{part}.npy"

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int, /) -> Feed:
        if not 0 <= index < self._length:
            raise IndexError(index)
        return {name: np.load(self._path(index, i)) for i, name in enumerate(self._names)}


def open_samples(
    data: DataLike, specs: Sequence[InputSpec], limit: int | None = None, images: Any = None
) -> Samples:
    """Samples of any source, at most `limit` of them.

    data: an array or a mapping of arrays with the samples along axis 0; an iterable or a sequence
        of dicts, of single arrays or of tuples in input order; a reader with `get_next()`; the path
        of an .npy or .npz file (samples along axis 0) or of a directory of them (a file a sample).

    Raises DataError for an empty source and for what does not fit the inputs.
    """
    if limit is not None and limit < 1:
        raise DataError(f"samples must be at least 1, got {limit}")
    samples = _open(data, specs, limit)
    if len(samples) == 0:
        raise DataError("the data source is empty: at least one sample is needed")
    samples[0]  # a mistake in the first is a mistake in all: find it before anything runs
    if limit is not None and len(samples) > limit:
        return Subset(samples, range(limit))
    return samples


def _open(data: DataLike, specs: Sequence[InputSpec], limit: int | None) -> Samples:
    if isinstance(data, str | Path):
        return _open_path(Path(data), specs)
    if isinstance(data, np.ndarray):
        return _Stacked(_by_name({"": data}, specs, "data"), specs, "data")
    if isinstance(data, Mapping):
        return _Stacked(_by_name(dict(data), specs, "data"), specs, "data")
    if isinstance(data, Reader):
        return _Spooled(iter(data.get_next, None), specs, limit)
    if isinstance(data, Samples):
        if len(data) == 0 or _is_single(_feed(data[0], specs, "sample 0"), specs):
            return _Items(data, specs)
        return _Spooled((data[i] for i in range(len(data))), specs, limit)
    if isinstance(data, Iterable):
        return _Spooled(data, specs, limit)
    raise DataError(f"cannot read samples from a {type(data).__name__}")


def _open_path(path: Path, specs: Sequence[InputSpec]) -> Samples:
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in FILE_TYPES)
        if not files:
            raise DataError(f"{path}: holds no {' or '.join(FILE_TYPES)} file")
        return _Files(files, specs)
    content = _read(path)
    arrays = content if isinstance(content, dict) else {"": content}
    return _Stacked(_by_name(arrays, specs, str(path)), specs, str(path))


def _read(path: Path) -> Array | dict[str, Array]:
    if path.suffix not in FILE_TYPES:
        raise DataError(f"{path}: not a data file; {' and '.join(FILE_TYPES)} can be read")
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _by_name(arrays: dict[str, Array], specs: Sequence[InputSpec], label: str) -> dict[str, Array]:
    """The arrays of the inputs; a single one needs no name. Others (labels) may be there too."""
    if len(specs) == 1 and len(arrays) == 1:
        (name, array), spec = next(iter(arrays.items())), specs[0]
        if name in ("", spec.name) or name.startswith("arr_"):
            return {spec.name: array}
    missing = [spec.name for spec in specs if spec.name not in arrays]
    if missing:
        given = ", ".join(repr(n) for n in arrays if n) or "one array without a name"
        wanted = ", ".join(repr(spec.name) for spec in specs)
        raise DataError(f"{label}: the model's inputs are {wanted}; given are {given}")
    return {spec.name: arrays[spec.name] for spec in specs}


def _stack(array: Array, spec: InputSpec, label: str) -> Array:
    """The array with one sample a row, each with the batch dimension of 1 that the model wants."""
    rank = None if spec.shape is None else len(spec.shape)
    if array.ndim == 0:
        raise DataError(f"{label}: input {spec.name!r} is a single number, not an array of samples")
    if rank is None or array.ndim == rank + 1:
        return array
    if array.ndim != rank:
        raise DataError(
            f"{label}: input {spec.name!r} has shape {list(array.shape)}; the model wants {spec}, "
            f"so an array of samples has {rank} or {rank + 1} dimensions"
        )
    fixed = spec.shape[0] if spec.shape else None
    if fixed is None or fixed == 1:
        return array[:, None]
    if len(array) % fixed:
        raise DataError(
            f"{label}: input {spec.name!r} has a fixed batch of {fixed}, and {len(array)} samples "
            "cannot be divided by it"
        )
    return array.reshape(-1, fixed, *array.shape[1:])


def _feed(item: Any, specs: Sequence[InputSpec], label: str) -> Feed:
    """One item of a source as a checked feed."""
    if isinstance(item, Mapping):
        unknown = sorted(set(item) - {spec.name for spec in specs})
        missing = sorted({spec.name for spec in specs} - set(item))
        if unknown or missing:
            wanted = ", ".join(repr(spec.name) for spec in specs)
            raise DataError(
                f"{label}: the model's inputs are {wanted}; "
                + (f"unknown: {', '.join(map(repr, unknown))}; " if unknown else "")
                + (f"missing: {', '.join(map(repr, missing))}" if missing else "")
            )
        arrays = {name: np.asarray(item[name]) for name in item}
    elif isinstance(item, tuple | list):
        if len(item) != len(specs):
            raise DataError(f"{label}: {len(item)} arrays for {len(specs)} inputs")
        arrays = {spec.name: np.asarray(x) for spec, x in zip(specs, item, strict=True)}
    elif len(specs) == 1:
        arrays = {specs[0].name: np.asarray(item)}
    else:
        wanted = ", ".join(repr(spec.name) for spec in specs)
        raise DataError(f"{label}: one array, but the model has the inputs {wanted}")
    for spec in specs:
        array, shape = arrays[spec.name], spec.shape
        if shape and array.ndim == len(shape) - 1 and shape[0] in (None, 1):
            arrays[spec.name] = array[None]
    return _checked(arrays, specs, label)


def _checked(feed: dict[str, Array], specs: Sequence[InputSpec], label: str) -> Feed:
    for spec in specs:
        array = feed[spec.name]
        where = f"{label}: input {spec.name!r}"
        if array.dtype != spec.dtype:
            raise DataError(
                f"{where} is {array.dtype}; the model wants {spec}: convert it with "
                f".astype({spec.dtype.name!r}), scaled as the model was trained"
            )
        if spec.shape is not None:
            fits = len(array.shape) == len(spec.shape) and all(
                want is None or have == want
                for have, want in zip(array.shape, spec.shape, strict=True)
            )
            if not fits:
                raise DataError(f"{where} has shape {list(array.shape)}; the model wants {spec}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{where} holds NaN or Inf: remove or repair this sample")
    return feed


def _is_single(feed: Feed, specs: Sequence[InputSpec]) -> bool:
    """Whether a feed is one sample: not several along a batch dimension that all inputs share."""
    sizes = {feed[spec.name].shape[0] if spec.batched else 1 for spec in specs}
    return sizes == {1} or len(sizes) > 1 or not all(spec.batched for spec in specs)


def _split(feed: Feed, specs: Sequence[InputSpec]) -> Iterator[Feed]:
    if _is_single(feed, specs):
        yield feed
        return
    for i in range(len(feed[specs[0].name])):
        yield {name: array[i : i + 1] for name, array in feed.items()}


def labels_of(samples: Samples) -> Any:
    return None


def prefetched(samples: Samples) -> Iterator[Feed]:
    for i in range(len(samples)):
        yield samples[i]
