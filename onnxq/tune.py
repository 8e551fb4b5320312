"""Tune latency: time the model in onnxruntime on this machine, and leave float what loses time.

1. Islands (see placement/islands.py) that stand together in the graph make up to GROUPS groups.
2. Each group in turn is left float: the whole model without it against the model with all of int8.
3. The groups that lose are left float together, the worst first, one more in each candidate.
4. The best candidate, int8 as planned and the float model are timed once more, side by side, and
   the fastest of the three is the result. If that is the float model, int8 does not pay here.

The plan to begin with is that of all int8, whatever placement/paying.py estimates; what that would
choose is one of the candidates. Each comparison takes its models in turn, and counts what a tenth
of the runs stay below, since what else runs on the machine can only add. A candidate has to win by
half of MARGIN.

The result depends on the machine and its load. `Tuning.rules` make it repeatable: they stand for
the choice in a recipe, and nothing has to be timed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.errors import CalibrationError, DataError, ModelError, OptionError
from onnxq.measure.random_feeds import candidates
from onnxq.measure.timing import AWAKE, BURST, interleaved
from onnxq.model import SourceModel
from onnxq.placement.islands import Island, islands
from onnxq.plans import Plan
from onnxq.prepare import Prepared
from onnxq.qtypes import Float64Array
from onnxq.recipe import Rule, StaticRecipe
from onnxq.rewrite import rewrite
from onnxq.runtime import Feed, RuntimeFailureError, run, session
from onnxq.targets import default_target

__all__ = ["GroupTime", "Tuned", "Tuning", "tuned_plan"]

GROUPS = 8
MARGIN = 0.02
# rounds of a comparison, and seconds at least; the last one takes LAST times as long
ROUNDS, SECONDS, LAST = 3, 0.25, 4
# seconds after which no further candidate is begun
BUDGET = 60.0
ALL = (Rule(nodes=("*",), leave_float=True),)

# A plan with these rules after those of the recipe
Replan = Callable[[tuple[Rule, ...]], Plan]
Run = Callable[[], object]


@dataclass(frozen=True)
class GroupTime:
    """Islands that were timed together.

    nodes: their names. seconds: of the whole model, with them in int8 and with them left float;
        None where time ran out before. kept: in int8, or some of them.
    """

    nodes: tuple[str, ...]
    islands: int
    seconds: tuple[float, float] | None
    kept: bool


@dataclass(frozen=True)
class Tuning:
    """What was timed, and what was chosen.

    float_seconds, planned_seconds, seconds: of the float model, of int8 as planned, and of the
        result, timed side by side at the end. pays: some of it stays in int8.
    rules: that make the same choice in a recipe without timing.
    """

    groups: tuple[GroupTime, ...]
    float_seconds: float
    planned_seconds: float
    seconds: float
    pays: bool
    rules: tuple[Rule, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. The rules are as in a recipe file."""
        rules = [{"nodes": list(r.nodes), "leave_float": r.leave_float} for r in self.rules]
        return {**dataclasses.asdict(self), "rules": rules}


@dataclass(frozen=True, eq=False)
class Tuned:
    """The plan that was chosen, and why."""

    plan: Plan
    tuning: Tuning


