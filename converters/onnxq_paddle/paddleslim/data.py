"""Calibration data as PaddleSlim takes them, as feeds of numpy arrays.

sample_generator   one sample at a time: an array for each input, without the batch dimension
batch_generator    one batch at a time
data_loader        likewise: a paddle.io.DataLoader, or anything that can be iterated over

Each may be an iterable, an iterator, or a function without arguments that returns one. An element
is a tuple or list with an array for each input, a dict, or, for one input, the array alone.
Paddle's tensors are read through their own `numpy()`: Paddle is not imported here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.data.feeds import Feed, InputSpec, as_feed, quoted
from onnxq.data.samples import Samples, open_samples
from onnxq.errors import DataError, OptionError
from onnxq.qtypes import Array

__all__ = ["Source", "source_of"]


@dataclass(frozen=True)
class Source:
    """Where calibration data come from. name: of the argument that gave them."""

    name: str
    items: Any
    batch_size: int
    batch_nums: int | None

    def open(self, specs: Sequence[InputSpec]) -> Samples:
        """As many as were asked for, read once and kept for as long as the result lives."""
        single = self.name == "sample_generator"
        per_batch = self.batch_size if single else 1
        limit = None if self.batch_nums is None else self.batch_nums * per_batch
        items = itertools.islice(self._iterate(), limit)
        feeds = (_named(item, specs, self.name) for item in items)
        return open_samples(_stacked(feeds, specs) if single else feeds, specs)

    def _iterate(self) -> Iterable[Any]:
        items = self.items
        if not isinstance(items, Iterable) and callable(items):
            items = items()
        if not isinstance(items, Iterable):
            raise OptionError(
                f"{self.name} must be an iterable, or a function that returns one; got "
                f"{type(items).__name__}"
            )
        return items


def source_of(given: Mapping[str, Any], *, batch_size: int, batch_nums: int | None) -> Source:
    """The source among the arguments that may give one. Raises OptionError unless one does."""
    found = [name for name, items in given.items() if items is not None]
    if len(found) != 1:
        got = " and ".join(found) if found else "none"
        raise OptionError(f"give one of {', '.join(given)}; got {got}")
    for name, value in (("batch_size", batch_size), ("batch_nums", batch_nums)):
        if name == "batch_nums" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise OptionError(f"{name} must be a whole number from 1 on, got {value!r}")
    return Source(found[0], given[found[0]], batch_size, batch_nums)


def _named(item: Any, specs: Sequence[InputSpec], source: str) -> dict[str, Array]:
    """One element as arrays by name of the input."""
    if isinstance(item, list | tuple) and len(item) == 1 and isinstance(item[0], Mapping):
        item = item[0]  # a DataLoader with return_list=False: a dict for each device
    if isinstance(item, Mapping):
        parts = dict(item)
    elif isinstance(item, list | tuple):
        parts = dict(zip((s.name for s in specs), item, strict=False))
        if len(item) != len(specs):
            raise DataError(
                f"{source} gave {len(item)} arrays, but the model's inputs are "
                f"{quoted(s.name for s in specs)}: give one for each, in this order, and no labels"
            )
    elif len(specs) == 1:
        parts = {specs[0].name: item}
    else:
        raise DataError(
            f"{source} gave one array, but the model's inputs are "
            f"{quoted(s.name for s in specs)}: give a tuple with one for each, in this order"
        )
    dtypes = {spec.name: spec.dtype for spec in specs}
    return {name: _array(part, dtypes.get(name), source) for name, part in parts.items()}


def _array(part: Any, dtype: np.dtype[Any] | None, source: str) -> Array:
    """float64 becomes float32, int32 int64 and so on, as Paddle's feeder does; no other kind."""
    lod = getattr(part, "lod", None)
    if callable(lod) and lod():
        raise DataError(
            f"{source} gave a tensor with levels of detail (LoD), which ONNX does not know: export "
            "the model with padded input"
        )
    if not isinstance(part, np.ndarray) and callable(getattr(part, "numpy", None)):
        part = part.numpy()
    array = np.asarray(part)
    if dtype is not None and array.dtype != dtype and _group(array.dtype) == _group(dtype):
        array = array.astype(dtype)
    return array


def _group(dtype: np.dtype[Any]) -> str:
    return "i" if dtype.kind in "iu" else dtype.kind


def _stacked(feeds: Iterator[dict[str, Array]], specs: Sequence[InputSpec]) -> Iterator[Feed]:
    """Single samples, as many together as the model's fixed batch has.

    Where the batch is dynamic, or 1, each sample is a feed of its own.
    """
    fixed = {s.name: s.shape[0] for s in specs if s.shape and s.shape[0] not in (None, 1)}
    sizes = set(fixed.values())
    if len(sizes) != 1 or len(fixed) != len(specs):
        for i, feed in enumerate(feeds):
            yield as_feed(feed, specs, f"sample {i}")
        return
    size = sizes.pop()
    assert size is not None
    while batch := list(itertools.islice(feeds, size)):
        if len(batch) < size:
            raise DataError(
                f"the model's batch is fixed at {size}, and the last {len(batch)} samples are too "
                f"few for one: give a multiple of {size}, or as many by batch_size and batch_nums"
            )
        yield {name: np.stack([feed[name] for feed in batch]) for name in batch[0]}
