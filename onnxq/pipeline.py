"""The way through: load -> prepare -> place -> calibrate -> parametrize -> improve -> rewrite ->
save -> verify, one call a stage."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxq._version import __version__
from onnxq.calibration import Calibration
from onnxq.collect import Progress, Request, Spread
from onnxq.collect import calibrate as run_calibration
from onnxq.data.samples import DataLike, Samples, Subset, input_specs, open_samples
from onnxq.data.split import Split, samples_to_read, split
from onnxq.errors import OptionError, OutputError
from onnxq.files import check_apart, check_writable, write_atomically
from onnxq.fingerprint import fingerprint
from onnxq.improve import improve
from onnxq.model import ModelLike, SourceModel, load
from onnxq.numerics.ranges import RANGES_ONLY
from onnxq.parametrize import check_finite, parametrize
from onnxq.placement import place_static, place_weights, with_correction
from onnxq.placement.existing import is_quantize
from onnxq.plans import Placement, Plan
from onnxq.prepare import Prepared, prepare
from onnxq.recipe import DynamicRecipe, Encoding, Recipe, StaticRecipe
from onnxq.recipe_file import recipe_to_dict
from onnxq.report import Report, notes_on, operator_counts, source_bytes, weight_bytes
from onnxq.rewrite import fake_quantized, rewrite
from onnxq.runtime import PROTOBUF_LIMIT, model_size
from onnxq.save import save, to_proto
from onnxq.selection import Choices
from onnxq.session import METADATA_KEY, integer_io_of, metadata_of, needed_options
from onnxq.targets import TARGETS, target_of
from onnxq.verify import Verification, check_result, verify

__all__ = [
    "Call",
    "PathLike",
    "Tell",
    "collect_statistics",
    "place",
    "prepare_for",
    "run",
    "statistics_of",
]

PathLike = str | os.PathLike[str]
Tell = Callable[[str], None]

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
    recipe_file: Path | None = None
    progress: Progress | None = None
    spread: Spread = Spread()  # noqa: RUF009  # frozen
    tell: Tell | None = None


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
    _check_outputs(call, source)
    prepared = prepare_for(source, recipe)
    clock.lap("prepare")
    placement = place(prepared, recipe)
    if isinstance(recipe, StaticRecipe):  # before samples run; else parametrize sees it
        check_finite(prepared, placement)
    clock.lap("place")
    data, calibration = None, None
    if isinstance(recipe, StaticRecipe):
        if statistics is not None:
            calibration = statistics_of(statistics, prepared)
        else:
            data = _open(prepared, source_of_data, recipe)
            calibration = _calibrate(prepared, placement, data, recipe, call)
        clock.lap("calibrate")
    plan = parametrize(prepared, placement, calibration)
    clock.lap("parametrize")
    ledger = None
    if isinstance(recipe, StaticRecipe) and calibration is not None:
        samples = data.calibration if data else None
        improved = improve(
            prepared,
            calibration,
            samples,
            plan,
            recipe.accuracy,
            extra=recipe.passes,
            tell=call.tell,
        )
        plan, ledger = improved.plan, improved.ledger
        clock.lap("improve")
    # with nothing to write into it the model stays as it was given
    result = source.ir.clone() if placement.is_empty else rewrite(prepared, plan)
    metadata = _metadata(source, plan, recipe, calibration)
    result.metadata_props[METADATA_KEY] = json.dumps(metadata, sort_keys=True)
    clock.lap("rewrite")
    held_out = data if isinstance(recipe, StaticRecipe) and recipe.verify else None
    written = _write(result, source, call, metadata, held_out, clock)
    if call.test_model is not None:
        test = source.ir.clone() if placement.is_empty else fake_quantized(prepared, plan)
        save(test, call.test_model, lambda p: check_result(p, source, {}, optimize=False))
        clock.lap("save")
    verification = written.verification
    report = Report(
        mode=recipe.mode,
        model=source.label,
        output=None if call.output is None else str(call.output),
        settings=metadata,
        recipe=recipe_to_dict(recipe),
        bytes_before=source_bytes(source),
        bytes_after=written.size,
        weights=weight_bytes(prepared, plan),
        placement=placement,
        operators=operator_counts(prepared, placement),
        split=None if data is None else data.split,
        verification=verification if isinstance(verification, Verification) else None,
        ledger=ledger,
        notes=tuple(
            notes_on(
                source, prepared, placement, recipe, call.output, metadata, verification, ledger
            )
        ),
        seconds=clock.laps,
    )
    if call.report is not None:
        _write_report(report, call.report)
    return report if written.proto is None else written.proto


@dataclass(frozen=True, eq=False)
class _Written:
    """A result: in memory if there is a proto. verification: or why there is none, or None."""

    proto: onnx.ModelProto | None
    size: int
    verification: Verification | str | None


def _write(
    result: ir.Model,
    source: SourceModel,
    call: Call,
    metadata: Mapping[str, Any],
    held_out: _Data | None,
    clock: Clock,
) -> _Written:
    """Save and verify: the new file takes the place of an old one after it has been verified."""
    verification: Verification | str | None = None

    def check(written: Path | bytes) -> None:
        nonlocal verification
        optimize = metadata["mode"] == "static"
        check_result(written, source, needed_options(metadata), optimize=optimize)
        clock.lap("save")
        if held_out is not None:
            independent = held_out.split.independent
            verification = verify(source, written, held_out.held_out, independent)
            clock.lap("verify")

    proto = None
    if call.output is None:
        proto = to_proto(result)
        content = bytes(proto.SerializeToString(deterministic=True))
        check(content)
        size = len(content)
    else:
        # of a source above 2 GB the result has its data beside it even if it would fit into one
        # message: that would be in memory several times
        large = model_size(source.ir) >= PROTOBUF_LIMIT
        size = save(result, call.output, check, limit=0 if large else PROTOBUF_LIMIT)
    clock.lap("save")
    return _Written(proto, size, verification)


def _check_outputs(call: Call, source: SourceModel) -> None:
    """Every file that the call writes is found writable before any work."""
    inputs = {*source.data_files, *filter(None, (source.path, source.origin))}
    for given in (call.data, call.statistics, call.recipe_file):
        if isinstance(given, str | os.PathLike):
            inputs.add(Path(given))
    if isinstance(call.recipe, StaticRecipe):
        inputs.update(Path(p) for p in (call.recipe.data, call.recipe.statistics) if p)
    outputs = {
        "the output": call.output,
        "the test model": call.test_model,
        "the report": call.report,
    }
    check_apart(outputs, inputs)
    for path in filter(None, outputs.values()):
        check_writable(path)


def _calibrate(
    prepared: Prepared,
    placement: Placement,
    data: _Data,
    recipe: StaticRecipe,
    call: Call,
) -> Calibration:
    return run_calibration(
        prepared,
        data.calibration,
        Request(
            placement.owners,
            histograms=any(a.method.method not in RANGES_ONLY for a in placement.activations),
        ),
        batch_size=recipe.batch_size,
        spread=call.spread,
        progress=call.progress,
    )


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
    if isinstance(recipe, StaticRecipe) and call.test_model is not None:
        raise OptionError("test_model is for dynamic mode: in static mode activations are rounded")
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
        placement = place_weights(prepared, choices, _encoding(prepared, recipe))
    else:
        target = target_of(recipe.target).at(recipe.bits)
        placement = place_static(prepared, choices, target, integer_io=recipe.integer_io)
    return with_correction(placement) if recipe.weight_correction else placement


def _encoding(prepared: Prepared, recipe: DynamicRecipe) -> Encoding:
    """The recipe's, but `fold` in a model whose activations are quantized already.

    The session option that `qdq` needs turns their int8 kernels off.
    """
    nodes = ir.traversal.RecursiveGraphIterator(prepared.ir.graph)
    return "fold" if any(map(is_quantize, nodes)) else recipe.encoding


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
    spread: Spread,
    checkpoint: Path | None,
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
    # of every placed tensor: a view or a Concat that is left float makes it an owner. (A Relu that
    # is left float makes its Conv's output one, which only a call of its own collects.)
    owners = tuple(sorted({a.owner for p in placements for a in p.activations}))
    opened = open_samples(data, input_specs(prepared.ir), recipe.samples, recipe.images)
    return run_calibration(
        prepared,
        opened,
        Request(owners),
        batch_size=recipe.batch_size,
        spread=spread,
        checkpoint=checkpoint,
        progress=progress,
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
    source: SourceModel, plan: Plan, recipe: Recipe, calibration: Calibration | None
) -> dict[str, Any]:
    """What the file says of itself: the settings that matter to whoever has it."""
    found: dict[str, Any] = {"version": __version__, "mode": recipe.mode}
    integer_io = _integer_io(source, plan)
    if integer_io:
        found["integer_io"] = integer_io
    if recipe.weight_correction:
        found["weight_correction"] = True
    if isinstance(recipe, DynamicRecipe):
        names = ("bits", "granularity", "symmetric")
        found |= {name: getattr(recipe, name) for name in names}
        forms = [weight.form for weight in plan.placement.weights]
        return {**found, "encoding": forms[0] if forms else recipe.encoding}
    assert calibration is not None
    if recipe.bits != TARGETS[recipe.target or ""].weight.bits:
        found["bits"] = recipe.bits
    found |= {"target": recipe.target, "method": recipe.method, "granularity": recipe.granularity}
    if recipe.method in ("hist", "percentile"):
        found["percentile"] = recipe.method_options.share
    if recipe.accuracy != "none":
        found["accuracy"] = recipe.accuracy
    found["samples"] = calibration.samples
    return found


def _integer_io(source: SourceModel, plan: Plan) -> dict[str, dict[str, Any]]:
    """Type, scale and zero point of each input and output that is integers in place of float.

    Those of a model of ours that was given, too, as far as they still are.
    """
    before = integer_io_of(metadata_of(source.ir.metadata_props))
    ends = {v.name: v for v in (*source.ir.graph.inputs, *source.ir.graph.outputs)}
    found = {
        name: dataclasses.asdict(value)
        for name, value in before.items()
        if name in ends and (dtype := ends[name].dtype) is not None and dtype.is_integer()
    }
    for activation in plan.placement.activations:
        if activation.tensor in plan.placement.borders:
            params = plan.activation_params(activation)
            found[activation.tensor] = {
                "dtype": params.spec.qtype.name,
                "scale": float(params.scale),
                "zero_point": int(params.zero_point),
            }
    return found


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = self.laps.get(stage, 0.0) + now - self._last
        self._last = now
