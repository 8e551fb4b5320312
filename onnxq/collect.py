"""Calibrate: run samples through the float model in onnxruntime and keep statistics only.

The graph's outputs become the tensors that are asked for, so that onnxruntime runs with its
optimizations on and drops what nobody needs. Channel means of convolutions are taken in the graph
(GlobalAveragePool), where they cost a hundredth of fetching the tensor.

Statistics do not depend on the batch size or the order: counts are integers, sums are exact, and
what is summed is calculated sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxq.calibration import Calibration
from onnxq.data.prefetch import prefetched
from onnxq.data.samples import InputSpec, Samples, input_specs
from onnxq.data.sources import NOTHING_WRITTEN, source_index
from onnxq.errors import CalibrationError, DataError, ModelError
from onnxq.fingerprint import fingerprint
from onnxq.numerics.exact import ExactSum
from onnxq.numerics.statistics import ChannelMeans, StatisticsBuilder
from onnxq.prepare import Prepared
from onnxq.qtypes import Array
from onnxq.runtime import Feed, RuntimeFailureError, foreign_ops, run, session

__all__ = ["Request", "calibrate", "request_of"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """What to collect: tensors, and channel means of tensors with the axis of their channels."""

    tensors: tuple[str, ...]
    means: Mapping[str, int]
    histograms: bool = True


def request_of(placements: Iterable[tuple[Sequence[str], Mapping[str, int]]]) -> Request:
    """The union of what several placements need: (owners, measured) of each."""
    tensors: set[str] = set()
    means: dict[str, int] = {}
    for owners, measured in placements:
        tensors.update(owners)
        means.update(measured)
    return Request(tuple(sorted(tensors)), dict(sorted(means.items())))


def calibrate(
    prepared: Prepared,
    samples: Samples,
    request: Request,
    *,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> Calibration:
    """Statistics of the requested tensors over all samples.

    batch_size: how many samples run at once, where the model's inputs allow it; the result is the
        same. Samples of different shapes never share a batch.

    Raises ModelError if onnxruntime cannot load or run the model, CalibrationError for NaN or Inf
    in an activation, DataError for a sample that cannot be read.
    """
    if batch_size < 1:
        raise DataError(f"batch size must be at least 1, got {batch_size}")
    specs = input_specs(prepared.ir)
    collector = _Collector(prepared, request, {spec.name for spec in specs}, samples)
    done = 0
    try:
        with ExitStack() as stack:
            active = None
            if collector.fetches:
                active = stack.enter_context(session(collector.model, _yielding()))
            if active is None or (
                batch_size > 1 and not _can_batch(active, samples, specs, collector)
            ):
                batch_size = 1
            batches = stack.enter_context(closing(_batches(samples, specs, batch_size)))
            for first, feed, count in batches:
                results = run(active, feed, collector.fetches) if active is not None else []
                collector.add(results, feed, first, count)
                done += count
                if progress is not None:
                    progress(done, len(samples))
    except RuntimeFailureError as error:
        where = f"cannot run sample {source_index(samples, min(done, len(samples) - 1))}"
        what = where if done else "cannot load or run the model"
        hint = "".join(
            f"; {op} is none of its operators: dynamic mode need not run the model"
            for op in foreign_ops(prepared.ir)[:1]
        )
        raise ModelError(f"{prepared.label}: onnxruntime {what}: {error}{hint}") from error
    return Calibration(
        fingerprint(prepared),
        done,
        {name: builder.build() for name, builder in collector.tensors.items()},
        collector.means(),
    )


def _yielding() -> ort.SessionOptions:
    """Threads of onnxruntime sleep between runs, where decoding and counting need the processor.

    By default they spin: half of the processor time of a calibration. The results are the same.
    """
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


class _Collector:
    """The model that gives what is asked for, and the builders that take it."""

    def __init__(
        self, prepared: Prepared, request: Request, inputs: set[str], samples: Samples
    ) -> None:
        self.label, self._samples = prepared.label, samples
        self.tensors = {n: StatisticsBuilder(histogram=request.histograms) for n in request.tensors}
        self._inputs = inputs
        self._rows: dict[str, list[Array]] = {}
        self._sums: dict[str, ChannelMeans] = {}
        self.model = prepared.ir.clone()
        values = {v.name: v for node in self.model.graph for v in node.outputs}
        outputs: list[ir.Value] = []
        for name in request.tensors:
            if name in inputs:
                continue
            if name not in values:
                raise CalibrationError(f"{self.label}: there is no tensor {name!r}")
            outputs.append(values[name])
        self._averaged: list[tuple[str, ir.Value]] = []
        for name, axis in request.means.items():
            self._averaged.append((name, _channel_means(self.model.graph, values[name], axis)))
        for _, value in self._averaged:
            if value not in outputs:
                outputs.append(value)
        for value in outputs:
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        self.model.graph.outputs.clear()
        self.model.graph.outputs.extend(outputs)
        self.fetches = [value.name or "" for value in outputs]

    def add(self, results: list[Array], feed: Feed, first: int, count: int) -> None:
        found = dict(zip(self.fetches, results, strict=True))
        for name, builder in self.tensors.items():
            array = feed[name] if name in self._inputs else found[name]
            if array.dtype != np.float32:
                raise CalibrationError(
                    f"{self.label}: tensor {name!r} is {array.dtype}, not float32"
                )
            if not builder.add(array, count):
                raise self._not_finite(name, first, count)
        for name, value in self._averaged:
            self._add_means(name, found[value.name or ""], first, count)

    def _add_means(self, name: str, x: Array, first: int, count: int) -> None:
        """x: [count * rows, channels, 1, ...] or [count, ..., channels]; each sample's mean."""
        pooled = x.ndim > 2 and all(d == 1 for d in x.shape[2:])
        channels = x.shape[1] if pooled else x.shape[-1]
        if x.size == 0:
            return
        rows = x.reshape(count, -1, channels).astype(np.float64).mean(axis=1)
        if not np.isfinite(rows).all():
            raise self._not_finite(name, first, count)
        means = ChannelMeans(count, ExactSum.of(rows.astype(np.float32)))
        known = self._sums.get(name)
        self._sums[name] = means if known is None else known + means

    def _not_finite(self, name: str, first: int, count: int) -> CalibrationError:
        ends = {source_index(self._samples, i) for i in (first, first + count - 1)}
        which = " to ".join(map(str, sorted(ends)))
        return CalibrationError(
            f"{self.label}: tensor {name!r} holds NaN or Inf for sample {which}; look at "
            "that sample, or leave the node out with --exclude"
        )

    def means(self) -> dict[str, ChannelMeans]:
        return {name: self._sums[name] for name, _ in self._averaged if name in self._sums}


