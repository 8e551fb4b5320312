"""Range choice: the calibration method of each tensor, by what it does to the network's outputs.

No method is the best one for all tensors, and which one clips what the outputs need is not to be
seen in a histogram. So the candidates of each tensor, all from one calibration, are measured with
this tensor alone in integers (see alone.py), on samples to fit to. One that loses less than the
plan's own range, by more than the standard error, is chosen; all choices together are offered to
the judge, and where they do not help together, halves and quarters of them.

Tensors that share parameters are chosen for as one; a Concat's range follows from its parts.

Left out: a tensor whose method a rule sets (of a rule that says `auto`, all others), and one of
which only the ends are known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.improve.alone import LEAST, Alone, Trial
from onnxq.improve.context import Context
from onnxq.improve.judge import Errors
from onnxq.improve.ledger import Entry
from onnxq.numerics.quantize import range_of
from onnxq.numerics.ranges import AUTO, AUTO_START
from onnxq.numerics.statistics import TensorStatistics
from onnxq.parametrize import params_from_statistics, untied
from onnxq.plans import ActivationPlacement, Placement, Plan
from onnxq.qtypes import QuantParams
from onnxq.recipe import MethodOptions

__all__ = ["NAME", "START", "asks_for_it", "choose_ranges", "cost"]

NAME = "range_choice"
CANDIDATES = (
    MethodOptions("mse"),
    MethodOptions("min_max"),
    MethodOptions("percentile", 0.99999),
    MethodOptions("percentile", 0.9999),
    MethodOptions("KL"),
)
# The most bits for which KL is defined here
KL_BITS = 8
# Runs of the network over the samples to fit to that the search may take, and making sure of it
WALKS = 3, 5
# Share of the noise of all ranges that another one has to take away to be looked at again
MATTERS = 0.01
# Candidates that are looked at again
FINALISTS = 2
# Standard errors that a choice has to gain: of so many, some gain one by chance
SURE = 2.0
# Two ranges are one if their ends differ by less than so many steps
SAME = 2.0
# How often all choices are halved where they do not help together
HALVINGS = 2
NO_HISTOGRAM = "only smallest and largest values were collected: the method needs no histogram"
NOTHING = "no tensor has several ranges to choose among"
START = f"{AUTO} is {AUTO_START} then"
LATE = "it has to come before what is fitted to the ranges"


@dataclass(frozen=True, eq=False)
class _Chosen:
    """A tensor's method, and the noise that it alone makes in the outputs, before and now."""

    tensor: str
    method: MethodOptions
    before: float
    after: float
    words: str


def asks_for_it(placement: Placement) -> bool:
    """Whether the method of some tensor is `auto`."""
    return any(a.method.method == AUTO for a in placement.activations)


def cost(context: Context) -> float:
    """Runs of one sample through the network."""
    least = LEAST * len(context.best.placement.owners) * len(CANDIDATES) / 2
    return max(WALKS[0] * context.ledger.fit, least) + WALKS[1] * context.ledger.fit


def choose_ranges(context: Context, plan: Plan) -> None:
    """Offer the plan with each tensor's best range."""
    if any(u.values is not None or u.integers is not None for u in plan.updates.values()):
        context.ledger.skip(NAME, LATE)
        return
    own = untied(plan, context.calibration)
    trials = _trials(context, plan.placement, own)
    if not trials:
        return
    chosen = _chosen(context, Alone(context, own), trials)
    if not chosen:
        context.ledger.skip(NAME, f"no other range is better for any of {len(trials)} tensors")
        return
    kept = _offer(context, chosen, HALVINGS)
    for c in chosen:
        why = f"{c.words}: of the outputs, with it alone in integers"
        entry = Entry(NAME, c.tensor, c.before, c.after, c.tensor in kept, why, "error")
        context.ledger.add(entry)


