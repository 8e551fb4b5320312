"""Rescaling: channels of a tensor divided by s where they are made, multiplied where they are read.

    source (W1 / s, b1 / s)  ->  ops with f(x / s) = f(x) / s  ->  readers (W2 * s)

The float network stays what it was, up to the rounding of float32; the ranges of the tensors in
between and the spread of the weights do not. Where that can be done is a `Link`: all readers of the
channels must be weighted nodes, and each constant that changes must be read in one place only.

    source   Conv, Gemm or MatMul with a constant weight, LayerNormalization, or Mul by a constant
             of a number a channel; or several Convs whose channels a Concat puts together
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
    """A constant whose slices along `axis` are scaled; `repeat` slices in a row by one factor.

    first, count: which channels of a link they are; None for all.
    """

    tensor: str
    axis: int
    repeat: int = 1
    first: int = 0
    count: int | None = None

    @property
    def channels(self) -> slice:
        """Of the link."""
        return slice(self.first, None if self.count is None else self.first + self.count)

    def factors(self, scale: Float64Array, rank: int) -> Float64Array:
        """The factor of each slice, shaped to broadcast over a constant of that rank."""
        shape = [1] * rank
        shape[self.axis] = -1
        return scale[self.channels].repeat(self.repeat).reshape(shape)

    def maxima(self, array: Array) -> Float64Array:
        """The largest magnitude of each channel in the constant."""
        slices = np.abs(np.moveaxis(array, self.axis, 0))
        return np.asarray(slices.reshape(len(slices) // self.repeat, -1).max(axis=1), np.float64)


@dataclass(frozen=True)
class Link:
    """Where `channels` channels can be rescaled.

    sources: names of the nodes that make them. made: their weights, in the order of the channels.
    divided, multiplied: constants by s, the former with those weights among them.
    readers: names of the weighted nodes. read, axis: what the first of them reads, and where its
        channels are (a negative index). tensors: all tensors that change. axes: where each of them
        has the channels; none if it has some of them only.
    """

    sources: tuple[str, ...]
    channels: int
    made: tuple[Scaled, ...]
    divided: tuple[Scaled, ...]
    multiplied: tuple[Scaled, ...]
    readers: tuple[str, ...]
    read: str
    axis: int
    tensors: tuple[str, ...]
    axes: tuple[tuple[int, ...], ...]


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
    found = [m.maxima(values_of(prepared, m.tensor)) for m in link.multiplied]
    return np.asarray(np.max(found, axis=0))


@dataclass(frozen=True)
class _Made:
    """Channels that are about to be followed.

    divided: with the weight first. axis: where they are in the output. tensors: on the way to it.
    """

    sources: tuple[str, ...]
    channels: int
    made: tuple[Scaled, ...]
    divided: tuple[Scaled, ...]
    axis: int
    tensors: tuple[str, ...] = ()


def _link(node: ir.Node) -> Link | None:
    made = _put_together(node) if node.op_type == "Concat" else _made(node)
    if made is None:
        return None
    trace = _Trace(made.channels, list(made.divided), tensors=dict.fromkeys(made.tensors, ()))
    if not trace.follow(node.outputs[0], (made.axis,)) or not trace.readers:
        return None
    changed = [*trace.divided, *trace.multiplied]
    if len({s.tensor for s in changed}) < len(changed):
        return None
    return Link(
        made.sources,
        made.channels,
        made.made,
        tuple(trace.divided),
        tuple(trace.multiplied),
        tuple(trace.readers),
        trace.read[0],
        trace.read[1],
        tuple(trace.tensors),
        tuple(trace.tensors.values()),
    )


def _made(node: ir.Node) -> _Made | None:
    found = _made_by(node)
    if found is None:
        return None
    channels, divided, axis = found
    return _Made((node.name or "",), channels, divided[:1], divided, axis)


def _put_together(concat: ir.Node) -> _Made | None:
    """The channels of all parts of a Concat, if nothing else reads them on their way to it."""
    rank = len(concat.outputs[0].shape or ())
    axis = concat.attributes.get_int("axis", 0)
    axis = axis - rank if axis >= 0 else axis
    parts: list[_Made] = []
    tensors: list[str] = []
    for value in concat.inputs:
        if value is None:
            return None
        node = value.producer()
        while node is not None and len(value.uses()) == 1 and not value.is_graph_output():
            tensors.append(value.name or "")
            if node.op_type not in HOMOGENEOUS or node.domain or node.inputs[0] is None:
                break
            value = node.inputs[0]
            node = value.producer()
        made = None if node is None or (value.name or "") not in tensors else _made(node)
        if made is None or node is None or node.domain or node.op_type != "Conv":
            return None
        if made.axis != axis:
            return None
        parts.append(made)
    channels = sum(part.channels for part in parts)
    made_of, divided, first = [], [], 0
    for part in parts:
        for scaled in part.divided:
            placed = dataclasses.replace(scaled, first=first, count=part.channels)
            divided.append(placed)
            if scaled in part.made:
                made_of.append(placed)
        first += part.channels
    sources = tuple(name for part in parts for name in part.sources)
    return _Made(sources, channels, tuple(made_of), tuple(divided), axis, tuple(tensors))


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
    heads times width. tensors: with these axes.
    """

    channels: int
    divided: list[Scaled]
    multiplied: list[Scaled] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    read: tuple[str, int] = ("", -1)

    def follow(self, value: ir.Value, axes: tuple[int, ...]) -> bool:
        """Whether all that reads the value is a weighted node, or leads to such only."""
        self.tensors[value.name or ""] = axes
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