def _channel_means(graph: ir.Graph, value: ir.Value, axis: int) -> ir.Value:
    """A value from which the means per channel follow cheaply: pooled if channels are axis 1."""
    if axis != 1:
        return value
    node = ir.node("GlobalAveragePool", [value], name=f"{value.name}/onnxq_mean")
    node.outputs[0].name = f"{value.name}/onnxq_mean"
    graph.append(node)
    return node.outputs[0]


def _batches(
    samples: Samples, specs: Sequence[InputSpec], size: int
) -> Generator[tuple[int, Feed, int]]:
    """Index of the first sample, feed, number of samples."""
    pending: list[Feed] = []
    first = 0
    with closing(prefetched(samples, note=NOTHING_WRITTEN)) as feeds:
        for index, feed in enumerate(feeds):
            if pending and (len(pending) == size or _shapes(feed) != _shapes(pending[0])):
                yield first, _joined(pending, specs), len(pending)
                pending, first = [], index
            pending.append(feed)
    if pending:
        yield first, _joined(pending, specs), len(pending)


def _shapes(feed: Feed) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feed.items()}


def _joined(feeds: list[Feed], specs: Sequence[InputSpec]) -> Feed:
    if len(feeds) == 1:
        return feeds[0]
    return {s.name: np.concatenate([feed[s.name] for feed in feeds]) for s in specs}


def _can_batch(
    active: ort.InferenceSession,
    samples: Samples,
    specs: Sequence[InputSpec],
    collector: _Collector,
) -> bool:
    """Whether two samples at once give, for every tensor, the two results one after the other."""
    if len(samples) < 2 or not all(spec.batched for spec in specs):
        return False
    pair = list(prefetched(samples, range(2), note=NOTHING_WRITTEN))
    if _shapes(pair[0]) != _shapes(pair[1]) or any(a.shape[0] != 1 for a in pair[0].values()):
        return False
    try:
        alone = [run(active, feed, collector.fetches) for feed in pair]
        both = run(active, _joined(pair, specs), collector.fetches)
    except RuntimeFailureError:
        return False  # a Reshape to a fixed batch, for example; one by one works or says why not
    return all(
        a.ndim > 0 and np.array_equal(np.concatenate([a, b]), c)
        for a, b, c in zip(*alone, both, strict=True)
    )
