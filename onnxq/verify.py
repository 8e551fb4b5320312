"""Verify: a written model is valid and loads; and how far it is from the float one, on samples."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx.checker
import onnxruntime as ort

from onnxq.data.samples import Samples
from onnxq.data.sources import NOTHING_WRITTEN
from onnxq.errors import ModelError
from onnxq.model import SourceModel
from onnxq.runtime import (
    PROTOBUF_LIMIT,
    RuntimeFailureError,
    foreign_ops,
    model_size,
    one_line,
    serialized,
    session,
)

if TYPE_CHECKING:
    from onnxq.measure.comparison import OutputComparison

__all__ = ["Verification", "check_result", "verify"]

HELD_OUT = f" of those held out for verification{NOTHING_WRITTEN}"
# dB below which an output deserves a look
LOW_SQNR = 10.0

NOT_REGISTERED = "is not a registered function/op"


def check_result(
    result: Path | bytes, source: SourceModel, options: Mapping[str, str], *, optimize: bool
) -> None:
    """onnx.checker accepts the result, if it accepts the source, and onnxruntime loads it.

    If it does not and the source does not either, the message says so. A result that was never to
    be run (not `optimize`, as in dynamic mode) may have operators of libraries that onnxruntime
    does not know: then the checker's word is all there is.
    """
    refused = _checker_error(result)
    if refused and not _source_refused(source):
        raise ModelError(
            f"{source.label}: onnx.checker refuses the quantized model: {refused}"
            + _source_too(source)
        )
    settings = ort.SessionOptions()
    if not optimize:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in options.items():
        settings.add_session_config_entry(key, value)
    try:
        with session(result, settings):
            pass
    except RuntimeFailureError as error:
        if not optimize and foreign_ops(source.ir) and NOT_REGISTERED in str(error):
            return
        raise ModelError(
            f"{source.label}: onnxruntime cannot load the quantized model: {error}"
            + _source_too(source)
        ) from error


def _checker_error(model: Path | bytes) -> str | None:
    """What onnx.checker has to say against a model."""
    if isinstance(model, Path) and model.stat().st_size < PROTOBUF_LIMIT:
        # it reads a file byte by byte; given the content it refuses data beside the file
        try:
            onnx.checker.check_model(model.read_bytes())
        except onnx.checker.ValidationError:
            pass
        else:
            return None
    try:
        onnx.checker.check_model(str(model) if isinstance(model, Path) else model)
    except onnx.checker.ValidationError as error:
        return one_line(error)
    return None


def _source_refused(source: SourceModel) -> bool:
    """Whether onnx.checker is as little content with the source; onnxruntime may well be."""
    if source.path is not None:
        return _checker_error(source.path) is not None
    small = model_size(source.ir) < PROTOBUF_LIMIT
    return small and _checker_error(serialized(source.ir)) is not None


def _source_too(source: SourceModel) -> str:
    """Whose fault it is, in words."""
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        with session(source.path or source.ir, settings):
            pass
    except RuntimeFailureError as error:
        remedy = "repair it first"
        for op in foreign_ops(source.ir)[:1]:
            remedy = f"{op} is none of its operators, and dynamic mode need not run the model"
        return f"; the float model does not load either ({error}): {remedy}"
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
) -> Verification | str:
    """Compare both models on the samples; or why that cannot be: only the result can be loaded.

    (Of an opset that onnxruntime no longer runs, the result may well be of one that it does.)

    Raises ModelError if the result cannot be loaded.
    """
    from onnxq.measure.comparison import compare_outputs
    from onnxq.measure.fusion import stray_nodes
    from onnxq.runner import open_runner

    with contextlib.ExitStack() as stack:
        try:
            reference = stack.enter_context(open_runner(source.path or source.ir))
        except RuntimeFailureError as error:
            return f"onnxruntime cannot load the float model: {error}"
        try:
            quantized = stack.enter_context(open_runner(result))
        except RuntimeFailureError as error:
            raise ModelError(f"{source.label}: onnxruntime cannot load it: {error}") from error
        outputs, _ = compare_outputs(reference, quantized, samples, note=HELD_OUT)
    unfused = len(stray_nodes(result)) if isinstance(result, Path) else None
    return Verification(len(samples), independent, tuple(outputs), unfused)
