"""QuantizeLinear and DequantizeLinear.

Paddle's scale is the largest magnitude, alpha = 127 * ONNX's scale at 8 bits, and symmetric only.

Activations become quantize_linear / dequantize_linear, whose scales oneDNN's passes read. A constant
weight becomes dequantize_linear where the node that it belongs to runs on quantized activations
(oneDNN then keeps it in int8), and elsewhere Cast and Mul, which Paddle calculates at load.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.model import constant
from onnxq.qtypes import Array
from onnxq_paddle.worker.emit.op import Op

__all__ = ["RULES", "Stored", "attributes_of", "is_activation", "quantized_matmul", "stored_of"]

INT8_MAX = 127
DQ = "DequantizeLinear"
DOMAINS = ("", "com.microsoft")


@dataclass(frozen=True)
class Stored:
    """A constant behind a DequantizeLinear: (integers - zero) * scale.

    axis: of the channels that have a scale each; None for one scale.
    """

    name: str
    integers: Array
    scale: Array
    zero: Array
    axis: int | None

    @property
    def is_kernel(self) -> bool:
        """Whether oneDNN's int8 kernels take it."""
        return self.integers.dtype == np.int8 and not self.zero.any()

    def floats(self) -> Array:
        shape = self.broadcast(self.integers.ndim)
        zero, scale = self.zero.reshape(shape), self.scale.reshape(shape)
        return np.asarray((self.integers.astype(scale.dtype) - zero.astype(scale.dtype)) * scale)

    def broadcast(self, rank: int) -> list[int]:
        """The shape in which a scale meets the integers."""
        return [] if self.axis is None else [-1 if i == self.axis else 1 for i in range(rank)]


