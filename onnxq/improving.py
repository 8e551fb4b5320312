"""The stage behind parametrize: the passes of the accuracy level, then mixed precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnxq.calibration import Calibration
from onnxq.data.samples import Samples
from onnxq.improve import Improved, Ledger, improve
from onnxq.improve.mixed.goals import Evaluate
from onnxq.improve.mixed.stage import Mixed, MixedReport, Setup, mix
from onnxq.improve.mixed.variants import Place
from onnxq.plans import Plan
from onnxq.prepare import Prepared
from onnxq.recipe import StaticRecipe
from onnxq.rewrite import rewrite
from onnxq.save import save

__all__ = ["Better", "Task", "improved"]


@dataclass(frozen=True, eq=False)
class Task:
    """What there is to improve, and how.

    samples: those that calibrated; None if only statistics were given.
    place: what the recipe places with rules after its own.
    evaluate: the user's function, if the recipe has a `max_drop`.
    tell: takes lines on what this will cost, and on what it did.
    """

    prepared: Prepared
    calibration: Calibration
    samples: Samples | None
    plan: Plan
    recipe: StaticRecipe
    place: Place
    evaluate: Evaluate | None = None
    tell: Callable[[str], None] | None = None


@dataclass(frozen=True, eq=False)
class Better:
    """The best plan. recipe: the one that makes its placement without searching for it again."""

    plan: Plan
    ledger: Ledger
    recipe: StaticRecipe
    mixed: MixedReport | None = None


def improved(task: Task) -> Better:
    """The passes of the level, and as many nodes left float as its goal or the user's needs."""
    recipe, first = task.recipe, _passes(task, task.plan)
    ledger = first.ledger
    if ledger.interrupted:
        return Better(first.plan, ledger, recipe)
    mixed = _mixed(task, first.plan, ledger)
    if not mixed.rules:
        return Better(mixed.plan, ledger, recipe, mixed.report)
    plan = mixed.plan
    if not recipe.has_target and not ledger.interrupted:
        # with less noise before each layer, the passes may find what they did not find at first
        again = _passes(task, plan)
        plan = again.plan
        ledger.extend(again.ledger)
    repeated = dataclasses.replace(
        recipe,
        rules=(*recipe.rules, *mixed.rules),
        mixed_precision=False,
        target_sqnr=None,
        target_agreement=None,
        evaluate=None,
        max_drop=None,
    )
    return Better(plan, ledger, repeated, mixed.report)


def _passes(task: Task, plan: Plan) -> Improved:
    level = task.recipe.accuracy
    return improve(task.prepared, task.calibration, task.samples, plan, level, tell=task.tell)


def _mixed(task: Task, plan: Plan, ledger: Ledger) -> Mixed:
    prepared = task.prepared

    def write(candidate: Plan | None, path: Path) -> int:
        model = prepared.ir.clone() if candidate is None else rewrite(prepared, candidate)
        return save(model, path, lambda _: None)

    setup = Setup(
        prepared,
        task.calibration,
        task.samples,
        task.recipe,
        task.place,
        task.evaluate,
        write,
        task.tell,
    )
    return mix(setup, plan, ledger)
