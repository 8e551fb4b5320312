"""`Judge`: how good a plan is, on samples that no pass was fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.improve.emulated import Emulated
from onnxq.improve.frontier import Batch, Frontier
from onnxq.improve.reference import Reference
from onnxq.plans import Plan
from onnxq.qtypes import Array, Float64Array

__all__ = ["Errors", "Judge"]

DECIBEL = 10 / np.log(10)


@dataclass(frozen=True, eq=False)
class Errors:
    """The error of a plan's outputs, sample by sample.

    noise: float64 [samples]: squared error as a share of the signal of all samples together, the
        mean over the outputs. Class scores are centred (see `onnxq.numerics.metrics`).
    """

    noise: Float64Array

    @property
    def sqnr(self) -> float:
        """dB; infinite without any error."""
        total = float(self.noise.sum())
        if total == 0.0:
            return float("inf")
        return float(-10 * np.log10(total)) if np.isfinite(total) else float("-inf")

    def gain_over(self, before: Errors) -> tuple[float, float]:
        """dB by which this is better, and the standard error of that figure over the samples.

        Of a ratio of sums of pairs, by linearization: both errors of a sample go together.
        """
        old, new = float(before.noise.sum()), float(self.noise.sum())
        if new == old:
            return 0.0, 0.0
        if not (np.isfinite(old) and np.isfinite(new)) or min(old, new) == 0.0:
            return (float("inf") if new < old else float("-inf")), 0.0
        n = len(self.noise)
        parts = before.noise / old - self.noise / new
        error = np.sqrt(np.square(parts).sum() * n / max(n - 1, 1))
        return float(DECIBEL * np.log(old / new)), float(DECIBEL * error)

    def typical_gain_over(self, before: Errors) -> tuple[float, float]:
        """dB by which a sample is better on average, and the standard error of that.

        In `gain_over` a few samples with large outputs count as much as all others; here each
        sample counts once. Samples without any error are left out.
        """
        known = (before.noise > 0) & (self.noise > 0)
        known &= np.isfinite(before.noise) & np.isfinite(self.noise)
        if known.sum() < 2:
            return 0.0, float("inf")
        gains = DECIBEL * np.log(before.noise[known] / self.noise[known])
        return float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))

    def better_than(self, before: Errors) -> bool:
        """By more than the standard error."""
        gain, error = self.gain_over(before)
        return gain > error


class Judge:
    """Compares the outputs of plans with those of the float network, on samples of its own."""

    def __init__(self, emulated: Emulated, reference: Reference) -> None:
        self._reference = reference
        self.start = Frontier(emulated, 0, reference.batches)
        self._signal = {
            name: sum(float(np.square(_centred(o[name])).sum()) for o in reference.outputs)
            for name in (reference.outputs[0] if reference.outputs else {})
        }

    @property
    def samples(self) -> int:
        return self._reference.samples

    def errors(self, plan: Plan, frontier: Frontier | None = None) -> Errors:
        """frontier: where to go on from, of the judge's samples; None for the start."""
        found = (frontier or self.start).outputs(plan)
        return self.errors_of(found)

    def errors_of(self, found: Sequence[Mapping[str, Array]]) -> Errors:
        """Of outputs, a batch."""
        batches = self._reference.batches
        noise = [
            self._noise(expected, outputs, batch)
            for expected, outputs, batch in zip(
                self._reference.outputs, found, batches, strict=True
            )
        ]
        return Errors(np.concatenate(noise))

    def _noise(
        self, expected: Mapping[str, Array], found: Mapping[str, Array], batch: Batch
    ) -> Float64Array:
        total = np.zeros(batch.samples)
        for name, signal in self._signal.items():
            r, q = expected[name], found[name]
            if r.shape != q.shape:  # a detector found another number of boxes
                total += 1.0 / self.samples
                continue
            difference = np.square(_centred(q) - _centred(r))
            rows = difference.reshape(batch.samples, -1).sum(axis=1)
            total += rows / signal if signal else np.where(rows > 0, np.inf, 0.0)
        return total / max(len(self._signal), 1)


def _centred(scores: Array) -> Float64Array:
    """Class scores [rows, classes] relative to the mean of their row; anything else as it is."""
    values = np.asarray(scores, np.float64)
    if not np.isfinite(values).all():  # a mask of -inf, say
        values = np.where(np.isfinite(values), values, 0.0)
    if values.ndim == 2 and values.shape[1] > 1:
        values = values - values.mean(axis=1, keepdims=True)
    return np.asarray(values)
