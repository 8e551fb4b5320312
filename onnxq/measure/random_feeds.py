"""Something to run a model on when there is no data: random values in shapes that it accepts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxq.errors import DataError, OptionError
from onnxq.qtypes import Array
from onnxq.runtime import Feed, RuntimeFailureError, run

__all__ = ["candidates", "dimensions", "feeds_for"]

# For dynamic dimensions: of height and width, and of any other. The first that runs is taken
GUESSES = ((224, 64), (64, 16), (224, 16), (224, 1), (32, 1), (48, 192), (320, 80), (640, 8400))
IMAGE_RANK = 4
DTYPES: dict[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bool": np.dtype(np.bool_),
    **{name: np.dtype(name) for name in ("int8", "int16", "int32", "int64")},
    **{name: np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")},
}
BYTES = ("int8", "uint8")


def feeds_for(
    reference: ort.InferenceSession,
    other: ort.InferenceSession,
    *,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    data: Feed | None = None,
) -> tuple[Feed, Feed]:
    """A feed for each of two models that are one network, with the same shapes and seed.

    batch: the leading dimension where that is dynamic. shapes: of inputs by name. data: values of
    inputs by name, for `reference`; the rest is random. Where `other` takes 8-bit integers and
    `reference` takes float, it gets random integers.
    Raises OptionError for names that the model has not, a batch that it cannot take or inputs that
    differ, and DataError if it does not run.
    """
    shapes, data = shapes or {}, data or {}
    inputs = {value.name: value for value in reference.get_inputs()}
    for name in (*shapes, *data):
        if name not in inputs:
            raise OptionError(f"the model has no input {name!r}; it has {', '.join(inputs)}")
    if set(inputs) != {value.name for value in other.get_inputs()}:
        raise OptionError("the two models have different inputs: are they the same network?")
    free = [v for n, v in inputs.items() if n not in shapes and n not in data]
    if batch != 1 and free and not any(_is_dynamic(v.shape[:1]) for v in free):
        raise OptionError(f"a batch of {batch} does not fit: the model's inputs have a fixed one")
    tried = reason = ""
    for first in candidates(reference.get_inputs(), batch=batch, shapes=shapes, data=data):
        second = _feed(other.get_inputs(), {n: x.shape for n, x in first.items()}, first)
        try:
            run(reference, first)
            run(other, second)
        except RuntimeFailureError as error:
            reason = reason or str(error)
            tried = tried or ", ".join(f"{n} {dimensions(x)}" for n, x in first.items())
            continue
        return first, second
    raise DataError(
        f"the model does not run on random values ({tried}): {reason}; give their shape with "
        "--shape name=1x3x224x224, or real ones with --data"
    )


def candidates(
    inputs: Sequence[ort.NodeArg],
    *,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    data: Feed | None = None,
) -> Iterator[dict[str, Array]]:
    """Feeds to try, from the likeliest shapes on. Arguments as in `feeds_for`.

    Raises OptionError for a name that is no input.
    """
    shapes, data = shapes or {}, data or {}
    known = [value.name for value in inputs]
    for name in (*shapes, *data):
        if name not in known:
            raise OptionError(f"the model has no input {name!r}; it has {', '.join(known)}")
    free = [v for v in inputs if v.name not in shapes and v.name not in data]
    for guessed in _guesses(free, batch):
        given = {**guessed, **{name: tuple(shape) for name, shape in shapes.items()}}
        yield _feed(inputs, given, data)


def dimensions(x: Array) -> str:
    """The shape as the options take it."""
    return "x".join(map(str, x.shape)) or "scalar"


def _is_dynamic(dims: Sequence[object]) -> bool:
    return any(not isinstance(d, int) or d <= 0 for d in dims)


def _guesses(inputs: Sequence[ort.NodeArg], batch: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """Shapes to try, by input name."""
    open_ended = any(_is_dynamic(value.shape[1:]) for value in inputs)
    for image, other in GUESSES if open_ended else GUESSES[:1]:
        known: dict[str, int] = {}  # dimensions of one name have one size
        for value in inputs:
            if value.shape and isinstance(value.shape[0], str):
                known[value.shape[0]] = batch
        shapes = {}
        for value in inputs:
            dims = []
            for i, dim in enumerate(value.shape):
                spatial = len(value.shape) == IMAGE_RANK and i >= IMAGE_RANK - 2
                size = batch if i == 0 else image if spatial else other
                if not _is_dynamic([dim]):
                    dims.append(int(dim))
                elif isinstance(dim, str) and dim:
                    dims.append(known.setdefault(dim, size))
                else:
                    dims.append(size)
            shapes[value.name] = tuple(dims)
        yield shapes


def _feed(
    inputs: Sequence[ort.NodeArg], shapes: Mapping[str, tuple[int, ...]], data: Feed
) -> dict[str, Array]:
    """`data` where its type fits, else random values of the input's own type."""
    rng = np.random.default_rng(0)
    feed = {}
    for value in inputs:
        kind = value.type.removeprefix("tensor(").removesuffix(")")
        dtype = DTYPES.get(kind)
        given = data.get(value.name)
        if dtype is None and given is None:
            raise DataError(f"input {value.name!r} is of type {value.type}; give it with --data")
        if given is not None and (dtype is None or given.dtype == dtype):
            feed[value.name] = given
        elif dtype is not None:
            shape = given.shape if given is not None else shapes[value.name]
            feed[value.name] = _random(rng, dtype, shape)
    return feed


def _random(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Normal floats; any bytes; of wider integers 0 and 1, which every table and mask takes."""
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape).astype(dtype))
    if dtype.name in BYTES:
        info = np.iinfo(dtype)
        return np.asarray(rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True))
    return np.asarray(rng.integers(0, 2, shape)).astype(dtype)
