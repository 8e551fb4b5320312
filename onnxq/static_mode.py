"""Static mode from the prepared model to the plan: calibrate, parametrize, tune, guard, improve.

Apart from `pipeline.py`, as dynamic mode needs nothing of what this imports.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from onnxq.calibration import Calibration
from onnxq.collect import Progress, Request
from onnxq.collect import calibrate as run_calibration
from onnxq.data.samples import DataLike, input_specs, open_samples
from onnxq.data.split import Split, samples_to_read, split
from onnxq.errors import OptionError
from onnxq.fingerprint import fingerprint
from onnxq.improve.mixed.goals import Evaluate, evaluation_function
from onnxq.improve.mixed.stage import is_wanted
from onnxq.improving import Task, improved
from onnxq.model import SourceModel
from onnxq.numerics.ranges import RANGES_ONLY
from onnxq.outcome import Clock, Data, Made
from onnxq.parametrize import check_finite, parametrize
from onnxq.pipeline import Call, PathLike, Placer, place, prepare_for
from onnxq.placement import place_static
from onnxq.plans import Placement, Plan
from onnxq.prepare import Prepared
from onnxq.recipe import StaticRecipe
from onnxq.saturation import guard, verdict_of
from onnxq.selection import Choices
from onnxq.spread import Spread
from onnxq.targets import TARGETS

__all__ = ["collect_statistics", "make_static", "statistics_of"]


def statistics_of(statistics: Calibration | PathLike, prepared: Prepared) -> Calibration:
    """Statistics given or in a file. Raises CalibrationError if they are of another model."""
    with ThreadPoolExecutor(1) as pool:  # the hash of the weights takes as long as the file
        current = pool.submit(fingerprint, prepared)
        found = (
            statistics
            if isinstance(statistics, Calibration)
            else Calibration.load(Path(statistics))
        )
        found.check(current.result(), prepared.label)
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


def make_static(
    call: Call,
    recipe: StaticRecipe,
    source: SourceModel,
    prepared: Prepared,
    statistics: Calibration | PathLike | None,
    source_of_data: DataLike | None,
    clock: Clock,
) -> Made:
    """From the prepared model to the plan, with samples or statistics."""
    placement = place(prepared, recipe)
    check_finite(prepared, placement)  # before samples run
    clock.lap("place")
    data = None
    if statistics is not None:
        calibration = statistics_of(statistics, prepared)
    else:
        data = _open(prepared, source_of_data, recipe)
        calibration = _calibrate(prepared, placement, data, recipe, call)
    clock.lap("calibrate")
    plan = parametrize(prepared, placement, calibration)
    clock.lap("parametrize")
    samples = data.calibration if data is not None else None
    tuning, verdict = None, None
    if recipe.tune_latency:
        from onnxq.tune import tuned_plan  # few ask for it

        def plan_of(asked: StaticRecipe) -> Plan:
            return parametrize(prepared, place(prepared, asked), calibration)

        tuned = tuned_plan(source, prepared, recipe, plan_of, samples[0] if samples else None)
        plan, tuning = tuned.plan, tuned.tuning
        recipe = dataclasses.replace(recipe, tune_latency=False, rules=recipe.rules + tuning.rules)
        clock.lap("tune")
    if recipe.isa is not None:
        plan, verdict = guard(prepared, samples, plan, recipe.isa)
        clock.lap("guard")
    task = Task(
        prepared,
        calibration,
        samples,
        plan,
        recipe,
        lambda network: Placer(network, recipe),
        _evaluate(call, recipe),
        call.tell,
        call.spread,
    )
    found = improved(task)
    clock.lap("improve")
    if verdict is not None and found.plan is not plan:
        if found.prepared is not prepared:  # whose inputs were others
            plain = parametrize(found.prepared, found.plan.placement, found.calibration)
            verdict = guard(found.prepared, samples, plain, verdict.isa)[1]
        verdict = verdict_of(found.prepared, found.plan, verdict)
    return Made(
        found.recipe,
        found.prepared,
        found.plan,
        found.calibration,
        data,
        tuning,
        verdict,
        found.ledger,
        found.mixed,
    )


def _evaluate(call: Call, recipe: StaticRecipe) -> Evaluate | None:
    if call.evaluate is not None:
        return call.evaluate
    return None if recipe.evaluate is None else evaluation_function(recipe.evaluate)


def _calibrate(
    prepared: Prepared, placement: Placement, data: Data, recipe: StaticRecipe, call: Call
) -> Calibration:
    return run_calibration(
        prepared,
        data.calibration,
        Request(
            _owners(placement, recipe),
            histograms=any(a.method.method not in RANGES_ONLY for a in placement.activations),
        ),
        batch_size=recipe.batch_size,
        spread=call.spread,
        progress=call.progress,
    )


def _owners(placement: Placement, recipe: StaticRecipe) -> tuple[str, ...]:
    """Whose ranges may be needed: with nodes left float, those that others had until then, too."""
    if not is_wanted(recipe):
        return placement.owners
    return tuple(sorted({a.owner for a in placement.activations}))


def _open(prepared: Prepared, data: DataLike | None, recipe: StaticRecipe) -> Data:
    assert data is not None
    specs = input_specs(prepared.ir)
    if not recipe.verify:
        opened = open_samples(data, specs, recipe.samples, recipe.images)
        return Data(opened, Split(tuple(range(len(opened))), (), independent=False))
    opened = open_samples(data, specs, samples_to_read(recipe.samples), recipe.images)
    return Data(opened, split(len(opened), recipe.samples))
