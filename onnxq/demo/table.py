"""The table that `onnxq demo` prints."""

from __future__ import annotations

from rich.table import Table

from onnxq.cli.terminal import console, size
from onnxq.demo import DemoRow

__all__ = ["print_demo"]


def print_demo(rows: list[DemoRow]) -> None:
    """One line a model, each figure beside its ratio to the first."""
    table = Table(title="handwritten digits, 600 held-out images")
    for heading in ("model", "top-1", "size", "of fp32", "per image", "speed-up"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    first = rows[0]
    for row in rows:
        table.add_row(
            row.name,
            f"{row.top1:.2%}",
            size(row.bytes),
            f"{row.bytes / first.bytes:.1%}",
            f"{row.latency * 1e6:.1f} us",
            f"{first.latency / row.latency:.2f}x",
        )
    console.print(table)
    console.print(
        "size with the graph and scales; latency in onnxruntime, batches of 64, all four in turn"
    )
