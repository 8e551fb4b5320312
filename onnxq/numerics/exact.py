"""Sums that are exact, so that they do not depend on the order or the grouping of their terms.

Every finite float32 is an integer multiple of 2**-149 below 2**277 of them. `ExactSum` holds the
sum of such integers in nine limbs of 32 bits, each limb in an int64 that takes 2**31 additions
without overflow: a fixed-point superaccumulator (Kulisch, "Computer Arithmetic and Validity").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.qtypes import Array, Float64Array, IntArray

__all__ = ["ExactSum"]

LIMBS, LIMB_BITS, LOWEST = 9, 32, -149


@dataclass(frozen=True, eq=False)
class ExactSum:
    """The exact elementwise sum of float32 arrays of shape [k].

    limbs: int64 [9, k]; the sum is sum_i limbs[i] * 2**(32 * i - 149).
    """

    limbs: IntArray

    @classmethod
    def of(cls, values: Array) -> ExactSum:
        """The sum over axis 0 of float32 [n, k]. Values must be finite."""
        rest = np.asarray(values, np.float64)
        limbs = np.zeros((LIMBS, rest.shape[1]), np.int64)
        top = float(np.max(np.abs(rest), initial=0.0))
        if top == 0.0:
            return cls(limbs)
        highest = (int(np.frexp(top)[1]) - LOWEST) // LIMB_BITS
        for i in range(min(highest, LIMBS - 1), -1, -1):
            unit = 2.0 ** (LIMB_BITS * i + LOWEST)
            part = np.trunc(rest / unit)
            limbs[i] = part.astype(np.int64).sum(axis=0)
            rest = rest - part * unit  # exact: it only drops the leading bits
            if not rest.any():
                break
        return cls(limbs)

    def __add__(self, other: ExactSum) -> ExactSum:
        return ExactSum(self.limbs + other.limbs)

    def mean(self, count: int) -> Float64Array:
        """The sum divided by count, correctly rounded: float64 [k]."""
        denominator = count << -LOWEST
        totals = [0] * self.limbs.shape[1]
        for i, limb in enumerate(self.limbs.tolist()):
            for j, value in enumerate(limb):
                totals[j] += value << (LIMB_BITS * i)
        return np.array([total / denominator for total in totals], np.float64)
