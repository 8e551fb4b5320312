"""The stage behind parametrize: the passes of the accuracy level, then mixed precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnxq.calibration import Calibration
from onnxq.data.samples import Samples
from onnxq.improve import Improved, Ledger, improve
from onnxq.improve.context import Remake
from onnxq.improve.mixed.goals import Evaluate
from onnxq.improve.mixed.stage import Mixed, MixedReport, Setup, mix
from onnxq.improve.mixed.variants import Place
from onnxq.isa import SATURATING
from onnxq.parametrize import parametrize
from onnxq.plans import Placement, Plan
from onnxq.prepare import Prepared
from onnxq.recipe import StaticRecipe
from onnxq.rewrite import rewrite
from onnxq.saturation import guard
from onnxq.save import save
from onnxq.spread import Spread

__all__ = ["Better", "Task", "improved"]


@dataclass(frozen=True, eq=False)
class Task:
    """What there is to improve, and how.

    samples: those that calibrated; None if only statistics were given.
    placer: gives, for a float network, what the recipe places with rules after its own.
    evaluate: the user's function, if the recipe has a `max_drop`.
    tell: takes lines on what this will cost, and on what it did.
    spread: who runs samples, and measures node by node.
    """

    prepared: Prepared
    calibration: Calibration
    samples: Samples | None
    plan: Plan
    recipe: StaticRecipe
    placer: Callable[[Prepared], Place]
    evaluate: Evaluate | None = None
    tell: Callable[[str], None] | None = None
    spread: Spread = Spread()  # noqa: RUF009  # frozen


@dataclass(frozen=True, eq=False)
class Better:
    """The best plan, the float network that it is for, and the statistics of that.

    recipe: the one that makes the placement without searching for it again.
    """

    prepared: Prepared
    calibration: Calibration
    plan: Plan
    ledger: Ledger
    recipe: StaticRecipe
    mixed: MixedReport | None = None


def improved(task: Task) -> Better:
    """The passes of the level, and as many nodes left float as its goal or the user's needs."""
    recipe, best = task.recipe, _passes(task)
    ledger = best.ledger
    mixed = Mixed(best.plan) if ledger.interrupted else _mixed(task, best)
    if not mixed.rules:
        return Better(best.prepared, best.calibration, mixed.plan, ledger, recipe, mixed.report)
    best = dataclasses.replace(best, plan=mixed.plan)
    if not recipe.has_target and not ledger.interrupted:
        # with less noise before each layer, the passes may find what they did not find at first
        best = _passes(_from(task, best), again=True)
        ledger.extend(best.ledger)
    repeated = dataclasses.replace(
        recipe,
        rules=(*recipe.rules, *mixed.rules),
        mixed_precision=False,
        target_sqnr=None,
        target_agreement=None,
        evaluate=None,
        max_drop=None,
    )
    return Better(best.prepared, best.calibration, best.plan, ledger, repeated, mixed.report)


def _from(task: Task, best: Improved) -> Task:
    return dataclasses.replace(
        task, prepared=best.prepared, calibration=best.calibration, plan=best.plan
    )


def _passes(task: Task, *, again: bool = False) -> Improved:
    return improve(
        task.prepared,
        task.calibration,
        task.samples,
        task.plan,
        task.recipe.accuracy,
        extra=task.recipe.passes,
        remake=_remake(task),
        tell=task.tell,
        spread=task.spread,
        guarded=task.recipe.isa in SATURATING,
        again=again,
    )


def _remake(task: Task) -> Remake:
    """Makes the plan of a float network that a pass has changed, guarded where the first one is."""
    isa = task.recipe.isa
    if isa not in SATURATING:
        return parametrize

    def remake(prepared: Prepared, placement: Placement, calibration: Calibration) -> Plan:
        plan = parametrize(prepared, placement, calibration)
        return guard(prepared, task.samples, plan, isa)[0]

    return remake


def _mixed(task: Task, best: Improved) -> Mixed:
    def write(candidate: Plan | None, path: Path) -> int:
        # the float model is the user's own
        model = task.prepared.ir.clone() if candidate is None else rewrite(best.prepared, candidate)
        return save(model, path, lambda _: None)

    setup = Setup(
        best.prepared,
        best.calibration,
        task.samples,
        task.recipe,
        task.placer(best.prepared),
        task.evaluate,
        write,
        task.tell,
        task.spread,
    )
    return mix(setup, best.plan, best.ledger)
