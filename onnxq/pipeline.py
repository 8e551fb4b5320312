"""The way through: load -> prepare -> place -> calibrate -> parametrize -> improve -> rewrite ->
save -> verify, one call a stage."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from onnxq._version import __version__
from onnxq.calibration import Calibration
from onnxq.collect import Progress, fingerprint, request_of
from onnxq.collect import calibrate as run_calibration
from onnxq.data.samples import DataLike, Samples, Subset, input_specs, open_samples
from onnxq.data.split import Split, samples_to_read, split
from onnxq.errors import OptionError, OutputError
from onnxq.files import check_writable, write_atomically
from onnxq.improve import improve
from onnxq.model import ModelLike, SourceModel, initializers, load
from onnxq.parametrize import check_finite, parametrize
from onnxq.placement import place_static, place_weights
from onnxq.plans import Placement, Plan
from onnxq.prepare import Prepared, prepare
from onnxq.recipe import DynamicRecipe, Recipe, StaticRecipe
from onnxq.recipe_file import recipe_to_dict
from onnxq.report import Report, WeightBytes, nothing_quantized
from onnxq.rewrite import fake_quantized, rewrite
from onnxq.runtime import foreign_ops
from onnxq.save import check_output, save, to_proto
from onnxq.selection import Choices
from onnxq.session import METADATA_KEY, integer_io_of, needed_options
from onnxq.targets import TARGETS, target_of
from onnxq.verify import Verification, check_result, verify

__all__ = ["Call", "PathLike", "collect_statistics", "place", "prepare_for", "run", "statistics_of"]

PathLike = str | os.PathLike[str]

# Per-axis DequantizeLinear came with opset 13; Cast and Mul broadcast since opset 7
QDQ_OPSET, PLAIN_OPSET = 13, 7


@dataclass(frozen=True, eq=False)
class Call:
    """What a quantization is given; see `onnxq.quantize`."""

    model: ModelLike
    output: Path | None
    recipe: Recipe
    data: DataLike | None = None
    statistics: Calibration | PathLike | None = None
    test_model: Path | None = None
    report: Path | None = None
    progress: Progress | None = None


@dataclass(frozen=True, eq=False)
class _Data:
    """The samples of a call, and which of them do what."""

    samples: Samples
    split: Split

    @property
    def calibration(self) -> Samples:
        return Subset(self.samples, self.split.calibration)

    @property
    def held_out(self) -> Samples:
        return Subset(self.samples, self.split.held_out)


def run(call: Call) -> Report | onnx.ModelProto:
    """Load, quantize, save and verify; the report, or the model itself if no path was given."""
    recipe = call.recipe.effective()
    statistics, source_of_data = _check_data(call, recipe)
    clock = Clock()
    source = load(call.model)
    path = check_output(call.output, source.path)
    test_path = check_output(call.test_model, source.path)
    if call.report is not None:
        check_writable(call.report)
    prepared = prepare_for(source, recipe)
    clock.lap("prepare")
    placement = place(prepared, recipe)
    check_finite(prepared, placement)
    clock.lap("place")
    data, calibration = None, None
    if isinstance(recipe, StaticRecipe):
        if statistics is not None:
            calibration = statistics_of(statistics, prepared)
        else:
            data = _open(prepared, source_of_data, recipe)
            request = request_of([(placement.owners, placement.measured)])
            calibration = run_calibration(
                prepared,
                data.calibration,
                request,
                batch_size=recipe.batch_size,
                progress=call.progress,
            )
        clock.lap("calibrate")
    plan = parametrize(prepared, placement, calibration)
    clock.lap("parametrize")
    if calibration is not None:
        plan = improve(prepared, calibration, data.calibration if data else None, plan)
        clock.lap("improve")
    result = rewrite(prepared, plan)
    metadata = _metadata(prepared, plan, recipe, calibration)
    result.metadata_props[METADATA_KEY] = json.dumps(metadata, sort_keys=True)
    options = needed_options(metadata)

    wanted = data is not None and isinstance(recipe, StaticRecipe) and recipe.verify
    verification: Verification | str | None = None

    def check(written: Path | bytes) -> None:
        """Before anything takes the place of an old file."""
        nonlocal verification
        check_result(written, source, options, optimize=recipe.mode == "static")
        if data is not None and wanted:
            clock.lap("save")
            verification = verify(source, written, data.held_out, data.split.independent)
            clock.lap("verify")

    clock.lap("rewrite")
    proto = None
    if path is None:
        proto = to_proto(result)
        content = bytes(proto.SerializeToString(deterministic=True))
        check(content)
        size = len(content)
    else:
        size = save(result, path, check)
    if test_path is not None:
        test = fake_quantized(prepared, plan)
        save(test, test_path, lambda p: check_result(p, source, {}, optimize=False))
    clock.lap("save")
    report = Report(
        mode=recipe.mode,
        model=source.label,
        output=None if path is None else str(path),
        settings=metadata,
        recipe=recipe_to_dict(recipe),
        bytes_before=_bytes(source),
        bytes_after=size,
        weights=_weight_bytes(prepared, plan),
        placement=placement,
        operators=_operators(prepared, placement),
        split=None if data is None else data.split,
        verification=verification if isinstance(verification, Verification) else None,
        notes=tuple(_notes(source, prepared, placement, recipe, path, metadata, verification)),
        seconds=clock.laps,
    )
    if call.report is not None:
        _write_report(report, call.report)
    return report if proto is None else proto


def _write_report(report: Report, path: Path) -> None:
    try:
        write_atomically(path, (json.dumps(report.to_dict(), indent=2) + "\n").encode())
    except OutputError as error:
        done = f"; the model itself is complete, in {report.output}" if report.output else ""
        raise OutputError(f"{error}{done}") from error


def _check_data(
    call: Call, recipe: Recipe
) -> tuple[Calibration | PathLike | None, DataLike | None]:
    """Statistics and data of a call: its own, else those that the recipe names."""
    if isinstance(recipe, DynamicRecipe):
        if call.data is not None or call.statistics is not None:
            raise OptionError("dynamic mode takes no data: choose static mode for that")
        return None, None
    data, statistics = call.data, call.statistics
    if data is None and statistics is None:
        data, statistics = recipe.data, recipe.statistics
    if (data is None) == (statistics is None):
        raise OptionError("static mode needs either data or statistics")
    return statistics, data


def prepare_for(source: SourceModel, recipe: Recipe) -> Prepared:
    """The prepared model, at the opset that the recipe's integers need."""
    if isinstance(recipe, StaticRecipe):
        return prepare(source, min_opset=QDQ_OPSET, static=True)
    standard = recipe.encoding == "qdq" and recipe.narrowest == 8
    return prepare(source, min_opset=QDQ_OPSET if standard else PLAIN_OPSET, static=False)


