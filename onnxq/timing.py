"""Timing several things in one run, in turn, so that what slows the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.qtypes import Float64Array

__all__ = ["Spread", "interleaved"]


@dataclass(frozen=True)
class Spread:
    """Median of some figures, with the borders that a tenth of them lies below and above."""

    median: float
    p10: float
    p90: float

    @staticmethod
    def of(figures: Float64Array) -> Spread:
        p10, median, p90 = np.quantile(figures, (0.1, 0.5, 0.9))
        return Spread(float(median), float(p10), float(p90))


def interleaved(
    calls: Sequence[Callable[[], object]], *, rounds: int, seconds: float, warmup: int = 3
) -> Float64Array:
    """Seconds of each call, [rounds, calls]; every second round goes through them backwards.

    rounds: at least so many; more until `seconds` have passed. warmup: rounds that do not count.
    """
    for _ in range(warmup):
        for call in calls:
            call()
    order = list(range(len(calls)))
    taken: list[list[float]] = []
    start = time.perf_counter()
    while len(taken) < rounds or time.perf_counter() - start < seconds:
        row = [0.0] * len(calls)
        for i in order:
            begin = time.perf_counter()
            calls[i]()
            row[i] = time.perf_counter() - begin
        taken.append(row)
        order.reverse()
    return np.array(taken, np.float64)
