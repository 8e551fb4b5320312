"""What a rule of the table sees: one ONNX node, and the Paddle operators that it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxq.errors import ConversionError
from onnxq.qtypes import Array

if TYPE_CHECKING:  # the parent process reads the table, and must not import Paddle
    from onnxq_paddle.worker.emit.builder import Slot
    from onnxq_paddle.worker.emit.emitter import Emitter

__all__ = ["FLOATS", "Op", "numpy_type"]

FLOATS = ("float32", "float64")
EXTREME = 2**31 - 1


def numpy_type(kind: int | ir.DataType) -> str:
    """numpy's name of an ONNX type; what Paddle has no such type for is refused when declared."""
    return ir.DataType(kind).numpy().name


class Op:
    """A node on its way. Inputs and results are names of Paddle variables."""

    def __init__(self, node: ir.Node, emitter: Emitter) -> None:
        self.node, self.emitter, self.builder = node, emitter, emitter.builder

    # what the node says

    def refuse(self, reason: str) -> ConversionError:
        return self.emitter.refuse(self.node, reason)

    def has(self, i: int) -> bool:
        return i < len(self.node.inputs) and self.node.inputs[i] is not None

    def value(self, i: int) -> ir.Value:
        value = self.node.inputs[i] if i < len(self.node.inputs) else None
        if value is None:
            raise self.refuse(f"input {i} is missing")
        return value

    def x(self, i: int = 0) -> str:
        """The variable of input `i`."""
        return self.emitter.variable_of(self.value(i))

    def xs(self) -> list[str]:
        return [self.x(i) for i in range(len(self.node.inputs)) if self.has(i)]

    def array(self, i: int) -> Array | None:
        """The value of input `i` if it is a constant."""
        return self.emitter.array_of(self.value(i)) if self.has(i) else None

    def constant(self, i: int, what: str) -> Array:
        """The value of input `i`, which has to be a constant."""
        array = self.array(i)
        if array is None:
            raise self.refuse(f"its {what} (input {i}) is not a constant, as Paddle needs it")
        return array

    def listed(self, i: int, what: str, name: str = "") -> list[int] | None:
        """Integers from input `i`, or from the attribute `name` of an older opset."""
        if self.has(i):
            return [int(v) for v in self.constant(i, what).reshape(-1)]
        return list(self.node.attributes.get_ints(name)) if name in self.node.attributes else None

    def integer(self, name: str, default: int) -> int:
        return self.node.attributes.get_int(name, default)

    def integers(self, name: str, default: Sequence[int]) -> list[int]:
        return [int(v) for v in self.node.attributes.get_ints(name, default)]

    def number(self, name: str, default: float) -> float:
        return float(self.node.attributes.get_float(name, default))

    def text(self, name: str, default: str) -> str:
        return self.node.attributes.get_string(name, default)

    def y(self, i: int = 0) -> str:
        """The name of output `i`."""
        return self.node.outputs[i].name or ""

    def wants(self, i: int) -> bool:
        """Whether output `i` is asked for."""
        return i < len(self.node.outputs) and bool(self.node.outputs[i].name)

    # what is known of variables

    def shape(self, x: str) -> list[int]:
        return self.builder.shape(x)

    def rank(self, x: str) -> int:
        return len(self.builder.shape(x))

    def dtype(self, x: str) -> str:
        return self.builder.dtype(x)

    # what it becomes

    def run(
        self,
        kind: str,
        inputs: Mapping[str, Slot],
        attributes: Mapping[str, Any] | None = None,
        *,
        slot: str = "Out",
        to: str | None = None,
        beside: Sequence[str] = (),
    ) -> str:
        """An operator; returns the variable that it gives, a new one unless `to` names it.

        slot: the output slot of it. beside: further slots, whose variables nobody reads.
        """
        name = to or self.builder.fresh(self.y())
        outputs = {slot: name, **{extra: self.builder.fresh(f"{name}.{extra}") for extra in beside}}
        self.emitter.append(self.node, kind, inputs, outputs, attributes or {})
        return name

    def give(
        self,
        kind: str,
        inputs: Mapping[str, Slot],
        attributes: Mapping[str, Any] | None = None,
        *,
        slot: str = "Out",
        index: int = 0,
        beside: Sequence[str] = (),
    ) -> None:
        """An operator that gives output `index` of the node."""
        self.run(kind, inputs, attributes, slot=slot, to=self.y(index), beside=beside)

    def several(
        self, kind: str, inputs: Mapping[str, Slot], outputs: Mapping[str, Slot], **attributes: Any
    ) -> None:
        """An operator with several outputs, all named."""
        self.emitter.append(self.node, kind, inputs, outputs, attributes)

    def end(self, x: str, index: int = 0) -> None:
        """Give `x` as output `index`."""
        self.give("assign", {"X": x}, index=index)

    # small steps

    def fixed(self, values: Any, dtype: str) -> str:
        """A constant that the model does not have itself."""
        return self.emitter.fixed(np.asarray(values, dtype))

    def unary(self, kind: str, x: str, to: str | None = None, **attributes: Any) -> str:
        return self.run(kind, {"X": x}, attributes, to=to)

    def binary(self, kind: str, x: str, y: str, to: str | None = None) -> str:
        """A `kind` of numpy's broadcasting: elementwise_add, less_than, ..."""
        return self.run(kind, {"X": x, "Y": y}, {"axis": -1}, to=to)

    def scaled(self, x: str, scale: float = 1.0, bias: float = 0.0, to: str | None = None) -> str:
        return self.unary(
            "scale", x, to, scale=float(scale), bias=float(bias), bias_after_scale=True
        )

    def cast(self, x: str, dtype: str, to: str | None = None) -> str:
        if to is None and self.dtype(x) == dtype:
            return x
        types = self.emitter.types
        if dtype not in types:
            raise self.refuse(f"Paddle has no type {dtype}")
        return self.unary("cast", x, to, in_dtype=types[self.dtype(x)], out_dtype=types[dtype])

    def reshaped(self, x: str, shape: Sequence[int], to: str | None = None) -> str:
        return self.run("reshape2", {"X": x}, {"shape": list(shape)}, to=to, beside=("XShape",))

    def transposed(self, x: str, perm: Sequence[int], to: str | None = None) -> str:
        return self.run("transpose2", {"X": x}, {"axis": list(perm)}, to=to, beside=("XShape",))

    def squeezed(self, x: str, axes: Sequence[int], to: str | None = None) -> str:
        """As a reshape where that can say it: Paddle's pass that fuses squeeze2 with transpose2
        makes a transpose of the wrong rank."""
        shape = self.shape(x)
        dropped = {axis % len(shape) for axis in axes}
        left = [d for i, d in enumerate(shape) if i not in dropped]
        if left and left.count(-1) <= 1 and 0 not in left:
            return self.reshaped(x, left, to)
        return self.run("squeeze2", {"X": x}, {"axes": list(axes)}, to=to, beside=("XShape",))

    def unsqueezed(self, x: str, axes: Sequence[int], to: str | None = None) -> str:
        return self.run("unsqueeze2", {"X": x}, {"axes": list(axes)}, to=to, beside=("XShape",))

    def concat(self, xs: Sequence[str], axis: int, to: str | None = None) -> str:
        return self.run("concat", {"X": list(xs)}, {"axis": axis}, to=to)

    def sliced(
        self,
        x: str,
        axes: Sequence[int],
        starts: Sequence[int],
        ends: Sequence[int],
        to: str | None = None,
        *,
        drop: Sequence[int] = (),
    ) -> str:
        """`drop`: axes that are left out of the result, having one element."""
        attributes = {
            "axes": list(axes),
            "starts": [max(-EXTREME, min(EXTREME, int(v))) for v in starts],
            "ends": [max(-EXTREME, min(EXTREME, int(v))) for v in ends],
            "infer_flags": [1] * len(axes),
            "decrease_axis": list(drop),
        }
        return self.run("slice", {"Input": x}, attributes, to=to)

    def shape_tensor(self, x: str) -> str:
        """The shape as a variable of int64."""
        return self.cast(self.run("shape", {"Input": x}), "int64")

    def reduced(
        self,
        kind: str,
        x: str,
        axes: Sequence[int],
        to: str | None = None,
        *,
        keep: bool = True,
    ) -> str:
        """`kind`: reduce_sum and others; no axes: over all of them."""
        attributes = {"dim": list(axes) or [0], "keep_dim": keep, "reduce_all": not axes}
        return self.run(kind, {"X": x}, attributes, to=to)

    def filled(self, shape: str, value: float | int | bool, dtype: str) -> str:
        """A tensor of one value, of a shape that is a variable."""
        attributes = {
            "dtype": self.emitter.types[dtype],
            "value": float(value),
            "str_value": repr(float(value) if dtype in FLOATS else int(value)),
            "shape": [],
        }
        return self.run("fill_constant", {"ShapeTensor": shape}, attributes)
