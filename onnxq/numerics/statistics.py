"""What calibration keeps of a tensor: exact, and mergeable in any order and any split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.numerics.exact import ExactSum
from onnxq.numerics.histogram import Histogram, HistogramBuilder
from onnxq.qtypes import Array, Float64Array

__all__ = ["ChannelMeans", "StatisticsBuilder", "TensorStatistics"]


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """Statistics of all values of one float32 tensor over a set of samples.

    samples: how many; count: how many values in all.
    minimum, maximum: exact.
    extremes: sums over samples of each sample's minimum, maximum and largest magnitude: exact.
    histogram: counts on a power-of-two grid; None if only ranges were collected.
    """

    samples: int
    count: int
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
            self.count + other.count,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            self.extremes + other.extremes,
            self.counted + other.counted if both else None,
        )


@dataclass(frozen=True, eq=False)
class ChannelMeans:
    """Sums over samples of the mean of each channel within a sample: exact, of [channels]."""

    samples: int
    sums: ExactSum

    def means(self) -> Float64Array:
        return self.sums.mean(self.samples)

    def __add__(self, other: ChannelMeans) -> ChannelMeans:
        return ChannelMeans(self.samples + other.samples, self.sums + other.sums)


class StatisticsBuilder:
    """Collects the statistics of one tensor batch by batch; no array outlives `add`."""

    def __init__(self, *, histogram: bool) -> None:
        self._histogram = HistogramBuilder() if histogram else None
        self._extremes = ExactSum.of(np.zeros((0, 3)))
        self._samples = self._count = 0
        self._minimum, self._maximum = float("inf"), float("-inf")

    def add(self, x: Array, samples: int) -> bool:
        """Add float32 x, whose leading axis is `samples` equal parts; False if it is not finite."""
        if x.size == 0:
            return True
        rows = x.reshape(samples, -1)
        low, high = rows.min(axis=1), rows.max(axis=1)  # NaN propagates
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            return False
        minimum, maximum = float(low.min()), float(high.max())
        extremes = np.stack([low, high, np.maximum(-low, high)], axis=1)
        self._extremes += ExactSum.of(extremes)
        self._samples += samples
        self._count += x.size
        self._minimum = min(self._minimum, minimum)
        self._maximum = max(self._maximum, maximum)
        if self._histogram is not None:
            self._histogram.add(x, minimum, maximum)
        return True

    def build(self) -> TensorStatistics | None:
        """What was collected; None if there was not a single value."""
        if self._count == 0:
            return None
        return TensorStatistics(
            self._samples,
            self._count,
            self._minimum,
            self._maximum,
            self._extremes,
            self._histogram.build() if self._histogram else None,
        )
