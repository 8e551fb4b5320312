"""Calibration methods: from the statistics of a tensor to the range that is quantized.

Each method is one function and one row of `METHODS`. A method gives low and high, low <= 0 <= high
not required (`params_from_range` widens); a symmetric range is (-alpha, alpha).

The symmetric forms of `abs_max`, `hist` and `KL` follow PaddleSlim's definitions, on |x| counted in
2048 bins over its exact range; so do `mse` and `emd`, except that they search over the histogram of
the whole set, up to the full range, where PaddleSlim searches batch by batch up to 0.98 of it;
`ptf` looks at the whole set, where PaddleSlim keeps what the last batch gave; and `avg` averages
over samples, where PaddleSlim averages over batches. `KL` and `hist` add the start of the range
(min|x|), which PaddleSlim leaves out.

Asymmetric forms: `min_max` and `avg` use both ends; `abs_max` is the symmetric range cut off at 0
where nothing has the other sign; `hist` bounds each tail by its own share; `KL` is the symmetric
threshold (with all the levels if the data has one sign) within the minimum and the maximum; `mse`,
`emd` and `ptf` shrink each end by a factor of its own.

`mse` measures its error behind the function that a tensor is read through (LeakyRelu, HardSwish,
...), if there is one, and may then shrink an end to next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxq.numerics.curve import Curve
from onnxq.numerics.quantize import fake_quantize
from onnxq.numerics.statistics import TensorStatistics
from onnxq.qtypes import Float64Array

__all__ = [
    "AUTO",
    "AUTO_START",
    "BINS",
    "METHODS",
    "RANGES_ONLY",
    "Range",
    "RangeOptions",
    "kl_threshold",
]

BINS = 2048
# Shares of the full range that mse and emd try, and ptf
SHRINK = np.linspace(0.30, 1.00, 36)
POWERS = np.array([0.125, 0.25, 0.5, 1.0])
# Those that mse tries of a tensor that is read through a function
BEHIND = np.linspace(0.02, 1.00, 50)

Range = tuple[float, float]


@dataclass(frozen=True)
class RangeOptions:
    """What the methods are asked for.

    bits: of the activation. symmetric: the range is to be -alpha..alpha.
    percentile: for `hist`, the share of the values to cover, 0 < percentile <= 1.
    curve: the function through which the tensor is read, if there is one.
    """

    bits: int = 8
    symmetric: bool = False
    percentile: float = 0.9999
    curve: Curve | None = None

    @property
    def magnitude_levels(self) -> int:
        """Integers above 0 of a symmetric range."""
        return (1 << (self.bits - 1)) - 1

    @property
    def levels(self) -> int:
        """Steps between the lowest and the highest integer."""
        return 2 * self.magnitude_levels if self.symmetric else (1 << self.bits) - 1


def min_max(stats: TensorStatistics, options: RangeOptions) -> Range:
    """The smallest and the largest value seen."""
    alpha = stats.abs_max
    return (-alpha, alpha) if options.symmetric else (stats.minimum, stats.maximum)


def abs_max(stats: TensorStatistics, options: RangeOptions) -> Range:
    """The largest magnitude seen, on both sides."""
    alpha = stats.abs_max
    if options.symmetric:
        return -alpha, alpha
    return (-alpha if stats.minimum < 0 else 0.0), (alpha if stats.maximum > 0 else 0.0)


def avg(stats: TensorStatistics, options: RangeOptions) -> Range:
    """The mean over samples of each sample's largest magnitude (or minimum and maximum)."""
    low, high, alpha = stats.mean_extremes()
    return (-alpha, alpha) if options.symmetric else (low, high)


def hist(stats: TensorStatistics, options: RangeOptions) -> Range:
    """The middle of the first of 2048 bins at which the cumulative share reaches the percentile."""
    if options.symmetric:
        start = stats.abs_min
        counts, width = _magnitudes(stats)
        alpha = start + (_first_reaching(counts, options.percentile) + 0.5) * width
        return -alpha, alpha
    counts, width = _signed(stats)
    upper = _first_reaching(counts, options.percentile)
    lower = BINS - 1 - _first_reaching(counts[::-1], options.percentile)
    low = stats.minimum + (lower + 0.5) * width
    high = stats.minimum + (upper + 0.5) * width
    # one tail only: a side on which there is nothing has nothing to clip
    return (min(stats.minimum, low) if stats.minimum >= 0 else low), (
        max(stats.maximum, high) if stats.maximum <= 0 else high
    )