def place(prepared: Prepared, recipe: Recipe) -> Placement:
    """What the recipe quantizes where."""
    choices = Choices(prepared, recipe)
    if isinstance(recipe, DynamicRecipe):
        return place_weights(prepared, choices, recipe.encoding)
    return place_static(prepared, choices, target_of(recipe.target), integer_io=recipe.integer_io)


def statistics_of(statistics: Calibration | PathLike, prepared: Prepared) -> Calibration:
    """Statistics given or in a file. Raises CalibrationError if they are of another model."""
    found = (
        statistics if isinstance(statistics, Calibration) else Calibration.load(Path(statistics))
    )
    found.check(fingerprint(prepared), prepared.label)
    return found


def collect_statistics(
    source: SourceModel,
    data: DataLike | None,
    recipe: StaticRecipe,
    progress: Progress | None,
) -> Calibration:
    """What any method and any built-in target needs of the samples."""
    data = recipe.data if data is None else data
    if data is None:
        raise OptionError("calibration needs data")
    prepared = prepare_for(source, recipe)
    choices = Choices(prepared, recipe)
    placements = [
        place_static(prepared, choices, target, integer_io=True) for target in TARGETS.values()
    ]
    # of every placed tensor, since a rule that leaves its giver float makes it an owner
    owners = [(sorted({a.owner for a in p.activations}), p.measured) for p in placements]
    opened = open_samples(data, input_specs(prepared.ir), recipe.samples, recipe.images)
    return run_calibration(
        prepared, opened, request_of(owners), batch_size=recipe.batch_size, progress=progress
    )


