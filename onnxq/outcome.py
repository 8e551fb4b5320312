"""What a quantization came to: the plan and how it was made, what the file says, and the report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from onnxq._version import __version__
from onnxq.data.samples import Samples, Subset
from onnxq.data.split import Split
from onnxq.model import SourceModel
from onnxq.plans import Plan
from onnxq.prepare import Prepared
from onnxq.recipe import DynamicRecipe, Recipe, StaticRecipe
from onnxq.recipe_file import recipe_to_dict
from onnxq.report import Report, macs_in_int8, notes_on, operator_counts, source_bytes, weight_bytes
from onnxq.session import integer_io_of, metadata_of
from onnxq.targets import TARGETS, target_of
from onnxq.verify import Verification

if TYPE_CHECKING:  # dynamic mode needs none of it
    from onnxq.calibration import Calibration
    from onnxq.improve import Ledger
    from onnxq.improve.mixed.stage import MixedReport
    from onnxq.measure.macs import Sizes
    from onnxq.saturation import Verdict
    from onnxq.tune import Tuning

__all__ = ["Clock", "Data", "Made", "Written", "metadata_for", "report_on"]


@dataclass(frozen=True, eq=False)
class Data:
    """The samples of a call, and which of them do what."""

    samples: Samples
    split: Split

    @property
    def calibration(self) -> Samples:
        return Subset(self.samples, self.split.calibration)

    @property
    def held_out(self) -> Samples:
        return Subset(self.samples, self.split.held_out)


@dataclass(frozen=True, eq=False)
class Made:
    """A plan, and how it came about. recipe: the one that gives the same plan again.

    prepared: the float network that the plan is for. calibration, ledger: of static mode. data:
    None where statistics were given. tuning, verdict, mixed: see `Report`.
    """

    recipe: Recipe
    prepared: Prepared
    plan: Plan
    calibration: Calibration | None = None
    data: Data | None = None
    tuning: Tuning | None = None
    verdict: Verdict | None = None
    ledger: Ledger | None = None
    mixed: MixedReport | None = None

    @property
    def held_out(self) -> Data | None:
        """What the result is verified on, if it is."""
        return self.data if isinstance(self.recipe, StaticRecipe) and self.recipe.verify else None


@dataclass(frozen=True, eq=False)
class Written:
    """A result: in memory if there is a proto. verification: or why there is none, or None."""

    proto: onnx.ModelProto | None
    size: int
    verification: Verification | str | None


def metadata_for(source: SourceModel, made: Made) -> dict[str, Any]:
    """What the file says of itself: the settings that matter to whoever has it."""
    plan, recipe, calibration = made.plan, made.recipe, made.calibration
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
    if recipe.isa is not None:
        found["isa"] = recipe.isa
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


def report_on(
    output: Path | None,
    source: SourceModel,
    made: Made,
    metadata: Mapping[str, Any],
    written: Written,
    clock: Clock,
) -> Report:
    """The figures and reasons of a result that is written. output: where, None for in memory."""
    prepared, placement, recipe = made.prepared, made.plan.placement, made.recipe
    verification = written.verification
    notes = notes_on(
        source, prepared, placement, recipe, output, metadata, verification, made.ledger
    )
    macs, slower = None, []
    if isinstance(recipe, StaticRecipe):
        from onnxq.measure.macs import Sizes  # dynamic mode needs none of it

        sizes = Sizes(prepared.ir)
        macs = macs_in_int8(prepared, placement, recipe, sizes)
        slower = _may_not_pay(made, recipe, sizes)
    return Report(
        mode=recipe.mode,
        model=source.label,
        output=None if output is None else str(output),
        settings=metadata,
        recipe=recipe_to_dict(recipe),
        bytes_before=source_bytes(source),
        bytes_after=written.size,
        weights=weight_bytes(prepared, made.plan),
        placement=placement,
        operators=operator_counts(prepared, placement),
        split=None if made.data is None else made.data.split,
        verification=verification if isinstance(verification, Verification) else None,
        macs=macs,
        tuning=made.tuning,
        saturation=made.verdict,
        ledger=made.ledger,
        mixed=made.mixed,
        notes=(
            *notes,
            *slower,
            *(() if made.verdict is None else made.verdict.notes),
        ),
        seconds=clock.laps,
    )


def _may_not_pay(made: Made, recipe: StaticRecipe, sizes: Sizes) -> list[str]:
    """That int8 may not pay, where placement has estimated so and nobody has measured."""
    costs = target_of(recipe.target).at(recipe.bits).costs
    if costs is None or made.tuning is not None:
        return []
    from onnxq.placement.paying import estimated_loss  # dynamic mode needs none of it

    loss = estimated_loss(made.prepared, made.plan.placement, costs, sizes)
    if loss is None:
        return []
    return [
        "int8 may not pay here: by the sizes of the Convs, one that is not known taken for 1, it "
        f"is {loss * 1e6:.0f} microseconds slower than float; --tune-latency measures, and leaves "
        "float what loses time"
    ]


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = self.laps.get(stage, 0.0) + now - self._last
        self._last = now
