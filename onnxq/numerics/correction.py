"""Bias correction of weights: rounding must change neither the mean nor the spread of a channel.

w' = (w^ + mean(w - w^)) * std(w) / (std(w^) + 1e-8), w^ being the weight rounded to integers and
back. Source: R. Banner et al., "Post training 4-bit quantization of convolutional networks for
rapid-deployment" (arXiv 1810.05723), in the form that PaddleSlim gives it.

w' lies between the integers: mean(w - w^) is a fraction of a step, and rounding w' again loses it.
So it is stored in two parts. The choice of the integers keeps the mean (`round_to_mean`), the ratio
of the standard deviations goes into the scale (`spread_ratio`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxq.numerics.quantize import dequantize, quantize
from onnxq.qtypes import Array, Float64Array, QuantParams, QuantSpec

__all__ = ["corrected", "round_to_mean", "spread_ratio"]

EPSILON = 1e-8
# Values of a weight that are looked at together: memory stays small beside a large weight
AT_ONCE = 1 << 20


def corrected(w: Array, rounded: Array, axis: int | None) -> Float64Array:
    """w' of the formula, of w's shape. rounded: w^. axis: of the channels; None for one channel."""
    x, y = _rows(w, axis).astype(np.float64), _rows(rounded, axis).astype(np.float64)
    shift = (x - y).mean(axis=1, keepdims=True)
    return _back((y + shift) * _ratio(x, y)[:, None], w, axis)


def spread_ratio(w: Array, integers: Array, params: QuantParams) -> Float64Array:
    """std(w) / (std(w^) + 1e-8) for each scale of `params`, w^ being the integers dequantized.

    1 for a channel of one value, or of equal ones: it has no spread to keep.
    """
    before = _rows(w, params.axis)
    after = _rows(dequantize(integers, params), params.axis)
    ratios = [_ratio(before[part], after[part]) for part in _blocks(before)]
    return np.concatenate([np.zeros(0), *ratios]).reshape(params.scale.shape)


def round_to_mean(w: Array, params: QuantParams) -> Array:
    """Integers of params' type whose sum a channel is that of w / scale, to within half a step.

    Each value is rounded to the nearest integer. Those that lie nearest to the middle between two
    integers then go to the other one, as many as the errors of the channel add up to steps. No
    value is further off than one step.
    """
    values, q = _rows(w, params.axis), _rows(quantize(w, params), params.axis).copy()
    scale = params.scale.reshape(-1, 1).astype(np.float64)
    zero_point = params.zero_point.reshape(-1, 1).astype(np.float64)
    for part in _blocks(values):
        error = values[part].astype(np.float64) / scale[part] + zero_point[part] - q[part]
        q[part] = _balanced(q[part], error, params.spec)
    return _back(q, w, params.axis)


def _balanced(q: Array, error: Float64Array, spec: QuantSpec) -> Array:
    """Rows of integers, moved by one where that takes a row's sum of errors nearest to 0."""
    steps = np.rint(error.sum(axis=1)).astype(np.int64)
    direction = np.sign(steps)[:, None]
    moved = q.astype(np.int64) + direction
    inside = (moved >= spec.lowest) & (moved <= spec.qtype.qmax)
    order = np.argsort(np.where(inside, -error * direction, np.inf), axis=1, kind="stable")
    chosen = np.zeros(q.shape, np.bool_)
    first = np.arange(q.shape[1])[None, :] < np.abs(steps)[:, None]
    np.put_along_axis(chosen, order, first, axis=1)
    return np.where(chosen & inside, moved, q).astype(q.dtype)


def _ratio(x: Array, y: Array) -> Float64Array:
    before, after = x.std(axis=1, dtype=np.float64), y.std(axis=1, dtype=np.float64)
    return np.where((before > 0) & (after > 0), before / (after + EPSILON), 1.0)


def _rows(x: Array, axis: int | None) -> Array:
    """[channels, values of each]; one channel if axis is None."""
    return x.reshape(1, -1) if axis is None else np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


def _back(rows: Array, like: Array, axis: int | None) -> Array:
    """Rows as an array of the shape of `like`."""
    if axis is None:
        return rows.reshape(like.shape)
    shape = np.moveaxis(like, axis, 0).shape
    return np.ascontiguousarray(np.moveaxis(rows.reshape(shape), 0, axis))


def _blocks(rows: Array) -> Iterator[slice]:
    step = max(1, AT_ONCE // max(1, rows.shape[1]))
    return (slice(start, start + step) for start in range(0, len(rows), step))
