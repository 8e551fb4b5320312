"""The fewest nodes to leave float so that a goal holds.

1. Rank the nodes by what each loses in int8 (sensitivity.py); with a budget of MACs also by that
   over the MACs, and take from the top what the budget allows.
2. All of these in float: does the goal hold? If not, that is the best there is, and it is said.
   (With a budget, nodes are then tried one after the other, each kept if it brings something.)
3. The shortest beginning of the ranking for which it holds, by bisection.
4. Move back: try each node of it in int8 again, the one that loses least first.
5. Weights of the nodes that are left as INT16, where the goal holds all the same: they calculate in
   float either way (no runtime here has kernels for 16 bits), and take half of the bytes.

Each step is measured on the whole network; the best plan so far is in `Search.best` at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxq.improve.ledger import Entry, Ledger
from onnxq.improve.mixed.goals import Goal, Meter, Score
from onnxq.improve.mixed.sensitivity import Sensitivity
from onnxq.improve.mixed.variants import Unit, Variant, Variants

__all__ = ["NAME", "Choice", "Search"]

NAME = "mixed_precision"
# Nodes that are tried one by one, in float or in int8 again, at most
MOST_TRIED = 16
# What leaving any node float costs besides its MACs, as a share of all: it breaks a chain of int8
ANY_NODE = 0.002


@dataclass(frozen=True, eq=False)
class Choice:
    """Some nodes left float. stored: their weights are INT16."""

    units: tuple[Unit, ...]
    variant: Variant
    score: Score
    stored: bool = False


class Search:
    """One search; `best` is its result, whenever it ends.

    total: MACs of all units, which the budget is a share of.
    pays: whether a variant still saves time; asked where the goal is optional.
    """

    def __init__(
        self,
        variants: Variants,
        ranking: Sequence[Sensitivity],
        meter: Meter,
        goal: Goal,
        ledger: Ledger,
        start: Choice,
        pays: Callable[[Variant], bool] = lambda _: True,
    ) -> None:
        self._variants, self._ranking, self._meter = variants, ranking, meter
        self._pays = pays
        self._goal, self._ledger = goal, ledger
        self._total = max(1, sum(s.unit.macs for s in ranking))
        self.best = start
        self._last = float("-inf")  # SQNR of what was measured last

    @property
    def reached(self) -> bool:
        return self._goal.holds(self.best.score)

    def run(self) -> None:
        if self.reached:
            return
        orders = self._orders()
        for order in orders:
            if self._offer(order, f"{len(order)} nodes in float"):
                self._shorten(order)
                break
        if not self.reached and self._goal.budget < 1:
            self._grow([s.unit for s in self._by_density() if s.noise > 0])
        if self.reached:
            self._move_back()
            self._store()

    def _share(self, unit: Unit) -> float:
        return unit.macs / self._total

    def _orders(self) -> list[list[Unit]]:
        if self._goal.budget >= 1:
            return [[s.unit for s in self._ranking]]
        found: list[list[Unit]] = []
        for ranking in (self._by_density(), self._ranking):
            order, spent = [], 0.0
            for s in ranking:
                if s.noise > 0 and spent + self._share(s.unit) <= self._goal.budget:
                    order.append(s.unit)
                    spent += self._share(s.unit)
            if order and set(order) not in map(set, found):
                found.append(order)
        return found

    def _by_density(self) -> list[Sensitivity]:
        return sorted(self._ranking, key=lambda s: -s.noise / (self._share(s.unit) + ANY_NODE))

    def _offer(self, units: Sequence[Unit], what: str, node: str | None = None) -> bool:
        """Measure, keep if it is better, and write that down; whether the goal holds.

        Better is: the goal holds (what is tried later leaves fewer nodes float), or it comes nearer
        to it, by more than the standard error, where it does not hold yet.
        """
        return self._judge(Choice(tuple(units), *self._measured(units, stored=False)), what, node)

    def _measured(self, units: Sequence[Unit], *, stored: bool) -> tuple[Variant, Score]:
        variant = self._variants.left(units, stored=stored)
        score = self._meter(variant)
        variant.emulated.forget()
        return variant, score

    def _judge(self, found: Choice, what: str, node: str | None = None) -> bool:
        pays = not self._goal.optional or self._pays(found.variant)
        holds = pays and self._goal.holds(found.score)
        self._last = found.score.sqnr if pays else float("-inf")
        kept = holds or (not self.reached and self._is_nearer(found.score))
        verdict = f"{what}: {found.score}, {'holds' if holds else 'does not hold'} {self._goal}"
        verdict += "" if pays else "; it would cost too much of the time that int8 saves"
        before = self.best.score.sqnr
        self._ledger.add(Entry(NAME, node, before, found.score.sqnr, kept, verdict))
        if kept:
            self.best = found
        return holds

    def _is_nearer(self, score: Score) -> bool:
        best = self.best.score
        gain, error = score.errors.gain_over(best.errors)
        by_chance = self._goal.by_sqnr and gain <= error
        nearer = self._goal.rank(score) > self._goal.rank(best)
        return nearer and not by_chance and not self._goal.optional

    def _grow(self, order: Sequence[Unit]) -> None:
        """One node after the other, each only if it brings something: noise only about adds up."""
        units = list(self.best.units)
        rank, spent = self.best.score.sqnr, sum(map(self._share, units))
        for unit in [u for u in order if u not in units][:MOST_TRIED]:
            if spent + self._share(unit) > self._goal.budget:
                continue
            if self._offer([*units, unit], f"with {len(units)} others in float", unit.name):
                return
            if self._last > rank:
                units, rank, spent = [*units, unit], self._last, spent + self._share(unit)

    def _shorten(self, order: Sequence[Unit]) -> None:
        fails, holds = 0, len(order)
        while holds - fails > 1:
            middle = (fails + holds) // 2
            if self._offer(order[:middle], f"the first {middle} nodes in float"):
                holds = middle
            else:
                fails = middle

    def _move_back(self) -> None:
        noise = {s.unit: s.noise for s in self._ranking}
        # the last one was needed: without it the goal did not hold
        tried = sorted(self.best.units[:-1], key=lambda unit: noise[unit])
        for unit in tried[:MOST_TRIED]:
            rest = [u for u in self.best.units if u != unit]
            self._offer(rest, "back in int8", unit.name)
        for unit in tried[MOST_TRIED:]:
            self._ledger.skip(NAME, f"not tried in int8 again: {MOST_TRIED} others were", unit.name)

    def _store(self) -> None:
        units = self.best.units
        if not any(unit.core for unit in units):
            return
        found = Choice(units, *self._measured(units, stored=True), stored=True)
        self._judge(found, "their weights as INT16, half the bytes")
