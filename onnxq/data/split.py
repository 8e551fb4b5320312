"""Which samples calibrate and which are held out for verification: the same split on every run.

1. A number of samples is asked for, and the source has more: those behind them are held out, one
   for every eight that calibrate.
2. Otherwise every eighth sample is held out.
3. One sample alone calibrates, and verification runs on it too; the report says so.

In each case at least one and at most 64, evenly spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Split", "samples_to_read", "split"]

SHARE, MOST = 8, 64


@dataclass(frozen=True)
class Split:
    """Indices into the source: what calibrates, and what both models are compared on.

    independent: nothing was fitted to the samples that are compared on.
    """

    calibration: tuple[int, ...]
    held_out: tuple[int, ...]
    independent: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "calibration": len(self.calibration),
            "held_out": list(self.held_out),
            "independent": self.independent,
        }


def samples_to_read(limit: int | None) -> int | None:
    """How many samples of a source are needed so that `limit` can calibrate; None for all."""
    return None if limit is None else limit + _held(limit)


def split(count: int, limit: int | None) -> Split:
    """The split of a source of `count` samples of which at most `limit` calibrate."""
    if limit is not None and count > limit:
        last = min(count, limit + _held(limit))
        return Split(tuple(range(limit)), tuple(range(limit, last)), independent=True)
    if count < 2:
        return Split(tuple(range(count)), tuple(range(count)), independent=False)
    held = _held(count)
    chosen = [(i + 1) * count // held - 1 for i in range(held)]
    rest = set(range(count)) - set(chosen)
    return Split(tuple(sorted(rest)), tuple(chosen), independent=True)


def _held(count: int) -> int:
    return min(MOST, max(1, count // SHARE))
