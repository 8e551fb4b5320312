"""Counts of values on a grid of half-open bins whose width is a power of two.

Bin k counts the x with k * w <= x < (k + 1) * w, w = 2**(exponent - BITS), for k from -2**BITS to
2**BITS - 1, where 2**exponent is the smallest power of two above every |x|. Dividing a float by a
power of two is exact and two bins of one width make one bin of the next, so histograms of parts of
the data add up to the histogram of the whole, to the last count, in any order.

The grid has 8 to 16 bins for each of the 2048 that the calibration methods look at: `rebin`
spreads counts over any other edges, in proportion, within the exact range of the data.

Both signs are kept apart by construction (0 is an edge), so one histogram serves symmetric and
asymmetric ranges.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from onnxq.qtypes import Array, Float64Array, IntArray

__all__ = ["Histogram", "HistogramBuilder"]

# Twice as fine, the grids of a network do not stay in cache: counting takes half as long again
BITS = 15
HALF = 1 << BITS
# 2**(BITS - exponent) must be a float32; values below 2**-90 fall into the bins beside 0
LOWEST_EXPONENT = -90
# Values are binned in pieces that stay in the processor's cache
PIECE = 1 << 15
OFFSET, ONE = np.float32(HALF), np.int64(1)


def exponent_of(magnitude: float) -> int:
    """The smallest e (>= -90) with magnitude < 2**e."""
    return max(int(np.frexp(magnitude)[1]) if magnitude > 0 else LOWEST_EXPONENT, LOWEST_EXPONENT)


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of the values of one tensor.

    exponent: the bins are 2**(exponent - BITS) wide and reach from -2**exponent to 2**exponent.
    negative: int64 [2**BITS], counts of [-(k + 1) * w, -k * w) at index k; [0] if there are none.
    positive: int64 [2**BITS], counts of [k * w, (k + 1) * w) at index k.
    """

    exponent: int
    negative: IntArray
    positive: IntArray

    @property
    def width(self) -> float:
        return float(2.0 ** (self.exponent - BITS))

    def widened(self, exponent: int) -> Histogram:
        """The same counts on the grid of a larger exponent: exact, by adding pairs of bins."""
        steps = exponent - self.exponent
        return Histogram(exponent, _merge(self.negative, steps), _merge(self.positive, steps))

    def __add__(self, other: Histogram) -> Histogram:
        exponent = max(self.exponent, other.exponent)
        a, b = self.widened(exponent), other.widened(exponent)
        return Histogram(exponent, _sum(a.negative, b.negative), a.positive + b.positive)

    def rebin(self, edges: Float64Array, minimum: float, maximum: float) -> Float64Array:
        """Counts between consecutive edges (ascending): float64 [len(edges) - 1].

        minimum, maximum: the exact smallest and largest value; the outermost bins end there. A bin
        of the grid that an edge cuts is shared out in proportion.
        """
        grid = np.concatenate([self.negative[::-1], self.positive]).astype(np.float64)
        knots: Float64Array = (
            np.arange(-self.negative.size, HALF + 1, dtype=np.float64) * self.width
        )
        # what lies in the outermost occupied bins lies within minimum..maximum
        np.clip(knots, minimum, maximum, out=knots)
        return np.diff(_cumulative_at(edges, knots, grid, maximum))

    def magnitudes(self, edges: Float64Array, minimum: float, maximum: float) -> Float64Array:
        """Counts of |x| between consecutive edges: float64 [len(edges) - 1]."""
        counts = self.positive.astype(np.float64)
        if self.negative.any():
            counts = counts + self.negative
        knots: Float64Array = np.arange(HALF + 1, dtype=np.float64) * self.width
        np.clip(knots, minimum, maximum, out=knots)
        return np.diff(_cumulative_at(edges, knots, counts, maximum))

    def smallest_magnitude(self) -> float:
        """Lower edge of the first bin that holds any |x|: within a bin of min|x|."""
        counts = self.positive + self.negative if self.negative.any() else self.positive
        occupied = np.flatnonzero(counts)
        return float(occupied[0] * self.width) if occupied.size else 0.0


def _cumulative_at(
    edges: Float64Array, knots: Float64Array, counts: Float64Array, maximum: float
) -> Float64Array:
    """How many values lie below each edge; values at `maximum` count as below the last edge."""
    cumulative = np.concatenate([[0.0], np.cumsum(counts)])
    below: Float64Array = np.interp(edges, knots, cumulative)
    below[edges >= maximum] = cumulative[-1]
    return below


def _empty() -> IntArray:
    return np.zeros(1, np.int64)


def _merge(counts: IntArray, steps: int) -> IntArray:
    """Add 2**steps neighbouring bins and pad with empty ones to the full size."""
    if steps == 0 or counts.size == 1:
        return counts
    merged = np.zeros_like(counts)
    if steps < BITS:
        merged[: HALF >> steps] = counts.reshape(-1, 1 << steps).sum(axis=1)
    else:
        merged[0] = counts.sum()
    return merged


def _sum(a: IntArray, b: IntArray) -> IntArray:
    if a.size == 1:
        return b
    return a if b.size == 1 else a + b


class _Scratch(threading.local):
    """Buffers of a thread for one piece: new ones for each would cost a page fault a page."""

    def __init__(self) -> None:
        self._scaled = np.empty(PIECE, np.float32)
        self._index = np.empty(PIECE, np.intp)

    def of(self, size: int) -> tuple[Array, Array]:
        return self._scaled[:size], self._index[:size]


_SCRATCH = _Scratch()


class HistogramBuilder:
    """Counts arrays as they come, in place; what it builds depends on their union alone."""

    def __init__(self) -> None:
        self._exponent = LOWEST_EXPONENT
        self._grid = np.zeros(HALF, np.int64)  # [HALF], or [2 * HALF] from the first x < 0 on

    def add(self, x: Array, minimum: float, maximum: float) -> None:
        """Count float32 x (finite), whose smallest and largest values are given."""
        self._grow(exponent_of(max(-minimum, maximum)), signed=minimum < 0.0)
        scale = np.float32(2.0 ** (BITS - self._exponent))
        flat = x.reshape(-1)
        for start in range(0, flat.size, PIECE):
            self._count(flat[start : start + PIECE], scale, signed=minimum < 0.0)

    def _count(self, x: Array, scale: np.float32, *, signed: bool) -> None:
        scaled, index = _SCRATCH.of(x.size)
        np.multiply(x, scale, out=scaled)
        if signed:
            np.floor(scaled, out=scaled)
            if scale < 1.0:  # the smallest numbers may have become 0 by the product
                scaled -= (scaled == 0.0) & (x < 0.0)
        if self._grid.size > HALF:
            np.add(scaled, OFFSET, out=scaled)  # exact: whole numbers below 2**24
        np.copyto(index, scaled, casting="unsafe")  # truncates, which floors what is not negative
        np.add.at(self._grid, index, ONE)

    def build(self) -> Histogram:
        negative = self._grid[: self._grid.size - HALF][::-1]
        return Histogram(
            self._exponent,
            negative.copy() if negative.any() else _empty(),
            self._grid[-HALF:].copy(),
        )

    def _grow(self, exponent: int, *, signed: bool) -> None:
        if signed and self._grid.size == HALF:
            self._grid = np.concatenate([np.zeros(HALF, np.int64), self._grid])
        if exponent <= self._exponent:
            return
        wide = self.build().widened(exponent)
        self._exponent = exponent
        self._grid[-HALF:] = wide.positive
        if self._grid.size > HALF and wide.negative.size == HALF:
            self._grid[:HALF] = wide.negative[::-1]
