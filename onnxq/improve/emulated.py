"""`Emulated`: a placement as a float network, in parts that can be run one after the other.

What a plan decides (integers of weights and biases, scales, zero points) goes into a part as an
input of every run, so that one set of sessions serves all plans of a placement:

    quantized tensor -> DequantizeLinear -> float nodes, weights already rounded -> QuantizeLinear

It gives what the integer kernels give, up to the rounding of float32 sums, on any processor.

A part begins with a weighted node and ends before the next one. Quantized tensors pass from part to
part as integers, under the name `<tensor>/onnxq_q`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxq.improve.own_bias import own_bias
from onnxq.improve.part import Constant, Part, is_pointwise, names_read, tensor_info
from onnxq.improve.sessions import session_options
from onnxq.numerics.quantize import dequantize, quantize
from onnxq.plans import (
    ActivationPlacement,
    BiasPlacement,
    Placement,
    Plan,
    Use,
    WeightPlacement,
    WeightUpdate,
)
from onnxq.prepare import Prepared
from onnxq.qtypes import Array, Float32Array, QuantParams
from onnxq.rewrite import MICROSOFT, chosen_integers
from onnxq.runtime import Feed, run, session

FLOAT = int(ir.DataType.FLOAT)
# Bytes of rounded weights that are kept for the next run
MOST_KEPT = 256 << 20

__all__ = ["Emulated", "float_outputs", "quantized_name"]


def quantized_name(tensor: str) -> str:
    """Under which a quantized tensor passes from part to part."""
    return f"{tensor}/onnxq_q"


def _float_name(tensor: str) -> str:
    return f"{tensor}/onnxq_dq"


def float_outputs(graph: ir.Graph) -> list[str]:
    """The outputs that are compared: float ones that a node calculates."""
    floats = (None, ir.DataType.FLOAT)
    return [v.name or "" for v in graph.outputs if v.dtype in floats and v.producer() is not None]


class Emulated:
    """The parts of one placement, and the sessions that run them.

    parts: in order. outputs: name of each float output of the graph -> the tensor that holds it.
    part_of: placed tensor -> index of the part that quantizes it.
    weighted: names of the quantized weighted nodes.
    """

    def __init__(self, prepared: Prepared, placement: Placement) -> None:
        self.prepared, self.placement = prepared, placement
        self.parts = [Part(None)]
        self.part_of: dict[str, int] = {}
        self.outputs: dict[str, str] = {}
        self._sessions: dict[tuple[int, bool], ort.InferenceSession] = {}
        self._rounded: dict[str, tuple[tuple[QuantParams, WeightUpdate | None], Array]] = {}
        self._kept = 0
        graph = prepared.ir.graph
        values = [*graph.inputs, *(v for node in graph for v in node.outputs)]
        self._dtypes = {
            v.name: int(v.dtype) if v.dtype is not None else FLOAT for v in values if v.name
        }
        self._placed = {a.tensor: a for a in placement.activations}
        self._weights = {w.tensor: w for w in placement.weights}
        self._biases = {b.use: b for b in placement.biases}
        self._uses = {use: a for a in placement.activations for use in a.uses}
        self.weighted = {
            use.node
            for w in placement.weights
            if w.form == "kernel" and w.kind == "weight"
            for use in w.uses
            if use.index == 1
        }
        self._split()

    # building

    def _split(self) -> None:
        graph = self.prepared.ir.graph
        weighted = [node for node in graph if node.name in self.weighted]
        biases = [own_bias(node, self.placement) for node in weighted]
        self._own_biases = {b.name for b in biases if b is not None}
        for value in graph.inputs:
            self._quantize(value.name or "")
        for node in graph:
            if node.name in self.weighted:
                self.parts.append(Part(node))
            self._add(node)
        for name in float_outputs(graph):
            placed = self._placed.get(name)
            rounded = placed is not None and (placed.requantized or name in self.placement.borders)
            if placed is not None and rounded:
                self.outputs[name] = self._dequantized(placed)
            else:
                self.outputs[name] = name
        self._link()

    def _add(self, node: ir.Node) -> None:
        proto = ir.serde.serialize_node(node)
        for index, value in enumerate(node.inputs):
            if value is not None and value.name:
                proto.input[index] = self._source(value.name, Use(node.name or "", index))
        for attribute in proto.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                self._rename_captured(body)
        self.parts[-1].nodes.append(proto)
        for output in node.outputs:
            self._quantize(output.name or "")

    def _source(self, name: str, use: Use) -> str:
        """The tensor that stands for `name` where `use` reads it."""
        placed = self._uses.get(use)
        if placed is not None:
            return self._dequantized(placed)
        bias = self._biases.get(use)
        if bias is not None:
            key = f"{use.node}/onnxq_bias"
            self.parts[-1].constants[key] = Constant(functools.partial(self._bias, bias), FLOAT)
            return key
        if name in self._own_biases:
            key = f"{use.node}/onnxq_bias"
            self.parts[-1].constants[key] = Constant(
                functools.partial(self._float_bias, name), FLOAT
            )
            return key
        weight = self._weights.get(name)
        if weight is not None and (weight.form != "kernel" or use in weight.uses):
            return self._weight_name(weight)
        return self._float_source(name)

    def _float_source(self, name: str) -> str:
        """What a float reader reads: the rounded tensor where the producer gives integers only."""
        placed = self._placed.get(name)
        if placed is not None and (placed.requantized or self._is_border_input(name)):
            return self._dequantized(placed)
        return name

    def _is_border_input(self, name: str) -> bool:
        return name in self.placement.borders and any(
            value.name == name for value in self.prepared.ir.graph.inputs
        )

    def _rename_captured(self, body: onnx.GraphProto) -> None:
        for node in body.node:
            for index, name in enumerate(node.input):
                weight = self._weights.get(name)
                if weight is not None and weight.form != "kernel":
                    node.input[index] = self._weight_name(weight)
                elif name in self._placed:
                    node.input[index] = self._float_source(name)
            for attribute in node.attribute:
                inner = [attribute.g] if attribute.HasField("g") else []
                for graph in (*inner, *attribute.graphs):
                    self._rename_captured(graph)

    def _weight_name(self, weight: WeightPlacement) -> str:
        key = _float_name(weight.tensor)
        dtype = int(self._tensor(weight.tensor).dtype)
        make = functools.partial(self._weight, weight.tensor)
        self.parts[-1].constants[key] = Constant(make, dtype)
        return key

    def _quantize(self, name: str) -> None:
        placed = self._placed.get(name)
        if placed is None:
            return
        self.part_of[name] = len(self.parts) - 1
        inputs = [name, *self._params(placed)]
        self._emit("QuantizeLinear", inputs, quantized_name(name), placed)

    def _dequantized(self, placed: ActivationPlacement) -> str:
        key = _float_name(placed.tensor)
        if key not in self.parts[-1].made:
            self.parts[-1].made.add(key)
            inputs = [quantized_name(placed.tensor), *self._params(placed)]
            self._emit("DequantizeLinear", inputs, key, placed)
        return key

    def _emit(self, op: str, inputs: list[str], output: str, placed: ActivationPlacement) -> None:
        standard = placed.spec.qtype.opset <= self.prepared.ir.opset_imports.get("", 0)
        domain = "" if standard else MICROSOFT
        self.parts[-1].nodes.append(onnx.helper.make_node(op, inputs, [output], domain=domain))

    def _params(self, placed: ActivationPlacement) -> list[str]:
        names = [f"{placed.owner}/onnxq_scale", f"{placed.owner}/onnxq_zero_point"]
        owner = placed.owner
        dtype = int(ir.DataType.from_numpy(placed.spec.qtype.dtype))
        constants = self.parts[-1].constants
        constants[names[0]] = Constant(lambda plan: plan.params[owner].scale, FLOAT)
        constants[names[1]] = Constant(lambda plan: plan.params[owner].zero_point, dtype)
        return names

    def _info(self, name: str) -> onnx.ValueInfoProto:
        """Of a tensor that passes between parts."""
        for placed in self._placed.values():
            if name == quantized_name(placed.tensor):
                return tensor_info(name, int(ir.DataType.from_numpy(placed.spec.qtype.dtype)))
        return tensor_info(name, self._dtypes.get(name, FLOAT))

    def _link(self) -> None:
        """Which tensors pass between parts."""
        initializers = self.prepared.ir.graph.initializers
        needed = set(self.outputs.values())
        self._given = frozenset(needed)
        for part in reversed(self.parts):
            given = {name for node in part.nodes for name in node.output if name}
            part.writes = tuple(sorted(needed & given))
            read = {name for node in part.nodes for name in names_read(node)}
            read -= given | part.constants.keys()
            read = {name for name in read if name not in initializers}
            part.reads = tuple(sorted(read))
            needed = (needed - given) | read
            part.live = frozenset(needed)

    def forget(self) -> None:
        """Drop sessions and rounded weights, which are made again when they are needed."""
        self._sessions.clear()
        self._rounded.clear()
        self._kept = 0

    # running

    def run(self, index: int, feed: Feed, constants: Feed) -> dict[str, Array]:
        """What part `index` writes, from what it reads and the plan's `constants` for it."""
        part = self.parts[index]
        if not part.nodes or not part.writes:
            return {}
        active = self._session(index, probe=False)
        given = {name: feed[name] for name in part.reads} | dict(constants)
        return dict(zip(part.writes, run(active, given, part.writes), strict=True))

    def probe(self, index: int, feed: Feed, constants: Feed) -> Array:
        """Means of the weighted node's output, over positions: float32 [rows, ..., channels].

        Of a Conv of one position the means of its inputs are enough, as it is linear.
        """
        node = self.parts[index].weighted
        active = self._session(index, probe=True)
        given = {
            v.name: feed[v.name] if v.name in feed else constants[v.name]
            for v in active.get_inputs()
        }
        found = run(active, given)[0]
        if node is None or node.op_type != "Conv":
            return found
        means = found.reshape(found.shape[:2])
        if not is_pointwise(node):
            return means
        weight = constants[self._read_by(node, 1)]
        means = means @ weight.reshape(weight.shape[:2]).T
        if len(node.inputs) < 3 or node.inputs[2] is None:
            return means
        bias = self._read_by(node, 2)  # among the constants if it is quantized
        return means + (constants[bias] if bias in constants else self._tensor(bias).numpy())

    def _read_by(self, node: ir.Node, index: int) -> str:
        """The name of the part's input that stands for input `index` of its weighted node."""
        part = next(p for p in self.parts if p.weighted is node)
        proto = next(n for n in part.nodes if n.name == node.name)
        return str(proto.input[index])

    def input_of(self, index: int, feed: Feed, plan: Plan) -> tuple[Array, QuantParams | None]:
        """What the weighted node that part `index` begins with reads; of integers, what they mean.

        As they are: most of the time only a part of them has to be dequantized.
        """
        node = self.parts[index].weighted
        assert node is not None
        assert node.inputs[0] is not None
        name = node.inputs[0].name or ""
        placed = self._uses.get(Use(node.name or "", 0)) or self._placed.get(name)
        if placed is None or quantized_name(name) not in feed:
            return feed[name], None
        return feed[quantized_name(name)], plan.activation_params(placed)

    def live(self, index: int) -> frozenset[str]:
        """The tensors that part `index` and later ones, or the caller, need of earlier ones."""
        return self.parts[index].live if index < len(self.parts) else self._given

    def constants(self, index: int, plan: Plan) -> dict[str, Array]:
        """What the plan decides in part `index`, by the name of the input that takes it."""
        return {name: constant.make(plan) for name, constant in self.parts[index].constants.items()}

    def _weight(self, name: str, plan: Plan) -> Array:
        """The float values of a weight's integers; kept while the plan's choice for it stays."""
        key = (plan.params[name], plan.updates.get(name))
        known = self._rounded.get(name)
        if known is not None and known[0][0] is key[0] and known[0][1] is key[1]:
            return known[1]
        tensor = self._tensor(name)
        source = tensor.numpy()
        if key[1] is not None and key[1].values is not None:
            source = key[1].values
        found = dequantize(chosen_integers(source, plan, name), key[0]).astype(tensor.numpy().dtype)
        self._kept += found.nbytes if known is None else 0
        if known is not None or self._kept <= MOST_KEPT:
            self._rounded[name] = (key, found)
        return found

    def _bias(self, placed: BiasPlacement, plan: Plan) -> Float32Array:
        params, update = plan.biases[placed.use], plan.updates.get(placed.tensor)
        values = self._tensor(placed.tensor).numpy()
        if update is not None and update.values is not None:
            values = update.values
        size = params.scale.size if params.axis is not None else values.size
        return dequantize(quantize(np.broadcast_to(values.reshape(-1), (size,)), params), params)

    def _float_bias(self, name: str, plan: Plan) -> Array:
        """A bias that the target wants in float."""
        update = plan.updates.get(name)
        if update is not None and update.values is not None:
            return update.values
        return np.asarray(self._tensor(name).numpy())

    def _tensor(self, name: str) -> ir.TensorProtocol:
        for graph in self.prepared.ir.graphs():
            value = graph.initializers.get(name)
            if value is not None and value.const_value is not None:
                return value.const_value
        raise KeyError(name)

    def _session(self, index: int, *, probe: bool) -> ort.InferenceSession:
        key = (index, probe)
        if key not in self._sessions:
            content = self._probe_model(index) if probe else self._model(index)
            with session(content, session_options()) as active:
                self._sessions[key] = active
        return self._sessions[key]

    def _model(self, index: int) -> bytes:
        part = self.parts[index]
        return self._proto(part, part.nodes, part.writes)

    def _probe_model(self, index: int) -> bytes:
        part = self.parts[index]
        node = part.weighted
        assert node is not None
        at = next(i for i, n in enumerate(part.nodes) if n.name == node.name)
        nodes = part.nodes[: at + 1]
        output = nodes[-1].output[0]
        if node.op_type == "Conv":
            if is_pointwise(node):
                output = nodes[-1].input[0]
                nodes = nodes[:-1]
            mean = f"{output}/onnxq_mean"
            nodes = [*nodes, onnx.helper.make_node("GlobalAveragePool", [output], [mean])]
            output = mean
        return self._proto(part, nodes, [output])

    def _proto(self, part: Part, nodes: list[onnx.NodeProto], outputs: Iterable[str]) -> bytes:
        graph = self.prepared.ir.graph
        read = {name for node in nodes for name in names_read(node)}
        inputs = [
            *(self._info(name) for name in part.reads if name in read),
            *(tensor_info(name, c.dtype) for name, c in part.constants.items() if name in read),
        ]
        kept = []
        for name in sorted(read):
            value = graph.initializers.get(name)
            if value is not None and value.const_value is not None:
                tensor = ir.tensor(value.const_value.numpy(), name=name)
                kept.append(ir.serde.serialize_tensor(tensor))
        found = onnx.helper.make_graph(
            nodes, "part", inputs, [self._info(name) for name in outputs], kept
        )
        imports = dict(self.prepared.ir.opset_imports) | {MICROSOFT: 1}
        return bytes(
            onnx.helper.make_model(
                found,
                opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in imports.items()],
                ir_version=self.prepared.ir.ir_version or 8,
            ).SerializeToString()
        )
