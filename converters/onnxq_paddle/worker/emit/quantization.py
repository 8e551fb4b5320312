"""QuantizeLinear and DequantizeLinear.

Paddle's scale is the largest magnitude, alpha = 127 * ONNX's scale at 8 bits, and symmetric only.

Activations become quantize_linear / dequantize_linear, whose scales oneDNN's passes read. A
constant weight becomes dequantize_linear where the node that it belongs to runs on quantized
activations (oneDNN then keeps it in int8), and elsewhere Cast and Mul, which Paddle calculates at
load.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.model import constant
from onnxq.qtypes import Array
from onnxq_paddle.worker.emit.op import Op

__all__ = [
    "INT8_MAX",
    "RULES",
    "Stored",
    "attributes_of",
    "is_activation",
    "is_lazy",
    "keeps_sign",
    "place",
    "quantized_matmul",
    "scale_of",
    "source_of",
    "stored_of",
]

INT8_MAX = 127
Q, DQ = "QuantizeLinear", "DequantizeLinear"
MOVES = frozenset({"MaxPool", "AveragePool", "Reshape", "Transpose", "Slice", "Resize"})
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


def is_lazy(value: ir.Value) -> bool:
    """Whether the value is what a QuantizeLinear or DequantizeLinear gives."""
    node = value.producer()
    return node is not None and node.op_type in (Q, DQ) and node.domain in DOMAINS


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
    """Whether the value was quantized at run time: a DequantizeLinear of no constant gives it."""
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


def scale_of(node: ir.Node | None) -> float | None:
    """The one scale of a QuantizeLinear or DequantizeLinear; None for any other node."""
    if node is None or node.op_type not in (Q, DQ):
        return None
    tensor = constant(node.inputs[1])
    return float(tensor.numpy().reshape(())) if tensor is not None and tensor.size == 1 else None


def source_of(value: ir.Value | None) -> ir.Value | None:
    """The float tensor that was quantized, where the value is one behind Q and DQ."""
    while value is not None and is_activation(value):
        quantize = _quantize_of(value)
        if quantize is None:
            break
        value = quantize.inputs[0]
    return value


def _quantize_of(value: ir.Value) -> ir.Node | None:
    """The QuantizeLinear before a DequantizeLinear; None where integers come from elsewhere."""
    node = value.producer()
    integers = node.inputs[0] if node is not None else None
    found = integers.producer() if integers is not None else None
    return found if found is not None and found.op_type == Q and found.domain in DOMAINS else None


def keeps_sign(relu: ir.Node) -> bool:
    """Whether a Relu or Clip must stay a signed tensor for oneDNN's int8.

    A convolution that adds a residual writes in the residual's type, while what comes out of relu
    is taken as unsigned. So a sum and its residual have to agree: a sum with a signed residual
    stays signed, and so does a residual of a sum that may be negative.
    """
    value = relu.inputs[0]
    before = value.producer() if value is not None else None
    if before is not None and _is_quantized_add(before):
        return not any(map(_is_unsigned, before.inputs))
    return any(
        _is_quantized_add(reader) and not _is_rectified(reader)
        for reader in _readers(relu.outputs[0])
    )


def _is_unsigned(value: ir.Value | None) -> bool:
    """Whether a tensor comes from a relu, perhaps through what only moves values."""
    source = source_of(value)
    node = source.producer() if source is not None else None
    if node is None or node.domain != "":
        return False
    if node.op_type in MOVES:
        return _is_unsigned(node.inputs[0])
    if node.op_type == "Clip":
        low = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        return low is not None and float(low.numpy()) == 0 and not keeps_sign(node)
    return node.op_type == "Relu" and not keeps_sign(node)


def _is_quantized_add(node: ir.Node) -> bool:
    return node.op_type == "Add" and node.domain == "" and any(map(is_activation, node.inputs))


def _is_rectified(node: ir.Node) -> bool:
    return all(reader.op_type in ("Relu", "Clip") for reader in _readers(node.outputs[0]))


def _readers(value: ir.Value) -> list[ir.Node]:
    """Who reads a tensor, through Q and DQ."""
    found = []
    for node, _ in value.uses():
        if node.op_type in (Q, DQ) and node.domain in DOMAINS:
            found += _readers(node.outputs[0])
        else:
            found.append(node)
    return found


def _alpha(op: Op) -> dict[str, str]:
    """Scale and zero point of an activation, as Paddle takes them."""
    scale = op.constant(1, "scale").reshape(-1)
    if scale.size != 1:
        raise op.refuse("an activation with several scales: Paddle's int8 has one a tensor")
    zero = op.array(2) if op.has(2) else None
    if zero is None or zero.dtype != np.int8 or zero.any():
        kind = "uint8" if zero is None else zero.dtype.name
        raise op.refuse(
            f"an activation in {kind} that is not symmetric: Paddle has int8 with zero point 0; "
            "quantize the float model with target paddle (--target paddle)"
        )
    alpha = np.asarray(scale, np.float32) * np.float32(INT8_MAX)
    return {"Scale": op.fixed(alpha, "float32"), "ZeroPoint": op.fixed([0.0], "float32")}


def _lazily(op: Op) -> None:
    """Nothing yet: `place` writes them where somebody reads them, which oneDNN's passes want."""
    if op.integer("block_size", 0):
        raise op.refuse("a scale for each block: Paddle has none")


def place(op: Op) -> None:
    """QuantizeLinear or DequantizeLinear of an activation."""
    inputs = {"X": op.x(0), **_alpha(op)}
    kind = "quantize_linear" if op.node.op_type == Q else "dequantize_linear"
    op.run(kind, inputs, attributes_of(None), slot="Y", to=op.y())


