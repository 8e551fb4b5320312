"""What calibration keeps of a tensor: exact, and mergeable in any order and any split."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxq.numerics.exact import ExactSum
from onnxq.numerics.histogram import PIECE, Histogram, HistogramBuilder
from onnxq.qtypes import Array

__all__ = ["StatisticsBuilder", "TensorStatistics"]


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """Statistics of all values of one float32 tensor over a set of samples.

    samples: how many had a value.
    minimum, maximum: exact; without a histogram, 0 stands for the minimum of a tensor of which
        nothing can be negative.
    extremes: sums over samples of each sample's minimum, maximum and largest magnitude: exact.
    histogram: counts on a power-of-two grid; None if only ranges were collected.
    """

    samples: int
    minimum: float
    maximum: float
    extremes: ExactSum
    histogram: Histogram | None

    @property
    def abs_max(self) -> float:
        return max(-self.minimum, self.maximum)

    @property
    def abs_min(self) -> float:
        """min|x|: exact if x has one sign, else to within a bin of the histogram."""
        if self.minimum >= 0:
            return self.minimum
        if self.maximum <= 0:
            return -self.maximum
        return self.histogram.smallest_magnitude() if self.histogram else 0.0

    @property
    def counted(self) -> Histogram:
        if self.histogram is None:
            raise ValueError("these statistics hold ranges only, no histogram")
        return self.histogram

    def mean_extremes(self) -> tuple[float, float, float]:
        """Means over samples of the minimum, the maximum and the largest magnitude."""
        low, high, magnitude = self.extremes.mean(self.samples).tolist()
        return low, high, magnitude

    def __add__(self, other: TensorStatistics) -> TensorStatistics:
        both = self.histogram and other.histogram
        return TensorStatistics(
            self.samples + other.samples,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            self.extremes + other.extremes,
            self.counted + other.counted if both else None,
        )


class StatisticsBuilder:
    """Collects the statistics of one tensor batch by batch; no array outlives `add`.

    Not safe to be called by two threads at once.
    """

    def __init__(self, *, histogram: bool) -> None:
        self._histogram = HistogramBuilder() if histogram else None
        self._extremes = _Sums(3)
        self._samples = 0
        self._minimum, self._maximum = float("inf"), float("-inf")

    def add(self, x: Array, samples: int) -> bool:
        """Add float32 x, whose leading axis is `samples` equal parts; False if it is not finite."""
        if x.size == 0:
            return True
        for row in x.reshape(samples, -1):
            if not self._add_row(row):
                return False
        self._samples += samples
        return True

    def add_maxima(self, maxima: Array) -> bool:
        """Add samples of a tensor of which nothing is negative, by their maxima: float32 [samples].

        The smallest value is taken for 0, which every quantized range holds. Only for statistics
        without a histogram. False if a maximum is not finite.
        """
        for high in maxima.tolist():
            if not math.isfinite(high):
                return False
            self._extend(0.0, high)
        self._samples += maxima.size
        return True

    def _add_row(self, row: Array) -> bool:
        """One sample, in pieces that stay in the processor's cache from one step to the next."""
        lowest, highest = math.inf, -math.inf
        for start in range(0, row.size, PIECE):
            piece = row[start : start + PIECE]
            low, high = float(piece.min()), float(piece.max())  # NaN propagates
            if not (math.isfinite(low) and math.isfinite(high)):
                return False
            if self._histogram is not None:
                self._histogram.add(piece, low, high)
            lowest, highest = min(lowest, low), max(highest, high)
        self._extend(lowest, highest)
        return True

    def _extend(self, low: float, high: float) -> None:
        self._extremes.add((low, high, max(-low, high)))
        self._minimum, self._maximum = min(self._minimum, low), max(self._maximum, high)

    def build(self) -> TensorStatistics | None:
        """What was collected; None if there was not a single value."""
        if self._samples == 0:
            return None
        return TensorStatistics(
            self._samples,
            self._minimum,
            self._maximum,
            self._extremes.total(),
            self._histogram.build() if self._histogram else None,
        )


class _Sums:
    """An exact sum of rows, added up many at a time: an exact sum of one row costs as much."""

    ROWS = 256

    def __init__(self, width: int) -> None:
        self._sum = ExactSum.of(np.zeros((0, width)))
        self._rows = np.empty((self.ROWS, width), np.float32)
        self._held = 0

    def add(self, row: tuple[float, ...]) -> None:
        self._rows[self._held] = row
        self._held += 1
        if self._held == self.ROWS:
            self._fold()

    def _fold(self) -> None:
        self._sum += ExactSum.of(self._rows[: self._held])
        self._held = 0

    def total(self) -> ExactSum:
        self._fold()
        return self._sum
