"""A model that takes and gives float values, whatever types its own inputs and outputs have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxq.qtypes import Array
from onnxq.runtime import Feed, run, session
from onnxq.session import IntegerValue, integer_io_of, metadata_of, needed_options

__all__ = ["Runner", "open_runner"]

FLOAT_TYPES = ("tensor(float)", "tensor(double)", "tensor(float16)")


class Runner:
    """A session, and how its integer inputs and outputs stand for float ones."""

    def __init__(self, active: ort.InferenceSession, integers: Mapping[str, IntegerValue]) -> None:
        self.active, self._integers = active, integers
        self.inputs = [value.name for value in active.get_inputs()]
        self.outputs = [value.name for value in active.get_outputs()]
        # those that can be compared; sequences cannot, nor can numpy hold every type of integer
        self.float_outputs = [
            value.name
            for value in active.get_outputs()
            if value.type in FLOAT_TYPES or value.name in integers
        ]

    def __call__(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """One run on float values. Raises RuntimeFailureError with onnxruntime's reason."""
        names = self.outputs if outputs is None else list(outputs)
        results = run(self.active, {n: self._given(n, x) for n, x in feed.items()}, names)
        return {n: self._taken(n, y) for n, y in zip(names, results, strict=True)}

    def _given(self, name: str, x: Array) -> Array:
        value = self._integers.get(name)
        if value is None or x.dtype.kind != "f":
            return x
        info = np.iinfo(value.dtype)
        q = np.rint(x / np.float32(value.scale)) + value.zero_point
        return np.asarray(np.clip(q, info.min, info.max), value.dtype)

    def _taken(self, name: str, y: Array) -> Array:
        value = self._integers.get(name)
        if value is None or y.dtype.kind == "f":
            return y
        return np.asarray((y.astype(np.float32) - value.zero_point) * np.float32(value.scale))


@contextlib.contextmanager
def open_runner(model: ir.Model | Path | bytes, *, threads: int | None = None) -> Iterator[Runner]:
    """A CPU session with the options that a file of onnxq's needs, optimizations on.

    Raises RuntimeFailureError if onnxruntime cannot load the model.
    """
    metadata = _metadata(model)
    settings = ort.SessionOptions()
    if threads is not None:
        settings.intra_op_num_threads = threads
    for key, value in needed_options(metadata).items():
        settings.add_session_config_entry(key, value)
    with session(model, settings) as active:
        yield Runner(active, integer_io_of(metadata))


def _metadata(model: ir.Model | Path | bytes) -> dict[str, object]:
    if isinstance(model, ir.Model):
        return metadata_of(model.metadata_props)
    if isinstance(model, bytes):
        proto = onnx.load_from_string(model)
    else:
        proto = onnx.load(str(model), load_external_data=False)
    return metadata_of({entry.key: entry.value for entry in proto.metadata_props})