def is_dequantize(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == DQ and node.domain in DOMAINS


def stored_of(value: ir.Value | None) -> Stored | None:
    """What a DequantizeLinear of a constant holds, if the value comes from one."""
    node = value.producer() if value is not None else None
    if node is None or not is_dequantize(node):
        return None
    tensors = [constant(v) for v in node.inputs]
    if tensors[0] is None or tensors[1] is None:
        return None
    integers = tensors[0].numpy()
    if integers.dtype.name in ("int4", "uint4"):
        integers = integers.astype(np.int8 if integers.dtype.name == "int4" else np.uint8)
    scale = tensors[1].numpy()
    given = tensors[2] if len(tensors) > 2 else None
    zero = np.zeros(scale.shape, integers.dtype) if given is None else given.numpy()
    if integers.dtype == np.uint16:  # Paddle has no such type
        integers = (integers.astype(np.int32) - 2**15).astype(np.int16)
        zero = zero.astype(np.int32) - 2**15
    single = scale.size == 1
    axis = None if single else node.attributes.get_int("axis", 1) % integers.ndim
    if single:
        scale, zero = scale.reshape(()), zero.reshape(-1)[:1].reshape(())
    return Stored(node.inputs[0].name or "", integers, scale, zero, axis)  # type: ignore[union-attr]


def is_activation(value: ir.Value | None) -> bool:
    """Whether the value was quantized at run time: it comes from a DequantizeLinear of no constant."""
    node = value.producer() if value is not None else None
    return node is not None and is_dequantize(node) and constant(node.inputs[0]) is None


def attributes_of(axis: int | None) -> dict[str, int | bool]:
    """Of quantize_linear and dequantize_linear; round_type 0 rounds halves to even numbers."""
    return {
        "quant_axis": -1 if axis is None else axis,
        "bit_length": 8,
        "qmin": -128,
        "qmax": 127,
        "round_type": 0,
        "is_test": True,
        "only_observer": False,
    }


def _alpha(op: Op) -> dict[str, str]:
    """Scale and zero point of an activation, as Paddle takes them."""
    scale = op.constant(1, "scale").reshape(-1)
    if scale.size != 1:
        raise op.refuse("an activation with several scales: Paddle's int8 has one a tensor")
    zero = op.array(2) if op.has(2) else None
    if zero is None or zero.dtype != np.int8 or zero.any():
        kind = "uint8" if zero is None else zero.dtype.name
        raise op.refuse(
            f"an activation in {kind} with zero point "
            f"{0 if zero is None else int(zero.reshape(-1)[0])}: Paddle has int8 with zero point 0; "
            "quantize the float model with target paddle (--target paddle)"
        )
    alpha = np.asarray(scale, np.float32) * np.float32(INT8_MAX)
    return {"Scale": op.fixed(alpha, "float32"), "ZeroPoint": op.fixed([0.0], "float32")}


def _quantize(op: Op) -> None:
    inputs = {"X": op.x(0), **_alpha(op)}
    op.run("quantize_linear", inputs, attributes_of(None), slot="Y", to=op.y())


def _dequantize(op: Op) -> None:
    """Of a constant: when somebody reads it, in the form that the reader wants."""
    if op.integer("block_size", 0):
        raise op.refuse("a weight with a scale for each block: Paddle has none")
    if op.array(0) is not None:
        return
    inputs = {"X": op.x(0), **_alpha(op)}
    op.run("dequantize_linear", inputs, attributes_of(None), slot="Y", to=op.y())


def quantized_matmul(op: Op) -> bool:
    """Gemm or MatMul with int8 weights on quantized activations, as a convolution of 1 x 1.

    Paddle's oneDNN pass takes wrong weight scales for `matmul_v2` with a scale for each channel,
    and runs one without a bias in float; the convolution has neither fault. Says whether it did.
    """
    weight = stored_of(op.value(1))
    if weight is None or not weight.is_kernel or not is_activation(op.value(0)):
        return False
    if op.integer("transA", 0) or op.number("alpha", 1.0) != 1 or op.number("beta", 1.0) != 1:
        return False
    transposed = bool(op.integer("transB", 0))
    out_axis = 0 if transposed else 1
    if weight.integers.ndim != 2 or weight.axis not in (None, out_axis):
        return False
    rows = weight.integers if transposed else weight.integers.T
    outs, ins = rows.shape
    q = op.emitter.parameter(f"{weight.name}.conv", rows.reshape(outs, ins, 1, 1))
    scales = np.asarray(weight.scale.reshape(-1), np.float32) * np.float32(INT8_MAX)
    inputs = {"X": q, "Scale": op.fixed(scales, "float32")}
    inputs["ZeroPoint"] = op.fixed(np.zeros(scales.size), "float32")
    axis = attributes_of(None if weight.axis is None else 0)
    filters = op.run("dequantize_linear", inputs, axis, slot="Y")
    lead = op.shape(op.x(0))[:-1]
    x = _requantized(op, ins)
    window = {"strides": [1, 1], "paddings": [0, 0], "dilations": [1, 1], "groups": 1}
    layout = {"padding_algorithm": "EXPLICIT", "data_format": "NCHW"}
    y = op.run("conv2d", {"Input": x, "Filter": filters}, {**window, **layout}, slot="Output")
    if op.has(2):
        bias = {"X": y, "Y": op.emitter.bias(op.node, 2)}
        y = op.run("elementwise_add", bias, {"axis": 1})
    if len(lead) == 1:
        op.squeezed(y, [2, 3], op.y())
    elif lead.count(-1) <= 1:
        op.reshaped(y, [*lead, outs], op.y())
    else:
        own = op.sliced(op.run("shape", {"Input": op.x(0)}), [0], [0], [len(lead)])
        shape = op.concat([own, op.fixed([outs], "int32")], 0)
        inputs = {"X": y, "Shape": shape}
        op.give("reshape2", inputs, beside=("XShape",))
    return True


def _requantized(op: Op, channels: int) -> str:
    """The activation as [rows, channels, 1, 1], with its Q and DQ right before the convolution."""
    dequantize = op.value(0).producer()
    assert dequantize is not None
    quantize = dequantize.inputs[0].producer() if dequantize.inputs[0] is not None else None
    inner = Op(dequantize, op.emitter)
    x = Op(quantize, op.emitter).x(0) if quantize is not None else inner.x(0)
    apart = op.reshaped(x, [-1, channels, 1, 1])
    scale = _alpha(inner)
    if quantize is not None:
        given = {"X": apart, **scale}
        apart = op.run("quantize_linear", given, attributes_of(None), slot="Y")
    given = {"X": apart, **scale}
    return op.run("dequantize_linear", given, attributes_of(None), slot="Y")


RULES: dict[str, Callable[[Op], None]] = {
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
}
