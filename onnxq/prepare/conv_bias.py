"""Conv + Add of a number for each channel becomes a Conv with that bias.

    Conv(x, W, b) + c  =  Conv(x, W, b + c)

Applies to Conv and ConvTranspose, where c is a constant of shape [C, 1, ...], [1, C, 1, ...] or a
single number, and nothing else reads the layer's output. onnxruntime does the same to a float
model, but in a quantized one the Add stays a node of its own.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from onnxq.model import constant
from onnxq.prepare.layers import set_bias, take_output, tensor_names
from onnxq.prepare.names import NameMap
from onnxq.qtypes import Float64Array

__all__ = ["fold_conv_bias"]


def fold_conv_bias(model: ir.Model, names: NameMap) -> None:
    for graph in model.graphs():
        taken = tensor_names(graph)
        for add in list(graph):
            if add.op_type == "Add" and add.domain == "":
                for x, c in (add.inputs, add.inputs[::-1]):
                    layer = None if x is None else _fold(graph, add, x, c, taken)
                    if layer is None or x is None:
                        continue
                    names.absorb(layer, add)
                    names.add(layer, [x.name or ""])
                    take_output(graph, layer, add)
                    break


def _fold(
    graph: ir.Graph, add: ir.Node, x: ir.Value, c: ir.Value | None, taken: Collection[str]
) -> ir.Node | None:
    """The layer before `add`, which now has its constant; None if it cannot."""
    layer, added = x.producer(), constant(c)
    if layer is None or added is None or layer.graph is not graph or layer.domain != "":
        return None
    if layer.op_type not in ("Conv", "ConvTranspose"):
        return None
    if len(x.uses()) != 1 or x.is_graph_output() or added.dtype != ir.DataType.FLOAT:
        return None
    weight = constant(layer.inputs[1])
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    old = constant(bias)
    if weight is None or (bias is not None and old is None):
        return None
    dims = weight.shape.numpy()
    channels = dims[0]
    if layer.op_type == "ConvTranspose":
        channels = dims[1] * layer.attributes.get_int("group", 1)
    per_channel = _per_channel(added, channels, len(dims))
    if per_channel is None:
        return None
    if old is not None:
        per_channel = per_channel + np.asarray(old.numpy(), np.float64)
    set_bias(layer, per_channel, taken)
    return layer


def _per_channel(added: ir.TensorProtocol, channels: int, rank: int) -> Float64Array | None:
    """One number for each channel of a tensor of this rank; None if the constant is not that."""
    shape = added.shape.numpy()
    if added.shape.rank() > rank:
        return None
    values = np.asarray(added.numpy(), np.float64)
    if values.size == 1:
        return np.full(channels, values.item())
    full = (1,) * (rank - len(shape)) + tuple(shape)
    if full != (1, channels, *(1,) * (rank - 2)):
        return None
    return values.reshape(-1)
