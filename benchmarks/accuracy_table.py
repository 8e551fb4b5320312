"""The accuracy table: one line a network, tool and level."""

from __future__ import annotations

from rich.table import Table

from benchmarks.accuracy_rows import Result, Rows
from benchmarks.subjects import SUBJECTS

__all__ = ["absent", "cells", "figures"]

COLUMNS = (
    "network",
    "tool",
    "level",
    "top-1 %",
    "drop, points",
    "agreement %",
    "SQNR dB",
    "seconds",
    "peak MB",
    "ms (x fp32)",
    "int8 MACs %",
)
# After seconds that other processes made longer
MARK = "*"


def figures(rows: Rows) -> Table:
    """All rows, by network, in the order in which they were measured."""
    caption = f"drop: with its paired 95 % interval; {MARK} other processes ran meanwhile"
    table = Table(*COLUMNS, caption=caption, caption_justify="left")
    for name in SUBJECTS:
        found = [row for row in rows if row.network == name]
        fp32 = next((row for row in found if row.fp32_top1 is not None), None)
        for i, row in enumerate(found):
            if i == 0:
                table.add_section()
            if row is fp32:
                table.add_row(name, "", "float", f"{row.fp32_top1:.2f}")
            table.add_row(*cells(row))
    return table


def absent(rows: Rows) -> list[str]:
    """Each reason for rows without figures, with the tools and the networks that it is one for."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.reason is not None:
            found.setdefault((f"{row.tool} {row.level}", row.reason), []).append(row.network)
    return [f"{who} on {', '.join(on)}: {reason}" for (who, reason), on in found.items()]


def cells(row: Result) -> list[str]:
    """The text of each column; of a row without figures, none but those of its key."""
    start = [row.network, row.tool, row.level]
    if row.reason is not None:
        return [*start, "[yellow]none[/yellow]"]
    drop = "" if row.drop is None else f"{row.drop:+.2f} ± {row.interval or 0:.2f}"
    latency = (
        ""
        if row.int8_ms is None or row.ratio is None
        else f"{row.int8_ms:.2f} ({row.ratio:.2f}){MARK if row.latency_disturbed else ''}"
    )
    return [
        *start,
        _shown(row.top1, 2),
        drop,
        _shown(row.agreement, 2),
        "exact" if row.sqnr is None else _shown(row.sqnr, 2),
        _shown(row.seconds, 1) + (MARK if row.disturbed else ""),
        _shown(row.peak_mb, 0),
        latency,
        _shown(row.macs, 1),
    ]


def _shown(figure: float | None, digits: int) -> str:
    return "" if figure is None else f"{figure:.{digits}f}"
