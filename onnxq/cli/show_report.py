"""How the report of a quantization is printed."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from rich.markup import escape

from onnxq.cli.show_look import print_outputs
from onnxq.cli.show_tuning import print_tuning
from onnxq.cli.terminal import console, print_json, size

if TYPE_CHECKING:
    from onnxq.report import Report

__all__ = ["print_report"]

NAMED = 4


def print_report(report: Report, *, as_json: bool, explain: bool = False) -> None:
    """What a quantization did."""
    if as_json:
        print_json(report.to_dict())
        return
    before, after = report.bytes_before, report.bytes_after
    share = f" ({after / before:.1%})" if before and after else ""
    console.print(f"[bold]{escape(report.output or '')}[/]  {size(before)} -> {size(after)}{share}")
    hidden = ("mode", "version", "integer_io")
    settings = ", ".join(f"{k} {v}" for k, v in report.settings.items() if k not in hidden)
    console.print(f"{report.mode}: {settings}")
    weights = report.weights
    console.print(
        f"{weights.count} weights: {size(weights.floats)} -> "
        f"{size(weights.integers + weights.scales)} with scales ({weights.ratio:.1%})"
    )
    if report.operators:
        counted = ", ".join(f"{n} {op}" for op, n in report.operators.items())
        console.print(f"in int8: {counted}")
    _print_macs(report)
    if report.tuning is not None:
        print_tuning(report.tuning)
    _print_skips(report)
    if report.mixed is not None:
        console.print(escape(str(report.mixed)))
    if report.verification is not None:
        held = "held-out samples" if report.verification.independent else "sample"
        console.print(f"verified on {report.verification.samples} {held}:")
        print_outputs(report.verification.outputs)
        if report.verification.unfused:
            console.print(
                f"{report.verification.unfused} QuantizeLinear and DequantizeLinear did not fuse: "
                "`onnxq benchmark` says why, and what they cost"
            )
    if explain and report.ledger is not None:
        for line in report.ledger.lines():
            console.print(escape(line))
    for note in report.notes:
        console.print(f"note: {escape(note)}")


def _print_macs(report: Report) -> None:
    macs = report.macs
    if macs is None or macs.share is None:
        return
    note = f" ({macs.note})" if macs.note else ""
    figure = f"{macs.share:.1%} of {macs.total / 1e6:.1f} million products"
    console.print(f"in int8: {figure}{escape(note)}")


def _print_skips(report: Report) -> None:
    if not report.skips:
        return
    total = sum(skip.bytes for skip in report.skips)
    console.print(f"left float: {size(total)} of weights")
    groups: dict[str, list[str]] = defaultdict(list)
    for skip in report.skips:
        groups[skip.reason].append(skip.name)
    for reason, names in groups.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        console.print(f"  {escape(reason)}: {escape(', '.join(names[:NAMED]))}{more}")
