"""How inspections and comparisons are printed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from onnxq.cli.terminal import console, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxq.inspection import Inspection, Potential, Tensor
    from onnxq.measure.comparison import ComparisonReport, OutputComparison
    from onnxq.measure.labels import LabelComparison
    from onnxq.measure.layers import LayerComparison

__all__ = ["print_comparison", "print_inspection", "print_outputs"]

REASONS = 8


def print_inspection(found: Inspection, top: int) -> None:
    """The model, its ends, its weights, and what each mode would do."""
    opsets = ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())
    console.print(f"[bold]{escape(found.model)}[/]  opset {opsets}, IR {found.ir_version}", end="")
    console.print(f", from {escape(found.producer)}" if found.producer else "")
    for title, tensors in (("input", found.inputs), ("output", found.outputs)):
        for tensor in tensors:
            console.print(f"{title} {escape(tensor.name)}: {_type(tensor)}")
    ops = ", ".join(f"{count} {op}" for op, count in found.ops.items())
    console.print(f"{found.nodes} nodes: {escape(ops)}")
    if found.functions:
        console.print(f"functions: {escape(', '.join(found.functions))}")
    total = ", ".join(f"{size(n)} {dtype}" for dtype, n in found.weight_bytes.items() if n)
    console.print(f"{len(found.weights)} constants: {total or 'none'}")
    if top and found.weights:
        table = Table("weight", "type", "size", "read by", box=None, pad_edge=False)
        for w in found.weights[:top]:
            table.add_row(escape(w.name), _type(w), size(w.bytes or 0), w.used_by or "nothing")
        console.print(table)
    if found.quantized:
        marks = ", ".join(f"{count} {op}" for op, count in found.quantized.items())
        by = f", by onnxq: {found.written_by_onnxq}" if found.written_by_onnxq else ""
        console.print(f"[bold]quantized already[/]: {marks}{escape(by)}")
    else:
        console.print("quantized already: no")
    _print_potential("dynamic", found.dynamic)
    _print_potential("static", found.static)


def _type(tensor: Tensor) -> str:
    if tensor.shape is None:
        return f"{tensor.dtype} of any shape"
    dims = ", ".join("?" if d is None else str(d) for d in tensor.shape)
    return escape(f"{tensor.dtype} [{dims}]")


def _print_potential(mode: str, found: Potential) -> None:
    if found.problem is not None:
        console.print(f"{mode} mode: not possible: {escape(found.problem)}")
        return
    nodes = ", ".join(f"{count} {op}" for op, count in found.nodes.items())
    int8 = f"; in int8: {nodes}" if nodes else ""
    console.print(
        f"{mode} mode would quantize {found.weights} weights ({size(found.float_bytes)}){int8}"
    )
    for reason, count in list(found.left.items())[:REASONS]:
        console.print(f"  left float: {count} x {escape(reason)}")
    if len(found.left) > REASONS:
        console.print(f"  and {len(found.left) - REASONS} more reasons: `onnxq plan` lists them")


def print_comparison(found: ComparisonReport) -> None:
    """Outputs, labels and layers."""
    console.print(
        f"[bold]{escape(found.quantized)}[/] against {escape(found.reference)}, "
        f"{found.samples} samples"
    )
    print_outputs(found.outputs)
    if found.labels is not None:
        _print_labels(found.labels)
    if found.layers:
        _print_layers(found.layers)


def print_outputs(outputs: Sequence[OutputComparison]) -> None:
    """A line an output."""
    table = Table(box=None, pad_edge=False)
    for heading in ("output", "SQNR", "cosine", "max error", "of range", "same top class"):
        table.add_column(heading, justify="left" if heading == "output" else "right")
    for o in outputs:
        table.add_row(
            escape(o.output),
            decibels(o.sqnr) + (" (scores)" if o.centred else ""),
            f"{o.cosine:.6f}",
            f"{o.max_error:.3g}",
            f"{o.relative_max_error:.2%}",
            "" if o.agreement is None else f"{o.agreement:.2%}",
        )
    console.print(table)
    for o in outputs:
        if o.other_rows:
            console.print(
                f"{escape(o.output)}: in {o.other_rows} samples the number of rows differs; "
                f"compared are the other {o.samples}"
            )
    if any(o.centred for o in outputs):
        console.print("(scores): of class scores, each sample relative to its own mean")


def _print_labels(found: LabelComparison) -> None:
    before, after = found.top1
    points = [f"{100 * share:+.2f}" for share in (found.difference, *found.interval)]
    console.print(
        f"top-1 {before:.2%} -> {after:.2%}, difference {points[0]} points "
        f"(95 % interval {points[1]} to {points[2]}), {found.samples} labels"
    )
    if found.top5 is not None:
        console.print(f"top-5 {found.top5[0]:.2%} -> {found.top5[1]:.2%}")


def _print_layers(layers: Sequence[LayerComparison]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("tensor", "kind", "node", "op", "alone", "accumulated"):
        right = heading in ("alone", "accumulated")
        table.add_column(heading, justify="right" if right else "left")
    for row in layers:
        both = "" if row.accumulated is None else decibels(row.accumulated)
        names = (escape(row.tensor), row.kind, escape(row.node), row.op_type)
        table.add_row(*names, decibels(row.alone), both)
    console.print(table)


def decibels(value: float) -> str:
    """Two digits, or a word where there is no error."""
    if math.isnan(value):
        return "none"
    return "exact" if math.isinf(value) and value > 0 else f"{value:.2f} dB"
