"""Mixed precision as a stage behind the passes of a level: what is wanted, and what came of it.

With a target (`target_sqnr`, `target_agreement`, or `evaluate` with `max_drop`) as many nodes are
left float as it needs. Without one, by the level:

balanced  an output below 20 dB: up to 10 % of the MACs in float, against a collapse, until it has
          2 dB more than that: samples that did not calibrate come out worse
best      the same; and above it up to 3 % of the MACs where that brings 1.5 dB and leaves 90 % of
          the time that int8 saves, by the target's costs
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onnxq.calibration import Calibration
from onnxq.data.samples import Samples
from onnxq.errors import DataError
from onnxq.improve.context import Context, chosen_samples
from onnxq.improve.emulated import float_outputs
from onnxq.improve.ledger import Ledger
from onnxq.improve.levels import LEVELS
from onnxq.improve.macs import macs_by_node
from onnxq.improve.mixed.goals import Evaluate, Goal, Meter, Score, Write
from onnxq.improve.mixed.search import NAME, Choice, Search
from onnxq.improve.mixed.sensitivity import Sensitivity, sensitivities
from onnxq.improve.mixed.variants import Place, Unit, Variant, Variants, units_of
from onnxq.improve.reference import Reference
from onnxq.measure.macs import Sizes
from onnxq.placement.paying import estimated_gain
from onnxq.plans import Placement, Plan
from onnxq.prepare import Prepared
from onnxq.recipe import Rule, StaticRecipe
from onnxq.runtime import RuntimeFailureError
from onnxq.spread import Spread
from onnxq.targets import target_of

__all__ = ["LeftFloat", "Mixed", "MixedReport", "Setup", "is_wanted", "mix"]

# Samples that nodes are ranked on, and that plans are judged on (more where a share of samples is
# asked for), at most
RANKED, JUDGED, COUNTED = 8, 64, 256
# Below this many dB a network has collapsed; shares of the MACs, and what they have to bring
FLOOR, FLOOR_BUDGET = 20.0, 0.1
# What samples that did not calibrate may lose on those that did: ranges clip them
UNSEEN = 2.0
GAIN, GAIN_BUDGET, GAIN_SAVED = 1.5, 0.03, 0.9


@dataclass(frozen=True)
class LeftFloat:
    """A node that was left float. alone: SQNR in dB with it alone in int8, None if it cannot be."""

    node: str
    op_type: str
    mac_share: float
    alone: float | None


@dataclass(frozen=True)
class MixedReport:
    """What was left float, and what that brought.

    before, after: on the judge's samples. mac_share: of the MACs that int8 could do, left float.
    float_share: of all MACs of the network (those of MatMuls without a weight too), done in float.
    int16: the weights of the nodes left float are stored as INT16.
    """

    goal: str
    reached: bool
    before: Score
    after: Score
    samples: int
    nodes: tuple[LeftFloat, ...]
    mac_share: float
    float_share: float
    int16: bool

    def __str__(self) -> str:
        count = len(self.nodes)
        done = "" if self.reached else ", which was not reached"
        return (
            f"mixed precision for {self.goal}{done}: {self.before} -> {self.after} on "
            f"{self.samples} samples, {count} node{'' if count == 1 else 's'} left float with "
            f"{self.mac_share:.1%} of the MACs that int8 can do"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "nodes": [{**dataclasses.asdict(n), "alone": _finite(n.alone)} for n in self.nodes],
        }


@dataclass(frozen=True, eq=False)
class Setup:
    """What the stage works with.

    place, write: the pipeline's ways to a placement and to a file. spread: who ranks the nodes.
    """

    prepared: Prepared
    calibration: Calibration
    samples: Samples | None
    recipe: StaticRecipe
    place: Place
    evaluate: Evaluate | None = None
    write: Write | None = None
    tell: Callable[[str], None] | None = None
    spread: Spread = Spread()  # noqa: RUF009  # frozen


@dataclass(frozen=True, eq=False)
class Mixed:
    """The plan, and the rules by which a recipe makes its placement: none if it is as before."""

    plan: Plan
    rules: tuple[Rule, ...] = ()
    report: MixedReport | None = None


def is_wanted(recipe: StaticRecipe) -> bool:
    """Whether this recipe may leave nodes float: tensors that are not quantized now may be then."""
    return recipe.has_target or (recipe.mixed_precision and recipe.accuracy in ("balanced", "best"))


def mix(setup: Setup, plan: Plan, ledger: Ledger) -> Mixed:
    """The plan with as many nodes left float as the goal needs, if it needs any.

    ledger: of the passes before; what is tried is added.

    Raises DataError if there is a target, and too few samples or no output to measure it.
    """
    recipe = setup.recipe
    if not is_wanted(recipe) or not plan.placement.activations:
        return Mixed(plan)
    count = 0 if setup.samples is None else len(setup.samples)
    fit, judge = _samples(count, recipe)
    measurable = float_outputs(setup.prepared.ir.graph)
    if setup.samples is None or not fit or not measurable:
        why = "there are fewer than 4 samples" if measurable else "the network has no float output"
        if recipe.has_target:
            raise DataError(f"a target cannot be measured: {why}")
        ledger.skip(NAME, why)
        return Mixed(plan)
    enough = len(measurable) == 1 and _measured(ledger) >= FLOOR
    if enough and not recipe.has_target and recipe.accuracy == "balanced":
        return Mixed(plan)
    started = time.perf_counter()
    own = Ledger(ledger.level)
    try:
        with Context(
            setup.prepared, setup.calibration, setup.samples, plan, own, (fit, judge)
        ) as context:
            found = _Stage(setup, context, plan, own).run()
    except KeyboardInterrupt:  # before anything was found
        own.interrupted, found = True, Mixed(plan)
    except RuntimeFailureError as error:
        own.skip(NAME, f"onnxruntime cannot run the network in parts: {error}")
        found = Mixed(plan)
    own.seconds[NAME] = time.perf_counter() - started
    ledger.extend(own)
    if setup.tell is not None and found.report is not None:
        setup.tell(f"{found.report}; took {own.seconds[NAME]:.1f} s")
    return found


class _Stage:
    """One run of the stage."""

    def __init__(self, setup: Setup, context: Context, plan: Plan, ledger: Ledger) -> None:
        self._setup, self._context, self._plan, self._ledger = setup, context, plan, ledger
        self._macs = macs_by_node(setup.prepared, context.fit.batches[0].tensors)
        self._units = units_of(setup.prepared, plan.placement, self._macs)
        self._meter = Meter(context.judge, context.judged, setup.evaluate, setup.write)
        self._sizes = Sizes(setup.prepared.ir)
        context.emulated.forget()  # from here on it is variants that are run

    def run(self) -> Mixed:
        context, setup = self._context, self._setup
        variants = Variants(setup.prepared, setup.calibration, self._plan, self._units, setup.place)
        start = Choice((), variants.base, self._meter(variants.base))
        goal = self._goal(start.score)
        if goal is None or goal.holds(start.score):
            wanted = f"{goal} holds" if goal else f"it is above {FLOOR:g} dB"
            self._ledger.skip(NAME, f"not needed: {wanted} with {start.score}")
            report = None if goal is None else self._report(goal, start, start, {})
            return Mixed(self._plan, report=report)
        if setup.tell is not None:
            seconds = self._cost() * context.seconds_a_sample
            setup.tell(
                f"mixed precision for {goal}: {len(self._units)} nodes, about {seconds:.0f} s"
            )
        ranking: list[Sensitivity] = []
        search = Search(variants, ranking, self._meter, goal, self._ledger, start)
        try:
            ranking += sensitivities(variants, ranking_reference(context), spread=setup.spread)
            search = Search(variants, ranking, self._meter, goal, self._ledger, start, self._pays)
            search.run()
        except KeyboardInterrupt:
            self._ledger.interrupted = True
        finally:
            variants.forget()
        best = search.best
        known = {s.unit: s for s in ranking}
        report = self._report(goal, start, best, known)
        if not best.units:
            return Mixed(self._plan, report=report)
        rules = best.variant.rules
        placement = _explained(setup.prepared, best.variant.plan.placement, best.units, known)
        plan = dataclasses.replace(best.variant.plan, placement=placement)
        return Mixed(plan, rules, report)

    def _goal(self, score: Score) -> Goal | None:
        recipe = self._setup.recipe
        if recipe.has_target:
            least = None
            if recipe.max_drop is not None:
                least = self._meter.float_value() - recipe.max_drop
            return Goal(recipe.target_sqnr, recipe.target_agreement, least)
        if score.sqnr < FLOOR:
            return Goal(FLOOR + UNSEEN, budget=FLOOR_BUDGET)
        if recipe.accuracy == "best":
            return Goal(score.sqnr + GAIN, budget=GAIN_BUDGET, optional=True)
        return None

    def _pays(self, variant: Variant) -> bool:
        """Whether it leaves GAIN_SAVED of the time that int8 saves; as far as that is known."""
        before, after = self._saved, self._saved_by(variant.plan)
        if before is None or after is None:
            return True
        return after >= before - (1 - GAIN_SAVED) * abs(before)

    @functools.cached_property
    def _saved(self) -> float | None:
        return self._saved_by(self._plan)

    def _saved_by(self, plan: Plan) -> float | None:
        """Seconds, by the target's costs; None if they are not known."""
        recipe = self._setup.recipe
        costs = target_of(recipe.target).at(recipe.bits).costs
        if costs is None:
            return None
        return estimated_gain(self._setup.prepared, plan.placement, costs, self._sizes)

    def _cost(self) -> float:
        """Runs of one sample through the network: about half of it for each ranked node."""
        ranked = min(RANKED, self._context.reference.samples)
        return len(self._units) * ranked / 2 + 12 * self._meter.samples

    def _report(
        self, goal: Goal, start: Choice, best: Choice, known: Mapping[Unit, Sensitivity]
    ) -> MixedReport:
        able = max(1, sum(unit.macs for unit in self._units))
        left = sum(unit.macs for unit in best.units)
        every = max(1, sum(self._macs.values()))
        return MixedReport(
            str(goal),
            goal.holds(best.score),
            start.score,
            best.score,
            self._meter.samples,
            tuple(
                LeftFloat(u.name, u.op_type, u.macs / able, known[u].quantized) for u in best.units
            ),
            left / able,
            1 - (able - left) / every,
            best.stored,
        )


