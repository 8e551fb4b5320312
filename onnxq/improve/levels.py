"""The accuracy levels: which passes run on how many samples, and the loop over them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnxq.calibration import Calibration
from onnxq.data.samples import Samples
from onnxq.improve import bias, equalization, ranges, rounding, smoothquant
from onnxq.improve.context import Context, Remake, chosen_samples
from onnxq.improve.emulated import float_outputs
from onnxq.improve.ledger import Ledger
from onnxq.improve.sessions import give_memory_back
from onnxq.parametrize import parametrize
from onnxq.plans import Plan
from onnxq.prepare import Prepared
from onnxq.recipe import Accuracy
from onnxq.runtime import RuntimeFailureError
from onnxq.spread import Spread

__all__ = ["LEVELS", "PASSES", "Improved", "Level", "Pass", "improve"]

NO_SAMPLES = "it needs samples, and only statistics were given"
NO_OUTPUT = "the network has no float output to judge by"
ANEW = "what has been improved already is better than a plan that starts anew"
FEW_SAMPLES = "it needs at least 4 samples to calibrate with, there are {}"


@dataclass(frozen=True)
class Pass:
    """One way to a better plan.

    run: offers candidates to the context, made from the plan it is given.
    cost: how many runs of one sample through the whole emulated network it takes, about.
    remakes: its candidates are other float networks, with plans that start anew.
    """

    name: str
    run: Callable[[Context, Plan], None]
    cost: Callable[[Context], float]
    remakes: bool = False


@dataclass(frozen=True)
class Level:
    """passes: names, in order. fit, judge: how many samples to fit to and to judge on, at most."""

    passes: tuple[str, ...]
    fit: int
    judge: int


@dataclass(frozen=True, eq=False)
class Improved:
    """The best plan, the float network that it is for and its statistics, and how it was found."""

    prepared: Prepared
    calibration: Calibration
    plan: Plan
    ledger: Ledger


PASSES: Mapping[str, Pass] = {
    p.name: p
    for p in (
        Pass(smoothquant.NAME, smoothquant.smooth, smoothquant.cost, remakes=True),
        Pass(equalization.NAME, equalization.equalize, equalization.cost, remakes=True),
        Pass(ranges.NAME, ranges.choose_ranges, ranges.cost),
        Pass(bias.NAME, bias.correct_biases, lambda c: 2 * c.ledger.fit + c.ledger.judge),
        # the moments and the search take about as long as seven walks through the network
        Pass(rounding.NAME, rounding.round_weights, lambda c: 9 * (c.ledger.fit + c.ledger.judge)),
        Pass(
            rounding.ADAROUND,
            rounding.adaround_weights,
            lambda c: 12 * (c.ledger.fit + c.ledger.judge),
        ),
    )
}

LEVELS: Mapping[Accuracy, Level] = {
    "none": Level((), 0, 0),
    "fast": Level((bias.NAME,), 24, 16),
    "balanced": Level((smoothquant.NAME, equalization.NAME, bias.NAME, rounding.NAME), 96, 48),
    "best": Level(
        (smoothquant.NAME, equalization.NAME, bias.NAME, rounding.NAME, rounding.ADAROUND), 128, 64
    ),
}


def improve(
    prepared: Prepared,
    calibration: Calibration,
    samples: Samples | None,
    plan: Plan,
    level: Accuracy,
    *,
    extra: Sequence[str] = (),
    remake: Remake = parametrize,
    tell: Callable[[str], None] | None = None,
    spread: Spread = Spread(),  # noqa: B008  # frozen
    guarded: bool = False,
    again: bool = False,
) -> Improved:
    """The best plan that the passes of a level find; the given one if none is better.

    samples: those that calibrated; None if only statistics were given. Some are fitted to, and
        others judge.
    extra: names of passes to run besides those of the level.
    remake: makes the plan of a float network that a pass has changed.
    tell: takes a line on what this will cost, and one on what it did.
    spread: who runs samples, and searches layer by layer.
    guarded: the scales of weights keep products from saturating (see `Context`).
    again: the plan has been improved before, so that one that starts anew cannot be better.

    Ctrl-C ends it early, with the best plan until then.
    """
    chosen = LEVELS[level]
    auto = ranges.asks_for_it(plan.placement)
    asked = {*chosen.passes, *extra, *([ranges.NAME] if auto else [])}
    names = [name for name in PASSES if name in asked]
    ledger = Ledger(level)
    if again:
        for name in [n for n in names if PASSES[n].remakes]:
            ledger.skip(name, ANEW)
            names.remove(name)
    if not names or not plan.placement.activations:
        return Improved(prepared, calibration, plan, ledger)
    count = 0 if samples is None else len(samples)
    sizes = (
        (chosen.fit, chosen.judge) if chosen.passes else (LEVELS["fast"].fit, LEVELS["fast"].judge)
    )
    parts = chosen_samples(count, *sizes)
    why = None if parts[0] else FEW_SAMPLES.format(count)
    why = why if float_outputs(prepared.ir.graph) else NO_OUTPUT
    if samples is None or why is not None:
        why = NO_SAMPLES if samples is None or why is None else why
        for name in names:
            ledger.skip(name, f"{why}; {ranges.START}" if auto and name == ranges.NAME else why)
        return Improved(prepared, calibration, plan, ledger)
    started = time.perf_counter()
    best = plan
    try:
        with Context(
            prepared,
            calibration,
            samples,
            plan,
            ledger,
            parts,
            remake,
            spread,
            rounds=not asked.isdisjoint((rounding.NAME, rounding.ADAROUND)),
            guarded=guarded,
        ) as context:
            ledger.seconds["setup"] = time.perf_counter() - started
            costs = sum(PASSES[name].cost(context) for name in names) * context.seconds_a_sample
            ledger.estimate = costs
            if tell is not None:
                tell(f"accuracy {level}: {', '.join(names)}: about {costs:.0f} s")
            try:
                for name in names:
                    _run(PASSES[name], context)
            except KeyboardInterrupt:
                ledger.interrupted = True
            prepared, calibration = context.prepared, context.calibration
            best = context.best
    except KeyboardInterrupt:  # before there was anything to improve on
        ledger.interrupted = True
    except RuntimeFailureError as error:
        ledger.skip("improve", f"onnxruntime cannot run the network in parts: {error}")
    if tell is not None:
        tell(f"accuracy {level}: took {time.perf_counter() - started:.1f} s; {ledger.summary()}")
    return Improved(prepared, calibration, best, ledger)


def _run(step: Pass, context: Context) -> None:
    started = time.perf_counter()
    try:
        step.run(context, context.best)
    finally:
        give_memory_back()
        context.ledger.seconds[step.name] = time.perf_counter() - started
