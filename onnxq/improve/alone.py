"""`Alone`: what one quantized tensor costs the outputs, with all else in float.

The noise of several tensors is about the sum of the noise of each, so that each can be measured by
itself; and with nothing else in the noise, few samples tell which of two ranges is the better one.
What comes before the tensor is calculated once for all (see mixed/variants.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnxq.improve.context import Context
from onnxq.improve.frontier import Batch
from onnxq.improve.judge import Errors, Judge
from onnxq.improve.mixed.variants import Aligned, Shared, Variant, Walk
from onnxq.parametrize import joined
from onnxq.plans import ActivationPlacement, Placement, Plan
from onnxq.qtypes import QuantParams
from onnxq.recipe import MethodOptions

__all__ = ["Alone", "Trial"]

# Samples that a tensor is measured on at least
LEAST = 4


@dataclass(frozen=True, eq=False)
class Trial:
    """A tensor's candidates: method -> parameters. own: the method of the plan, one of them."""

    tensor: str
    own: MethodOptions
    candidates: Mapping[MethodOptions, QuantParams]


class Alone:
    """params: of all quantized tensors before a Concat joins them."""

    def __init__(self, context: Context, params: Mapping[str, QuantParams]) -> None:
        self._context, self._params = context, params
        self._shared = Shared()
        self._float = self._variant(())
        self._float.emulated.keep()

    def errors(
        self, trials: Sequence[Trial], runs: float
    ) -> Iterator[tuple[Trial, dict[MethodOptions, Errors]]]:
        """Of each candidate; runs: about so many of one sample through the whole network.

        As many of the samples to fit to are taken, and `LEAST` even if they take more runs.
        """
        made = [(trial, self._variant(self._reached(trial.tensor))) for trial in trials]
        places = [v.emulated.common(self._float.emulated) for _, v in made]
        parts = len(self._float.emulated.parts)
        shares = [
            len(trial.candidates) * (parts - place) / parts
            for place, (trial, _) in zip(places, made, strict=True)
        ]
        judge, batches = self._judge(int(runs / max(sum(shares), 1.0)))
        walk = Walk(self._float, batches)
        for place, (trial, variant) in sorted(zip(places, made, strict=True), key=lambda p: p[0]):
            frontier = walk.meet(variant, place)
            found = {}
            for method, params in trial.candidates.items():
                everything = {**self._params, trial.tensor: params}
                everything |= joined(self._context.best.placement.activations, everything)
                plan = dataclasses.replace(variant.plan, params=everything)
                found[method] = judge.errors_of(frontier.outputs(plan))
            yield trial, found

    def _judge(self, most: int) -> tuple[Judge, tuple[Batch, ...]]:
        part = self._context.reference_of_fit(max(LEAST, most))
        return Judge(self._context.emulated, part), part.batches

    def _reached(self, tensor: str) -> tuple[ActivationPlacement, ...]:
        """All that has its range, and what a Concat makes of it."""
        reached = {tensor}
        everything = self._context.best.placement.activations
        while True:
            found = tuple(a for a in everything if a.owner in reached or reached & set(a.joins))
            if {a.owner for a in found} <= reached:
                return found
            reached |= {a.owner for a in found}

    def _variant(self, activations: tuple[ActivationPlacement, ...]) -> Variant:
        placement = self._context.best.placement
        plan = Plan(
            Placement((), activations, labels=placement.labels, borders=placement.borders),
            self._params,
        )
        cuts = frozenset(self._context.emulated.weighted)
        emulated = Aligned(self._context.prepared, plan.placement, cuts, self._shared)
        return Variant(plan, emulated)
