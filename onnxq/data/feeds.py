"""Feeds: what a sample is, what a source of samples may say about itself, and whether it fits.

Needs numpy alone. `samples.py` opens sources, `sources.py` and `images.py` hold them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from onnxq.errors import DataError, OnnxqError
from onnxq.qtypes import Array, IntArray

__all__ = [
    "DataLike",
    "Feed",
    "InputSpec",
    "Reader",
    "Samples",
    "as_feed",
    "before",
    "cause_of",
    "check_finite",
    "checked",
    "is_single",
    "labels_of",
    "quoted",
    "reading",
    "reads_concurrently",
    "split",
    "why_unreadable",
]

Feed = Mapping[str, Array]


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


def labels_of(samples: Samples) -> IntArray | None:
    """The class of each sample, if the source's attribute `labels` says so.

    int64 [samples], or [samples, batch] where the model has a fixed batch above 1. None where there
    are none, and where the attribute holds something else, such as names of classes.
    """
    try:
        labels = np.asarray(getattr(samples, "labels", None))
    except (TypeError, ValueError, RuntimeError):  # boxes of detectors, which make no array
        return None
    if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2) or len(labels) != len(samples):
        return None
    return labels.astype(np.int64)


def reads_concurrently(samples: Samples) -> bool:
    """Whether the source says that several threads may read it at once.

    It says so with an attribute of this name that is True.
    """
    return getattr(samples, "reads_concurrently", False) is True


@contextmanager
def reading(index: int, after: str = "") -> Iterator[None]:
    """Around the reading of one sample: every failure becomes a DataError that names the sample.

    after: is added to the message; says what has been done so far. The exception of the source is
    the cause of the DataError.
    """
    try:
        yield
    except OnnxqError as error:
        text = str(error)
        named = text if re.search(r"(^|, )sample \d+:", text) else f"sample {index}: {text}"
        raise DataError(named + after) from (error.__cause__ or error)
    except Exception as error:
        # The code of a source is not ours and may raise anything; the cause is chained and named
        raise DataError(f"sample {index}: the source failed ({cause_of(error)}){after}") from error


def before(count: int) -> str:
    """What was done before the sample that failed, in words."""
    if count == 0:
        return "it is the first"
    return f"the {count} samples before it were read" if count > 1 else "the one before was read"


def cause_of(error: BaseException) -> str:
    """Type and text of an exception, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def why_unreadable(error: BaseException) -> str:
    """Why numpy cannot read a file, without its advice to trust the file."""
    if "allow_pickle" in str(error) or "pickle" in str(error).lower():
        return "it is no file of plain arrays (pickled objects are never loaded)"
    return " ".join(str(error).split())


def quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def as_feed(item: Any, specs: Sequence[InputSpec], label: str, *, finite: bool = True) -> Feed:
    """One item of a source as a feed that fits the inputs.

    item: arrays by name, a tuple or list of them in input order, or the one array itself; without
        the batch dimension where the model's is dynamic or 1.
    finite: whether to look for NaN and Inf.

    Raises DataError, which starts with `label`.
    """
    if isinstance(item, Mapping):
        unknown = sorted(set(item) - {spec.name for spec in specs})
        missing = sorted({spec.name for spec in specs} - set(item))
        if unknown or missing:
            raise DataError(
                f"{label}: the model's inputs are {quoted(spec.name for spec in specs)}; "
                + (f"unknown: {quoted(unknown)}; " if unknown else "")
                + (f"missing: {quoted(missing)}" if missing else "")
            )
        parts = {spec.name: item[spec.name] for spec in specs}
    elif isinstance(item, tuple | list):
        if len(item) != len(specs):
            raise DataError(f"{label}: {len(item)} arrays for {len(specs)} inputs")
        parts = {spec.name: x for spec, x in zip(specs, item, strict=True)}
    elif len(specs) == 1:
        parts = {specs[0].name: item}
    else:
        raise DataError(
            f"{label}: one array, but the model has the inputs {quoted(s.name for s in specs)}"
        )
    arrays = {name: _as_array(part, f"{label}: input {name!r}") for name, part in parts.items()}
    for spec in specs:
        array, shape = arrays[spec.name], spec.shape
        if shape and array.ndim == len(shape) - 1 and shape[0] in (None, 1):
            arrays[spec.name] = array[None]
    return checked(arrays, specs, label, finite=finite)


def _as_array(part: Any, where: str) -> Array:
    try:
        return np.asarray(part)
    except Exception as error:
        # numpy asks the object itself (__array__), which may raise anything, as a CUDA tensor does
        raise DataError(f"{where} cannot be made an array ({cause_of(error)})") from error


def checked(
    feed: dict[str, Array], specs: Sequence[InputSpec], label: str, *, finite: bool = True
) -> Feed:
    """The feed itself. Raises DataError for a wrong dtype or shape and for NaN or Inf."""
    for spec in specs:
        array = feed[spec.name]
        where = f"{label}: input {spec.name!r}"
        if spec.dtype.kind == "O" and array.dtype.kind == "U":
            array = feed[spec.name] = array.astype(object)  # strings, as onnxruntime wants them
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
    if finite:
        check_finite(feed, label)
    return feed


def check_finite(feed: Feed, label: str) -> None:
    for name, array in feed.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(
                f"{label}: input {name!r} holds NaN or Inf: remove or repair this sample"
            )


def is_single(feed: Feed, specs: Sequence[InputSpec]) -> bool:
    """Whether a feed is one sample: not several along a batch dimension that all inputs share.

    Where all inputs are of rank 1 (token ids, a signal), that dimension is no batch.
    """
    if all(spec.shape is not None and len(spec.shape) <= 1 for spec in specs):
        return True
    sizes = {feed[spec.name].shape[0] if spec.batched else 1 for spec in specs}
    return sizes == {1} or len(sizes) > 1 or not all(spec.batched for spec in specs)


def split(feed: Feed, specs: Sequence[InputSpec]) -> Iterator[Feed]:
    """The samples of a batch."""
    if is_single(feed, specs):
        yield feed
        return
    for i in range(len(feed[specs[0].name])):
        yield {name: array[i : i + 1] for name, array in feed.items()}
