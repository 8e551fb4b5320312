"""How the outcome of `--tune-latency` is printed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import tomli_w
from rich.markup import escape
from rich.table import Table

from onnxq.cli.terminal import console

if TYPE_CHECKING:
    from onnxq.tune import Tuning

__all__ = ["print_tuning"]

NAMED = 3
GAP = (0, 2, 0, 0)


def print_tuning(tuning: Tuning) -> None:
    """The figures, what they led to, and the rules that repeat it."""
    figures = (
        f"float {_ms(tuning.float_seconds)}, int8 as planned {_ms(tuning.planned_seconds)}, "
        f"result {_ms(tuning.seconds)}"
    )
    if not tuning.pays:
        console.print(f"int8 does not pay here: {figures}; the result is the float model")
    else:
        left = sum(not group.kept for group in tuning.groups)
        what = f"{left} of {len(tuning.groups)} groups left float" if left else "all int8 kept"
        console.print(f"tuned on this machine: {figures}; {what}")
    table = Table(box=None, padding=GAP, pad_edge=False)
    for heading in ("in int8", "left float"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("islands", justify="right", no_wrap=True)
    table.add_column("nodes")
    for group in tuning.groups:
        more = f" and {len(group.nodes) - NAMED} more" if len(group.nodes) > NAMED else ""
        table.add_row(
            *(map(_ms, group.seconds) if group.seconds else ("not timed", "")),
            "int8" if group.kept else "float",
            str(group.islands),
            escape(", ".join(group.nodes[:NAMED])) + more,
        )
    if tuning.groups:
        console.print("the whole model, with these nodes in int8 or left float:")
        console.print(table, soft_wrap=False)
    if tuning.rules:
        console.print("the same without timing, as rules of a recipe:")
        rules = [
            {k: v for k, v in dataclasses.asdict(rule).items() if v is not None and v != ()}
            for rule in tuning.rules
        ]
        text = tomli_w.dumps({"rules": [{**r, "nodes": list(r["nodes"])} for r in rules]})
        console.print(escape(text.rstrip()))


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"