def _open(prepared: Prepared, data: DataLike | None, recipe: StaticRecipe) -> _Data:
    assert data is not None
    specs = input_specs(prepared.ir)
    if not recipe.verify:
        opened = open_samples(data, specs, recipe.samples, recipe.images)
        return _Data(opened, Split(tuple(range(len(opened))), (), independent=False))
    opened = open_samples(data, specs, samples_to_read(recipe.samples), recipe.images)
    return _Data(opened, split(len(opened), recipe.samples))


def _metadata(
    prepared: Prepared, plan: Plan, recipe: Recipe, calibration: Calibration | None
) -> dict[str, Any]:
    """What the file says of itself: the settings that matter to whoever has it."""
    found: dict[str, Any] = {"version": __version__, "mode": recipe.mode}
    if isinstance(recipe, DynamicRecipe):
        names = ("bits", "granularity", "symmetric", "encoding")
        return {**found, **{name: getattr(recipe, name) for name in names}}
    assert calibration is not None
    found |= {"target": recipe.target, "method": recipe.method, "granularity": recipe.granularity}
    if recipe.method in ("hist", "percentile"):
        found["percentile"] = recipe.method_options.share
    found["samples"] = calibration.samples
    if recipe.integer_io:
        found["integer_io"] = _integer_io(prepared, plan)
    return found


def _integer_io(prepared: Prepared, plan: Plan) -> dict[str, dict[str, Any]]:
    """Type, scale and zero point of each input and output that became integers."""
    graph = prepared.ir.graph
    ends = {v.name for v in (*graph.inputs, *graph.outputs)}
    found = {}
    for activation in plan.placement.activations:
        if activation.tensor in ends:
            params = plan.activation_params(activation)
            found[activation.tensor] = {
                "dtype": params.spec.qtype.name,
                "scale": float(params.scale),
                "zero_point": int(params.zero_point),
            }
    return found


def _bytes(source: SourceModel) -> int | None:
    if source.path is None:
        return None
    return sum(file.stat().st_size for file in {source.path, *source.data_files})


def _weight_bytes(prepared: Prepared, plan: Plan) -> WeightBytes:
    tensors = {v.name: v.const_value for v in initializers(prepared.ir) if v.const_value}
    weights = plan.placement.weights
    return WeightBytes(
        count=len(weights),
        floats=sum(tensors[w.tensor].nbytes for w in weights),
        integers=sum(tensors[w.tensor].size * w.spec.qtype.bits // 8 for w in weights),
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
    recipe: Recipe,
    path: Path | None,
    metadata: Mapping[str, Any],
    verification: Verification | str | None,
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
    options = needed_options(metadata)
    if options and placement.weights:
        entries = ", ".join(f"{key}={value}" for key, value in options.items())
        notes.append(
            f'load with onnxq.load_session("{path}"), or any session with {entries}: without it '
            "onnxruntime dequantizes every weight on every run; --encoding fold needs no option, "
            "but only DequantizeLinear is understood as quantization by other tools"
        )
    for name, params in integer_io_of(metadata).items():
        notes.append(
            f"{name!r} is {params.dtype}: real value = "
            f"(integer - {params.zero_point}) * {params.scale:.9g}"
        )
    if isinstance(recipe, StaticRecipe) and verification is None:
        why = "--no-verify" if not recipe.verify else "statistics, but no samples, were given"
        notes.append(f"not verified ({why}): compare it with `onnxq compare`")
    if isinstance(verification, str):
        notes.append(f"not verified: {verification}")
    elif verification is not None:
        notes += verification.notes
    return notes


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = self.laps.get(stage, 0.0) + now - self._last
        self._last = now
