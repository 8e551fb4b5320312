"""The three calls: quantize_dynamic, quantize_static, calibrate. Each reads as the pipeline."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import onnx
import onnx_ir as ir

from onnxq._version import __version__
from onnxq.calibration import Calibration
from onnxq.collect import Progress, fingerprint, request_of
from onnxq.collect import calibrate as run_calibration
from onnxq.errors import OptionError
from onnxq.improve import improve
from onnxq.model import ModelLike, SourceModel, initializers, load
from onnxq.parametrize import DEFAULT_METHOD, MethodOptions, check_finite, parametrize
from onnxq.placement import place_static, place_weights
from onnxq.plans import Placement, Plan
from onnxq.prepare import Prepared, prepare
from onnxq.qtypes import INT8, INT16
from onnxq.report import Report, WeightBytes, nothing_quantized
from onnxq.rewrite import Encoding, fake_quantized, rewrite
from onnxq.runtime import foreign_ops
from onnxq.samples import DataLike, Samples, input_specs, open_samples
from onnxq.save import check_output, save, to_proto
from onnxq.selection import Selection
from onnxq.session import METADATA_KEY, needed_options
from onnxq.targets import TARGETS, target_of
from onnxq.verify import check_result

__all__ = ["calibrate", "quantize_dynamic", "quantize_static"]

Granularity = Literal["channel", "tensor"]
PathLike = str | os.PathLike[str]

# Per-axis DequantizeLinear came with opset 13; Cast and Mul broadcast since opset 7
QDQ_OPSET, PLAIN_OPSET = 13, 7


@overload
def quantize_dynamic(
    model: ModelLike,
    output: None = None,
    *,
    bits: int = ...,
    granularity: Granularity = ...,
    encoding: Encoding = ...,
    include: Sequence[str] = ...,
    exclude: Sequence[str] = ...,
    include_ops: Sequence[str] = ...,
    exclude_ops: Sequence[str] = ...,
    test_model: PathLike | None = ...,
) -> onnx.ModelProto: ...


@overload
def quantize_dynamic(
    model: ModelLike,
    output: PathLike,
    *,
    bits: int = ...,
    granularity: Granularity = ...,
    encoding: Encoding = ...,
    include: Sequence[str] = ...,
    exclude: Sequence[str] = ...,
    include_ops: Sequence[str] = ...,
    exclude_ops: Sequence[str] = ...,
    test_model: PathLike | None = ...,
) -> Report: ...


def quantize_dynamic(
    model: ModelLike,
    output: PathLike | None = None,
    *,
    bits: int = 8,
    granularity: Granularity = "channel",
    encoding: Encoding = "qdq",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    include_ops: Sequence[str] = (),
    exclude_ops: Sequence[str] = (),
    test_model: PathLike | None = None,
) -> Report | onnx.ModelProto:
    """Store the weights as integers; activations stay float. Needs no data.

    model: a path, an onnx.ModelProto or an onnx_ir.Model; it is not changed.
    output: the file to write; None returns the model instead of a report.
    bits: 8 or 16. granularity: one scale a channel or a tensor.
    encoding: `qdq`, the standard DequantizeLinear (load it with `onnxq.load_session`); or `fold`,
        Cast and Mul, which any onnxruntime session folds to float at load.
    include, exclude, include_ops, exclude_ops: which nodes, by glob pattern and by op type.
    test_model: also write a float model with the rounded weights here.

    At 8 bits in `qdq` a model below opset 13 is raised to 13. At 16 bits the opset stays: from 21
    on the standard operator takes int16, below it the one of com.microsoft is written.

    Raises OptionError, ModelError or OutputError; then nothing has been written.
    """
    _check_choice("bits", bits, (8, 16))
    _check_choice("granularity", granularity, ("channel", "tensor"))
    _check_choice("encoding", encoding, ("qdq", "fold"))
    clock = _Clock()
    source = load(model)
    path = check_output(output, source.path)
    test_path = check_output(test_model, source.path)
    min_opset = QDQ_OPSET if bits == 8 and encoding == "qdq" else PLAIN_OPSET
    prepared = prepare(source, min_opset=min_opset, static=False)
    clock.lap("prepare")
    selection = Selection(tuple(include), tuple(exclude), tuple(include_ops), tuple(exclude_ops))
    placement = place_weights(
        prepared, selection, INT8 if bits == 8 else INT16, per_channel=granularity == "channel"
    )
    check_finite(prepared, placement)
    plan = parametrize(prepared, placement)
    clock.lap("plan")
    settings = {"mode": "dynamic", "bits": bits, "granularity": granularity, "encoding": encoding}
    result = rewrite(prepared, plan, encoding)
    report = _finish(source, prepared, plan, result, path, settings, clock)
    if test_path is not None:
        test = fake_quantized(prepared, plan)
        save(test, test_path, lambda p: check_result(p, source, {}, optimize=False))
    return report


@overload
def quantize_static(
    model: ModelLike,
    output: None = None,
    data: DataLike | None = ...,
    *,
    method: str = ...,
    percentile: float = ...,
    target: str | None = ...,
    granularity: Granularity = ...,
    samples: int | None = ...,
    batch_size: int = ...,
    statistics: Calibration | PathLike | None = ...,
    include: Sequence[str] = ...,
    exclude: Sequence[str] = ...,
    include_ops: Sequence[str] = ...,
    exclude_ops: Sequence[str] = ...,
    progress: Progress | None = ...,
) -> onnx.ModelProto: ...


@overload
def quantize_static(
    model: ModelLike,
    output: PathLike,
    data: DataLike | None = ...,
    *,
    method: str = ...,
    percentile: float = ...,
    target: str | None = ...,
    granularity: Granularity = ...,
    samples: int | None = ...,
    batch_size: int = ...,
    statistics: Calibration | PathLike | None = ...,
    include: Sequence[str] = ...,
    exclude: Sequence[str] = ...,
    include_ops: Sequence[str] = ...,
    exclude_ops: Sequence[str] = ...,
    progress: Progress | None = ...,
) -> Report: ...


def quantize_static(
    model: ModelLike,
    output: PathLike | None = None,
    data: DataLike | None = None,
    *,
    method: str = DEFAULT_METHOD,
    percentile: float = 0.9999,
    target: str | None = None,
    granularity: Granularity = "channel",
    samples: int | None = None,
    batch_size: int = 1,
    statistics: Calibration | PathLike | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    include_ops: Sequence[str] = (),
    exclude_ops: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report | onnx.ModelProto:
    """Weights and activations in 8 bits where the target runs them in int8.

    model, output, include, exclude, include_ops, exclude_ops: as in `quantize_dynamic`.
    data: samples for the ranges of activations (see `onnxq.samples.open_samples`); unlabelled.
    samples: how many of them to use, None for all. batch_size: how many run at once.
    method: KL, hist (percentile), mse, emd, avg, abs_max or min_max.
    percentile: for `hist`, the share to cover (0.9999, or 99.99 percent).
    target: one of onnxruntime-x86, onnxruntime-arm, openvino, tensorrt, paddle; None for
        onnxruntime on this machine's kind of processor.
    statistics: a Calibration or the file of one, in place of data.
    progress: called with the number of samples done and of all.

    Raises OptionError, ModelError, DataError, CalibrationError or OutputError; then nothing has
    been written.
    """
    _check_choice("granularity", granularity, ("channel", "tensor"))
    options = MethodOptions(method, percentile)
    runtime = target_of(target)
    if (data is None) == (statistics is None):
        raise OptionError("static mode needs either data or statistics")
    clock = _Clock()
    source = load(model)
    path = check_output(output, source.path)
    prepared = prepare(source, min_opset=QDQ_OPSET, static=True)
    clock.lap("prepare")
    selection = Selection(tuple(include), tuple(exclude), tuple(include_ops), tuple(exclude_ops))
    placement = place_static(prepared, selection, runtime, per_channel=granularity == "channel")
    check_finite(prepared, placement)
    clock.lap("place")
    opened = None if data is None else _open(prepared, data, samples)
    if opened is not None:
        request = request_of([(placement.owners, placement.measured)])
        calibration = run_calibration(
            prepared, opened, request, batch_size=batch_size, progress=progress
        )
    else:
        calibration = _statistics(statistics, prepared)
    clock.lap("calibrate")
    plan = parametrize(prepared, placement, calibration, options)
    clock.lap("parametrize")
    plan = improve(prepared, calibration, opened, plan)
    clock.lap("improve")
    settings: dict[str, Any] = {
        "mode": "static",
        "target": runtime.name,
        "method": method,
        "granularity": granularity,
        "samples": calibration.samples,
    }
    if method in ("hist", "percentile"):
        settings["percentile"] = options.share
    result = rewrite(prepared, plan)
    return _finish(source, prepared, plan, result, path, settings, clock)


def calibrate(
    model: ModelLike,
    data: DataLike,
    *,
    samples: int | None = None,
    batch_size: int = 1,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    include_ops: Sequence[str] = (),
    exclude_ops: Sequence[str] = (),
    progress: Progress | None = None,
) -> Calibration:
    """Statistics from which `quantize_static` can take the ranges for any method and any target.

    Arguments as in `quantize_static`. `Calibration.save` writes them, `Calibration.merge` adds
    those of other samples.
    """
    source = load(model)
    prepared = prepare(source, min_opset=QDQ_OPSET, static=True)
    selection = Selection(tuple(include), tuple(exclude), tuple(include_ops), tuple(exclude_ops))
    placements = [place_static(prepared, selection, target) for target in TARGETS.values()]
    request = request_of((p.owners, p.measured) for p in placements)
    opened = _open(prepared, data, samples)
    return run_calibration(prepared, opened, request, batch_size=batch_size, progress=progress)


def _open(prepared: Prepared, data: DataLike, limit: int | None) -> Samples:
    return open_samples(data, input_specs(prepared.ir), limit)


def _statistics(statistics: Calibration | PathLike | None, prepared: Prepared) -> Calibration:
    assert statistics is not None
    found = (
        statistics if isinstance(statistics, Calibration) else Calibration.load(Path(statistics))
    )
    found.check(fingerprint(prepared), prepared.label)
    return found


def _finish(
    source: SourceModel,
    prepared: Prepared,
    plan: Plan,
    result: ir.Model,
    path: Path | None,
    settings: dict[str, Any],
    clock: _Clock,
) -> Report | onnx.ModelProto:
    """Save and check; the report, or the model itself if no path was given."""
    metadata = {"version": __version__, **settings}
    result.metadata_props[METADATA_KEY] = json.dumps(metadata, sort_keys=True)
    options = needed_options(settings)
    static = settings["mode"] == "static"

    def check(written: Path | bytes) -> None:
        check_result(written, source, options, optimize=static)

    clock.lap("rewrite")
    if path is None:
        proto = to_proto(result)
        check(proto.SerializeToString(deterministic=True))
        return proto
    written = save(result, path, check)
    clock.lap("save")
    return Report(
        mode=settings["mode"],
        model=source.label,
        output=str(path),
        settings=settings,
        bytes_before=_bytes(source),
        bytes_after=written,
        weights=_weight_bytes(prepared, plan),
        placement=plan.placement,
        operators=_operators(prepared, plan.placement),
        notes=tuple(_notes(source, prepared, plan.placement, path, options)),
        seconds=clock.laps,
    )


def _bytes(source: SourceModel) -> int | None:
    if source.path is None:
        return None
    files = {source.path} | {
        Path(tensor.path)
        for value in initializers(source.ir)
        if isinstance(tensor := value.const_value, ir.ExternalTensor)
    }
    return sum(file.stat().st_size for file in files)


def _weight_bytes(prepared: Prepared, plan: Plan) -> WeightBytes:
    sizes = {v.name: v.const_value.size for v in initializers(prepared.ir) if v.const_value}
    weights = plan.placement.weights
    elements = sum(sizes[w.tensor] for w in weights)
    return WeightBytes(
        count=len(weights),
        float32=4 * elements,
        integers=sum(sizes[w.tensor] * w.spec.qtype.bits // 8 for w in weights),
        scales=sum(4 * plan.params[w.tensor].scale.size for w in weights),
    )


def _operators(prepared: Prepared, placement: Placement) -> dict[str, int]:
    if placement.target is None:
        return {}
    quantized = {use.node for a in placement.activations for use in a.uses}
    return dict(
        sorted(Counter(n.op_type for n in prepared.ir.graph if n.name in quantized).items())
    )


def _notes(
    source: SourceModel,
    prepared: Prepared,
    placement: Placement,
    path: Path,
    options: dict[str, str],
) -> list[str]:
    notes = []
    if not placement.weights:
        notes.append(nothing_quantized(placement))
    if unknown := foreign_ops(source.ir):
        notes.append(
            f"left as they are: {', '.join(unknown)}, which onnxruntime does not know; the result "
            "was checked as far as that allows: register their library and run it"
        )
    before, after = source.ir.opset_imports.get("", 0), prepared.ir.opset_imports.get("", 0)
    if after > before:
        notes.append(f"opset raised from {before} to {after}, which per-channel scales need")
    if options and placement.weights:
        entries = ", ".join(f"{key}={value}" for key, value in options.items())
        notes.append(
            f'load with onnxq.load_session("{path}"), or any session with {entries}: without it '
            "onnxruntime dequantizes every weight on every run; --encoding fold needs no option, "
            "but only DequantizeLinear is understood as quantization by other tools"
        )
    return notes


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise OptionError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = now - self._last
        self._last = now
