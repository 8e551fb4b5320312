"""Timing several things in one run, in turn, so that what slows the machine hits all alike."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from onnxq.qtypes import Float64Array
from onnxq.runtime import Feed, run

__all__ = ["AWAKE", "BURST", "Spread", "interleaved", "latencies"]


# Seconds for which the threads of the session before may go on looking for work. Until then the
# next one is up to twice as slow: after 0.025 s it still is, after 0.1 s no longer
AWAKE, BURST = 0.1, 5


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
    calls: Sequence[Callable[[], object]],
    *,
    rounds: int,
    seconds: float,
    settle: int = 1,
    burst: int = 3,
    settle_seconds: float = 0.0,
) -> Float64Array:
    """Seconds of each call, [rounds, calls, burst]; every second round goes backwards.

    rounds: at least so many; more until `seconds` have passed. In its turn each call is made
    `settle` times that do not count, or more until `settle_seconds` have passed, since the caches
    are still full of the other's weights and the other's threads may still be awake, and then
    `burst` times. One more round does not count.
    """
    order = list(range(len(calls)))
    taken: list[list[list[float]]] = []
    start = time.perf_counter()
    while len(taken) < 1 + rounds or time.perf_counter() - start < seconds:
        row: list[list[float]] = [[] for _ in calls]
        for i in order:
            calm = time.perf_counter() + settle_seconds
            settled = 0
            while settled < settle or time.perf_counter() < calm:
                calls[i]()
                settled += 1
            for _ in range(burst):
                begin = time.perf_counter()
                result = calls[i]()
                row[i].append(time.perf_counter() - begin)
                del result  # closing a session is not part of opening it
        taken.append(row)
        order.reverse()
    return np.array(taken[1:], np.float64)


def latencies(
    sessions: Sequence[ort.InferenceSession],
    feed: Feed,
    *,
    rounds: int = 10,
    seconds: float = 1.0,
) -> list[float]:
    """Median seconds of one run of each session, taken in turn so that drift hits all alike.

    rounds: at least so many; more until `seconds` have passed.
    """
    for active in sessions:
        run(active, feed)
    runs = [functools.partial(active.run, None, dict(feed)) for active in sessions]
    times = interleaved(runs, rounds=rounds, seconds=seconds, burst=BURST, settle_seconds=AWAKE)
    return [float(median) for median in np.median(times, axis=(0, 2))]