def quantized_matmul(op: Op) -> bool:
    """Gemm or MatMul with int8 weights on quantized activations; says whether it was one.

    Paddle's oneDNN pass reads the scales of a `matmul_v2` with a scale for each channel from the
    wrong weights, and runs one without a bias in float. So either a convolution of 1 x 1, or the
    product of the plain integers, whose channels are scaled after.
    """
    weight = stored_of(op.value(1))
    if weight is None or not weight.is_kernel or not is_activation(op.value(0)):
        return False
    if op.integer("transA", 0) or op.number("alpha", 1.0) != 1 or op.number("beta", 1.0) != 1:
        return False
    transposed = bool(op.integer("transB", 0))
    if weight.integers.ndim != 2 or weight.axis not in (None, 0 if transposed else 1):
        return False
    columns = weight.integers.T if transposed else weight.integers
    if op.rank(op.x(0)) == 2 and not _has_many_rows(op.value(0)):
        _as_convolution(op, weight, columns)
    else:
        _as_integers(op, weight, columns)
    return True


def _has_many_rows(value: ir.Value) -> bool:
    """Whether the rows are the words of a text, say: a view of a tensor of rank 3."""
    source = source_of(value)
    node = source.producer() if source is not None else None
    if node is None or node.op_type != "Reshape":
        return False
    before = node.inputs[0]
    return before is not None and before.shape is not None and len(before.shape) == 3


def _as_convolution(op: Op, weight: Stored, columns: Array) -> None:
    ins, outs = columns.shape
    q = op.emitter.parameter(f"{weight.name}.conv", columns.T.reshape(outs, ins, 1, 1))
    scales = np.asarray(weight.scale.reshape(-1), np.float32) * np.float32(INT8_MAX)
    inputs = {"X": q, "Scale": op.fixed(scales, "float32")}
    inputs["ZeroPoint"] = op.fixed(np.zeros(scales.size), "float32")
    axis = attributes_of(None if weight.axis is None else 0)
    filters = op.run("dequantize_linear", inputs, axis, slot="Y")
    x = _requantized(op, ins)
    window = {"strides": [1, 1], "paddings": [0, 0], "dilations": [1, 1], "groups": 1}
    layout = {"padding_algorithm": "EXPLICIT", "data_format": "NCHW"}
    y = op.run("conv2d", {"Input": x, "Filter": filters}, {**window, **layout}, slot="Output")
    if op.has(2):
        bias = {"X": y, "Y": op.emitter.bias(op.node, 2)}
        y = op.run("elementwise_add", bias, {"axis": 1})
    op.reshaped(y, [-1, outs], op.y())


def _requantized(op: Op, channels: int) -> str:
    """The activation as [rows, channels, 1, 1], with its Q and DQ right before the convolution."""
    dequantize = op.value(0).producer()
    assert dequantize is not None
    inner = Op(dequantize, op.emitter)
    scale = _alpha(inner)
    quantize = _quantize_of(op.value(0))
    if quantize is None:
        apart = op.reshaped(inner.x(0), [-1, channels, 1, 1])
    else:
        given = quantize.inputs[0]
        assert given is not None
        pooled = _before_flatten(given, channels)
        if pooled is None:
            apart = op.reshaped(op.emitter.variable_of(given), [-1, channels, 1, 1])
        else:
            apart = op.emitter.variable_of(pooled)
        apart = op.run("quantize_linear", {"X": apart, **scale}, attributes_of(None), slot="Y")
    return op.run("dequantize_linear", {"X": apart, **scale}, attributes_of(None), slot="Y")


def _before_flatten(value: ir.Value, channels: int) -> ir.Value | None:
    """What was [rows, channels, 1, 1] before it was flattened."""
    node = value.producer()
    if node is None or node.op_type not in ("Flatten", "Reshape", "Squeeze"):
        return None
    source = source_of(node.inputs[0])
    shape = None if source is None else source.shape
    if shape is None or len(shape) != 4:
        return None
    return source if list(shape)[1:] == [channels, 1, 1] else None


def _as_integers(op: Op, weight: Stored, columns: Array) -> None:
    """(x Q + bias / s) s, where Q are the integers of the weight and s the scales of its columns.

    The integers stand behind a Q and DQ of scale 1, which changes no value.
    """
    outs = columns.shape[1]
    scale = np.asarray(np.broadcast_to(weight.scale.reshape(-1), (outs,)), np.float32)
    integers = op.cast(op.emitter.parameter(f"{weight.name}.columns", columns), "float32")
    one = {"Scale": op.fixed([INT8_MAX], "float32"), "ZeroPoint": op.fixed([0.0], "float32")}
    q = op.run("quantize_linear", {"X": integers, **one}, attributes_of(None), slot="Y")
    w = op.run("dequantize_linear", {"X": q, **one}, attributes_of(None), slot="Y")
    plain = {"trans_x": False, "trans_y": False}
    y = op.run("matmul_v2", {"X": op.x(0), "Y": w}, plain)
    bias = np.zeros(outs, np.float32)
    if op.has(2):
        given = op.array(2)
        if given is None:
            raise op.refuse("its bias is not a constant")
        bias = np.asarray(np.broadcast_to(given.reshape(-1), (outs,)), np.float32)
    y = op.binary("elementwise_add", y, op.fixed(bias / scale, "float32"))
    op.binary("elementwise_mul", y, op.fixed(scale, "float32"), op.y())


RULES: dict[str, Callable[[Op], None]] = {DQ: _lazily, Q: _lazily}
