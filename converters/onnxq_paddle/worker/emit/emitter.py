"""The walk over an ONNX graph: each node through its rule, constants as they are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxq.errors import ConversionError
from onnxq.model import constant
from onnxq.qtypes import Array
from onnxq_paddle.worker.emit.builder import TYPES, Builder, RefusedError, Slot
from onnxq_paddle.worker.emit.op import Op, numpy_type
from onnxq_paddle.worker.emit.quantization import (
    INT8_MAX,
    Stored,
    attributes_of,
    is_activation,
    is_lazy,
    place,
    stored_of,
)
from onnxq_paddle.worker.emit.table import RULES

__all__ = ["Emitter"]

# Steps from a shape to what depends on it, calculated here where everything before is known
OF_SHAPES = frozenset(
    {"Shape", "Size", "Gather", "Slice", "Concat", "Squeeze", "Unsqueeze", "Cast", "Reshape"}
    | {"Equal", "Not", "And", "Or", "Greater", "Less", "Add", "Sub", "Mul", "Div", "ReduceProd"}
)
MOST_KNOWN = 64


class Emitter:
    """Writes one prepared model; lives as long as `emit` runs."""

    def __init__(self, model: ir.Model, label: str) -> None:
        self.model, self.label = model, label
        names = {v.name or "" for g in model.graphs() for n in g for v in n.outputs}
        given = [v for g in model.graphs() for v in (*g.inputs, *g.initializers.values())]
        names |= {v.name or "" for v in given}
        nodes = ir.traversal.RecursiveGraphIterator(model.graph)
        self.static = any(node.op_type == "QuantizeLinear" for node in nodes)
        self.builder = Builder(names, _known_shapes(model))
        self.types: dict[str, int] = {name: int(kind) for name, kind in TYPES.items()}
        self._fixed: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._known: dict[ir.Value, Array] = {}
        self._placed: dict[tuple[str, str], str] = {}

    def emit(self) -> Builder:
        graph = self.model.graph
        inputs = [v for v in graph.inputs if not v.is_initializer()]
        for value in inputs:
            shape = [d if isinstance(d, int) else -1 for d in value.shape or ()]
            assert value.dtype is not None
            self.builder.variable(value.name or "", shape=shape, dtype=numpy_type(value.dtype))
        self.builder.feed([v.name or "" for v in inputs])
        self.nodes(graph)
        self.builder.fetch([self._output(v) for v in graph.outputs])
        self.builder.prune()
        return self.builder

    def _output(self, value: ir.Value) -> str:
        """The variable of a graph output, which has to be one that an operator gives."""
        if self.array_of(value) is not None:
            raise ConversionError(
                f"{self.label}: output {value.name!r} is a constant, which Paddle Inference cannot "
                "give; take it off the outputs"
            )
        return self.variable_of(value)

    def nodes(self, graph: ir.Graph) -> None:
        """All nodes of a graph or a body, into the current block."""
        for node in graph:
            if not self._calculate(node):
                RULES[node.op_type](Op(node, self))

    def _calculate(self, node: ir.Node) -> bool:
        """What follows from ranks and fixed dimensions alone; an If may depend on it."""
        if node.domain != "" or node.op_type not in OF_SHAPES:
            return False
        if any(value.is_graph_output() for value in node.outputs):
            return False  # Paddle Inference cannot give a constant
        feeds: dict[str, Array] = {}
        for value in node.inputs:
            array = None if value is None else self._known_array(node, value)
            if value is None or array is None:
                return False
            feeds[value.name or ""] = array
        found = ReferenceEvaluator(ir.to_proto(node)).run(None, feeds)
        for output, array in zip(node.outputs, found, strict=True):
            self._known[output] = np.asarray(array)
        return True

    def _known_array(self, node: ir.Node, value: ir.Value) -> Array | None:
        """A small constant; of Shape's and Size's input only the dimensions count."""
        if node.op_type in ("Shape", "Size"):
            shape = self.builder.shape(self.variable_of(value))
            return None if -1 in shape else np.broadcast_to(np.float32(0), shape)
        array = self.array_of(value)
        return array if array is not None and array.size <= MOST_KNOWN else None

    def append(
        self,
        node: ir.Node,
        kind: str,
        inputs: Mapping[str, Slot],
        outputs: Mapping[str, Slot],
        attributes: Mapping[str, Any],
    ) -> None:
        try:
            self.builder.append(kind, inputs, outputs, attributes)
        except RefusedError as error:
            raise self.refuse(node, f"Paddle's {kind} refuses it: {error}") from error

    def refuse(self, node: ir.Node, reason: str) -> ConversionError:
        name = node.name or (node.outputs[0].name if node.outputs else "")
        return ConversionError(
            f"{self.label}: node {name!r} ({node.op_type}) cannot be written for Paddle: {reason}"
        )

    # values

    def variable_of(self, value: ir.Value) -> str:
        """The variable of a value; a constant becomes a parameter when it is first asked for."""
        name = value.name or ""
        stored = stored_of(value)
        if stored is not None:
            return self._folded(name, stored)
        tensor = constant(value)
        if tensor is not None:
            return self.parameter(name, tensor.numpy())
        if value in self._known and not self.builder.has(name):
            return self.parameter(name, self._known[value])
        if is_lazy(value) and not self.builder.has(name):
            node = value.producer()
            assert node is not None
            place(Op(node, self))
        return name

    def array_of(self, value: ir.Value) -> Array | None:
        """The value of a constant. A quantized weight is none: it stays integers in the file."""
        stored = stored_of(value)
        if stored is not None:
            return stored.floats() if stored.integers.dtype == np.int32 else None
        tensor = constant(value)
        return self._known.get(value) if tensor is None else tensor.numpy()

    def parameter(self, name: str, array: Array) -> str:
        if name not in self.builder.parameters:
            if array.dtype.name not in TYPES:
                raise ConversionError(
                    f"{self.label}: constant {name!r} is of type {array.dtype.name}, which Paddle "
                    "has not"
                )
            self.builder.parameter(name, np.ascontiguousarray(array).reshape(array.shape))
        return name

    def fixed(self, array: Array) -> str:
        """A parameter of these values, one for all who ask."""
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._fixed:
            self._fixed[key] = self.parameter(self.builder.fresh("constant"), array)
        return self._fixed[key]

    # quantized weights

    def weight(self, node: ir.Node, i: int) -> str:
        """Input `i` of a convolution, in the form for int8 kernels if its input 0 is quantized."""
        value = node.inputs[i]
        assert value is not None
        stored = stored_of(value)
        if stored is None or not stored.is_kernel or not is_activation(node.inputs[0]):
            return self.variable_of(value)
        if stored.axis not in (None, 0):
            return self.variable_of(value)
        return self._kernel(node, value.name or "", stored)

    def bias(self, node: ir.Node, i: int) -> str:
        """Input `i`, which is added to a convolution's result, in float."""
        value = node.inputs[i]
        assert value is not None
        stored = stored_of(value)
        if stored is None:
            return self.variable_of(value)
        return self.parameter(f"{stored.name}.float", stored.floats())

    def _kernel(self, node: ir.Node, name: str, stored: Stored) -> str:
        key = (name, "kernel")
        if key not in self._placed:
            alpha = np.asarray(stored.scale.reshape(-1), np.float32) * np.float32(INT8_MAX)
            inputs = {
                "X": self.parameter(stored.name, stored.integers),
                "Scale": self.fixed(alpha),
                "ZeroPoint": self.fixed(np.zeros(alpha.size, np.float32)),
            }
            outputs = {"Y": name}
            with self._main():
                self.append(node, "dequantize_linear", inputs, outputs, attributes_of(stored.axis))
            self._placed[key] = name
        return self._placed[key]

    def _folded(self, name: str, stored: Stored) -> str:
        """Cast, Sub and Mul, which Paddle calculates when it loads the model."""
        key = (name, "folded")
        if key in self._placed:
            return self._placed[key]
        own = name if (name, "kernel") not in self._placed else self.builder.fresh(name)
        shape = stored.broadcast(stored.integers.ndim)
        dtype = stored.scale.dtype.name
        x = self.parameter(stored.name, stored.integers)
        types = {"in_dtype": self.types[stored.integers.dtype.name], "out_dtype": self.types[dtype]}
        with self._main():
            wide = self.builder.fresh(name)
            self.builder.append("cast", {"X": x}, {"Out": wide}, types)
            if stored.zero.any():
                zero = self.fixed(stored.zero.astype(dtype).reshape(shape))
                centred = self.builder.fresh(name)
                inputs = {"X": wide, "Y": zero}
                self.builder.append("elementwise_sub", inputs, {"Out": centred}, {"axis": -1})
                wide = centred
            inputs = {"X": wide, "Y": self.fixed(stored.scale.reshape(shape))}
            self.builder.append("elementwise_mul", inputs, {"Out": own}, {"axis": -1})
        self._placed[key] = own
        return own

    @contextlib.contextmanager
    def _main(self) -> Iterator[None]:
        """In the main block, whichever body asks: it runs before bodies do, and Paddle folds it."""
        block, self.builder.block = self.builder.block, self.builder.program.block(0)
        yield
        self.builder.block = block


def _known_shapes(model: ir.Model) -> dict[str, list[int]]:
    """Shapes of what the nodes give, as far as ONNX's inference found them."""
    return {
        value.name or "": [d if isinstance(d, int) else -1 for d in value.shape]
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        for value in node.outputs
        if value.shape is not None
    }
