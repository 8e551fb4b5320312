"""Figures beside the bars that they are held to: rows, groups of rows, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from rich.table import Table

__all__ = ["Bar", "Group", "Row", "Verdict", "at_least", "at_most", "median_of", "table"]

Verdict = Literal["met", "short", "absent", "-"]
Unit = Literal["x", "s", "MB", "%", ""]

_STYLES: Mapping[Verdict, str] = {"met": "green", "short": "red", "absent": "yellow", "-": "dim"}


@dataclass(frozen=True)
class Bar:
    """What a figure is held to. upper: the figure may be at most the limit, else at least."""

    limit: float
    unit: Unit
    upper: bool

    def met_by(self, figure: float) -> bool:
        return figure <= self.limit if self.upper else figure >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.upper else '>='} {shown(self.limit, self.unit)}"


def at_most(limit: float, unit: Unit) -> Bar:
    return Bar(limit, unit, upper=True)


def at_least(limit: float, unit: Unit) -> Bar:
    return Bar(limit, unit, upper=False)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    measured: the medians, in words. figure: what the bar judges, or what is to be read without one;
        its unit is the bar's. reason: why there is no figure.
    raw: all that was measured, plain values for JSON.
    """

    what: str
    measured: str = ""
    figure: float | None = None
    unit: Unit = ""
    bar: Bar | None = None
    reason: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.figure is None) != (self.reason is not None):
            raise ValueError(f"row {self.what!r}: give either a figure or the reason for none")
        if self.figure is not None and self.bar is not None and self.bar.unit != self.unit:
            raise ValueError(f"row {self.what!r}: {self.unit!r} is judged by {self.bar.unit!r}")

    @property
    def verdict(self) -> Verdict:
        if self.figure is None:
            return "absent"
        if self.bar is None:
            return "-"
        return "met" if self.bar.met_by(self.figure) else "short"

    def to_dict(self) -> dict[str, Any]:
        bar = self.bar
        return {
            "what": self.what,
            "measured": self.measured,
            "figure": self.figure,
            "unit": self.unit,
            "bar": None if bar is None else str(bar),
            "verdict": self.verdict,
            "reason": self.reason,
            "raw": dict(self.raw),
        }


@dataclass(frozen=True)
class Group:
    """The rows of one group. reason: why it ended before its time, if it did."""

    name: str
    about: str
    rows: Sequence[Row]
    seconds: float
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "about": self.about,
            "seconds": self.seconds,
            "reason": self.reason,
            "rows": [row.to_dict() for row in self.rows],
        }


def table(groups: Iterable[Group]) -> Table:
    """All groups as one table; what is absent stands there with its reason."""
    result = Table("what", "measured (median)", "figure", "bar", "", title_justify="left")
    for group in groups:
        result.add_section()
        result.add_row(f"[bold]{group.name}[/bold]", f"[dim]{group.about}[/dim]")
        for row in group.rows:
            style = _STYLES[row.verdict]
            result.add_row(
                row.what,
                row.measured if row.reason is None else f"[yellow]{_plain(row.reason)}[/yellow]",
                "" if row.figure is None else shown(row.figure, row.unit),
                "" if row.bar is None else str(row.bar),
                f"[{style}]{row.verdict}[/{style}]",
            )
        if group.reason is not None:
            result.add_row("", f"[red]not finished: {_plain(group.reason)}[/red]")
    return result


def shown(figure: float, unit: Unit) -> str:
    """Three significant digits at least, with the unit."""
    digits = 0 if abs(figure) >= 100 or figure == int(figure) else 1 if abs(figure) >= 10 else 2
    return f"{figure:.{digits}f}{'' if unit in ('x', '') else ' '}{unit}"


def median_of(figures: Sequence[float]) -> str:
    """The median in seconds, as text; of a single figure, that it is one."""
    return f"{median(figures):.2f} s" + ("" if len(figures) > 1 else " (once)")


def _plain(text: str) -> str:
    """Without what rich would read as markup."""
    return text.replace("[", r"\[")
