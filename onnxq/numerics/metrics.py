"""How far a quantized output is from the float one."""

from __future__ import annotations

import numpy as np

from onnxq.qtypes import Array, Float64Array

__all__ = ["ErrorSums", "agreement"]


class ErrorSums:
    """SQNR, cosine and largest error over all samples together, added up sample by sample.

    centred: each sample's row of class scores is taken relative to its own mean, since a constant
    added to all scores changes no decision: c(v) = v - mean(v) over the last axis.

    SQNR = 10 log10(sum c(r)^2 / sum c(q - r)^2) dB, r being float, q quantized.
    """

    def __init__(self, *, centred: bool) -> None:
        self.centred = centred
        self._signal = self._noise = self._quantized = self._product = 0.0
        self.max_error = 0.0
        self.span = (float("inf"), float("-inf"))

    def add(self, reference: Array, quantized: Array) -> None:
        """Both of one shape; the last axis holds the class scores if centred."""
        r, q = np.asarray(reference, np.float64), np.asarray(quantized, np.float64)
        if not np.isfinite(r).all():  # a mask of -inf, say: no error where both have it
            same = (r == q) & ~np.isfinite(r)
            r, q = np.where(same, 0.0, r), np.where(same, 0.0, q)
        if not (np.isfinite(r).all() and np.isfinite(q).all()):
            self._noise = self.max_error = float("inf")
            return
        if r.size == 0:
            return
        self.max_error = max(self.max_error, float(np.abs(q - r).max()))
        self.span = min(self.span[0], float(r.min())), max(self.span[1], float(r.max()))
        if self.centred:
            r, q = _centre(r), _centre(q)
        self._signal += float(np.square(r).sum())
        self._noise += float(np.square(q - r).sum())
        self._quantized += float(np.square(q).sum())
        self._product += float((q * r).sum())

    @property
    def sqnr(self) -> float:
        """dB; infinite if there is no error, minus infinity if one is not finite in one of them."""
        if self._noise == 0.0:
            return float("inf")
        if self._noise == float("inf"):
            return float("-inf")
        return float(10 * np.log10(self._signal / self._noise)) if self._signal else float("-inf")

    @property
    def cosine(self) -> float:
        norm = np.sqrt(self._signal * self._quantized)
        return float(self._product / norm) if norm else float(self._signal == self._quantized)

    @property
    def relative_max_error(self) -> float:
        """The largest error, as a share of the range of the float output."""
        span = self.span[1] - self.span[0]
        return self.max_error / span if span > 0 else float(self.max_error > 0)


def _centre(v: Float64Array) -> Float64Array:
    return np.asarray(v - v.mean(axis=-1, keepdims=True))


def agreement(reference: Array, quantized: Array) -> int:
    """For how many rows of class scores [n, classes] both have the same largest one."""
    return int((reference.argmax(axis=-1) == quantized.argmax(axis=-1)).sum())
