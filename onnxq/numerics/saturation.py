"""Saturation of the uint8 x int8 kernels of x86 without VNNI (AVX2, AVX512).

VPMADDUBSW adds the products 2i and 2i + 1 of a sum as int16: what is beyond -32768..32767 of

    x[2i] * w[2i] + x[2i + 1] * w[2i + 1]        x: 0..255, w: -127..127

is cut off. With both x at 255 that takes |w[2i] + w[2i + 1]| > 128. Weights of opposite signs never
do: one product alone fits, and the other only leads back.

onnxruntime's MLAS sums a Conv over the positions of its kernel and, for each, over the inputs of
the group; a matrix product over its rows. A depthwise Conv has kernels of its own, which are exact.
(Seen on the kernels themselves, under emulation.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from onnxq.qtypes import Array, Float64Array, IntArray

__all__ = [
    "FULL",
    "INT16_MAX",
    "PAIR_LIMIT",
    "Fronts",
    "Layout",
    "Pairs",
    "add_to_fronts",
    "any_pair",
    "empty_fronts",
    "find_pairs",
    "largest",
]

INT16_MAX, UINT8_MAX = 32767, 255
# The largest |w[2i] + w[2i + 1]| that no input makes saturate
PAIR_LIMIT = INT16_MAX // UINT8_MAX
# Two inputs add up to this at least where weights of 127 take them beyond int16
LEAST_SUM = INT16_MAX // 127 + 1
# Values of a weight that are looked at together where one pair is enough
AT_ONCE = 1 << 17
# fronts[place, v]: the largest second input seen beside a first one of v, -1 if none was. Weights
# of one sign have their largest sum of products at one of these. Shape [places, 256].
Fronts = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Layout:
    """How a weight is summed.

    axis: along which: 1 of a Conv, whose weight is [outputs, inputs of a group, positions...]; the
    rows of a matrix, or of a stack of them. channel_axis: along which it has scales; None for one
    scale. groups: of a Conv; None for a matrix.
    """

    axis: int
    channel_axis: int | None
    groups: int | None = None


@dataclass(frozen=True, eq=False)
class Pairs:
    """Some pairs of neighbouring weights; all arrays are of shape [count].

    channel: the index along the channel axis. place: which pair of inputs it multiplies, -1 where
    the two inputs are of different positions. first, second: the weights, in steps of the scale.
    """

    channel: IntArray
    place: IntArray
    first: Float64Array
    second: Float64Array

    def __len__(self) -> int:
        return len(self.channel)

    def where(self, keep: npt.NDArray[np.bool_]) -> Pairs:
        return Pairs(self.channel[keep], self.place[keep], self.first[keep], self.second[keep])

    def rounded(self) -> Pairs:
        """With the nearest integers, half to even, as `quantize` has them."""
        first, second = (np.clip(np.rint(w), -127, 127) for w in (self.first, self.second))
        return Pairs(self.channel, self.place, first, second)


def find_pairs(w: Array, scale: Array, layout: Layout, *, least: float) -> Pairs:
    """The pairs of weights with |w[2i] + w[2i + 1]| >= least * scale.

    scale: float32, of shape [] or [channels]. An odd last product has no neighbour.
    """
    w = w.astype(np.float32, copy=False)
    axis, channel_axis = layout.axis, layout.channel_axis
    groups = layout.groups or 1
    if layout.groups is not None and w.shape[1] % 2 and max(groups, *w.shape[2:]) > 1:
        # the last input of a position has the first of the next for a neighbour
        rows = np.moveaxis(w, 1, -1).reshape(w.shape[0], -1)
        found = find_pairs(rows, scale, Layout(1, channel_axis), least=least)
        return Pairs(found.channel, np.full_like(found.place, -1), found.first, found.second)
    before, even = (slice(None),) * axis, w.shape[axis] // 2 * 2
    first = w[(*before, slice(0, even, 2))]
    second = w[(*before, slice(1, even, 2))]
    limit = np.asarray(scale, np.float32) * np.float32(least)
    if channel_axis is not None:
        limit = limit.reshape([-1 if i == channel_axis else 1 for i in range(w.ndim)])
    total = first + second
    index = _where(np.abs(total, out=total) >= limit)
    channel = np.zeros(len(index[0]), np.int64) if channel_axis is None else index[channel_axis]
    place = index[axis]
    if groups > 1:
        place = place + index[0] // (w.shape[0] // groups) * (even // 2)
    steps = np.asarray(scale, np.float32).reshape(-1)[channel]
    quotients = [np.asarray(part[index] / steps, np.float64) for part in (first, second)]
    return Pairs(channel, place, *quotients)


def any_pair(w: Array, scale: Array, layout: Layout) -> bool:
    """Whether some inputs take a pair of the nearest integers beyond int16.

    Looks until it finds one: most weights have it among their first values.
    """
    even = layout.groups is None or w.shape[1] % 2 == 0
    layout = replace(layout, groups=None) if even else layout  # no place is asked for
    step = max(2, AT_ONCE // max(1, w[:1].size) // 2 * 2)
    for start in range(0, len(w), step):
        cut = slice(start, start + step)
        steps = scale[cut] if layout.channel_axis == 0 else scale
        # rounding brings a sum below the limit to it at most
        pairs = find_pairs(w[cut], steps, layout, least=PAIR_LIMIT - 1e-3).rounded()
        if (np.abs(pairs.first + pairs.second) > PAIR_LIMIT).any():
            return True
    return False


def _where(mask: npt.NDArray[np.bool_]) -> tuple[IntArray, ...]:
    """As numpy.nonzero, which is slow in more than one dimension."""
    return tuple(np.unravel_index(np.flatnonzero(mask), mask.shape))


def empty_fronts(places: int) -> Fronts:
    """Of inputs of which nothing was seen."""
    return np.full((places, UINT8_MAX + 1), -1, np.int16)


# Of any input whatever: both may be 255. Serves every place
FULL = empty_fronts(1)
FULL[0, UINT8_MAX] = UINT8_MAX


def add_to_fronts(fronts: Fronts, x: Array, axis: int, scale: float, zero_point: int) -> None:
    """Take what x, quantized to uint8, brings together into the fronts, in place.

    axis: of the inputs. Pairs too small to saturate with any weights are left out.
    """
    before, even = (slice(None),) * axis, x.shape[axis] // 2 * 2
    first = x[(*before, slice(0, even, 2))]
    second = x[(*before, slice(1, even, 2))]
    # the integers add up to LEAST_SUM: less 1, as each may have been rounded up by a half
    index = _where(first + second >= np.float32((LEAST_SUM - 1.01 - 2 * zero_point) * scale))
    v, y = (
        np.clip(np.rint(part[index] / np.float32(scale)) + zero_point, 0, UINT8_MAX)
        for part in (first, second)
    )
    cells = index[axis] * (UINT8_MAX + 1) + v.astype(np.int64)
    np.maximum.at(fronts.reshape(-1), cells, y.astype(np.int16))


def largest(pairs: Pairs, fronts: Fronts) -> Float64Array:
    """For each pair the largest |x0 * first + x1 * second| that inputs on its front give.

    The weights of a pair have to be of one sign. 0 where no inputs were seen; where the two are of
    different positions, both may be 255.
    """
    a, b = np.abs(pairs.first), np.abs(pairs.second)
    place = np.maximum(pairs.place, 0) if len(fronts) > 1 else np.zeros_like(pairs.place)
    found = np.zeros(len(pairs))
    for v in np.flatnonzero((fronts >= 0).any(axis=0)):
        beside = fronts[place, v]
        np.maximum(found, np.where(beside >= 0, a * v + b * beside, 0.0), out=found)
    return np.where(pairs.place < 0, (a + b) * UINT8_MAX, found)
