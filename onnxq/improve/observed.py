"""What the float network's channels hold, on the samples to fit to: maxima, and some rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.improve.context import Context
from onnxq.improve.rescaling import Link
from onnxq.model import new_value
from onnxq.plans import ActivationPlacement
from onnxq.qtypes import Array, Float32Array, Float64Array
from onnxq.runtime import run, session

__all__ = ["Observed", "Seen", "observe"]

# Rows of a tensor that are kept for calculating a layer, over all samples; and bytes of all rows of
# all tensors, unless that would be too few of each
ROWS, LEAST_ROWS, MOST_BYTES = 4096, 512, 64 << 20


@dataclass(frozen=True, eq=False)
class Seen:
    """Of a tensor.

    maxima: float64, the largest magnitude of each channel. rows: [rows, channels], the same number
    from each sample and evenly spread over it.
    """

    maxima: Float64Array
    rows: Float32Array

    @property
    def squares(self) -> Float64Array:
        """E[x^2] of each channel."""
        return np.asarray(np.square(self.rows, dtype=np.float64).mean(axis=0))

    @property
    def variances(self) -> Float64Array:
        return np.asarray(self.rows.var(axis=0, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Observed:
    """Of what a link's readers read; and before: of what is quantized on the way to it.

    That is, of what is quantized and then read through a function (LeakyRelu), with all channels of
    the link in the same place.
    """

    read: Seen
    before: tuple[tuple[ActivationPlacement, Seen], ...] = ()


def observe(context: Context, chosen: Sequence[Link]) -> dict[Link, Observed]:
    """One run of the float network over the samples to fit to."""
    model = context.prepared.ir.clone()
    values = {v.name or "": v for node in model.graph for v in node.outputs}
    curved = {a.tensor: a for a in context.best.placement.activations if a.curve is not None}
    before = {
        link: [
            curved[name]
            for name, axes in zip(link.tensors, link.axes, strict=True)
            if name in curved and axes == (link.axis,)
        ]
        for link in chosen
    }
    wanted = {link.read: link for link in chosen}
    wanted |= {a.tensor: link for link in chosen for a in before[link]}
    room = MOST_BYTES // (4 * max(sum(link.channels for link in wanted.values()), 1))
    count = max(LEAST_ROWS, min(ROWS, room))
    each = max(1, count // max(sum(batch.samples for batch in context.fit.batches), 1))
    fetched = {
        name: _fetched(model.graph, values[name], link, each) for name, link in wanted.items()
    }
    outputs = list(dict.fromkeys(value for pair in fetched.values() for value in pair))
    model.graph.outputs.clear()
    model.graph.outputs.extend(outputs)
    names = [value.name or "" for value in outputs]
    maxima: dict[str, list[Array]] = {name: [] for name in wanted}
    rows: dict[str, list[Array]] = {name: [] for name in wanted}
    with session(model) as active:
        for batch in context.fit.batches:
            found = dict(zip(names, run(active, batch.tensors, names), strict=True))
            for name, link in wanted.items():
                largest, some = (found[value.name or ""] for value in fetched[name])
                if link.axis == -1:
                    largest = np.abs(largest)
                    some = _some(some.reshape(batch.samples, -1, link.channels), each)
                else:
                    some = np.moveaxis(some, 1, 2)
                maxima[name].append(largest.reshape(-1, link.channels).max(axis=0, initial=0.0))
                rows[name].append(some.reshape(-1, link.channels))
    seen = {
        name: Seen(np.max(maxima[name], axis=0).astype(np.float64), np.concatenate(rows[name]))
        for name in wanted
    }
    return {
        link: Observed(seen[link.read], tuple((a, seen[a.tensor]) for a in before[link]))
        for link in chosen
        if len(seen[link.read].rows)
    }


def _fetched(graph: ir.Graph, value: ir.Value, link: Link, each: int) -> tuple[ir.Value, ir.Value]:
    """What is fetched for the maxima, and for the rows.

    The value itself for both if its channels come last; else, of [samples, channels, ...], the
    magnitudes' maxima, and `each` positions of each sample, which are few.
    """
    if link.axis == -1:
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        return value, value
    name = value.name or ""

    def add(op: str, inputs: Sequence[ir.Value], **attributes: int) -> ir.Value:
        made = ir.node(op, inputs, attributes, name=f"{name}/onnxq_{len(graph)}_{op}")
        made.outputs[0].name = made.name
        graph.append(made)
        return made.outputs[0]

    def number(label: str, values: Sequence[int]) -> ir.Value:
        tensor = ir.tensor(np.array(values, np.int64), name=f"{name}/onnxq_{label}")
        return new_value(graph, tensor.name or "", tensor)

    most = add("GlobalMaxPool", [add("Abs", [value])])
    flat = add("Reshape", [value, number("flat", [0, 0, -1])])
    positions = add("Gather", [add("Shape", [flat]), number("last", [2])])
    steps = add("Mul", [number("steps", range(each)), positions])
    chosen = add("Div", [steps, number("each", [each])])
    some = add("Gather", [flat, chosen], axis=2)
    for output in (most, some):
        output.type = ir.TensorType(ir.DataType.FLOAT)
    return most, some


def _some(array: Array, count: int) -> Array:
    """Evenly spread rows of each sample of [samples, rows, channels]."""
    here = array.shape[1]
    return array[:, np.arange(count if here else 0) * here // count]
