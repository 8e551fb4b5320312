"""Verify: a written model is valid and loads; and how far it is from the float one, on samples."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnxruntime as ort

from onnxq.errors import ModelError
from onnxq.model import SourceModel
from onnxq.numerics.metrics import ErrorSums, agreement
from onnxq.prefetch import prefetched
from onnxq.runtime import RuntimeFailureError, one_line, run, session
from onnxq.samples import Samples

__all__ = ["Comparison", "check_result", "compare", "latencies"]


def check_result(
    result: Path | bytes, source: SourceModel, options: Mapping[str, str], *, optimize: bool
) -> None:
    """onnx.checker accepts the result and onnxruntime loads it.

    If it does not and the source does not either, the message says so.
    """
    try:
        onnx.checker.check_model(str(result) if isinstance(result, Path) else result)
    except onnx.checker.ValidationError as error:
        raise ModelError(
            f"{source.label}: onnx.checker refuses the quantized model: {one_line(error)}"
            + _source_too(source)
        ) from error
    settings = ort.SessionOptions()
    if not optimize:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in options.items():
        settings.add_session_config_entry(key, value)
    try:
        with session(result, settings):
            pass
    except RuntimeFailureError as error:
        raise ModelError(
            f"{source.label}: onnxruntime cannot load the quantized model: {error}"
            + _source_too(source)
        ) from error


def _source_too(source: SourceModel) -> str:
    """Whose fault it is, in words."""
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        with session(source.path or source.ir, settings):
            pass
    except RuntimeFailureError as error:
        return f"; the float model does not load either ({error}): repair it first"
    return "; the float model does load: this is a defect of onnxq, please report it"


@dataclass(frozen=True)
class Comparison:
    """One output of the float and the quantized model over samples.

    sqnr: dB; centred: it is that of class scores, each sample relative to its own mean.
    agreement: share of samples with the same top class; None if the output is no class scores.
    relative_max_error: the largest error as a share of the float output's range.
    """

    output: str
    sqnr: float
    centred: bool
    cosine: float
    relative_max_error: float
    agreement: float | None
    samples: int


def compare(
    reference: ort.InferenceSession, quantized: ort.InferenceSession, samples: Samples
) -> list[Comparison]:
    """Run both on every sample and compare each floating-point output."""
    names = [output.name for output in reference.get_outputs()]
    sums: dict[str, ErrorSums] = {}
    agreed = dict.fromkeys(names, 0)
    rows = dict.fromkeys(names, 0)
    with closing(prefetched(samples)) as feeds:
        for feed in feeds:
            for name, r, q in zip(
                names, run(reference, feed, names), run(quantized, feed, names), strict=True
            ):
                if r.dtype.kind != "f":
                    continue
                scores = r.ndim == 2 and r.shape[1] > 1
                sums.setdefault(name, ErrorSums(centred=scores)).add(r, q)
                if scores:
                    agreed[name] += agreement(r, q)
                    rows[name] += len(r)
    return [
        Comparison(
            name,
            total.sqnr,
            total.centred,
            total.cosine,
            total.relative_max_error,
            agreed[name] / rows[name] if rows[name] else None,
            len(samples),
        )
        for name, total in sums.items()
    ]


def latencies(
    sessions: Sequence[ort.InferenceSession],
    feed: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]],
    *,
    rounds: int = 30,
    seconds: float = 1.0,
) -> list[float]:
    """Median seconds of one run of each session, taken in turn so that drift hits all alike.

    rounds: at least so many; more until `seconds` have passed.
    """
    times: list[list[float]] = [[] for _ in sessions]
    for active in sessions:
        for _ in range(3):
            run(active, feed)
    start = time.perf_counter()
    while len(times[0]) < rounds or time.perf_counter() - start < seconds:
        for active, taken in zip(sessions, times, strict=True):
            begin = time.perf_counter()
            active.run(None, dict(feed))
            taken.append(time.perf_counter() - begin)
    return [float(np.median(taken)) for taken in times]
