"""Where the time goes: onnxruntime's own profile of a few runs, added up by node and by op."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from onnxq.errors import ModelError
from onnxq.runtime import Feed, RuntimeFailureError, run

__all__ = ["OpTime", "Profile", "profile_of", "read_profile"]

KERNEL = "_kernel_time"
# Their time is that of the nodes in their bodies
CONTROL = frozenset({"If", "Loop", "Scan"})
CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})
INTEGER_WORDS = ("QLinear", "QGemm", "Integer", "DynamicQuantize", "QAttention")
INTEGERS = ("int8", "uint8")
WARMUP = 3


@dataclass(frozen=True)
class OpTime:
    """All nodes of one op type. seconds: of one run. share: of the time of all nodes."""

    op_type: str
    nodes: int
    seconds: float
    share: float
    integer: bool


@dataclass(frozen=True)
class Profile:
    """Kernel times of one run, on average.

    seconds: of all nodes. nodes: seconds by node name. ops: the slowest first.
    integer_share: of the time, in kernels that take 8-bit integers.
    conversion_share: of the time, in QuantizeLinear and DequantizeLinear.
    """

    runs: int
    seconds: float
    nodes: Mapping[str, float]
    ops: tuple[OpTime, ...]

    @property
    def integer_share(self) -> float:
        return sum(op.share for op in self.ops if op.integer)

    @property
    def conversion_share(self) -> float:
        return sum(op.share for op in self.ops if op.op_type in CONVERSIONS)

    def share(self, node: str) -> float:
        """Of the time of all nodes; 0 for one that did not run."""
        return self.nodes.get(node, 0.0) / self.seconds if self.seconds else 0.0


def profile_of(path: Path, active: ort.InferenceSession, feed: Feed, *, runs: int = 20) -> Profile:
    """Run a session that was made with `enable_profiling`, and end its profile.

    runs: that are counted, after a few that are not. path: for messages. Raises ModelError.
    """
    try:
        for _ in range(WARMUP + runs):
            run(active, feed)
    except RuntimeFailureError as error:
        raise ModelError(f"{path}: onnxruntime cannot run it: {error}") from error
    trace = Path(active.end_profiling())
    try:
        events = json.loads(trace.read_text(encoding="utf-8"))
    finally:
        trace.unlink()
    return read_profile(events, warmup=WARMUP)


def read_profile(events: Iterable[Mapping[str, Any]], *, warmup: int) -> Profile:
    """Add up a trace of onnxruntime; the first `warmup` runs do not count."""
    events = list(events)
    starts = sorted(e["ts"] for e in events if e.get("name") == "model_run")
    kept = starts[warmup:]
    if not kept:
        return Profile(0, 0.0, {}, ())
    nodes: dict[str, float] = defaultdict(float)
    members: dict[tuple[str, bool], set[str]] = defaultdict(set)
    for event in events:
        name, op = str(event.get("name", "")), event.get("args", {}).get("op_name", "")
        if not name.endswith(KERNEL) or op in CONTROL or event["ts"] < kept[0]:
            continue
        name = name.removesuffix(KERNEL)
        nodes[name] += event["dur"] * 1e-6 / len(kept)
        members[op, _on_integers(op, event["args"])].add(name)
    total = sum(nodes.values())
    ops = []
    for (op, integer), names in members.items():
        seconds = sum(nodes[name] for name in names)
        ops.append(OpTime(op, len(names), seconds, seconds / total if total else 0.0, integer))
    ops.sort(key=lambda o: (-o.seconds, o.op_type))
    return Profile(len(kept), total, dict(nodes), tuple(ops))


def _on_integers(op: str, args: Mapping[str, Any]) -> bool:
    """A kernel that computes with, or moves, 8-bit integers (not one that only converts them)."""
    if op in CONVERSIONS:
        return False
    if any(word in op for word in INTEGER_WORDS):
        return True
    inputs = args.get("input_type_shape") or [{}]
    return any(dtype in INTEGERS for dtype in inputs[0])