def tuned_plan(
    source: SourceModel,
    prepared: Prepared,
    recipe: StaticRecipe,
    planner: Callable[[StaticRecipe], Plan],
    sample: Feed | None,
) -> Tuned:
    """The stage: what is fastest of what the recipe allows, and rules that repeat the choice.

    planner: place and parametrize. sample: to run on; None for random values. All is timed with
    float inputs and outputs; the plan has those that the recipe asks for.
    Raises OptionError for a target that is not this machine's.
    """
    if recipe.target != default_target().name:
        raise OptionError(
            f"tune_latency times {default_target().name} on this machine, which says nothing of "
            f"target {recipe.target}: leave one of them out"
        )
    timed = dataclasses.replace(recipe, integer_io=False)
    untimed = dataclasses.replace(recipe, tune_latency=False)

    def replan(rules: tuple[Rule, ...]) -> Plan:
        return planner(with_rules(timed, rules))

    feed = feed_for(source.ir, sample, source.label)
    estimated = planner(dataclasses.replace(untimed, integer_io=False))
    tuned = tune(source.ir, prepared, replan(()), replan, feed, estimated)
    rules = tuned.tuning.rules
    final, repeated = (planner(with_rules(asked, rules)) for asked in (recipe, untimed))
    if repeated.placement.activations != final.placement.activations:
        # the estimate would leave more of it float
        names = [final.placement.labels[name] for name in sorted(_nodes(final))]
        rules += (Rule(nodes=tuple(names), leave_float=False),)
    return Tuned(final, dataclasses.replace(tuned.tuning, rules=rules))


def with_rules(recipe: StaticRecipe, rules: tuple[Rule, ...]) -> StaticRecipe:
    """The recipe with more rules after its own."""
    return dataclasses.replace(recipe, rules=recipe.rules + rules)


def tune(
    source: ir.Model,
    prepared: Prepared,
    plan: Plan,
    replan: Replan,
    feed: Feed,
    estimated: Plan | None = None,
) -> Tuned:
    """The fastest of: the plan, the plan without the islands that lose time, and no int8 at all.

    source: the float model to compare with. feed: what all are run on.
    estimated: another candidate, with fewer nodes in int8.
    Raises ModelError if onnxruntime cannot run the float model.
    """
    found = islands(prepared, plan.placement)
    groups = _grouped(found)
    with _Bench(source, prepared, feed) as bench:
        planned = bench.open(plan)
        times: list[tuple[float, float] | None] = []
        for group in groups if len(groups) > 1 else ():
            candidate = None if bench.is_late else _try(replan, _leave(prepared, group))
            times.append(None if candidate is None else bench.compare(planned, candidate))
        gains = [1 - pair[1] / pair[0] if pair else 0.0 for pair in times]
        losers = [i for i in np.argsort(gains)[::-1].tolist() if gains[i] > MARGIN / 2]
        prefixes = [[i for g in losers[: n + 1] for i in groups[g]] for n in range(len(losers))]
        if estimated is not None:
            kept = _nodes(estimated)
            prefixes.append([i for i in found if not kept & {n.name or "" for n in i.nodes}])
        rules = [_leave(prepared, left) for left in prefixes if 0 < len(left) < len(found)]
        best, best_rules = _best(bench, planned, replan, rules)
        final = bench.final(planned, best)
    pays = bool(found) and min(final[1:]) <= final[0]
    chosen, chosen_rules = 1, tuple[Rule, ...]()
    if not pays:
        chosen, chosen_rules = 0, ALL if found else ()
        plan = replan(chosen_rules)
    elif best is not None and (final[2] < final[1] * (1 - MARGIN / 2) or final[1] > final[0]):
        plan, chosen, chosen_rules = best, 2, best_rules
    still = _nodes(plan)
    tuning = Tuning(
        groups=tuple(
            GroupTime(
                nodes=tuple(prepared.names.label(n) for island in group for n in island.nodes),
                islands=len(group),
                seconds=times[i] if times else (final[1], final[0]),
                kept=any(n.name in still for island in group for n in island.nodes),
            )
            for i, group in enumerate(groups)
        ),
        float_seconds=final[0],
        planned_seconds=final[1],
        seconds=final[chosen],
        pays=pays,
        rules=chosen_rules,
    )
    return Tuned(plan, tuning)


def _nodes(plan: Plan) -> set[str]:
    """The nodes that run on integers."""
    return {use.node for a in plan.placement.activations for use in a.uses}


