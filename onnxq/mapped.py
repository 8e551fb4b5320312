"""Reading an ONNX file without its weights, which are mapped into memory where they lie.

protobuf copies every byte of a message, and once more whenever a weight is looked at. So the large
weights are cut out of the message before it is parsed. In the wire format they are

    ModelProto.graph (field 7) -> GraphProto.initializer (5) -> TensorProto.raw_data (9)

where every field is a tag (number * 8 + wire type) and, here, a length and so many bytes. A file
that is unusual in any way (more than one graph, other wire types, cut off) is read as a whole.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxq.wellformed import graph_of_proto

__all__ = ["GRAPH", "INITIALIZER", "RAW_DATA", "message_of", "model_of", "prefix"]

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5
# Weights below this stay in the message, and a file below the other is read as a whole
SMALL_WEIGHT, SMALL_FILE = 1 << 12, 1 << 20


class _UnusualError(Exception):
    """The bytes are not what is expected of an ONNX file."""


@dataclass(frozen=True)
class _Field:
    """at: of the tag. start, end: of the content."""

    number: int
    wire: int
    at: int
    start: int
    end: int


@dataclass(frozen=True)
class _Message:
    """weights: index of the initializer -> where its bytes are in the file."""

    content: mmap.mmap
    proto: onnx.ModelProto
    weights: dict[int, _Field]


def message_of(path: Path) -> onnx.ModelProto:
    """The model, its large weights left out. Raises DecodeError, OSError."""
    found = _read(path)
    if found is None:
        return onnx.load(str(path), format="protobuf", load_external_data=False)
    return found.proto


def model_of(path: Path, label: str) -> ir.Model:
    """The model as onnx-ir reads it. Raises ModelError, DecodeError, OSError."""
    found = _read(path)
    if found is None:
        proto = onnx.load(str(path), format="protobuf", load_external_data=False)
        return graph_of_proto(proto, label)
    initializers = found.proto.graph.initializer
    counted = Counter(tensor.name for tensor in initializers)
    arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}
    for index, raw in found.weights.items():
        tensor = initializers[index]
        count, rest = divmod(raw.end - raw.start, 4)
        shape = tuple(tensor.dims)
        plain = (
            tensor.data_type == onnx.TensorProto.FLOAT and not rest and min(shape, default=1) > 0
        )
        if plain and count == np.prod(shape, dtype=object) and counted[tensor.name] == 1:
            values = np.frombuffer(found.content, "<f4", count, raw.start)
            arrays[tensor.name] = values.reshape(shape)
        else:
            tensor.raw_data = found.content[raw.start : raw.end]
    model = graph_of_proto(found.proto, label)
    for name, array in arrays.items():
        value = model.graph.initializers[name]
        stub = value.const_value
        assert stub is not None
        value.const_value = ir.Tensor(
            array,
            dtype=ir.DataType.FLOAT,
            name=name,
            doc_string=stub.doc_string,
            metadata_props=dict(stub.metadata_props),
        )
    return model


def _read(path: Path) -> _Message | None:
    with open(path, "rb") as file:
        if file.seek(0, 2) < SMALL_FILE:
            return None
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    weights: dict[int, _Field] = {}
    try:
        rest = _without_weights(content, weights)
    except (_UnusualError, IndexError):
        return None
    return _Message(content, onnx.ModelProto.FromString(rest), weights)


def _without_weights(content: mmap.mmap, weights: dict[int, _Field]) -> bytes:
    """The message without the bytes of the large weights; where those are goes into `weights`."""
    parts: list[bytes] = []
    graphs = 0
    for field in _fields(content, 0, len(content)):
        if field.number != GRAPH:
            parts.append(content[field.at : field.end])
            continue
        graphs += 1
        if graphs > 1 or field.wire != BYTES:
            raise _UnusualError
        parts.append(_framed(GRAPH, _graph_without_weights(content, field, weights)))
    return b"".join(parts)


def _graph_without_weights(content: mmap.mmap, graph: _Field, weights: dict[int, _Field]) -> bytes:
    parts: list[bytes] = []
    copied, index = graph.start, -1
    for field in _fields(content, graph.start, graph.end):
        if field.number != INITIALIZER:
            continue
        index += 1
        if field.end - field.start < SMALL_WEIGHT:
            continue
        raw = [f for f in _fields(content, field.start, field.end) if f.number == RAW_DATA]
        if len(raw) != 1 or raw[0].wire != BYTES:
            continue
        weights[index] = raw[0]
        tensor = content[field.start : raw[0].at] + content[raw[0].end : field.end]
        parts += (content[copied : field.at], _framed(INITIALIZER, tensor))
        copied = field.end
    parts.append(content[copied : graph.end])
    return b"".join(parts)


def _fields(content: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    """Raises _UnusualError for what does not fill start..end exactly, or is not in use today."""
    at = start
    while at < end:
        tag, begin = _varint(content, at)
        wire = tag & 7
        if wire == BYTES:
            length, begin = _varint(content, begin)
            stop = begin + length
        elif wire == VARINT:
            _, stop = _varint(content, begin)
        elif wire in (EIGHT_BYTES, FOUR_BYTES):
            stop = begin + (8 if wire == EIGHT_BYTES else 4)
        else:
            raise _UnusualError
        if stop > end:
            raise _UnusualError
        yield _Field(tag >> 3, wire, at, begin, stop)
        at = stop


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    """A number, 7 bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def prefix(number: int, length: int) -> bytes:
    """What stands before the content of a field of bytes: its tag and its length."""
    head = bytearray([number << 3 | BYTES])
    while length >= 0x80:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head)


def _framed(number: int, content: bytes) -> bytes:
    return prefix(number, len(content)) + content
