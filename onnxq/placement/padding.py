"""Static mode: the Convs whose input gets more channels, of zeros, for the sake of speed.

onnxruntime's int8 Conv is slow on images of three channels, and fast on four. Zero channels in the
weight and, behind the QuantizeLinear, in the input leave every sum as it is, and so every bit of
the output. Time of Pad and Conv over that of the Conv alone (AVX512-VNNI, 2 cores, 28 to 224
squared pixels):

channels  outputs    kernel 2, 3     5               7
3 -> 4    8, 12      0.98 to 1.13
3 -> 4    16         0.63 to 0.74    0.93, 0.94      1.06
3 -> 4    24 to 64   0.43 to 0.90    0.61 to 0.78    0.83, 0.99
2 -> 4    8, 12      1.03 to 1.24
2 -> 4    16 to 64   0.48 to 1.00    0.71 to 1.03    0.93 to 1.26
1 -> 4    8 to 16    0.66 to 1.23    0.99, 1.14      1.20
1 -> 4    24 to 64   0.42 to 0.74    0.72 to 0.88    1.01 to 1.28

Padded are the quantized Convs for which the target has a row (`Target.paddings`)

1. of two spatial dimensions and one group, with a kernel larger than 1 x 1,
2. whose input comes channels first: it is the graph's, as it is or after arithmetic with constants.
   onnxruntime has channels last behind its int8 kernels, and moves a Transpose of the input past
   what follows it; to pad these costs more than it saves (1.06 to 1.14, and 1.76),
3. whose output has LEAST elements, if its size is known (less takes no time either way), and
4. whose weight is read as integers by such Convs alone.

The guard against saturation counts with the zeros: they are part of the pairs (saturation.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping

import onnx_ir as ir

from onnxq.model import constant
from onnxq.plans import ActivationPlacement, Placement, Use, WeightPlacement
from onnxq.targets import Padding

__all__ = ["padding_notes", "with_padding"]

ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Cast")
# Elements of a Conv's output, for one sample
LEAST = 4096
# Nodes that the note names
NAMED = 4


def with_padding(
    weights: Iterable[WeightPlacement],
    graph: ir.Graph,
    activations: Iterable[ActivationPlacement],
    paddings: Collection[Padding],
) -> tuple[WeightPlacement, ...]:
    """The weights, with zeros where that saves time."""
    nodes = {node.name or "": node for node in graph}
    read = {use for activation in activations for use in activation.uses}
    return tuple(
        dataclasses.replace(weight, padding=_padding(weight, nodes, read, paddings))
        for weight in weights
    )


def _padding(
    weight: WeightPlacement,
    nodes: Mapping[str, ir.Node],
    read: Collection[Use],
    paddings: Collection[Padding],
) -> int:
    """How many channels the weight gets. read: where quantized activations are."""
    for use in weight.uses:
        if use.index != 1 or Use(use.node, 0) not in read or not _gains(nodes[use.node]):
            return 0
    tensor = constant(nodes[weight.uses[0].node].inputs[1])
    if tensor is None or tensor.shape.rank() != 4:
        return 0
    outputs, channels, *kernel = tensor.shape.numpy()
    positions = math.prod(kernel)
    fitting = (
        p.to - channels
        for p in paddings
        if p.channels == channels and outputs >= p.outputs and 1 < positions <= p.positions
    )
    return next(fitting, 0)


def _gains(node: ir.Node) -> bool:
    """Conditions 1 to 3, but for the weight's."""
    if node.op_type != "Conv" or node.attributes.get_int("group", 1) != 1:
        return False
    sizes = [d for d in list(node.outputs[0].shape or ())[1:] if isinstance(d, int)]
    if len(sizes) == 3 and math.prod(sizes) < LEAST:
        return False
    value = node.inputs[0]
    while value is not None and (producer := value.producer()) is not None:
        varying = [v for v in producer.inputs if v is not None and constant(v) is None]
        if producer.op_type not in ARITHMETIC or len(varying) != 1:
            return False
        value = varying[0]
    return True


def padding_notes(placement: Placement) -> list[str]:
    """What was padded, in a line."""
    found = [
        placement.labels.get(use.node, use.node)
        for weight in placement.weights
        if weight.padding
        for use in weight.uses
    ]
    if not found:
        return []
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return [
        f"padded with channels of zeros: the integers read by {', '.join(found[:NAMED])}{more}; "
        "the same results, in less time"
    ]
