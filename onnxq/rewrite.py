"""Rewrite: a `Plan` becomes nodes. It decides nothing.

Weights    integer initializer -> DequantizeLinear (or Cast -> Mul) -> its readers
Borders    integer graph input -> one DequantizeLinear a reader; QuantizeLinear -> graph output
Activations  producer -> QuantizeLinear -> one DequantizeLinear a reader
Padding    QuantizeLinear (or an integer graph input) -> Pad with channels of the zero point -> the
           DequantizeLinear of a Conv whose weight has zeros there (see placement/padding.py)
Guards     float Conv or Gemm -> LeakyRelu(alpha 1) -> QuantizeLinear. onnxruntime quantizes a float
           Conv or Gemm that stands between a DequantizeLinear and a QuantizeLinear by itself, per
           tensor, at load. A LeakyRelu of slope 1 changes no value, is merged into the Conv's own
           kernel, and keeps it float (Identity, or a product with 1, is removed before it can).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.lean import collector_paused
from onnxq.model import new_value, read, shape_of
from onnxq.numerics.correction import round_to_mean
from onnxq.numerics.quantize import dequantize, quantize, with_zero_channels
from onnxq.plans import ActivationPlacement, BiasPlacement, Plan, Use, WeightPlacement
from onnxq.prepare import Prepared
from onnxq.qtypes import Array, PerChannel, QuantParams

__all__ = ["MICROSOFT", "chosen_integers", "fake_quantized", "rewrite"]

MICROSOFT = "com.microsoft"


@collector_paused()
def rewrite(prepared: Prepared, plan: Plan) -> ir.Model:
    """A clone of the prepared model with the plan's integers and nodes."""
    model = prepared.ir.clone()
    _Rewriter(model, plan).run()
    return model


def fake_quantized(prepared: Prepared, plan: Plan) -> ir.Model:
    """A clone whose float weights have been quantized and dequantized; no node changes."""
    model = prepared.ir.clone()
    placed = {weight.tensor for weight in plan.placement.weights}
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if name in placed and tensor is not None:
                value.const_value = _lazy(
                    name,
                    tensor,
                    tensor.dtype,
                    functools.partial(_round, plan=plan, name=name),
                )
    return model


def _round(x: Array, plan: Plan, name: str) -> Array:
    return dequantize(chosen_integers(x, plan, name), plan.params[name]).astype(x.dtype)


def chosen_integers(x: Array, plan: Plan, name: str) -> Array:
    """The integers of a weight with the values x, without its padding."""
    params, update = plan.params[name], plan.updates.get(name)
    if update is not None and update.integers is not None:
        return update.integers.astype(params.spec.qtype.dtype)
    if update is not None and update.to_mean is not None:
        return round_to_mean(x, update.to_mean)
    return quantize(x, params)


def _stored_integers(x: Array, plan: Plan, placed: WeightPlacement) -> Array:
    return with_zero_channels(chosen_integers(x, plan, placed.tensor), placed.padding)


def _lazy(
    name: str,
    source: ir.TensorProtocol,
    dtype: ir.DataType,
    convert: Callable[[Array], Array],
    padding: int = 0,
) -> ir.LazyTensor:
    """A tensor that is calculated when it is written, and not kept.

    padding: how many more channels, along axis 1, `convert` gives.
    """

    def evaluate() -> ir.TensorProtocol:
        return ir.Tensor(read(source, convert), dtype=dtype, name=name)

    shape = shape_of(source)
    if padding:
        rows, channels, *rest = shape.numpy()
        shape = ir.Shape([rows, channels + padding, *rest])
    return ir.LazyTensor(evaluate, dtype=dtype, shape=shape, name=name)