def _first_reaching(counts: Float64Array, share: float) -> int:
    cumulative = np.cumsum(counts)
    return int(np.searchsorted(cumulative, share * cumulative[-1] * (1 - 1e-12)))


def kl(stats: TensorStatistics, options: RangeOptions) -> Range:
    """The threshold that minimizes KL(P || Q), P being |x| clipped, Q the same quantized.

    Source: S. Migacz, "8-bit Inference with TensorRT" (2017), as PaddleSlim implements it.
    """
    counts, width = _magnitudes(stats)
    one_sided = not options.symmetric and (stats.minimum >= 0 or stats.maximum <= 0)
    groups = options.levels if one_sided else options.magnitude_levels
    alpha = stats.abs_min + (kl_threshold(counts, groups) + 0.5) * width
    return (-alpha, alpha) if options.symmetric else _cut(stats, alpha)


def kl_threshold(counts: Float64Array, groups: int) -> int:
    """The number i of bins to keep, len(counts) // 2 <= i < len(counts), with the least KL(P || Q).

    P is counts[:i] with all that lies beyond added to its last bin. Q sums counts[:i] in `groups`
    groups of i // groups bins (the last takes the remainder) and spreads each sum evenly over the
    group's bins that are not empty. A candidate whose last bin is empty is passed over; if all are,
    the result is the last bin below the middle that is not.
    """
    bins = counts.size
    first = (bins - 1) // 2
    i = np.flatnonzero(counts[first - 1 : bins - 1] > 0) + first
    if i.size == 0:
        occupied = np.flatnonzero(counts[: first + 1] > 0)
        return int(occupied[-1]) if occupied.size else 0
    total = counts.sum()
    mass = np.concatenate([[0.0], np.cumsum(counts)])
    occupied_bins = np.concatenate([[0], np.cumsum(counts > 0)])
    p_log_p = np.concatenate([[0.0], np.cumsum(_x_log_x(counts))])

    edges = (i // groups)[:, None] * np.arange(groups + 1)
    edges[:, -1] = i
    group_mass = np.diff(mass[edges], axis=1)
    group_size = np.diff(occupied_bins[edges], axis=1)
    outliers = total - mass[i]
    p_in_group = group_mass.copy()
    p_in_group[:, -1] += outliers
    last = counts[i - 1]
    sum_p_log_p = p_log_p[i - 1] + _x_log_x(last + outliers)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_q = np.log(group_mass / group_size)
    sum_p_log_q = np.where(group_size > 0, p_in_group * log_q, 0.0).sum(axis=1)
    divergence = (
        sum_p_log_p - sum_p_log_q + total * np.log(mass[i]) - total * np.log(total)
    ) / total
    return int(i[np.argmin(divergence)])


def _x_log_x(x: Float64Array) -> Float64Array:
    return np.asarray(x * np.log(np.where(x > 0, x, 1.0)))


def mse(stats: TensorStatistics, options: RangeOptions) -> Range:
    """The range with the least mean squared error of quantizing the histogram."""
    curve = options.curve
    if curve is None:
        return _search(stats, options, _squared_error)
    return _search(
        stats, options, lambda x, y, share: _squared_error(curve(x), curve(y), share), BEHIND
    )


def ptf(stats: TensorStatistics, options: RangeOptions) -> Range:
    """Power-of-two factor: as mse, of 1/8, 1/4, 1/2 and the whole of the range.

    Source: Y. Lin et al., "FQ-ViT" (arXiv 2111.13824), with one factor a tensor as in PaddleSlim.
    """
    return _search(stats, options, _squared_error, POWERS)


def emd(stats: TensorStatistics, options: RangeOptions) -> Range:
    """The range that least changes mean and standard deviation: |mean - mean'| + |std - std'|."""
    return _search(stats, options, _moved_moments)


# Of the values x, and y, [candidates, values], which may be overwritten; share of each value: the
# loss of each candidate
Loss = Callable[[Float64Array, Float64Array, Float64Array], Float64Array]


def _squared_error(x: Float64Array, y: Float64Array, share: Float64Array) -> Float64Array:
    y -= x
    return _mean(np.square(y, out=y), share)


def _moved_moments(x: Float64Array, y: Float64Array, share: Float64Array) -> Float64Array:
    mean_x, mean_y = _mean(x, share), _mean(y, share)
    std_x = np.sqrt(_mean(np.square(x - mean_x), share))
    y -= mean_y[:, None]
    std_y = np.sqrt(_mean(np.square(y, out=y), share))
    return np.asarray(np.abs(mean_x - mean_y) + np.abs(std_x - std_y))


def _mean(values: Float64Array, share: Float64Array) -> Float64Array:
    # not a matrix product, in which equal rows may have different sums: ties are to be ties
    return np.asarray((values * share).sum(axis=-1))


def _search(
    stats: TensorStatistics, options: RangeOptions, loss: Loss, shares: Float64Array = SHRINK
) -> Range:
    """Least loss over the shares of the full range; ties go to the wider range.

    An asymmetric range is searched one end at a time, twice: the ends interact through the step.
    """
    x, counts = _centres(stats)
    share = counts / counts.sum()

    def best(lows: Float64Array, highs: Float64Array) -> Range:
        lows, highs = np.broadcast_arrays(lows, highs)
        losses = loss(x, fake_quantize(x, lows, highs, options.levels), share)
        i = losses.size - 1 - int(np.argmin(losses[::-1]))
        return float(lows[i]), float(highs[i])

    if options.symmetric:
        alphas = shares * stats.abs_max
        return best(-alphas, alphas)
    low, high = min(stats.minimum, 0.0), max(stats.maximum, 0.0)
    lows = shares * low if low < 0 else np.zeros(1)
    highs = shares * high if high > 0 else np.zeros(1)
    for _ in range(2 if low < 0 < high else 1):
        _, high = best(np.asarray([low]), highs)
        low, _ = best(lows, np.asarray([high]))
    return low, high


def _magnitudes(stats: TensorStatistics) -> tuple[Float64Array, float]:
    """Counts of |x| in 2048 bins over its exact range, and the bins' width."""
    edges = np.linspace(stats.abs_min, stats.abs_max, BINS + 1)
    counts = stats.counted.magnitudes(edges, stats.abs_min, stats.abs_max)
    return counts, float(edges[1] - edges[0])


def _signed(stats: TensorStatistics) -> tuple[Float64Array, float]:
    """Counts of x in 2048 bins over its exact range, and the bins' width."""
    edges = np.linspace(stats.minimum, stats.maximum, BINS + 1)
    counts = stats.counted.rebin(edges, stats.minimum, stats.maximum)
    return counts, float(edges[1] - edges[0])


def _centres(stats: TensorStatistics) -> tuple[Float64Array, Float64Array]:
    """Centres and counts of the occupied of 4096 bins over x's exact range."""
    edges = np.linspace(stats.minimum, stats.maximum, 2 * BINS + 1)
    counts = stats.counted.rebin(edges, stats.minimum, stats.maximum)
    occupied = counts > 0
    return ((edges[:-1] + edges[1:]) / 2)[occupied], counts[occupied]


def _cut(stats: TensorStatistics, alpha: float) -> Range:
    return max(stats.minimum, -alpha), min(stats.maximum, alpha)


Method = Callable[[TensorStatistics, RangeOptions], Range]

# Methods that need no histogram
RANGES_ONLY = frozenset({"avg", "abs_max", "min_max"})

METHODS: dict[str, Method] = {
    "KL": kl,
    "hist": hist,
    "percentile": hist,
    "mse": mse,
    "emd": emd,
    "ptf": ptf,
    "avg": avg,
    "abs_max": abs_max,
    "min_max": min_max,
}

# Chosen for each tensor by what the outputs lose (improve/ranges.py); this is where it starts from
AUTO, AUTO_START = "auto", "mse"
METHODS[AUTO] = METHODS[AUTO_START]
