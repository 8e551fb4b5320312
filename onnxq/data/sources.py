"""Sources of samples: arrays, files of arrays, sequences, and what can be read only once.

Whatever the source, a sample is a feed (input name -> array) of batch size 1 where the model has a
batch dimension; a batch is taken apart. A source that can be read only once is written to a
temporary directory as it is read, so that every later stage can read it again, in any order.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.data.feeds import (
    Feed,
    InputSpec,
    Reader,
    Samples,
    as_feed,
    before,
    check_finite,
    checked,
    labels_of,
    quoted,
    reading,
    reads_concurrently,
    split,
    why_unreadable,
)
from onnxq.errors import DataError
from onnxq.qtypes import Array, IntArray

__all__ = [
    "FILE_TYPES",
    "NOTHING_WRITTEN",
    "Files",
    "Items",
    "Spooled",
    "Stacked",
    "Subset",
    "read_all",
    "read_file",
    "source_index",
]

FILE_TYPES = (".npy", ".npz")
LABEL_NAMES = ("label", "labels")
NOTHING_WRITTEN = " and nothing has been written"


class Subset:
    """Some of the samples, in the order given."""

    def __init__(self, samples: Samples, indices: Sequence[int]) -> None:
        self._samples, self._indices = samples, indices
        self.reads_concurrently = reads_concurrently(samples)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int, /) -> Feed:
        chosen = self._indices[index]
        with reading(chosen):
            return self._samples[chosen]

    def index_in_source(self, index: int) -> int:
        """Where the sample is in the source, through subsets of subsets."""
        return source_index(self._samples, self._indices[index])

    @property
    def labels(self) -> IntArray | None:
        labels = labels_of(self._samples)
        return None if labels is None else labels[np.asarray(self._indices, np.intp)]


def source_index(samples: Samples, index: int) -> int:
    """The index that a sample has in its source."""
    return samples.index_in_source(index) if isinstance(samples, Subset) else index


class Stacked:
    """Arrays whose leading axis is the samples; may be memory-mapped files.

    An integer array `label` or `labels` beside the inputs gives the labels.
    """

    def __init__(self, arrays: Mapping[str, Array], specs: Sequence[InputSpec], label: str) -> None:
        self._specs, self._label = specs, label
        inputs = _by_name(arrays, specs, label)
        self._arrays = {s.name: _stack(np.asarray(inputs[s.name]), s, label) for s in specs}
        lengths = {name: len(a) for name, a in self._arrays.items()}
        if len(set(lengths.values())) != 1:
            counted = ", ".join(f"{n}: {k}" for n, k in lengths.items())
            raise DataError(f"{label}: the inputs have different numbers of samples ({counted})")
        self._length = next(iter(lengths.values()))
        first = self._arrays[specs[0].name]
        batch = first.shape[1] if specs[0].shape and first.ndim > 1 else 1
        self.labels = _labels(arrays, specs, self._length, batch, label)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int, /) -> Feed:
        if not 0 <= index < self._length:
            raise IndexError(index)
        feed = {name: np.ascontiguousarray(a[index]) for name, a in self._arrays.items()}
        return checked(feed, self._specs, f"{self._label}, sample {index}")


class Files:
    """Samples in files of their own: .npy, or .npz with one array an input."""

    reads_concurrently = True

    def __init__(self, paths: Sequence[Path], specs: Sequence[InputSpec]) -> None:
        self._paths, self._specs = paths, specs

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int, /) -> Feed:
        if not 0 <= index < len(self._paths):
            raise IndexError(index)
        path = self._paths[index]
        with reading(index):
            content = read_file(path)
            item = (
                _by_name(content, self._specs, str(path)) if isinstance(content, dict) else content
            )
            return as_feed(item, self._specs, str(path))


class Items:
    """A sequence of single samples."""

    def __init__(self, items: Samples, specs: Sequence[InputSpec]) -> None:
        self._items, self._specs = items, specs
        self._length = len(items)
        self.labels = labels_of(items)
        self.reads_concurrently = reads_concurrently(items)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int, /) -> Feed:
        if not 0 <= index < self._length:
            raise IndexError(index)
        with reading(index):
            return as_feed(self._items[index], self._specs, f"sample {index}")


class Spooled:
    """Samples of a one-shot source, kept in a temporary directory as long as this lives."""

    def __init__(self, items: Iterable[Any], specs: Sequence[InputSpec], limit: int | None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="onnxq-samples-"))
        remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._specs = specs
        self._length = 0
        try:
            self._spool(items, specs, limit)
        except BaseException:  # an exception's traceback would keep this, and so the files, alive
            remove()
            raise

    def _spool(self, items: Iterable[Any], specs: Sequence[InputSpec], limit: int | None) -> None:
        end = object()
        iterator: Iterator[Any] | None = None
        while self._length != limit:
            with self._reading():
                iterator = iter(items) if iterator is None else iterator
                item = next(iterator, end)
                if item is end:
                    return
                feed = as_feed(item, specs, f"sample {self._length}", finite=False)
            for part in split(feed, specs):
                with self._reading():
                    check_finite(part, f"sample {self._length}")
                self._keep(part)
                if self._length == limit:
                    return

    def _reading(self) -> AbstractContextManager[None]:
        return reading(self._length, f"; {before(self._length)}{NOTHING_WRITTEN}")

    def _keep(self, feed: Feed) -> None:
        try:
            for i, spec in enumerate(self._specs):
                array = feed[spec.name]
                plain = array.astype(str) if array.dtype.kind == "O" else array
                np.save(self._path(self._length, i), plain, allow_pickle=False)
        except OSError as error:
            raise DataError(
                f"sample {self._length}: cannot be kept in {self._folder}: {error.strerror}; "
                "TMPDIR names another place for temporary files"
            ) from error
        self._length += 1

    def _path(self, index: int, part: int) -> Path:
        return self._folder / f"{index}-{part}.npy"

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int, /) -> Feed:
        if not 0 <= index < self._length:
            raise IndexError(index)
        return {spec.name: self._load(index, i) for i, spec in enumerate(self._specs)}

    def _load(self, index: int, part: int) -> Array:
        array: Array = np.load(self._path(index, part))
        dtype = self._specs[part].dtype
        # .npy knows no strings of any length, and of bfloat16 and the like only the bytes
        return array.astype(dtype) if dtype.kind == "O" else array.view(dtype)


def read_all(reader: Reader) -> Iterator[Feed]:
    """The feeds of a reader. One that ends with StopIteration in place of None is understood."""
    try:
        while (feed := reader.get_next()) is not None:
            yield feed
    except StopIteration:
        return


def read_file(path: Path) -> Array | dict[str, Array]:
    """An .npy file, memory-mapped, or the arrays of an .npz file."""
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        # numpy leaves a damaged file open if it has opened it
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {why_unreadable(error)}") from error


def _by_name(
    arrays: Mapping[str, Array], specs: Sequence[InputSpec], label: str
) -> dict[str, Array]:
    """The arrays of the inputs; a single one needs no name. Others (labels) may be there too."""
    if len(specs) == 1:
        others = set(LABEL_NAMES) - {specs[0].name}
        named = [(name, array) for name, array in arrays.items() if name not in others]
        if len(named) == 1:
            name, array = named[0]
            if name in ("", specs[0].name) or name.startswith("arr_"):
                return {specs[0].name: array}
    missing = [spec.name for spec in specs if spec.name not in arrays]
    if missing:
        given = quoted(n for n in arrays if n) or "one array without a name"
        raise DataError(
            f"{label}: the model's inputs are {quoted(s.name for s in specs)}; given are {given}"
        )
    return {spec.name: arrays[spec.name] for spec in specs}


def _labels(
    arrays: Mapping[str, Array], specs: Sequence[InputSpec], length: int, batch: int, label: str
) -> IntArray | None:
    """int64 [length] or, with a fixed batch, [length, batch]; None if there are no class numbers.

    Scores or one-hot rows under that name are no labels, and no mistake either.
    """
    inputs = {spec.name for spec in specs}
    name = next((n for n in LABEL_NAMES if n in arrays and n not in inputs), None)
    if name is None:
        return None
    found = np.asarray(arrays[name])
    if found.dtype.kind not in "iu" or found.ndim == 0:
        return None
    if found.ndim == 1 and len(found) not in (length, length * batch):
        raise DataError(f"{label}: {name!r} holds {len(found)} labels for {length * batch} samples")
    if found.size == length:
        return found.astype(np.int64).reshape(length)
    if found.size == length * batch:
        return found.astype(np.int64).reshape(length, batch)
    return None


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
