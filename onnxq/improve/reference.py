"""The float network on the samples of the passes: its outputs, and the means of its layers."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxq.data.samples import Samples, input_specs, prefetched
from onnxq.improve.emulated import float_outputs
from onnxq.improve.frontier import Batch, joined, rows_of
from onnxq.prepare import Prepared
from onnxq.qtypes import Array, Float64Array
from onnxq.runtime import Feed, run, session

__all__ = ["FloatNetwork", "Reference", "batches_of", "read"]

# Samples that run at once, where the model allows it
BATCH = 4
# Bytes of inputs and intermediate tensors that are held for all samples of a pass
MOST_HELD = 256 << 20


@dataclass(frozen=True, eq=False)
class Reference:
    """What the float network gives for some batches.

    outputs: of the graph, a batch. means: tensor -> [samples, channels], of weighted nodes.
    """

    batches: tuple[Batch, ...]
    outputs: Sequence[Mapping[str, Array]]
    means: Mapping[str, Float64Array]

    @property
    def samples(self) -> int:
        return sum(batch.samples for batch in self.batches)


class FloatNetwork:
    """A session that gives outputs, and means of the outputs of weighted nodes, in one run."""

    def __init__(
        self, prepared: Prepared, weighted: Collection[str], stack: contextlib.ExitStack
    ) -> None:
        model = prepared.ir.clone()
        self._outputs = float_outputs(model.graph)
        self._means: dict[str, str] = {}
        added = []
        for node in [n for n in model.graph if n.name in weighted]:
            value = node.outputs[0]
            name = value.name or ""
            if node.op_type == "Conv":
                pool = ir.node("GlobalAveragePool", [value], name=f"{name}/onnxq_mean")
                pool.outputs[0].name = f"{name}/onnxq_mean"
                model.graph.append(pool)
                value = pool.outputs[0]
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
            self._means[name] = value.name or ""
            if not value.is_graph_output():
                added.append(value)
        model.graph.outputs.extend(added)
        options = ort.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = stack.enter_context(session(model, options))

    def __call__(self, batches: Sequence[Batch], *, means: bool) -> Reference:
        outputs: list[dict[str, Array]] = []
        sums: dict[str, list[Float64Array]] = {name: [] for name in self._means}
        fetches = list(dict.fromkeys([*self._outputs, *(self._means.values() if means else ())]))
        for batch in batches:
            found = dict(zip(fetches, run(self._session, batch.tensors, fetches), strict=True))
            outputs.append({name: found[name] for name in self._outputs})
            for name, at in self._means.items() if means else ():
                sums[name].append(rows_of(_squeezed(found[at]), batch.samples))
        return Reference(
            tuple(batches),
            outputs,
            {name: np.concatenate(rows) for name, rows in sums.items() if rows},
        )

    def takes_batches(self, feeds: Sequence[Feed]) -> bool:
        """Whether two samples at once give the two results one after the other."""
        alone = [run(self._session, feed, self._outputs) for feed in feeds[:2]]
        both = run(self._session, joined(feeds[:2]), self._outputs)
        return all(_same(np.concatenate([a, b]), c) for a, b, c in zip(*alone, both, strict=True))


def batches_of(
    network: FloatNetwork, prepared: Prepared, feeds: Sequence[Feed], size: int
) -> tuple[Batch, ...]:
    """The feeds, joined where the model takes several at once."""
    specs = input_specs(prepared.ir)
    shapes = [{name: array.shape for name, array in feed.items()} for feed in feeds]
    single = all(shape and shape[0] == 1 for found in shapes[:1] for shape in found.values())
    same = single and all(spec.batched for spec in specs) and all(s == shapes[0] for s in shapes)
    if len(feeds) < 2 or not same or not network.takes_batches(feeds):
        size = 1
    chunks = [feeds[i : i + size] for i in range(0, len(feeds), size)]
    return tuple(Batch(joined(chunk), len(chunk)) for chunk in chunks)


def read(samples: Samples, indices: Sequence[int]) -> list[Feed]:
    """Some of the samples, all in memory."""
    with closing(prefetched(samples, indices)) as feeds:
        return [dict(feed) for feed in feeds]


def _same(one: Array, other: Array) -> bool:
    if one.shape != other.shape:
        return False
    top = float(np.abs(one).max(initial=0.0)) if one.dtype.kind == "f" else 0.0
    return bool(np.allclose(one, other, rtol=1e-3, atol=1e-4 * top, equal_nan=True))


def _squeezed(means: Array) -> Array:
    """[rows, channels, 1, ...] as [rows, channels]."""
    pooled = means.ndim > 2 and all(d == 1 for d in means.shape[2:])
    return means.reshape(means.shape[:2]) if pooled else means
