"""Rescaling: channels of a tensor divided by s where they are made, multiplied where they are read.

    source (W1 / s, b1 / s)  ->  ops with f(x / s) = f(x) / s  ->  readers (W2 * s)

The float network stays what it was, up to the rounding of float32; the ranges of the tensors in
between and the spread of the weights do not. Where that can be done is a `Link`: all readers of the
channels must be weighted nodes, and each constant that changes must be read in one place only.

    source   Conv, Gemm or MatMul with a constant weight, LayerNormalization, or Mul by a constant
             of a number a channel
    between  Relu, LeakyRelu, PRelu, pools, products with constants, Add of a constant (divided
             too), and what moves channels as wholes: Reshape, Transpose, Flatten, and a MatMul with
             attention weights on its left. Not Clip: its bounds do not scale with a channel.
    readers  Conv (depthwise too), Gemm, MatMul
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxq.model import constant
from onnxq.optable import gemm_output_axis
from onnxq.prepare import Prepared
from onnxq.qtypes import Array, Float64Array

__all__ = ["Link", "Scaled", "links", "rescaled", "values_of", "weight_maxima"]

HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "Identity", "Dropout"})
POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})


@dataclass(frozen=True)
class Scaled:
    """A constant whose slices along `axis` are scaled; `repeat` slices in a row by one factor."""

    tensor: str
    axis: int
    repeat: int = 1

    def factors(self, scale: Float64Array, rank: int) -> Float64Array:
        """The factor of each slice, shaped to broadcast over a constant of that rank."""
        shape = [1] * rank
        shape[self.axis] = -1
        return scale.repeat(self.repeat).reshape(shape)


@dataclass(frozen=True)
class Link:
    """Where `channels` channels can be rescaled.

    source: name of the node that makes them. divided, multiplied: constants by s.
    readers: names of the weighted nodes. read, axis: what the first of them reads, and where its
        channels are (a negative index). tensors: all tensors that change.
    """

    source: str
    channels: int
    divided: tuple[Scaled, ...]
    multiplied: tuple[Scaled, ...]
    readers: tuple[str, ...]
    read: str
    axis: int
    tensors: tuple[str, ...]


def links(prepared: Prepared) -> list[Link]:
    """All links of the main graph, in its order; no tensor is in two of them."""
    found: list[Link] = []
    taken: set[str] = set()
    for node in prepared.ir.graph:
        if node.domain or not node.outputs or (node.outputs[0].name or "") in taken:
            continue
        link = _link(node)
        if link is not None:
            found.append(link)
            taken.update(link.tensors)
    return found


def rescaled(prepared: Prepared, scales: Mapping[Link, Float64Array]) -> Prepared:
    """A clone with the channels of each link divided by s. [channels], all positive."""
    factors: dict[str, list[tuple[Scaled, Float64Array]]] = {}
    for link, s in scales.items():
        for scaled, by in [(d, 1.0 / s) for d in link.divided] + [(m, s) for m in link.multiplied]:
            factors.setdefault(scaled.tensor, []).append((scaled, by))
    model = prepared.ir.clone()
    for name, changes in factors.items():
        value = model.graph.initializers[name]
        tensor = constant(value)
        assert tensor is not None
        array = tensor.numpy().astype(np.float64)
        for scaled, by in changes:  # a depthwise weight is read in one link, and made in another
            array = array * scaled.factors(by, array.ndim)
        value.const_value = ir.tensor(array.astype(np.float32), name=name)
    return dataclasses.replace(prepared, ir=model)


def values_of(prepared: Prepared, name: str) -> Array:
    """Of a constant."""
    tensor = constant(prepared.ir.graph.initializers[name])
    assert tensor is not None
    return tensor.numpy()


def weight_maxima(prepared: Prepared, link: Link) -> Float64Array:
    """The largest magnitude by which the readers weigh each channel."""
    found = np.zeros(link.channels)
    for scaled in link.multiplied:
        array = np.moveaxis(values_of(prepared, scaled.tensor), scaled.axis, 0)
        rows = np.abs(array.reshape(link.channels, -1)).max(axis=1)
        found = np.maximum(found, rows)
    return found


def _link(node: ir.Node) -> Link | None:
    made = _made_by(node)
    if made is None:
        return None
    channels, divided, axis = made
    trace = _Trace(channels, list(divided))
    if not trace.follow(node.outputs[0], (axis,)) or not trace.readers:
        return None
    changed = [*trace.divided, *trace.multiplied]
    if len({s.tensor for s in changed}) < len(changed):
        return None
    return Link(
        node.name or "",
        channels,
        tuple(trace.divided),
        tuple(trace.multiplied),
        tuple(trace.readers),
        trace.read[0],
        trace.read[1],
        tuple(trace.tensors),
    )


def _made_by(node: ir.Node) -> tuple[int, tuple[Scaled, ...], int] | None:
    """Number of channels, what to divide, and the axis of the output where they are."""
    weight = _own(node, 1)
    if node.op_type == "Mul":
        return _made_by_product(node)
    if weight is None:
        return None
    rank = len(weight[1])
    if node.op_type == "Conv":
        at, axis, biased = 0, 1 - rank, 2
    elif node.op_type == "Gemm" and rank == 2:
        at, axis, biased = gemm_output_axis(node), -1, 2
    elif node.op_type == "MatMul" and rank == 2:
        at, axis, biased = 1, -1, -1
    elif node.op_type == "LayerNormalization" and rank == 1:
        at, axis, biased = 0, -1, 2
    else:
        return None
    channels, divided = weight[1][at], [Scaled(weight[0], at)]
    if 0 <= biased < len(node.inputs) and node.inputs[biased] is not None:
        bias = _own(node, biased)
        if bias is None or not _is_vector(bias[1], channels):
            return None
        divided.append(Scaled(bias[0], len(bias[1]) - 1))
    return channels, tuple(divided), axis


def _made_by_product(node: ir.Node) -> tuple[int, tuple[Scaled, ...], int] | None:
    for i in (0, 1):
        found = _own(node, i)
        if found is not None and found[1] and _is_vector(found[1], found[1][-1]):
            channels = found[1][-1]
            return (channels, (Scaled(found[0], len(found[1]) - 1),), -1) if channels > 1 else None
    return None


def _own(node: ir.Node, index: int) -> tuple[str, tuple[int, ...]] | None:
    """Name and shape of a float32 constant that only this input reads."""
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = constant(value)
    if value is None or tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    if len(value.uses()) != 1 or value.is_graph_output():
        return None
    return value.name or "", tuple(tensor.shape.numpy())


def _is_vector(shape: Sequence[int], channels: int) -> bool:
    """A number for each index of the last axis."""
    return bool(shape) and shape[-1] == channels and int(np.prod(shape)) == channels


@dataclass
class _Trace:
    """Follows channels from their source to their readers.

    Where they are in a tensor is told by its axes, counted from the end: (-1,), or (-2, -1) for
    heads times width.
    """

    channels: int
    divided: list[Scaled]
    multiplied: list[Scaled] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)
    read: tuple[str, int] = ("", -1)

    def follow(self, value: ir.Value, axes: tuple[int, ...]) -> bool:
        """Whether all that reads the value is a weighted node, or leads to such only."""
        self.tensors.append(value.name or "")
        if value.is_graph_output() or not value.uses():
            return False
        return all(self._through(node, index, value, axes) for node, index in value.uses())

    def _through(self, node: ir.Node, index: int, value: ir.Value, axes: tuple[int, ...]) -> bool:
        if node.domain:
            return False
        if node.op_type in ("Conv", "Gemm", "MatMul") and constant(node.inputs[1]) is not None:
            return index == 0 and self._reads(node, value, axes)
        behind = self._behind(node, index, axes)
        return behind is not None and self.follow(node.outputs[0], behind)

    def _reads(self, node: ir.Node, value: ir.Value, axes: tuple[int, ...]) -> bool:
        weight = _own(node, 1)
        if weight is None or len(axes) != 1:
            return False
        name, shape = weight
        if node.op_type == "Conv":
            if axes[0] != 1 - len(shape):
                return False
            group = node.attributes.get_int("group", 1)
            if group == 1 and shape[1] == self.channels:
                scaled = Scaled(name, 1)
            elif group == self.channels and shape[0] % group == 0:
                scaled = Scaled(name, 0, shape[0] // group)
            else:
                return False
        else:
            if axes != (-1,) or len(shape) != 2 or node.attributes.get_int("transA", 0) != 0:
                return False
            at = 1 - gemm_output_axis(node) if node.op_type == "Gemm" else 0
            if shape[at] != self.channels:
                return False
            scaled = Scaled(name, at)
        self.multiplied.append(scaled)
        self.read = self.read if self.readers else (value.name or "", axes[0])
        self.readers.append(node.name or "")
        return True

    def _behind(self, node: ir.Node, index: int, axes: tuple[int, ...]) -> tuple[int, ...] | None:
        """Where the channels are in the output of a node, None if it does not keep them apart."""
        op = node.op_type
        if op in HOMOGENEOUS or (op == "PRelu" and constant(node.inputs[1]) is not None):
            return axes if index == 0 else None
        if op in POOLS:
            spatial = len(axes) == 1 and axes[0] <= -2 and len(node.outputs) == 1
            return axes if spatial else None
        if op == "Mul" or (op == "Div" and index == 0):
            other = constant(node.inputs[1 - index])
            return axes if other is not None and self._keeps_shape(other, axes) else None
        if op == "Add":
            return axes if self._adds(node, index, axes) else None
        if op == "MatMul" and index == 1 and -2 not in axes:  # attention weights times values
            return axes
        return self._moved(node, index, axes)

    def _keeps_shape(self, other: ir.TensorProtocol, axes: tuple[int, ...]) -> bool:
        shape = tuple(other.shape.numpy())
        return int(np.prod(shape)) == 1 or (axes == (-1,) and _is_vector(shape, self.channels))

    def _adds(self, node: ir.Node, index: int, axes: tuple[int, ...]) -> bool:
        other = _own(node, 1 - index)
        if other is None or axes != (-1,) or not _is_vector(other[1], self.channels):
            return False
        self.divided.append(Scaled(other[0], len(other[1]) - 1))
        return True

    def _moved(self, node: ir.Node, index: int, axes: tuple[int, ...]) -> tuple[int, ...] | None:
        if index != 0:
            return None
        if node.op_type == "Transpose":
            perm = node.attributes.get_ints("perm", [])
            return tuple(perm.index(a + len(perm)) - len(perm) for a in axes) if perm else None
        if node.op_type == "Flatten":
            # the reader's number of inputs tells whether the channels were 1x1
            return (-1,) if node.attributes.get_int("axis", 1) == 1 and len(axes) == 1 else None
        if node.op_type != "Reshape" or axes not in ((-1,), (-2, -1)):
            return None
        dims = _last_dims(node)
        if dims[-1:] == [self.channels]:
            return (-1,)
        return (-2, -1) if int(np.prod(dims)) == self.channels and len(dims) == 2 else None


def _last_dims(node: ir.Node) -> list[int]:
    """The last two dimensions of a Reshape's output, as far as they are known; -1 if not."""
    shape = node.outputs[0].shape
    if shape is not None:
        return [d if isinstance(d, int) else -1 for d in shape][-2:]
    target = constant(node.inputs[1])
    return [] if target is None else [int(d) for d in target.numpy()][-2:]
