"""Running models in onnxruntime: the one place that makes sessions and reads its errors."""

from __future__ import annotations

import contextlib
import ctypes
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxq.errors import one_line
from onnxq.model import initializers, shape_of
from onnxq.qtypes import Array

__all__ = [
    "ORT_ERRORS",
    "PROTOBUF_LIMIT",
    "Feed",
    "RuntimeFailureError",
    "attach",
    "attached",
    "detached",
    "foreign_ops",
    "model_size",
    "one_line",
    "run",
    "run_in_place",
    "run_once",
    "serialized",
    "session",
    "view",
]

Feed = Mapping[str, Array]

# A protobuf message ends at 2 GiB; the rest is for the graph around the weights
PROTOBUF_LIMIT = (1 << 31) - (64 << 20)
# Initializers smaller than this stay in the model file when the others go beside it
INLINE = 1024
# Domains of operators that come with onnxruntime; others need a library to be registered
BUILT_IN = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "com.microsoft")


class RuntimeFailureError(Exception):
    """onnxruntime refused a model or a run; the message is its own, in one line."""


def foreign_ops(model: ir.Model) -> list[str]:
    """`domain:op_type` of all nodes that are neither standard nor a function of the model."""
    own = {(function.domain, function.name) for function in model.functions.values()}
    return sorted(
        {
            f"{node.domain}:{node.op_type}"
            for node in ir.traversal.RecursiveGraphIterator(model.graph)
            if node.domain not in BUILT_IN and (node.domain, node.op_type) not in own
        }
    )


def model_size(model: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


@contextlib.contextmanager
def session(
    model: ir.Model | Path | bytes, options: ort.SessionOptions | None = None
) -> Iterator[ort.InferenceSession]:
    """A CPU session of a model in memory or in a file.

    A model above 2 GB in memory is written to a temporary directory for as long as it is needed.
    Raises RuntimeFailureError if onnxruntime cannot load it.
    """
    options = options or ort.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions; warnings are about our own probes
    with contextlib.ExitStack() as stack:
        source: str | bytes
        if isinstance(model, Path):
            source = str(model)
        elif isinstance(model, bytes):
            source = model
        elif model_size(model) < PROTOBUF_LIMIT:
            source = serialized(model)
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="onnxq-"))
            source = str(Path(folder) / "model.onnx")
            ir.save(model, source, external_data="weights.data", size_threshold_bytes=INLINE)
        try:
            active = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except ORT_ERRORS as error:
            reason = one_line(error)
            if isinstance(source, str):  # often temporary: then its name says nothing to anybody
                reason = reason.replace(f"Load model from {source} failed:", "")
            raise RuntimeFailureError(reason) from error
        yield active


def serialized(model: ir.Model) -> bytes:
    """The model as one protobuf, external data included."""
    external = [
        value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    ]
    kept = [value.const_value for value in external]
    for value in external:
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    try:
        return bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    finally:
        for value, tensor in zip(external, kept, strict=True):
            value.const_value = tensor


def detached(model: ir.Model) -> tuple[bytes, dict[str, Array]]:
    """The model as a protobuf without its weights, and the weights by name.

    onnxruntime takes both as they are (`attach`): nothing is copied into a message and parsed out
    of it, and a model may be larger than a message. The model itself is changed.
    """
    weights: dict[str, Array] = {}
    for value in initializers(model):
        tensor = value.const_value
        if tensor is None or tensor.nbytes < INLINE or tensor.dtype.numpy().kind not in "fiub":
            continue
        name = value.name or ""
        weights[name] = _values(tensor)
        value.const_value = ir.ExternalTensor(
            "weights", 0, tensor.nbytes, tensor.dtype, shape=shape_of(tensor), name=name
        )
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True)), weights


def attached(content: bytes, weights: Mapping[str, Array]) -> ir.Model:
    """The inverse of `detached`."""
    model = ir.from_proto(onnx.ModelProto.FromString(content))
    for value in initializers(model):
        name = value.name or ""
        if name in weights:
            value.const_value = ir.tensor(weights[name], name=name)
    return model


def _values(tensor: ir.TensorProtocol) -> Array:
    """The values; those in a file in a mapping of their own, as others may release the tensor's."""
    if not isinstance(tensor, ir.ExternalTensor):
        return np.ascontiguousarray(tensor.numpy())
    content = np.memmap(tensor.path, np.uint8, "r", tensor.offset or 0, (tensor.nbytes,))
    values = content.view(tensor.dtype.numpy()).reshape(tensor.shape.numpy())
    return np.require(values, requirements=["C", "A"])


def attach(options: ort.SessionOptions, weights: Mapping[str, Array]) -> object:
    """Give a session of a detached model its weights. What is returned has to outlive it."""
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), values)
    return values


def run(
    active: ort.InferenceSession, feed: Feed, outputs: Sequence[str] | None = None
) -> list[Array]:
    """One run. Raises RuntimeFailureError with onnxruntime's reason."""
    try:
        if any(array.dtype.kind == "V" for array in feed.values()):
            # bfloat16 and the like, for which onnxruntime has to be told the type
            values = {name: _ort_value(array) for name, array in feed.items()}
            return [x.numpy() for x in active.run_with_ort_values(outputs, values)]
        return [np.asarray(x) for x in active.run(outputs, dict(feed))]
    except ORT_ERRORS as error:
        raise RuntimeFailureError(one_line(error)) from error


def run_in_place(
    active: ort.InferenceSession, feed: Feed, outputs: Sequence[str]
) -> list[ort.OrtValue]:
    """One run whose results stay where onnxruntime left them; `view` reads them without a copy.

    Raises RuntimeFailureError with onnxruntime's reason.
    """
    try:
        values = {name: _ort_value(array) for name, array in feed.items()}
        return list(active.run_with_ort_values(outputs, values))
    except ORT_ERRORS as error:
        raise RuntimeFailureError(one_line(error)) from error


def view(value: ort.OrtValue) -> Array:
    """The values of a tensor in memory, which must not outlive it; a copy unless it is float32."""
    shape = tuple(value.shape())
    size = math.prod(shape)
    if value.data_type() != "tensor(float)" or size == 0:
        return np.asarray(value.numpy())
    content = (ctypes.c_float * size).from_address(value.data_ptr())
    return np.frombuffer(content, np.float32).reshape(shape)


def _ort_value(array: Array) -> ort.OrtValue:
    if array.dtype.kind != "V":
        return ort.OrtValue.ortvalue_from_numpy(array)
    kind = int(ir.DataType.from_numpy(array.dtype))
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, kind)


def run_once(model: ir.Model) -> list[Array]:
    """Outputs of a model without inputs, run with optimizations off (it runs only once)."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with session(model, options) as active:
        return run(active, {})


_STATE = ort.capi.onnxruntime_pybind11_state
ORT_ERRORS: tuple[type[Exception], ...] = (
    _STATE.Fail,
    _STATE.InvalidArgument,
    _STATE.InvalidGraph,
    _STATE.InvalidProtobuf,
    _STATE.NoModel,
    _STATE.NoSuchFile,
    _STATE.NotImplemented,
    _STATE.RuntimeException,
    _STATE.EPFail,
    RuntimeError,
    ValueError,
)