class _Rewriter:
    """Applies one plan to one model; lives as long as `rewrite` runs."""

    def __init__(self, model: ir.Model, plan: Plan) -> None:
        self.model, self.plan = model, plan
        self.graph = model.graph
        nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
        self.nodes = {node.name or "": node for node in nodes}
        self.values = {v.name or "": v for v in self.graph.inputs}
        self.values.update({v.name or "": v for node in self.graph for v in node.outputs})
        self.names = {v.name for node in nodes for v in node.outputs}
        self.names.update(v.name for g in model.graphs() for v in (*g.inputs, *_initializers(g)))
        self.holders = {name: g for g in model.graphs() for name in g.initializers}
        self.constants: dict[tuple[int, str], ir.Value] = {}
        self.padding = {
            Use(use.node, 0): weight.padding
            for weight in plan.placement.weights
            if weight.padding
            for use in weight.uses
        }
        self.padded: dict[tuple[ir.Value, int], ir.Value] = {}

    def run(self) -> None:
        for name in self.plan.placement.guarded:
            self._guard(self.nodes[name])
        placed = {weight.tensor for weight in self.plan.placement.weights}
        placed.update(bias.tensor for bias in self.plan.placement.biases)
        for name, update in self.plan.updates.items():
            value = self.graph.initializers.get(name) if name not in placed else None
            if value is not None and update.values is not None:  # a bias that stays float
                value.const_value = ir.tensor(update.values, name=name)
        for weight in self.plan.placement.weights:
            self._weight(weight)
        for bias in self.plan.placement.biases:
            self._bias(bias)
        for activation in self.plan.placement.activations:
            self._activation(activation)

    # weights

    def _weight(self, placed: WeightPlacement) -> None:
        name = placed.tensor
        graph = self.holders[name]
        value = graph.initializers[name]
        source = value.const_value
        assert source is not None
        params = self.plan.params[name]
        update = self.plan.updates.get(name)
        if update is not None and update.values is not None:
            source = ir.tensor(update.values, name=name)
        dtype = ir.DataType.from_numpy(params.spec.qtype.dtype)
        choose = functools.partial(_stored_integers, plan=self.plan, placed=placed)
        integers = _lazy(name, source, dtype, choose, placed.padding)
        if placed.form == "kernel":
            q = self._initializer(graph, f"{name}_quantized", integers)
            for use in placed.uses:
                reader = self.nodes[use.node]
                dq = self._dequantize(graph, q, params, name, explicit=True)
                reader.prepend(dq)
                reader.replace_input_with(use.index, dq.outputs[0])
            if not placed.others:
                graph.initializers.pop(name)
            return
        # A small model has many weights of few bytes: short names, and none for the nodes
        q = self._initializer(graph, f"{name}_q", integers)
        graph.initializers.pop(name)
        value.const_value = None  # the tensor may be the caller's: it keeps its name
        value.name = f"{name}/float"
        if placed.form == "fold":
            nodes = self._cast_and_multiply(graph, q, params, name)
        else:
            explicit = bool(params.zero_point.any())
            nodes = [self._dequantize(graph, q, params, name, explicit=explicit)]
        if source.dtype != ir.DataType.FLOAT:  # scales and products are float32
            nodes[-1].outputs[0].name = self._unique(f"{name}_f")
            nodes.append(ir.node("Cast", nodes[-1].outputs, {"to": int(source.dtype)}))
        nodes[-1].outputs[0].name = name
        value.replace_all_uses_with(nodes[-1].outputs[0])
        graph.insert_before(graph[0], nodes)
        for node in nodes:
            node.name = ""

    def _cast_and_multiply(
        self, graph: ir.Graph, q: ir.Value, params: QuantParams, name: str
    ) -> list[ir.Node]:
        scale = params.scale
        granularity = params.spec.granularity
        if isinstance(granularity, PerChannel):
            rank = q.shape.rank() if q.shape is not None else 1
            scale = scale.reshape([-1 if i == granularity.axis else 1 for i in range(rank)])
        nodes = [ir.node("Cast", [q], {"to": int(ir.DataType.FLOAT)})]
        nodes[-1].outputs[0].name = self._unique(f"{name}_c")
        if params.zero_point.any():
            zero = params.zero_point.reshape(scale.shape).astype(np.float32)
            zero_point = self._initializer(graph, f"{name}_zero_point", ir.Tensor(zero))
            nodes.append(ir.node("Sub", [nodes[-1].outputs[0], zero_point]))
            nodes[-1].outputs[0].name = self._unique(f"{name}_s")
        factor = self._initializer(graph, f"{name}_scale", ir.Tensor(scale))
        nodes.append(ir.node("Mul", [nodes[-1].outputs[0], factor]))
        return nodes

    def _bias(self, placed: BiasPlacement) -> None:
        params = self.plan.biases[placed.use]
        reader = self.nodes[placed.use.node]
        update = self.plan.updates.get(placed.tensor)
        source = self.graph.initializers[placed.tensor].const_value
        assert source is not None
        values = source.numpy() if update is None or update.values is None else update.values
        size = params.scale.size if params.axis is not None else values.size
        integers = quantize(np.broadcast_to(values.reshape(-1), (size,)), params)
        name = placed.tensor
        q = self._initializer(self.graph, f"{name}_quantized", ir.Tensor(integers))
        dq = self._dequantize(self.graph, q, params, q.name or name, explicit=True)
        reader.prepend(dq)
        reader.replace_input_with(placed.use.index, dq.outputs[0])
        old = self.graph.initializers[placed.tensor]
        if not old.uses() and not old.is_graph_output():
            self.graph.initializers.pop(placed.tensor)

    # activations

    def _activation(self, placed: ActivationPlacement) -> None:
        value, params = self.values[placed.tensor], self.plan.activation_params(placed)
        key = placed.owner
        name = placed.tensor
        border = name in self.plan.placement.borders
        if border and value.is_graph_input():
            self._integer_input(value, params, key)
            return
        inputs = [value, *self._params(self.graph, params, key, explicit=True)]
        label = self._unique(f"{name}_QuantizeLinear")
        q = ir.node("QuantizeLinear", inputs, domain=self._domain(params), name=label)
        q.outputs[0].name = self._unique(f"{name}_quantized")
        quantized = set(placed.uses)
        floats = [
            (node, i)
            for node, i in value.uses()
            if node is not q and Use(node.name or "", i) not in quantized
        ]
        self._insert_behind(value, [q])
        for use in placed.uses:
            integers = self._integers_for(use, q.outputs[0], params, key, name)
            dq = self._dequantize(self.graph, integers, params, key, explicit=True, label=name)
            reader = self.nodes[use.node]
            reader.prepend(dq)
            reader.replace_input_with(use.index, dq.outputs[0])
        if border and value.is_graph_output():
            self._take_over_output(value, q.outputs[0], params)
        if not placed.requantized or not (floats or value.is_graph_output()):
            return
        dq = self._dequantize(self.graph, q.outputs[0], params, key, explicit=True, label=name)
        q.append(dq)
        for node, i in floats:
            node.replace_input_with(i, dq.outputs[0])
        self._take_over_output(value, dq.outputs[0])

    def _guard(self, node: ir.Node) -> None:
        value = node.outputs[0]
        guard = ir.node(
            "LeakyRelu", [value], {"alpha": 1.0}, name=self._unique(f"{node.name}_keep_float")
        )
        output = guard.outputs[0]
        for reader, i in [(n, i) for n, i in value.uses() if n is not guard]:
            reader.replace_input_with(i, output)
        self._insert_behind(value, [guard])
        if value.is_graph_output():
            self._take_over_output(value, output)
        else:
            # what was placed on the tensor is meant for what its readers see
            name = value.name or ""
            value.name, output.name = self._unique(f"{name}_raw"), name
        self.values[output.name or ""] = output

    def _integer_input(self, value: ir.Value, params: QuantParams, key: str) -> None:
        """A graph input that takes integers, in place of `value`."""
        name = value.name or ""
        dtype = ir.DataType.from_numpy(params.spec.qtype.dtype)
        taken = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype))
        for reader, i in list(value.uses()):
            use = Use(reader.name or "", i)
            integers = self._integers_for(use, taken, params, key, name)
            dq = self._dequantize(self.graph, integers, params, key, explicit=True, label=name)
            reader.prepend(dq)
            reader.replace_input_with(i, dq.outputs[0])
        self.graph.inputs[self.graph.inputs.index(value)] = taken

    def _integers_for(
        self, use: Use, integers: ir.Value, params: QuantParams, key: str, label: str
    ) -> ir.Value:
        """The integers as this use reads them: with the channels of zeros that its Conv wants."""
        count = self.padding.get(use, 0)
        if not count:
            return integers
        if (integers, count) not in self.padded:
            pads = self._shared(
                self.graph, f"pad_{count}_channels", np.array([0, 0, 0, 0, 0, count, 0, 0])
            )
            _, zero_point = self._params(self.graph, params, key, explicit=True)
            pad = ir.node("Pad", [integers, pads, zero_point], name=self._unique(f"{label}_Pad"))
            pad.outputs[0].name = self._unique(f"{label}_padded")
            self._insert_behind(integers, [pad])
            self.padded[integers, count] = pad.outputs[0]
        return self.padded[integers, count]

    def _take_over_output(
        self, value: ir.Value, replacement: ir.Value, params: QuantParams | None = None
    ) -> None:
        """`replacement` becomes the graph output that `value` was, under its name.

        params: of the replacement if it is integers.
        """
        if not value.is_graph_output():
            return
        name = value.name or ""
        for i, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[i] = replacement
        value.name = self._unique(f"{name}_float")
        replacement.name, replacement.shape, replacement.type = name, value.shape, value.type
        if params is not None:
            replacement.type = ir.TensorType(ir.DataType.from_numpy(params.spec.qtype.dtype))

    # parts

    def _insert_behind(self, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], nodes)
        else:
            producer.append(nodes)

    def _dequantize(
        self,
        graph: ir.Graph,
        q: ir.Value,
        params: QuantParams,
        key: str,
        *,
        explicit: bool,
        label: str | None = None,
    ) -> ir.Node:
        """A DequantizeLinear of `q`; `explicit`: with a zero point although it is 0."""
        label = label or key
        node = ir.node(
            "DequantizeLinear",
            [q, *self._params(graph, params, key, explicit=explicit)],
            {} if params.axis is None else {"axis": params.axis},
            domain=self._domain(params),
            name=self._unique(f"{label}_DequantizeLinear"),
        )
        node.outputs[0].name = self._unique(f"{label}_dequantized")
        return node

    def _domain(self, params: QuantParams) -> str:
        """Whose QuantizeLinear takes these integers at the model's opset."""
        if params.spec.qtype.opset <= self.model.opset_imports.get("", 0):
            return ""
        self.model.opset_imports.setdefault(MICROSOFT, 1)
        return MICROSOFT

    def _params(
        self, graph: ir.Graph, params: QuantParams, key: str, *, explicit: bool
    ) -> list[ir.Value]:
        """Scale and zero point as initializers, one pair for all that share them."""
        values = [self._shared(graph, f"{key}_scale", params.scale)]
        if explicit:
            values.append(self._shared(graph, f"{key}_zero_point", params.zero_point))
        return values

    def _shared(self, graph: ir.Graph, name: str, array: Array) -> ir.Value:
        key = (id(graph), name)
        if key not in self.constants:
            self.constants[key] = self._initializer(graph, name, ir.Tensor(array))
        return self.constants[key]

    def _initializer(self, graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        return new_value(graph, self._unique(name), tensor)

    def _unique(self, name: str) -> str:
        candidate, i = name, 1
        while candidate in self.names or candidate in self.nodes:
            candidate, i = f"{name}_{i}", i + 1
        self.names.add(candidate)
        return candidate


def _initializers(graph: ir.Graph) -> Sequence[ir.Value]:
    return list(graph.initializers.values())
