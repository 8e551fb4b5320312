"""Which islands of Convs would lose time in int8, by their sizes: these are left float.

A network whose activations have no int8 kernel (HardSwish, the gates of a squeeze-and-excitation)
falls into islands of one to three Convs, with a QuantizeLinear, a DequantizeLinear and a change of
layout around each, and where onnxruntime would have merged that activation into the float Conv, it
runs on its own. Small Convs do not gain that much. An island pays if

    sum over its Convs (gain)  >  sum over its borders (elements x conversion)

with, in ns for one element of a Conv's output, and K products summed for it,

    gain = K x product - element    Conv
    gain = -grouped                 depthwise Conv, whose int8 kernel is the slower one

The figures (`Target.costs`) were fitted to chains of Convs with 16 to 320 channels on 7 to 56
squared pixels, 1 x 1, 3 x 3 and depthwise. They decide by ratios: a faster processor changes both
sides alike, and a height and a width that are not known stand on both.

Where Convs have been left float by this, and the islands that remain hold less than a tenth of the
network's products, these are left float too: they cannot make good for what they cost.

Not judged, so never left float by this:

1. A model that is one island: there is nothing between its ends to convert for, and whoever asks
   for int8 wants it for its size, too. Where the sum says that it loses, `estimated_loss` does.
2. An island without a Conv: Gemm and MatMul give float for free, and have no layout to change.
3. A tensor or node of which the rank or the channels are not known.
4. A network of less than LEAST_PRODUCTS, which takes no time either way.
5. What a rule with `leave_float = false` asks for (see selection.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection

import onnx_ir as ir

from onnxq.measure.macs import Sizes, integer_share
from onnxq.placement.islands import Island, islands
from onnxq.plans import Placement
from onnxq.prepare import Prepared
from onnxq.selection import Choices
from onnxq.targets import Costs

__all__ = ["estimated_gain", "estimated_loss", "losing"]

REASON = (
    "int8 would cost time here: too few products for the QuantizeLinear and DequantizeLinear "
    "around it (a rule with leave_float = false quantizes it all the same)"
)
REST = "too small a part of the network to pay in int8, where the rest would cost time"
LEAST_SHARE = 0.1
LEAST_PRODUCTS = 100_000


def losing(
    prepared: Prepared,
    placement: Placement,
    choices: Choices,
    costs: Costs,
    refused: Collection[str] = (),
) -> dict[str, str]:
    """Node name -> reason, for the nodes of islands that would lose time.

    refused: nodes that were found to before, and are not in the placement.
    """
    found = islands(prepared, placement)
    if not found or (len(found) == 1 and not refused):
        return {}
    sizes = Sizes(prepared.ir)
    whole = integer_share(prepared.ir, (), sizes)
    if whole.total < LEAST_PRODUCTS and not whole.open:
        return {}
    free = [i for i in found if not any(choices.of(node).insisted for node in i.nodes)]
    if len(found) > 1:
        losers = [i for i in free if (gain := _gain(i, costs, sizes)) is not None and gain < 0]
        if losers:
            return {node.name or "": REASON for i in losers for node in i.nodes}
    names = {node.name or "" for island in found for node in island.nodes}
    if refused and (integer_share(prepared.ir, names, sizes).share or 0.0) < LEAST_SHARE:
        return {node.name or "": REST for island in free for node in island.nodes}
    return {}


def estimated_loss(
    prepared: Prepared, placement: Placement, costs: Costs, sizes: Sizes
) -> float | None:
    """Seconds that int8 takes longer than float, of a model that is one island; None if it gains.

    That is so of small networks with many depthwise Convs.
    """
    found = islands(prepared, placement)
    if len(found) != 1 or integer_share(prepared.ir, (), sizes).total < LEAST_PRODUCTS:
        return None
    gain = _gain(found[0], costs, sizes)
    return None if gain is None or gain >= 0 else -gain * 1e-9


def estimated_gain(
    prepared: Prepared, placement: Placement, costs: Costs, sizes: Sizes
) -> float | None:
    """Seconds that the Convs save in int8, all islands together; None if that is not known.

    Nothing where none is left in int8.
    """
    found = [i for i in islands(prepared, placement) if any(n.op_type == "Conv" for n in i.nodes)]
    gains = [_gain(island, costs, sizes) for island in found]
    if any(gain is None for gain in gains):
        return None
    return math.fsum(gain or 0.0 for gain in gains) * 1e-9


def _gain(island: Island, costs: Costs, sizes: Sizes) -> float | None:
    """ns that int8 saves; None if that is not to be judged."""
    convs = [node for node in island.nodes if node.op_type == "Conv"]
    if not convs:
        return None
    gains = [_conv_gain(node, costs, sizes) for node in convs]
    borders = [sizes.elements(value) for value in (*island.entering, *island.leaving)]
    if any(gain is None for gain in gains) or any(count is None for count in borders):
        return None
    converted = sum(count or 0 for count in borders)
    return math.fsum(gain or 0.0 for gain in gains) - costs.conversion * converted


def _conv_gain(node: ir.Node, costs: Costs, sizes: Sizes) -> float | None:
    weight, count = sizes.dims(node.inputs[1]), sizes.elements(node.outputs[0])
    if weight is None or count is None:
        return None
    products = math.prod(weight[1:])
    if node.attributes.get_int("group", 1) > 1:
        return -costs.grouped * count
    return count * (products * costs.product - costs.element)
