"""Verify: a written model is valid and loads; and how far it is from the float one, on samples."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnxruntime as ort

from onnxq.comparison import OutputComparison, compare_outputs
from onnxq.errors import ModelError
from onnxq.fusion import stray_nodes
from onnxq.model import SourceModel
from onnxq.runner import open_runner
from onnxq.runtime import RuntimeFailureError, one_line, run, session
from onnxq.samples import Samples
from onnxq.sources import NOTHING_WRITTEN
from onnxq.timing import interleaved

__all__ = ["Verification", "check_result", "latencies", "verify"]

# dB below which an output deserves a look
LOW_SQNR = 10.0


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
class Verification:
    """The quantized model against the float one, in onnxruntime on this machine.

    samples: how many both ran on. independent: nothing was fitted to them.
    unfused: QuantizeLinear and DequantizeLinear that onnxruntime runs as they are, for which
        `benchmark` gives reasons; None for a model that was not written to a file.
    """

    samples: int
    independent: bool
    outputs: tuple[OutputComparison, ...]
    unfused: int | None

    @property
    def notes(self) -> list[str]:
        """What a user should not overlook."""
        notes = []
        if not self.independent:
            notes.append("verified on the sample that calibrated, as there is no other")
        notes += [
            f"output {o.output!r} has an SQNR of {o.sqnr:.1f} dB only: `onnxq compare --layers` "
            "shows where it is lost"
            for o in self.outputs
            if o.sqnr < LOW_SQNR
        ]
        return notes


def verify(
    source: SourceModel, result: Path | bytes, samples: Samples, independent: bool
) -> Verification:
    """Compare both models on the samples. Raises ModelError if one of them cannot be loaded."""
    try:
        with (
            open_runner(source.path or source.ir) as reference,
            open_runner(result) as quantized,
        ):
            outputs, _ = compare_outputs(reference, quantized, samples, note=NOTHING_WRITTEN)
    except RuntimeFailureError as error:
        raise ModelError(f"{source.label}: onnxruntime cannot load it: {error}") from error
    unfused = len(stray_nodes(result)) if isinstance(result, Path) else None
    return Verification(len(samples), independent, tuple(outputs), unfused)


def latencies(
    sessions: Sequence[ort.InferenceSession],
    feed: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]],
    *,
    rounds: int = 10,
    seconds: float = 1.0,
) -> list[float]:
    """Median seconds of one run of each session, taken in turn so that drift hits all alike.

    rounds: at least so many; more until `seconds` have passed.
    """
    for active in sessions:
        run(active, feed)
    runs = [functools.partial(active.run, None, dict(feed)) for active in sessions]
    times = interleaved(runs, rounds=rounds, seconds=seconds)
    return [float(median) for median in np.median(times, axis=(0, 2))]
