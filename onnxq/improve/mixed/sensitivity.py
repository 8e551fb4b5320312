"""What each quantized node costs: the network with it alone quantized, and with it alone in float.

alone quantized  only this node has Q and DQ, all else is float: what it loses by itself
alone in float   only this node is float, all else is quantized: what leaving it brings

The first adds up: the noise of several nodes is about the sum of the noise of each, so that it
ranks them even where the network as a whole has collapsed, and where two nodes share a tensor that
8 bits cannot hold (left float alone, neither of them brings anything). Elementwise nodes are not
quantized alone, since int8 would cost time there; they are ranked by what leaving them brings.

What comes before a node is calculated once for all nodes, in float and quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from onnxq.improve.frontier import Batch
from onnxq.improve.judge import Errors, Judge
from onnxq.improve.mixed.variants import Unit, Variant, Variants, Walk

__all__ = ["Progress", "Sensitivity", "sensitivities"]

Progress = Callable[[int, int], None]


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


def sensitivities(
    variants: Variants,
    units: Sequence[Unit],
    judge: Judge,
    batches: tuple[Batch, ...],
    progress: Progress | None = None,
    *,
    both: bool = False,
) -> list[Sensitivity]:
    """Of all units, the one that loses most first.

    batches: the samples that `judge` knows. both: measure alone in float what need not be, too.
    """
    core = [unit for unit in units if unit.core]
    floating = [unit for unit in units if both or not unit.core]
    total, done = len(core) + len(floating), 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    whole = judge.errors_of(variants.base.start(batches).outputs(variants.base.plan))
    alone: dict[str, Errors] = {}
    for unit, errors in _sweep(variants.floating, core, variants.only, judge, batches):
        alone[unit.node] = errors
        tick()
    left: dict[str, Errors] = {}
    for unit, errors in _sweep(
        variants.base, floating, lambda unit: variants.left([unit]), judge, batches
    ):
        left[unit.node] = errors
        tick()
    found = []
    for unit in units:
        quantized, float_ = alone.get(unit.node), left.get(unit.node)
        if quantized is not None:
            noise = float(quantized.noise.sum())
        else:
            noise = max(0.0, float(whole.noise.sum() - left[unit.node].noise.sum()))
        found.append(Sensitivity(unit, _sqnr(quantized), _sqnr(float_), noise))
    return sorted(found, key=lambda s: -s.noise)  # those that are equal in the graph's order


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
        yield unit, judge.errors_of(found)
