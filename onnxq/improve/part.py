"""`Part`: some nodes of an emulated network, which run as a model of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

from onnxq.plans import Plan
from onnxq.qtypes import Array

__all__ = ["Constant", "Part", "is_pointwise", "names_read", "tensor_info"]


@dataclass(frozen=True, eq=False)
class Constant:
    """What a plan decides: how it is got, of which type, and which tensor of a plan it is of."""

    make: Callable[[Plan], Array]
    dtype: int


@dataclass(eq=False)
class Part:
    """Some nodes of the network, in order.

    weighted: the quantized weighted node that it begins with; None only for the first part.
    reads, writes: tensors from earlier parts, and for later ones. live: all that this part and
        later ones need of earlier ones.
    constants: what the plan decides, by the name of the part's input.
    """

    weighted: ir.Node | None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    constants: dict[str, Constant] = field(default_factory=dict)
    live: frozenset[str] = frozenset()
    made: set[str] = field(default_factory=set)


def is_pointwise(node: ir.Node) -> bool:
    """A Conv that reads each position once, and no other: all means come through it."""
    weight = node.inputs[1]
    tensor = weight.const_value if weight is not None else None
    if tensor is None or node.attributes.get_int("group", 1) != 1:
        return False
    plain = node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    once = all(s == 1 for s in node.attributes.get_ints("strides", []))
    padded = any(p != 0 for p in node.attributes.get_ints("pads", []))
    return plain and once and not padded and all(d == 1 for d in tensor.shape.numpy()[2:])


def tensor_info(name: str, dtype: int) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, dtype, None)


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node reads, those that its bodies capture included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        inner = [attribute.g] if attribute.HasField("g") else []
        for body in (*inner, *attribute.graphs):
            own = {v.name for v in body.input} | {t.name for t in body.initializer}
            own |= {name for n in body.node for name in n.output}
            for inside in body.node:
                yield from (name for name in names_read(inside) if name not in own)
            yield from (v.name for v in body.output if v.name not in own)
