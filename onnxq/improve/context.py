"""`Context`: what a pass works with, and the best plan so far."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from onnxq.calibration import Calibration
from onnxq.data.samples import Samples
from onnxq.improve.emulated import Emulated
from onnxq.improve.frontier import Batch, Frontier
from onnxq.improve.judge import Errors, Judge
from onnxq.improve.ledger import Entry, Ledger
from onnxq.improve.reference import BATCH, MOST_HELD, FloatNetwork, Reference, batches_of, read
from onnxq.numerics.quantize import in_more_bits
from onnxq.parametrize import parametrize
from onnxq.plans import Placement, Plan
from onnxq.prepare import Prepared
from onnxq.qtypes import INT16, Float64Array
from onnxq.runtime import Feed
from onnxq.spread import Spread

__all__ = ["Context", "Remake", "chosen_samples"]

SURE = 2.0
# The plan of a float network, before any pass
Remake = Callable[[Prepared, Placement, Calibration], Plan]


def chosen_samples(count: int, fit: int, judge: int) -> tuple[list[int], list[int]]:
    """Indices, evenly spread, of the samples to fit to and of others to judge on.

    Of few samples a part in the same proportion; two of each at least, else none at all.
    """
    if count < 4:
        return [], []
    used = min(count, fit + judge)
    spread = [i * count // used for i in range(used)]
    judging = min(used - 2, max(2, round(used * judge / (fit + judge))))
    places = {(2 * i + 1) * used // (2 * judging) for i in range(judging)}
    return (
        [index for place, index in enumerate(spread) if place not in places],
        [index for place, index in enumerate(spread) if place in places],
    )


class Context:
    """Made once for all passes; use it in a `with` statement.

    emulated: the placement as a float network in parts.
    fit: the frontier of the samples to fit to, before the first part.
    means: tensor -> float64 [samples, channels]: means of each weighted node's output in the float
        network, for the samples of `fit`.
    judge: measures plans on other samples.
    prepared, calibration: of the float network that the plan is for: the user's, or one that gives
        the same outputs (`offer_network`). samples: all that calibrated.
    reference, judged: what the float network gives for the samples of `fit`, and of the judge.
    remake: makes the plan of another float network.
    spread: who runs samples, and searches where no layer waits for another.
    rounds: a later pass chooses the integers of weights, so that the nearest ones are not the last.
    guarded: scales of weights are what keeps products from saturating, and must not be lowered.
    ledger: what every pass has to write down. best, errors: the best plan so far, and its errors.
    """

    def __init__(
        self,
        prepared: Prepared,
        calibration: Calibration,
        samples: Samples,
        plan: Plan,
        ledger: Ledger,
        chosen: tuple[list[int], list[int]],
        remake: Remake = parametrize,
        spread: Spread = Spread(),  # noqa: B008  # frozen
        *,
        rounds: bool = False,
        guarded: bool = False,
    ) -> None:
        self._remake, self.spread = remake, spread
        self.rounds, self.guarded = rounds, guarded
        self.prepared, self.calibration, self.ledger = prepared, calibration, ledger
        self.samples = samples
        self.best = self._base = plan
        self.emulated = Emulated(prepared, plan.placement)
        fit, judge = chosen
        fit = fit[: self._room(read(samples, fit[:1]), plan)]
        ledger.fit, ledger.judge = len(fit), len(judge)
        with contextlib.ExitStack() as stack:  # its session holds all weights
            network = FloatNetwork(prepared, self.emulated.weighted, stack)
            fitting, judging = (
                batches_of(network, prepared, read(samples, indices), BATCH)
                for indices in (fit, judge)
            )
            self.reference = network(fitting, means=True)
            self.judged = network(judging, means=False)
        del network
        self.judge = Judge(self.emulated, self.judged)
        self._means: Mapping[str, Float64Array] | None = self.reference.means
        self._exact: Errors | None = None  # of the best plan, with exact weights
        self.fit = Frontier(self.emulated, 0, fitting)
        started = time.perf_counter()
        self.errors = self.judge.errors(plan)
        self.seconds_a_sample = (time.perf_counter() - started) / max(self.judge.samples, 1)

    def _room(self, feeds: list[Feed], plan: Plan) -> int:
        """For how many samples there is memory: each holds its live tensors at the worst place."""
        frontier = Frontier(self.emulated, 0, (Batch(feeds[0], 1),))
        most = frontier.nbytes
        while not frontier.done:
            frontier = frontier.advance(plan)
            most = max(most, frontier.nbytes)
        return max(2, MOST_HELD // max(most, 1))

    @property
    def means(self) -> Mapping[str, Float64Array]:
        if self._means is None:  # the float network is another one by now
            with contextlib.ExitStack() as stack:
                network = FloatNetwork(self.prepared, self.emulated.weighted, stack)
                self._means = network(self.fit.batches, means=True).means
        return self._means

    def reference_of_fit(self, most: int) -> Reference:
        """Of about `most` of the samples to fit to, evenly spread."""
        whole = self.reference
        samples = max(batch.samples for batch in whole.batches)
        count = min(len(whole.batches), max(1, -(-most // samples)))
        chosen = [i * len(whole.batches) // count for i in range(count)]
        batches = tuple(whole.batches[i] for i in chosen)
        return Reference(batches, [whole.outputs[i] for i in chosen], {})

    def remade(self, placement: Placement) -> Plan:
        """The plan of another placement of the same tensors, before any pass."""
        return self._remake(self.prepared, placement, self.calibration)

    def offer(
        self,
        step: str,
        node: str | None,
        candidate: Plan,
        why: str,
        errors: Errors | None = None,
        sure: float = 1.0,
    ) -> bool:
        """Measure a candidate, keep it if it is better than the best, and write that down.

        why: what the change is. errors: of the candidate, where the pass has measured them.
        sure: standard errors that it has to gain.
        """
        found = self.judge.errors(candidate) if errors is None else errors
        kept = self._decide(step, node, found, why, sure)
        if kept:
            self.best = candidate
        return kept

    @property
    def untouched(self) -> bool:
        """No pass has changed the plan yet: it is what `parametrize` makes of the statistics."""
        return self.best is self._base

    def offer_network(
        self, step: str, node: str | None, prepared: Prepared, calibration: Calibration, why: str
    ) -> bool:
        """As `offer`, for another float network of the same nodes that gives the same outputs.

        calibration: the statistics of that network. The plan starts anew from them, so that this is
        for passes that come before all others. The gain has to be more than `SURE` standard errors:
        of the many such candidates that a pass has, some gain one by chance. Where weights are
        still to be rounded, a network that is better may gain that with exact weights.
        """
        plan = self._remake(prepared, self.best.placement, calibration)
        emulated = Emulated(prepared, plan.placement)
        judge = Judge(emulated, self.judged)  # by the outputs of the user's own network
        found = judge.errors(plan)
        gain, error = found.gain_over(self.errors)
        if self.rounds and 0 < gain <= SURE * error:
            exact = judge.errors(_with_exact_weights(plan))
            if self._exact is None:
                self._exact = self.judge.errors(_with_exact_weights(self.best))
            kept = self._decide(
                step, node, found, f"{why}, with exact weights", SURE, (self._exact, exact)
            )
        else:
            kept = self._decide(step, node, found, why, SURE)
        if kept:
            self.emulated.forget()
            self.prepared, self.calibration = prepared, calibration
            self.best = self._base = plan
            self.emulated, self.judge = emulated, judge
            self.fit = Frontier(emulated, 0, self.fit.batches)
            self._means = self._exact = None
        else:
            emulated.forget()
        return kept

    def _decide(
        self,
        step: str,
        node: str | None,
        found: Errors,
        why: str,
        sure: float = 1.0,
        compared: tuple[Errors, Errors] | None = None,
    ) -> bool:
        """Whether it is better than the best, and written down.

        For sure by the errors of all samples together; or better by these, and for sure by what a
        sample gains on average, which a few samples with large errors do not hide.

        compared: errors before and after to decide by, if not those of the best and `found`.
        """
        before, after = (self.errors, found) if compared is None else compared
        gain, error = after.gain_over(before)
        kept = gain > sure * error
        verdict = f"gain {gain:.2f} dB, standard error {error:.2f} dB"
        if not kept and gain > 0:
            gain, error = after.typical_gain_over(before)
            kept = gain > SURE * error
            verdict += f"; a sample on average {gain:.2f} dB, {error:.2f} dB"
        start = self.errors.sqnr
        if kept:
            self.errors = found
        self.ledger.add(Entry(step, node, start, found.sqnr, kept, f"{why}: {verdict}"))
        return kept

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.emulated.forget()


def _with_exact_weights(plan: Plan) -> Plan:
    """The plan with symmetric weights of 16 bits, as if only activations were quantized."""
    params, updates = dict(plan.params), dict(plan.updates)
    for weight in plan.placement.weights:
        name, known = weight.tensor, plan.params[weight.tensor]
        params[name] = in_more_bits(known, INT16)
        if name in updates and params[name] is not known:  # its integers were for 8 bits
            updates[name] = dataclasses.replace(updates[name], integers=None, to_mean=None)
    return dataclasses.replace(plan, params=params, updates=updates)