def feed_for(source: ir.Model, sample: Feed | None, label: str) -> Feed:
    """The sample, or random values where there is none or the model takes whole batches only.

    Raises DataError if the model runs on neither.
    """
    reason = "it takes no inputs"
    try:
        with session(source) as active:
            for feed in (*filter(None, [sample]), *candidates(active.get_inputs())):
                try:
                    run(active, feed)
                except RuntimeFailureError as error:
                    reason = str(error)
                else:
                    return feed
    except RuntimeFailureError as error:
        raise ModelError(f"{label}: onnxruntime cannot load it: {error}") from error
    raise DataError(f"{label}: nothing to time it on: {reason}; give samples with --data")


def _best(
    bench: _Bench, planned: Run, replan: Replan, candidates: Sequence[tuple[Rule, ...]]
) -> tuple[Plan | None, tuple[Rule, ...]]:
    """The fastest of the plans with such rules, and its rules; None if none is faster."""
    best: Plan | None = None
    rules: tuple[Rule, ...] = ()
    ratio = 1 - MARGIN / 2
    for tried in candidates:
        candidate = None if bench.is_late else _try(replan, tried)
        if candidate is None or candidate.placement.is_empty:
            continue
        before, after = bench.compare(planned, candidate)
        if after < before * ratio:
            best, rules, ratio = candidate, tried, after / before
    return best, rules


def _try(replan: Replan, rules: tuple[Rule, ...]) -> Plan | None:
    """None where the statistics do not serve that plan."""
    try:
        return replan(rules)
    except CalibrationError:
        return None


def _grouped(found: Sequence[Island]) -> list[list[Island]]:
    """Up to GROUPS groups of islands that follow each other, of about as many each."""
    count = min(GROUPS, len(found))
    borders = [round(i * len(found) / count) for i in range(count + 1)] if count else []
    return [list(found[a:b]) for a, b in itertools.pairwise(borders)]


def _leave(prepared: Prepared, left: Sequence[Island]) -> tuple[Rule, ...]:
    """One rule for all nodes of some islands."""
    names = tuple(prepared.names.label(node) for island in left for node in island.nodes)
    return (Rule(nodes=names, leave_float=True),) if names else ()


class _Bench:
    """Sessions of the models that are compared; closed at the end."""

    def __init__(self, source: ir.Model, prepared: Prepared, feed: Feed) -> None:
        self._source, self._prepared, self._feed = source, prepared, feed
        self._stack = contextlib.ExitStack()
        self._begun = time.perf_counter()

    @property
    def is_late(self) -> bool:
        return time.perf_counter() - self._begun > BUDGET

    def __enter__(self) -> _Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open(self, plan: Plan | None, stack: contextlib.ExitStack | None = None) -> Run:
        """A run of the model with that plan, or of the float model."""
        empty = plan is None or plan.placement.is_empty
        model = self._source if plan is None or empty else rewrite(self._prepared, plan)
        try:
            active = (stack or self._stack).enter_context(session(model))
            run(active, self._feed)
        except RuntimeFailureError as error:
            raise ModelError(f"{self._prepared.label}: onnxruntime: {error}") from error
        return functools.partial(run, active, self._feed)

    def compare(self, planned: Run, plan: Plan) -> tuple[float, float]:
        """Seconds of the plan as it was, and of another one."""
        with contextlib.ExitStack() as stack:
            a, b = _seconds([planned, self.open(plan, stack)], SECONDS)
        return a, b

    def final(self, planned: Run, best: Plan | None) -> list[float]:
        """Seconds of the float model, of the plan as it was, and of the best one, if any."""
        with contextlib.ExitStack() as stack:
            calls = [self.open(None, stack), planned]
            calls += [self.open(best, stack)] if best is not None else []
            return _seconds(calls, SECONDS * LAST)


def _seconds(calls: Sequence[Run], seconds: float) -> list[float]:
    """Of each call: what a tenth of its runs stay below."""
    times: Float64Array = interleaved(
        calls, rounds=ROUNDS, seconds=seconds, burst=BURST, settle_seconds=AWAKE
    )
    return [float(q) for q in np.quantile(times, 0.1, axis=(0, 2))]
