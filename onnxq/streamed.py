"""Writing an ONNX file weight by weight, each from where it was calculated into the file.

protobuf would hold all weights twice, in the message and in its bytes. So the message is made
without the large ones, and they are framed by hand; `mapped.py`, which reads files in the same way,
says how they lie in the wire format. The graph is the last field of the file, its initializers are
the last of the graph, in their order.
"""

from __future__ import annotations

import hashlib
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from onnxq.mapped import GRAPH, INITIALIZER, RAW_DATA, prefix
from onnxq.model import initializers, shape_of
from onnxq.runtime import INLINE

__all__ = ["Content", "contents", "is_large", "write_message"]

# Tensors that are calculated while others are written
AHEAD = 2
LITTLE_ENDIAN = sys.byteorder == "little"


@dataclass(frozen=True)
class Content:
    """The bytes of a tensor as ONNX stores them, and their SHA-256 if it was asked for."""

    value: ir.Value
    tensor: ir.TensorProtocol
    data: bytes | memoryview
    digest: bytes


def is_large(tensor: ir.TensorProtocol | None) -> bool:
    """Whether it is written apart from the message."""
    return tensor is not None and tensor.nbytes >= INLINE and tensor.dtype != ir.DataType.STRING


def contents(values: Iterable[ir.Value], *, hashed: bool = False) -> Iterator[Content]:
    """Those of initializers, in order; the next are on their way."""
    pending: deque[Future[Content]] = deque()
    with ThreadPoolExecutor(AHEAD) as pool:
        for value in values:
            tensor = value.const_value
            assert tensor is not None
            pending.append(pool.submit(_content, value, tensor, hashed))
            if len(pending) > AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _content(value: ir.Value, tensor: ir.TensorProtocol, hashed: bool) -> Content:
    data: bytes | memoryview
    if isinstance(tensor, ir.LazyTensor) and tensor.dtype.bitwidth >= 8 and LITTLE_ENDIAN:
        array = np.ascontiguousarray(tensor.numpy())  # whose memory is written as it is
        data = array.reshape(-1).view(np.uint8).data
    else:
        data = tensor.tobytes()
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
    return Content(value, tensor, data, hashlib.sha256(data).digest() if hashed else b"")


def write_message(model: ir.Model, file: BinaryIO) -> None:
    """Write the whole model, below 2 GB, as one message; it parses to `ir.to_proto(model)`."""
    apart = {
        name: tensor
        for name, value in model.graph.initializers.items()
        if (tensor := value.const_value) is not None
        and (is_large(tensor) or isinstance(tensor, ir.ExternalTensor))
    }
    proto = _without(model, apart)
    heads = [_head(tensor, apart) for tensor in proto.graph.initializer]
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    file.write(proto.SerializeToString(deterministic=True))
    size = sum(len(prefix(INITIALIZER, head.size)) + head.size for head in heads)
    file.write(prefix(GRAPH, len(graph) + size))
    file.write(graph)
    calculated = contents(model.graph.initializers[name] for name in apart)
    for head in heads:
        file.write(prefix(INITIALIZER, head.size))
        file.write(head.content)
        if head.raw:
            data = next(calculated).data
            assert len(data) == head.raw
            file.write(data)


@dataclass(frozen=True)
class _Head:
    """content: of an initializer, without its raw data, of which there are `raw` bytes."""

    content: bytes
    raw: int

    @property
    def size(self) -> int:
        return len(self.content) + self.raw


def _without(model: ir.Model, apart: Mapping[str, ir.TensorProtocol]) -> onnx.ModelProto:
    """The message, with stubs for what is written apart; nothing in it lies in another file."""
    before = {value: value.const_value for value in initializers(model)}
    try:
        for value, tensor in before.items():
            name = value.name or ""
            if value.graph is model.graph and name in apart:
                value.const_value = _stub(name, apart[name])
            elif isinstance(tensor, ir.ExternalTensor):  # of the body of an If, Loop or Scan
                value.const_value = ir.tensor(tensor.numpy(), name=name)
        return ir.to_proto(model)
    finally:
        for value, tensor in before.items():
            value.const_value = tensor


def _stub(name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        "-",
        0,
        tensor.nbytes,
        tensor.dtype,
        shape=shape_of(tensor),
        name=name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _head(tensor: onnx.TensorProto, apart: Mapping[str, ir.TensorProtocol]) -> _Head:
    if tensor.name not in apart:
        return _Head(tensor.SerializeToString(deterministic=True), 0)
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    raw = apart[tensor.name].nbytes
    return _Head(tensor.SerializeToString(deterministic=True) + prefix(RAW_DATA, raw), raw)
