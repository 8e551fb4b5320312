"""How `onnxq benchmark` prints its figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnxq.cli.terminal import size

if TYPE_CHECKING:
    from onnxq.measure.benchmarking import BenchmarkReport
    from onnxq.measure.fusion import Fusion, Stray
    from onnxq.measure.timing import Spread

__all__ = ["print_benchmark"]

OPS = 10
GAP = (0, 2, 0, 0)


def print_benchmark(report: BenchmarkReport, console: Console) -> None:
    """Both models side by side, where the quantized one's time goes, and what did not fuse."""
    threads = "all cores" if report.threads is None else f"threads {report.threads}"
    inputs = ", ".join(f"{name} {what}" for name, what in report.inputs.items())
    console.print(escape(f"{inputs}; {threads}; {report.rounds} rounds, the models in turn"))
    console.print(_figures(report), soft_wrap=False)
    reason = report.float_model.memory.reason or report.quantized.memory.reason
    if reason:
        console.print(f"note: no peak memory: {escape(reason)}")
    console.print()
    console.print(_ops(report.fusion), soft_wrap=False)
    _print_strays(report.fusion, console)


def _figures(report: BenchmarkReport) -> Table:
    table = _table(("", "left"), ("float", "right"), ("quantized", "right"), ("", "left"))
    a, b = report.float_model, report.quantized
    faster = report.speedup
    table.add_row(
        "latency, median",
        _time(a.latency.median),
        _time(b.latency.median),
        f"{faster.median:.2f}x as fast ({faster.p10:.2f} to {faster.p90:.2f})",
    )
    table.add_row("  of 80 % of runs", _range(a.latency), _range(b.latency))
    table.add_row("load", _time(a.load.median), _time(b.load.median))
    share = f"{b.bytes / a.bytes:.1%} of float" if a.bytes else ""
    table.add_row("size on disk", size(a.bytes), size(b.bytes), share)
    if a.memory.peak is not None and b.memory.peak is not None:
        table.add_row("peak memory", size(a.memory.peak), size(b.memory.peak))
        table.add_row("  beyond onnxruntime's", size(a.memory.model), size(b.memory.model))
    return table


def _ops(fusion: Fusion) -> Table:
    profile = fusion.profile
    table = _table(
        ("time of the quantized model", "left"),
        ("nodes", "right"),
        ("share", "right"),
        ("", "left"),
    )
    for op in profile.ops[:OPS]:
        table.add_row(
            escape(op.op_type), str(op.nodes), f"{op.share:.1%}", "int8" if op.integer else ""
        )
    rest = profile.ops[OPS:]
    if rest:
        share = sum(op.share for op in rest)
        table.add_row("others", str(sum(op.nodes for op in rest)), f"{share:.1%}")
    table.add_row("in int8 kernels", "", f"{profile.integer_share:.1%}", style="bold")
    return table


def _print_strays(fusion: Fusion, console: Console) -> None:
    console.print()
    if not fusion.strays:
        console.print("no QuantizeLinear or DequantizeLinear is left to run")
        return
    console.print(
        f"{len(fusion.strays)} QuantizeLinear and DequantizeLinear did not fuse: "
        f"{_time(sum(s.seconds or 0 for s in fusion.strays))} of a run, "
        f"{sum(s.share or 0 for s in fusion.strays):.1%} of the time"
    )
    table = _table(("time", "right"), ("", "right"), ("", "left"), ("why", "left"))
    for group in _groups(fusion.strays):
        first = group[0]
        example = "" if len(group) == 1 or len({s.why for s in group}) == 1 else "for one, "
        remedy = f"\n[dim]{escape(first.remedy)}[/]" if first.remedy else ""
        table.add_row(
            _cost(group),
            str(len(group)),
            _kind(first),
            escape(example + first.why) + remedy,
        )
    console.print(table, soft_wrap=False)
    console.print("\neach of them, with the nodes it stands between:")
    each = _table(("time", "right"), ("", "left"), ("tensor", "left"), ("between", "left"))
    each.add_column("rule", no_wrap=True)
    for stray in fusion.strays:
        each.add_row(
            _cost([stray]),
            _kind(stray),
            escape(stray.tensor),
            escape(_between(stray)),
            stray.reason.value,
        )
    console.print(each, soft_wrap=False)


def _cost(strays: Sequence[Stray]) -> str:
    """Time of one run, and its share of the time of all nodes; nothing where it is not known."""
    if any(stray.share is None for stray in strays):
        return ""
    seconds = sum(stray.seconds or 0.0 for stray in strays)
    return f"{_time(seconds)}, {sum(stray.share or 0.0 for stray in strays):.1%}"


def _kind(stray: Stray) -> str:
    return "Q" if stray.op_type == "QuantizeLinear" else "DQ"


def _between(stray: Stray) -> str:
    """The node before and those behind, of which the first is named."""
    before = str(stray.producer) if stray.producer is not None else "an input or constant"
    if not stray.consumers:
        return f"{before} and an output"
    more = f" and {len(stray.consumers) - 1} more" if len(stray.consumers) > 1 else ""
    return f"{before} and {stray.consumers[0]}{more}"


def _groups(strays: Sequence[Stray]) -> list[list[Stray]]:
    """Those of one kind together, the slowest first."""
    found: dict[tuple[str, ...], list[Stray]] = defaultdict(list)
    for stray in strays:
        about = stray.why if stray.reason == "no-int8-kernel" else ""
        found[stray.op_type, stray.reason, about, stray.remedy or ""].append(stray)
    return sorted(found.values(), key=lambda group: -sum(s.share or 0 for s in group))


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, padding=GAP, pad_edge=False)
    for heading, justify in columns:
        table.add_column(
            heading,
            justify="right" if justify == "right" else "left",
            no_wrap=heading not in ("why", "tensor", "between"),
        )
    return table


def _range(spread: Spread) -> str:
    return f"{_time(spread.p10)} to {_time(spread.p90)}"


def _time(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
