"""`Ledger`: what each pass tried, what it brought, and whether it was kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Entry", "Ledger", "Measure"]

# sqnr: of the network's outputs, in dB. error: of one layer's output, relative: 0 is none, 1 is as
# large as the output itself
Measure = Literal["sqnr", "error"]


@dataclass(frozen=True)
class Entry:
    """One change that was tried, or one that was not and why.

    step: name of the pass. node: the node or tensor that it changed, None for the network.
    before, after: by `measure`; None for what was not measured. why: in words.
    """

    step: str
    node: str | None
    before: float | None
    after: float | None
    kept: bool
    why: str
    measure: Measure = "sqnr"

    def __str__(self) -> str:
        where = f" {self.node}" if self.node else ""
        word = "kept" if self.kept else "not kept"
        if self.before is None or self.after is None:
            return f"{self.step}{where}: {word}: {self.why}"
        if self.measure == "sqnr":
            figures = f"{self.before:.2f} -> {self.after:.2f} dB"
        else:
            figures = f"error {self.before:.4g} -> {self.after:.4g}"
        return f"{self.step}{where}: {figures}, {word}: {self.why}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "pass": self.step,
            "node": self.node,
            "measure": self.measure,
            "before": _finite(self.before),
            "after": _finite(self.after),
            "kept": self.kept,
            "why": self.why,
        }


@dataclass
class Ledger:
    """Grows while the passes run.

    level: of accuracy. fit, judge: how many samples the passes are fitted to, and judged on.
    estimate: seconds that the passes were expected to take; None if nothing ran.
    seconds: by pass. interrupted: the user stopped it; the best until then was taken.
    """

    level: str
    fit: int = 0
    judge: int = 0
    estimate: float | None = None
    entries: list[Entry] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    interrupted: bool = False

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)

    def skip(self, step: str, why: str, node: str | None = None) -> None:
        """Note what was not tried."""
        self.add(Entry(step, node, None, None, kept=False, why=why))

    def extend(self, later: Ledger) -> None:
        """Take over what was tried later."""
        self.entries += later.entries
        self.interrupted |= later.interrupted
        for step, seconds in later.seconds.items():
            self.seconds[step] = self.seconds.get(step, 0.0) + seconds

    @property
    def not_run(self) -> list[Entry]:
        """Whole passes that were not tried."""
        return [e for e in self.entries if e.node is None and e.before is None]

    @property
    def kept(self) -> list[str]:
        """Names of the passes that changed something, in order."""
        return list(dict.fromkeys(entry.step for entry in self.entries if entry.kept))

    def summary(self) -> str:
        """In a few words."""
        figures = [e for e in self.entries if e.measure == "sqnr" and e.before is not None]
        kept = [e.after for e in figures if e.kept]
        if not figures:
            return "nothing was tried"
        start, end = figures[0].before or 0.0, (kept[-1] if kept else figures[0].before) or 0.0
        tried = len(self.entries)
        return (
            f"{start:.1f} -> {end:.1f} dB on samples that nothing was fitted to, "
            f"{sum(e.kept for e in self.entries)} of {tried} changes kept"
        )

    def lines(self) -> Iterator[str]:
        """As text, a line an entry."""
        yield (
            f"accuracy {self.level}: fitted to {self.fit} samples, judged on {self.judge} others"
        )
        yield from map(str, self.entries)
        for step, seconds in self.seconds.items():
            yield f"{step} took {seconds:.1f} s"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "level": self.level,
            "fit": self.fit,
            "judge": self.judge,
            "interrupted": self.interrupted,
            "estimate": None if self.estimate is None else round(self.estimate, 3),
            "seconds": {step: round(s, 3) for step, s in self.seconds.items()},
            "entries": [entry.to_dict() for entry in self.entries],
        }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
