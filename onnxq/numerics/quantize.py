"""Affine quantization as in ONNX: q = clip(round(x / scale) + zero_point, qmin, qmax)."""

from __future__ import annotations

import dataclasses
import math
import threading

import numpy as np

from onnxq.qtypes import (
    Array,
    Float32Array,
    Float64Array,
    PerChannel,
    QType,
    QuantParams,
    QuantSpec,
)

__all__ = [
    "abs_max",
    "dequantize",
    "extremes",
    "in_more_bits",
    "params_from_range",
    "quantize",
    "range_of",
    "symmetric_params",
    "with_zero_channels",
]

# Below this a scale loses precision (float32 subnormals): such a tensor is zero for all purposes.
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)

# Elements that are quantized at once: their floats stay in the processor's cache
PIECE = 1 << 17


def abs_max(x: Array, axis: int | None) -> Float32Array:
    """Largest magnitude of x: shape [] if axis is None, else [x.shape[axis]]. 0 for no elements."""
    low, high = extremes(x, axis)  # of which neither needs a copy of |x|
    return np.maximum(-low, high)


def extremes(x: Array, axis: int | None) -> tuple[Float32Array, Float32Array]:
    """Smallest and largest value of x and 0: shape [] if axis is None, else [x.shape[axis]]."""
    others = None if axis is None else tuple(i for i in range(x.ndim) if i != axis)
    if x.dtype.itemsize < 4:  # half precision: numpy knows no initial value of bfloat16
        x = x.astype(np.float32)
    low, high = x.min(axis=others, initial=0.0), x.max(axis=others, initial=0.0)
    return np.asarray(low, np.float32), np.asarray(high, np.float32)


def symmetric_params(spec: QuantSpec, alpha: Array) -> QuantParams:
    """Scale alpha / 127 (at 8 bits), zero point in the middle; alpha >= 0 maps to the top.

    A dead tensor or channel (alpha of 0, or too small for float32) gets scale 1: its integers are
    0 whatever the scale, and a tiny one would overflow the int32 bias that is a multiple of it.
    """
    exact = np.asarray(alpha, np.float64) / (spec.qtype.qmax - spec.middle)
    scale = np.where(exact < SMALLEST_SCALE, 1.0, exact).astype(np.float32)
    return QuantParams(spec, scale, np.full(scale.shape, spec.middle, spec.qtype.dtype))


def in_more_bits(params: QuantParams, qtype: QType) -> QuantParams:
    """Symmetric parameters of about the same range with a finer step; as they are if it is none."""
    if not params.spec.symmetric or qtype.bits <= params.spec.qtype.bits:
        return params
    spec = dataclasses.replace(params.spec, qtype=qtype)
    top = params.spec.qtype.qmax - params.spec.middle
    return symmetric_params(spec, params.scale.astype(np.float64) * top)


def params_from_range(spec: QuantSpec, low: Array | float, high: Array | float) -> QuantParams:
    """Parameters for values in low..high (widened to hold 0, so that 0 is exact).

    low, high: of shape [], or [channels].
    """
    low = np.minimum(np.asarray(low, np.float64), 0.0)
    high = np.maximum(np.asarray(high, np.float64), 0.0)
    if spec.symmetric:
        return symmetric_params(spec, np.maximum(-low, high))
    qtype = spec.qtype
    scale = np.asarray((high - low) / (qtype.qmax - qtype.qmin), np.float32)
    scale = np.where(scale < SMALLEST_SCALE, np.float32(1.0), scale)
    zero_point = np.clip(np.rint(qtype.qmin - low / np.float64(scale)), qtype.qmin, qtype.qmax)
    return QuantParams(spec, scale, np.asarray(zero_point, qtype.dtype))


def range_of(params: QuantParams) -> tuple[float, float]:
    """The lowest and the highest value that per-tensor parameters can hold."""
    scale, zero = float(params.scale), int(params.zero_point)
    return (params.spec.lowest - zero) * scale, (params.spec.qtype.qmax - zero) * scale