def ranking_reference(context: Context) -> Reference:
    """Of some of the samples to fit to: nodes are ranked on these."""
    return context.reference_of_fit(RANKED)


def _samples(count: int, recipe: StaticRecipe) -> tuple[list[int], list[int]]:
    """Some that the passes were fitted to, to rank on; and others, to judge on."""
    level = LEVELS[recipe.accuracy if LEVELS[recipe.accuracy].passes else "fast"]
    fit, judge = chosen_samples(count, level.fit, level.judge)
    most = JUDGED if recipe.target_agreement is None else COUNTED
    used = {*fit, *judge}
    others = [i for i in range(count) if i not in used]
    room = max(0, most - len(judge))
    more = [others[i * len(others) // room] for i in range(room)] if others else []
    step = max(1, len(fit) // RANKED)
    return fit[::step][:RANKED], sorted({*judge, *more})


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _measured(ledger: Ledger) -> float:
    """SQNR of the best plan of the passes before; minus infinity if none was measured."""
    found = [e for e in ledger.entries if e.measure == "sqnr" and e.before is not None]
    kept = [e.after for e in found if e.kept and e.after is not None]
    if kept:
        return kept[-1]
    return float("-inf") if not found or found[0].before is None else found[0].before


def _explained(
    prepared: Prepared,
    placement: Placement,
    units: tuple[Unit, ...],
    known: Mapping[Unit, Sensitivity],
) -> Placement:
    """With the reason for each node that was left float here."""
    nodes = {node.name: node for node in prepared.ir.graph}
    reasons = {}
    for unit in units:
        alone = known[unit].quantized
        cost = "" if alone is None else f": in int8 it alone gives {alone:.1f} dB"
        reasons[prepared.names.label(nodes[unit.node])] = f"left float by mixed precision{cost}"
    skips = tuple(
        dataclasses.replace(skip, reason=reasons[skip.name])
        if skip.name in reasons and ("left float by the rule" in skip.reason)
        else dataclasses.replace(skip, reason=f"{reasons[skip.name]}; {skip.reason}")
        if skip.name in reasons
        else skip
        for skip in placement.skips
    )
    return dataclasses.replace(placement, skips=skips)
