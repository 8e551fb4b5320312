"""What the float network's channels hold, on the samples to fit to: maxima, and some rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.improve.context import Context
from onnxq.improve.rescaling import Link
from onnxq.qtypes import Array, Float32Array, Float64Array
from onnxq.runtime import run, session

__all__ = ["Observed", "observe"]

# Rows of a tensor that are kept for calculating a layer, over all samples
ROWS = 512


@dataclass(frozen=True, eq=False)
class Observed:
    """Of what a link's readers read.

    maxima: the largest magnitude of each channel. rows: [rows, channels], the same number from each
    sample; none where the channels are not the last axis.
    """

    maxima: Float64Array
    rows: Float32Array


def observe(context: Context, chosen: Sequence[Link]) -> dict[Link, Observed]:
    """One run of the float network over the samples to fit to."""
    model = context.prepared.ir.clone()
    values = {v.name: v for node in model.graph for v in node.outputs}
    outputs = [_fetched(model.graph, values[link.read], link) for link in chosen]
    model.graph.outputs.clear()
    model.graph.outputs.extend(dict.fromkeys(outputs))
    maxima = {link: np.zeros(link.channels) for link in chosen}
    rows: dict[Link, list[Array]] = {link: [] for link in chosen}
    names = [value.name or "" for value in outputs]
    fetches = list(dict.fromkeys(names))
    each = max(1, ROWS // max(sum(batch.samples for batch in context.fit.batches), 1))
    with session(model) as active:
        for batch in context.fit.batches:
            found = dict(zip(fetches, run(active, batch.tensors, fetches), strict=True))
            for link, name in zip(chosen, names, strict=True):
                array = found[name]
                if link.axis != -1:
                    array = array.reshape(-1, link.channels)
                    rows[link].append(array[:0])
                else:
                    array = array.reshape(batch.samples, -1, link.channels)
                    rows[link].append(_some(array, each))
                flat = np.abs(array.reshape(-1, link.channels)).max(axis=0, initial=0.0)
                maxima[link] = np.maximum(maxima[link], flat)
    return {link: Observed(maxima[link], np.concatenate(rows[link])) for link in chosen}


def _fetched(graph: ir.Graph, value: ir.Value, link: Link) -> ir.Value:
    """The value itself if its channels come last, else the magnitudes' maxima a channel."""
    if link.axis == -1:
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        return value
    size = ir.node("Abs", [value], name=f"{value.name}/onnxq_abs")
    most = ir.node("GlobalMaxPool", size.outputs, name=f"{value.name}/onnxq_max")
    for node in (size, most):
        node.outputs[0].name = node.name
    most.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.extend([size, most])
    return most.outputs[0]


def _some(array: Array, count: int) -> Array:
    """Evenly spread rows of each sample of [samples, rows, channels], one after the other."""
    here = array.shape[1]
    picked = np.unique(np.arange(min(count, here)) * here // max(min(count, here), 1))
    return array[:, picked].reshape(-1, array.shape[2])
