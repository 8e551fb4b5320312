"""Compare tensor by tensor: where a quantized model loses what it loses.

Each tensor behind a QuantizeLinear is compared with the same tensor of the float model:

alone        the float value rounded with the tensor's own scale and zero point: what this one loses
accumulated  the integers that the quantized model really holds there: what all before it lost too

Each weight is compared with the float weight (alone only). The float values are those of the
prepared float model, in which BatchNormalization is folded as it is in the quantized one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.data.samples import Samples, prefetched
from onnxq.errors import ModelError
from onnxq.model import SourceModel, constant, initializers
from onnxq.numerics.metrics import ErrorSums
from onnxq.prepare import prepare
from onnxq.qtypes import Array
from onnxq.runner import open_runner
from onnxq.runtime import Feed, RuntimeFailureError

__all__ = ["LayerComparison", "compare_layers"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LayerComparison:
    """One quantized tensor.

    node, op_type: which gives it (activation) or reads it (weight).
    alone, accumulated: SQNR in dB, not centred; accumulated is None for a weight.
    """

    tensor: str
    kind: str
    node: str
    op_type: str
    alone: float
    accumulated: float | None


@dataclass(frozen=True)
class _Quantized:
    """A tensor that the quantized model holds as integers, `integers` being their name there."""

    tensor: str
    integers: str
    scale: Array
    zero_point: Array

    def dequantize(self, q: Array) -> Array:
        return (q.astype(np.float32) - self.zero_point.astype(np.float32)) * self.scale

    def round(self, x: Array) -> Array:
        info = np.iinfo(self.zero_point.dtype)
        q = np.rint(x / self.scale) + self.zero_point
        return self.dequantize(np.clip(q, info.min, info.max))


def compare_layers(
    reference: SourceModel,
    quantized: SourceModel,
    samples: Samples,
    *,
    progress: Progress | None = None,
) -> list[LayerComparison]:
    """All quantized tensors that both models have, the one that loses most by itself first."""
    floats = prepare(reference, min_opset=13, static=True)
    known = {v.name: v for v in floats.ir.graph.inputs}
    known |= {v.name: v for node in floats.ir.graph for v in node.outputs}
    found = [q for q in _activations(quantized.ir) if q.tensor in known]
    found = list({q.tensor: q for q in found}.values())  # several pairs of Q and DQ on one tensor
    rows = [
        *_weights(floats.ir, quantized.ir),
        *_run(floats.ir, quantized, found, samples, progress),
    ]
    named: list[LayerComparison] = []
    for row in rows:
        node = known[row.tensor].producer() if row.kind == "activation" else _reader(floats.ir, row)
        label = floats.names.label(node) if node is not None else ""
        named.append(
            LayerComparison(
                row.tensor,
                row.kind,
                label,
                node.op_type if node is not None else "graph input",
                row.alone,
                row.accumulated,
            )
        )
    return sorted(named, key=lambda row: (row.alone, row.tensor))


def _activations(model: ir.Model) -> Iterator[_Quantized]:
    """The tensors behind a QuantizeLinear, and the inputs that are integers themselves."""
    seen: set[str] = set()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        source, result = node.inputs[0], node.outputs[0]
        params = [constant(v) for v in node.inputs[1:3]]
        if source is None or len(params) < 2 or params[0] is None or params[1] is None:
            continue
        scale, zero_point = (p.numpy() for p in params if p is not None)
        if scale.ndim != 0 or zero_point.dtype.kind not in "iu":
            continue
        name = source.name or ""
        if node.graph is model.graph and node.op_type == "QuantizeLinear" and not constant(source):
            # an output that is integers has taken over the tensor's name
            tensor = result.name or "" if result.is_graph_output() else name
            yield _Quantized(tensor, result.name or "", scale, zero_point)
        elif (given := _unpadded(source)) in model.graph.inputs and given.name not in seen:
            name = given.name or ""
            seen.add(name)
            yield _Quantized(name, name, scale, zero_point)


def _unpadded(value: ir.Value) -> ir.Value:
    """The integers before channels of zeros were added for a Conv (see placement/padding.py)."""
    node = value.producer()
    source = node.inputs[0] if node is not None and node.op_type == "Pad" else None
    return value if source is None else source


def _run(
    floats: ir.Model,
    quantized: SourceModel,
    found: list[_Quantized],
    samples: Samples,
    progress: Progress | None,
) -> Iterator[LayerComparison]:
    if not found:
        return
    alone = {q.tensor: ErrorSums(centred=False) for q in found}
    accumulated = {q.tensor: ErrorSums(centred=False) for q in found}
    inputs = {v.name for v in floats.graph.inputs}
    expected = [q.tensor for q in found if q.tensor not in inputs]
    taken = [q.integers for q in found if q.integers != q.tensor or q.tensor not in inputs]
    with contextlib.ExitStack() as stack:
        giving = _open(stack, floats, expected, "the float model")
        holding = _open(stack, quantized.ir, taken, quantized.label)
        feeds = stack.enter_context(contextlib.closing(prefetched(samples)))
        for index, feed in enumerate(feeds):
            x = {**feed, **giving(feed)}
            integers = holding(feed)
            for q in found:
                rounded = q.round(x[q.tensor])
                alone[q.tensor].add(x[q.tensor], rounded)
                held = integers.get(q.integers)
                if held is not None and held.dtype.kind in "iu":
                    held = q.dequantize(held)
                accumulated[q.tensor].add(x[q.tensor], rounded if held is None else held)
            if progress is not None:
                progress(index + 1, len(samples))
    for q in found:
        a, b = alone[q.tensor].sqnr, accumulated[q.tensor].sqnr
        yield LayerComparison(q.tensor, "activation", "", "", a, b)


def _with_outputs(model: ir.Model, names: list[str]) -> ir.Model:
    """A clone that gives these tensors, and nothing else."""
    copy = model.clone()
    values = {v.name: v for node in copy.graph for v in node.outputs}
    wanted = [values[name] for name in names]
    outside = [v for v in wanted if v.type is None]
    for value in outside:
        integer = (node := value.producer()) is not None and node.op_type == "QuantizeLinear"
        zero_point = constant(node.inputs[2]) if integer and node is not None else None
        value.type = ir.TensorType(zero_point.dtype if zero_point else ir.DataType.FLOAT)
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(wanted)
    return copy


def _open(
    stack: contextlib.ExitStack, model: ir.Model, names: list[str], label: str
) -> Callable[[Feed], dict[str, Array]]:
    """A function from a feed to these tensors of the model."""
    if not names:
        return lambda _feed: {}
    try:
        runner = stack.enter_context(open_runner(_with_outputs(model, names)))
    except RuntimeFailureError as error:
        raise ModelError(f"{label}: onnxruntime cannot load it: {error}") from error
    return runner


def _weights(floats: ir.Model, quantized: ir.Model) -> Iterator[LayerComparison]:
    """Weights by name: stored as integers, and dequantized in any of the forms onnxq writes."""
    originals = {v.name: v for v in initializers(floats)}
    seen: set[str] = set()
    for node in ir.traversal.RecursiveGraphIterator(quantized.graph):
        restored = _restored(node)
        if restored is None:
            continue
        name, values = restored
        original = originals.get(name)
        tensor = constant(original)
        if tensor is None or not tensor.dtype.is_floating_point() or name in seen:
            continue
        seen.add(name)
        x = np.asarray(tensor.numpy(), np.float32)
        if x.ndim == values.ndim == 4:  # without the channels of zeros of a padded Conv
            values = values[:, : x.shape[1]]
        if x.shape != values.shape:
            continue
        sums = ErrorSums(centred=False)
        sums.add(x, values)
        yield LayerComparison(name, "weight", "", "", sums.sqnr, None)


def _restored(node: ir.Node) -> tuple[str, Array] | None:
    """Name and values of the weight that a DequantizeLinear, or a Cast and Mul, restores."""
    if node.op_type == "DequantizeLinear":
        tensors = [constant(v) for v in node.inputs]
        stored = node.inputs[0]
        if stored is None or tensors[0] is None or tensors[1] is None:
            return None
        q, scale = tensors[0].numpy(), tensors[1].numpy()
        zero = tensors[2].numpy() if len(tensors) > 2 and tensors[2] is not None else np.zeros(1)
        if q.dtype.itemsize > 2:
            return None  # a bias
        if scale.ndim == 1:
            shape = [1] * q.ndim
            shape[node.attributes.get_int("axis", 1)] = -1
            scale, zero = scale.reshape(shape), np.broadcast_to(zero, scale.shape).reshape(shape)
        name = (stored.name or "").removesuffix("_quantized").removesuffix("_q")
        return name, (q.astype(np.float32) - zero.astype(np.float32)) * scale
    if node.op_type != "Mul":
        return None
    factor, steps = constant(node.inputs[1]), []
    value = node.inputs[0]
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type not in ("Cast", "Sub"):
            return None
        steps.append(producer)
        value = producer.inputs[0]
    q_tensor = constant(value)
    if factor is None or not steps or q_tensor is None or q_tensor.dtype.is_floating_point():
        return None
    x = q_tensor.numpy().astype(np.float32)
    for step in steps:
        zero_point = constant(step.inputs[1]) if step.op_type == "Sub" else None
        if zero_point is not None:
            x = x - zero_point.numpy()
    output = node.outputs[0]
    readers = [reader for reader, _ in output.uses()]
    if len(readers) == 1 and readers[0].op_type == "Cast":  # to half or double precision
        output = readers[0].outputs[0]
    return output.name or "", x * factor.numpy()


def _reader(model: ir.Model, row: LayerComparison) -> ir.Node | None:
    for value in initializers(model):
        if value.name == row.tensor:
            return next((node for node, _ in value.uses()), None)
    return None