def quantize(x: Array, params: QuantParams) -> Array:
    """Integers of params' type, of x's shape; rounds half to even as QuantizeLinear does."""
    scale, zero_point = _along(params, x.ndim)
    result = np.empty(x.shape, params.spec.qtype.dtype)
    if x.size <= PIECE or x.shape[0] == 1:
        _quantize(x, params, scale, zero_point, result)
        return result
    step = max(PIECE * x.shape[0] // x.size, 1)
    for start in range(0, x.shape[0], step):
        rows = slice(start, start + step)
        own = rows if scale.ndim and scale.shape[0] > 1 else slice(None)
        along = (scale[own], zero_point[own]) if scale.ndim else (scale, zero_point)
        _quantize(x[rows], params, *along, result[rows])
    return result


def _quantize(
    x: Array, params: QuantParams, scale: Float32Array, zero_point: Array, result: Array
) -> None:
    qtype = params.spec.qtype
    if qtype.bits > 16:  # a float32 quotient cannot hold 32-bit integers
        q: Array = np.empty(x.shape, np.float64)
    else:
        q = _SCRATCH.of(x.shape)
    np.divide(np.asarray(x, q.dtype), scale, out=q)
    np.rint(q, out=q)
    if zero_point.any():
        q += zero_point
    np.clip(q, params.spec.lowest, qtype.qmax, out=q)
    np.copyto(result, q, casting="unsafe")


class _Scratch(threading.local):
    """A buffer of a thread for one piece: a new one for each would cost a page fault a page."""

    def __init__(self) -> None:
        self._quotients = np.empty(PIECE, np.float32)

    def of(self, shape: tuple[int, ...]) -> Float32Array:
        size = math.prod(shape)
        if size > PIECE:
            return np.empty(shape, np.float32)
        return self._quotients[:size].reshape(shape)


_SCRATCH = _Scratch()


def dequantize(q: Array, params: QuantParams) -> Float32Array:
    """(q - zero_point) * scale as float32, as DequantizeLinear does."""
    scale, zero_point = _along(params, q.ndim)
    wide = q.astype(np.int64) if params.spec.qtype.bits > 16 else q.astype(np.int32)
    return np.asarray((wide - zero_point).astype(np.float32) * scale, np.float32)


def with_zero_channels(x: Array, count: int) -> Array:
    """x [rows, channels, ...] with so many more channels, of zeros, behind its own."""
    return np.pad(x, [(0, count if axis == 1 else 0) for axis in range(x.ndim)]) if count else x


def _along(params: QuantParams, ndim: int) -> tuple[Float32Array, Array]:
    """Scale and zero point (wide enough to calculate with), shaped to broadcast over the axis."""
    zero_point = params.zero_point.astype(np.int32)
    granularity = params.spec.granularity
    if not isinstance(granularity, PerChannel):
        return params.scale, zero_point
    shape = [1] * ndim
    shape[granularity.axis] = -1
    return params.scale.reshape(shape), zero_point.reshape(shape)


def levels(qtype: QType, *, symmetric: bool) -> int:
    """Number of steps between the smallest and the largest integer that is used."""
    return 2 * qtype.qmax if symmetric else qtype.qmax - qtype.qmin


def fake_quantize(x: Float64Array, low: Array, high: Array, steps: int) -> Float64Array:
    """x rounded to the `steps` + 1 values that low..high offers, and clipped to it, in float64.

    x: [values]. low, high: float64 [ranges]. Gives [ranges, values]; 0 where a range is empty.
    """
    step = ((high - low) / steps)[:, None]
    scale = np.where(step > 0.0, step, 1.0)
    zero = np.rint(low[:, None] / scale)
    y = np.asarray(x / scale, np.float64)
    np.rint(y, out=y)
    np.maximum(y, zero, out=y)
    np.minimum(y, zero + steps, out=y)
    y *= np.where(step > 0.0, scale, 0.0)
    return y
