"""The way through: load -> prepare -> place -> calibrate -> parametrize -> improve -> rewrite ->
save -> verify, one call a stage."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from onnxq.errors import OptionError, OutputError
from onnxq.files import check_apart, check_writable, write_atomically
from onnxq.lean import collector_paused
from onnxq.model import ModelLike, SourceModel, load
from onnxq.outcome import Clock, Data, Made, Written, metadata_for, report_on
from onnxq.parametrize import parametrize
from onnxq.placement import place_static, place_weights, with_correction
from onnxq.placement.existing import is_quantize
from onnxq.plans import Placement
from onnxq.prepare import Prepared, prepare
from onnxq.recipe import DynamicRecipe, Encoding, Recipe, Rule, StaticRecipe
from onnxq.report import Report
from onnxq.rewrite import fake_quantized, rewrite
from onnxq.runtime import PROTOBUF_LIMIT, model_size
from onnxq.save import save, to_proto
from onnxq.selection import Choices
from onnxq.session import METADATA_KEY, needed_options
from onnxq.spread import Spread
from onnxq.targets import target_of
from onnxq.verify import Verification, check_result, verify

if TYPE_CHECKING:
    from onnxq.calibration import Calibration
    from onnxq.collect import Progress
    from onnxq.data.samples import DataLike
    from onnxq.improve.mixed.goals import Evaluate

__all__ = [
    "Call",
    "PathLike",
    "Placer",
    "Tell",
    "place",
    "prepare_for",
    "run",
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
    evaluate: Evaluate | None = None


def run(call: Call) -> Report | onnx.ModelProto:
    """Load, quantize, save and verify; the report, or the model itself if no path was given."""
    recipe = call.recipe.effective()
    statistics, source_of_data = _check_data(call, recipe)
    clock = Clock()
    source = load(call.model)
    _check_outputs(call, source)
    prepared = prepare_for(source, recipe)
    clock.lap("prepare")
    if isinstance(recipe, StaticRecipe):
        from onnxq.static_mode import make_static  # dynamic mode needs none of it

        made = make_static(call, recipe, source, prepared, statistics, source_of_data, clock)
    else:
        placement = place(prepared, recipe)
        clock.lap("place")
        made = Made(recipe, prepared, parametrize(prepared, placement))
        clock.lap("parametrize")
    # with nothing to write into it the model stays as it was given
    empty = made.plan.placement.is_empty
    result = source.ir.clone() if empty else rewrite(made.prepared, made.plan)
    metadata = metadata_for(source, made)
    result.metadata_props[METADATA_KEY] = json.dumps(metadata, sort_keys=True)
    clock.lap("rewrite")
    written = _write(result, source, call, metadata, made.held_out, clock)
    if call.test_model is not None:
        test = source.ir.clone() if empty else fake_quantized(made.prepared, made.plan)
        save(test, call.test_model, lambda p: check_result(p, source, {}, optimize=False))
        clock.lap("save")
    report = report_on(call.output, source, made, metadata, written, clock)
    if call.report is not None:
        _write_report(report, call.report)
    return report if written.proto is None else written.proto


def _write(
    result: ir.Model,
    source: SourceModel,
    call: Call,
    metadata: Mapping[str, Any],
    held_out: Data | None,
    clock: Clock,
) -> Written:
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
    return Written(proto, size, verification)


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
    if call.evaluate is not None and recipe.max_drop is None:
        raise OptionError("evaluate needs max_drop: how far its number may fall")
    if recipe.max_drop is not None and call.evaluate is None and recipe.evaluate is None:
        raise OptionError("max_drop is of an evaluation function: give one as evaluate")
    if recipe.has_target and data is None:
        raise OptionError("a target is measured on samples, and only statistics were given")
    return statistics, data


def prepare_for(source: SourceModel, recipe: Recipe) -> Prepared:
    """The prepared model, at the opset that the recipe's integers need."""
    if isinstance(recipe, StaticRecipe):
        return prepare(source, min_opset=QDQ_OPSET, static=True)
    standard = recipe.encoding == "qdq" and recipe.narrowest == 8
    return prepare(source, min_opset=QDQ_OPSET if standard else PLAIN_OPSET, static=False)


@collector_paused()
def place(prepared: Prepared, recipe: Recipe) -> Placement:
    """What the recipe quantizes where."""
    choices = Choices(prepared, recipe)
    if isinstance(recipe, DynamicRecipe):
        placement = place_weights(prepared, choices, _encoding(prepared, recipe))
    else:
        target = target_of(recipe.target).at(recipe.bits)
        if recipe.tune_latency:  # which measures what the costs estimate
            target = dataclasses.replace(target, costs=None)
        placement = place_static(prepared, choices, target, integer_io=recipe.integer_io)
    return with_correction(placement) if recipe.weight_correction else placement


@dataclass(frozen=True, eq=False)
class Placer:
    """Places with rules after those of the recipe; can be sent to another process."""

    prepared: Prepared
    recipe: StaticRecipe

    def __call__(self, rules: Sequence[Rule]) -> Placement:
        rules = (*self.recipe.rules, *rules)
        return place(self.prepared, dataclasses.replace(self.recipe, rules=rules))


def _encoding(prepared: Prepared, recipe: DynamicRecipe) -> Encoding:
    """The recipe's, but `fold` in a model whose activations are quantized already.

    The session option that `qdq` needs turns their int8 kernels off.
    """
    nodes = ir.traversal.RecursiveGraphIterator(prepared.ir.graph)
    return "fold" if any(map(is_quantize, nodes)) else recipe.encoding