def _chosen(context: Context, alone: Alone, trials: Sequence[Trial]) -> list[_Chosen]:
    """What gains most first: looked for on few samples, and made sure of on more."""
    fit, whole = context.ledger.fit, 0.0
    first: list[tuple[float, Trial]] = []
    for trial, errors in alone.errors(trials, WALKS[0] * fit):
        noise = {method: float(e.noise.sum()) for method, e in errors.items()}
        before, *others = sorted(noise, key=lambda m: (m != trial.own, noise[m]))
        candidates = {m: trial.candidates[m] for m in (before, *others[:FINALISTS])}
        whole += noise[before]
        first.append((noise[before] - noise[others[0]], Trial(trial.tensor, before, candidates)))
    hopeful = sorted((pair for pair in first if pair[0] > MATTERS * whole), key=lambda p: -p[0])
    measured = alone.errors([trial for _, trial in hopeful], WALKS[1] * fit)
    found = [best for trial, errors in measured if (best := _best(trial, errors)) is not None]
    return sorted(found, key=lambda c: c.after - c.before)


def _trials(context: Context, placement: Placement, own: Mapping[str, QuantParams]) -> list[Trial]:
    """Of each tensor with several ranges to choose among. own: the parameters that it has now."""
    found, ranges_only = [], []
    for activation in _owners(placement):
        stats = context.calibration.of(activation.owner)
        if stats is not None and stats.histogram is None:
            ranges_only.append(activation.owner)
        elif stats is not None:
            candidates = _candidates(activation, own[activation.owner], stats)
            found.append(Trial(activation.owner, activation.method, candidates))
    found = [trial for trial in found if len(trial.candidates) > 1]
    if found:
        for tensor in ranges_only:
            context.ledger.skip(NAME, NO_HISTOGRAM, tensor)
    else:
        context.ledger.skip(NAME, NO_HISTOGRAM if ranges_only else NOTHING)
    return found


def _candidates(
    activation: ActivationPlacement, own: QuantParams, stats: TensorStatistics
) -> dict[MethodOptions, QuantParams]:
    found = {activation.method: own}
    for method in CANDIDATES:
        if method.method == "KL" and activation.spec.qtype.bits > KL_BITS:
            continue
        params = params_from_statistics(dataclasses.replace(activation, method=method), stats)
        if not any(_same(params, other) for other in found.values()):
            found[method] = params
    return found


def _owners(placement: Placement) -> list[ActivationPlacement]:
    """One for each tensor that is chosen for."""
    found: dict[str, ActivationPlacement] = {}
    auto_only = asks_for_it(placement)
    for activation in placement.activations:
        fixed = activation.unit_range or activation.joins
        asked = activation.method.method == AUTO if auto_only else not activation.ruled
        if asked and not fixed:
            found.setdefault(activation.owner, activation)
    return list(found.values())


def _same(one: QuantParams, other: QuantParams) -> bool:
    apart = np.subtract(range_of(one), range_of(other))
    return bool(np.abs(apart).max() < SAME * max(float(one.scale), float(other.scale)))


def _best(trial: Trial, errors: Mapping[MethodOptions, Errors]) -> _Chosen | None:
    """The candidate with the least noise, if that is less than the plan's range has for sure."""
    before = trial.own
    method = min(errors, key=lambda m: float(errors[m].noise.sum()))
    gain, error = errors[method].gain_over(errors[before])
    if gain <= SURE * error:
        return None
    noise = [float(errors[m].noise.sum()) for m in (before, method)]
    words = f"by {method.words} in place of {before.words}"
    return _Chosen(trial.tensor, method, noise[0], noise[1], words)


def _offer(context: Context, chosen: Sequence[_Chosen], halvings: int) -> set[str]:
    """Keep what makes the outputs better; the tensors of it."""
    tensors = {c.tensor: c.method for c in chosen}
    placement = context.best.placement
    activations = tuple(
        dataclasses.replace(a, method=tensors[a.owner]) if a.owner in tensors else a
        for a in placement.activations
    )
    candidate = context.remade(dataclasses.replace(placement, activations=activations))
    node = chosen[0].tensor if len(chosen) == 1 else None
    if context.offer(NAME, node, candidate, _words(chosen), sure=SURE):
        return set(tensors)
    if len(chosen) == 1 or halvings == 0:
        return set()
    half = (len(chosen) + 1) // 2
    return _offer(context, chosen[:half], halvings - 1) | _offer(
        context, chosen[half:], halvings - 1
    )


def _words(chosen: Sequence[_Chosen]) -> str:
    return chosen[0].words if len(chosen) == 1 else f"the ranges of {len(chosen)} tensors"
