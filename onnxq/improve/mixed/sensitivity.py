"""What each quantized node costs: the network with it alone quantized, and with it alone in float.

alone quantized  only this node has Q and DQ, all else is float: what it loses by itself
alone in float   only this node is float, all else is quantized: what leaving it brings

The first adds up: the noise of several nodes is about the sum of the noise of each, so that it
ranks them even where the network as a whole has collapsed, and where two nodes share a tensor that
8 bits cannot hold (left float alone, neither of them brings anything). Elementwise nodes are not
quantized alone, since int8 would cost time there; they are ranked by what leaving them brings.

What comes before a node is calculated once for all nodes, in float and quantized. No node waits for
another, so that workers may measure shares of them (`onnxq.spread`): each makes the same variants
of the same plan, and has onnxruntime choose its threads as it does here, so that the bits are those
of one process.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial

from onnxq.improve.frontier import Batch
from onnxq.improve.judge import Errors, Judge
from onnxq.improve.mixed.variants import Unit, Variant, Variants, Walk
from onnxq.improve.reference import Reference
from onnxq.spread import Share, Spread, run_shares, shares_of

__all__ = ["Progress", "Sensitivity", "sensitivities"]

Progress = Callable[[int, int], None]

# Nodes of a share: enough to outweigh the sessions of the network around them, and few enough to
# spread
LEAST, MOST = 4, 32


@dataclass(frozen=True)
class Sensitivity:
    """One quantized node.

    quantized: SQNR of the outputs in dB with it alone quantized, None where it cannot be alone.
    floating: the same with it alone in float; None where that was not measured.
    noise: its share of the noise, relative to the signal: what nodes are ranked by.
    """

    unit: Unit
    quantized: float | None
    floating: float | None
    noise: float


@dataclass(eq=False)
class _Found:
    """Errors by node: with it alone quantized, and with it alone in float."""

    quantized: dict[str, Errors] = field(default_factory=dict)
    floating: dict[str, Errors] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.quantized) + len(self.floating)

    def add(self, other: _Found) -> None:
        self.quantized |= other.quantized
        self.floating |= other.floating


def sensitivities(
    variants: Variants,
    reference: Reference,
    progress: Progress | None = None,
    *,
    both: bool = False,
    spread: Spread = Spread(),  # noqa: B008  # frozen
) -> list[Sensitivity]:
    """Of all units of the variants, the one that loses most first.

    reference: the samples to measure on. both: measure alone in float what need not be, too.
    spread: who measures; the same bits.
    """
    units = variants.units
    core = sum(unit.core for unit in units)
    total = core + (len(units) if both else len(units) - core)
    found = _Found()

    def tick() -> None:
        if progress is not None:
            progress(found.count, total)

    if spread.elsewhere is None:
        _measure(variants, units, reference, found, tick, both=both)
    else:
        _measure_elsewhere(variants, reference, spread.elsewhere, found, tick, both=both)
    judge = Judge(variants.base.emulated, reference)
    whole = judge.errors(variants.base.plan)
    ranking = []
    for unit in units:
        quantized, floating = found.quantized.get(unit.node), found.floating.get(unit.node)
        if quantized is not None:
            noise = float(quantized.noise.sum())
        else:
            noise = max(0.0, float(whole.noise.sum() - found.floating[unit.node].noise.sum()))
        ranking.append(Sensitivity(unit, _sqnr(quantized), _sqnr(floating), noise))
    return sorted(ranking, key=lambda s: -s.noise)  # those that are equal in the graph's order


def _measure(
    variants: Variants,
    units: Sequence[Unit],
    reference: Reference,
    found: _Found,
    tick: Callable[[], None],
    *,
    both: bool,
) -> None:
    """What some of the units cost, into `found`."""
    judge = Judge(variants.base.emulated, reference)
    core = [unit for unit in units if unit.core]
    batches = reference.batches
    for unit, errors in _sweep(variants.floating, core, variants.only, judge, batches):
        found.quantized[unit.node] = errors
        tick()
    floating = [unit for unit in units if both or not unit.core]
    for unit, errors in _sweep(
        variants.base, floating, lambda unit: variants.left([unit]), judge, batches
    ):
        found.floating[unit.node] = errors
        tick()


def _measure_elsewhere(
    variants: Variants,
    reference: Reference,
    executor: Executor | int,
    found: _Found,
    tick: Callable[[], None],
    *,
    both: bool,
) -> None:
    sent = pickle.dumps((variants, reference))  # once for all shares

    def take(_: Share, part: _Found) -> None:
        found.add(part)
        tick()

    shares = shares_of(range(len(variants.units)), executor, LEAST, MOST)
    run_shares(
        lambda share: partial(_measure_share, sent, share, both=both),
        shares,
        executor,
        take,
        variants.label,
    )


def _measure_share(sent: bytes, share: Share, *, both: bool) -> _Found:
    """In a worker: what a share of the units costs."""
    variants: Variants
    reference: Reference
    variants, reference = pickle.loads(sent)
    found = _Found()
    units = [variants.units[i] for i in share]
    _measure(variants, units, reference, found, lambda: None, both=both)
    return found


def _sqnr(errors: Errors | None) -> float | None:
    return None if errors is None else errors.sqnr


def _sweep(
    base: Variant,
    units: Sequence[Unit],
    make: Callable[[Unit], Variant],
    judge: Judge,
    batches: tuple[Batch, ...],
) -> Iterator[tuple[Unit, Errors]]:
    """The errors of a variant for each unit, by where they leave the common path."""
    made = [(unit, make(unit)) for unit in units]
    places = [variant.emulated.common(base.emulated) for _, variant in made]
    walk = Walk(base, batches)
    for place, (unit, variant) in sorted(zip(places, made, strict=True), key=lambda pair: pair[0]):
        found = walk.meet(variant, place).outputs(variant.plan)
        variant.emulated.forget()
        yield unit, judge.errors_of(found)
