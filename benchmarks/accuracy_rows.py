"""The rows of the accuracy table: a quantized model beside its float original."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Array
from onnxq.numerics.metrics import ErrorSums

__all__ = ["Key", "Result", "Rows", "paired_drop", "sqnr_of"]

# Network, tool, level
Key = tuple[str, str, str]
NORMAL_95 = 1.96
# dB that stand for an output that is not finite, which JSON cannot say
LOWEST = -999.0
DISTURBED = 0.15


@dataclass(frozen=True)
class Result:
    """A network quantized by a tool at a level; all figures None if it has none, with the reason.

    started: whether the tool ran at all, be it to no avail.
    samples, validation: how many calibrated, and how many were compared.
    fp32_top1, top1, drop: percent and percentage points; interval: half of the width of the 95 %
        interval of the drop. None without labels.
    agreement: percent with the same top class; None without class scores.
    sqnr: dB, of the output that has the lowest; sqnrs: of each. None if it is infinite.
    seconds, peak_mb: of the whole process that quantized. others: share of the machine that other
        processes took meanwhile; the seconds count as disturbed by more than DISTURBED.
    fp32_ms, int8_ms: latencies, taken in turn; latency_others: as `others`, meanwhile.
    macs: percent of the multiplications in int8.
    notes: what the tool said of itself, plain values.
    """

    network: str
    tool: str
    level: str
    reason: str | None = None
    started: bool = True
    samples: int = 0
    validation: int = 0
    fp32_top1: float | None = None
    top1: float | None = None
    drop: float | None = None
    interval: float | None = None
    agreement: float | None = None
    sqnr: float | None = None
    sqnrs: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    others: float | None = None
    peak_mb: float | None = None
    fp32_ms: float | None = None
    int8_ms: float | None = None
    latency_others: float | None = None
    macs: float | None = None
    commit: str | None = None
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.network, self.tool, self.level

    @property
    def disturbed(self) -> bool:
        """Whether other processes made the seconds longer than they are."""
        return self.others is not None and self.others > DISTURBED

    @property
    def latency_disturbed(self) -> bool:
        return self.latency_others is None or self.latency_others > DISTURBED

    @property
    def ratio(self) -> float | None:
        """Latency over that of the float model."""
        if self.fp32_ms is None or self.int8_ms is None:
            return None
        return self.int8_ms / self.fp32_ms


class Rows:
    """Results in the order in which they came, one a key."""

    def __init__(self, results: Iterable[Result] = ()) -> None:
        self._rows = {result.key: result for result in results}

    def __iter__(self) -> Iterator[Result]:
        return iter(self._rows.values())

    def __contains__(self, key: Key) -> bool:
        return key in self._rows

    def get(self, network: str, tool: str, level: str) -> Result | None:
        return self._rows.get((network, tool, level))

    def add(self, result: Result) -> None:
        """In place of an earlier one of the same key."""
        self._rows.pop(result.key, None)
        self._rows[result.key] = result

    def finished(self) -> Rows:
        """Without those whose tool could not even start: it may be there by now."""
        return Rows(row for row in self if row.started)

    @classmethod
    def read(cls, path: Path) -> Rows:
        """Those of a file that `write` left; fields that a result has no more are passed over."""
        known = {field.name for field in dataclasses.fields(Result)}
        document = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            Result(**{k: v for k, v in row.items() if k in known}) for row in document["rows"]
        )

    def write(self, path: Path, about: Mapping[str, Any]) -> None:
        """The old file or the new one, never half of one."""
        rows = [dataclasses.asdict(result) for result in self]
        partial = path.with_name(f"{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**about, "rows": rows}, indent=1, allow_nan=False)
        partial.write_text(f"{text}\n", encoding="utf-8")
        partial.replace(path)


def paired_drop(before: Array, after: Array) -> tuple[float, float]:
    """Percentage points of top-1 lost, and half of the width of its 95 % interval.

    before, after: for each image, whether its class was found. Both see the same images, so the
    interval is that of the mean of the differences: it counts only the images where they differ.
    """
    lost = np.asarray(before, np.float64) - np.asarray(after, np.float64)
    error = lost.std(ddof=1) / math.sqrt(len(lost)) if len(lost) > 1 else 0.0
    return float(100 * lost.mean()), float(100 * NORMAL_95 * error)


def sqnr_of(reference: Array, quantized: Array, *, centred: bool) -> float | None:
    """dB over all samples together, [samples, ...]; None without any error."""
    sums = ErrorSums(centred=centred)
    for r, q in zip(reference, quantized, strict=True):
        sums.add(r, q)
    return None if math.isinf(sums.sqnr) and sums.sqnr > 0 else max(sums.sqnr, LOWEST)
