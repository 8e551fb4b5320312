"""Which QuantizeLinear and DequantizeLinear onnxruntime did not fuse into int8 kernels, and why.

Two graphs are compared: the one that onnxruntime runs says what is left, and the one in which its
int8 fusion began says why (see fusion_rules.py).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from onnxq.measure.fusion_rules import Cause, Reason, explain, label
from onnxq.measure.optimized import (
    is_dequantize,
    is_quantize,
    named,
    open_named,
    optimized,
    source_of,
)
from onnxq.measure.profiling import Profile, profile_of
from onnxq.model import constant
from onnxq.optable import Role, rule_of
from onnxq.runtime import Feed
from onnxq.session import FOLD_WEIGHTS

__all__ = ["Fusion", "Neighbour", "Stray", "fusion", "stray_nodes"]

FOLD_KEY = next(iter(FOLD_WEIGHTS))
# Reasons that keep a node in float which could run on integers
_REPAIRABLE = frozenset(
    {Reason.INTEGER_TYPES, Reason.PARAMETERS_DIFFER, Reason.PARAMETERS_FORM, Reason.FLOAT_BIAS}
    | {Reason.OPSET, Reason.FLOAT_READER, Reason.FLOAT_OUTPUT, Reason.FUSION_OFF}
)
_LAYOUT = Cause(
    Reason.LAYOUT,
    "onnxruntime put it there itself, with a Transpose, between a node that runs on integers with "
    "channels last and one that stayed float",
    "it goes when the nodes around it fuse",
)


@dataclass(frozen=True)
class Neighbour:
    """A node beside a stray one, as onnxruntime runs it."""

    name: str
    op_type: str

    def __str__(self) -> str:
        return f"{self.op_type} {self.name}".strip()


@dataclass(frozen=True)
class Stray:
    """A QuantizeLinear or DequantizeLinear that runs as such.

    tensor: the float tensor that it converts. producer: None if that is an input or a constant.
    pointless: nothing computes with the integers: it and its counterpart only cost time.
    share: of the time of all nodes; None if it was not measured. seconds: of one run, likewise.
    """

    name: str
    op_type: str
    tensor: str
    producer: Neighbour | None
    consumers: tuple[Neighbour, ...]
    reason: Reason
    why: str
    remedy: str | None
    pointless: bool = False
    share: float | None = None
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**dataclasses.asdict(self), "reason": self.reason.value}


@dataclass(frozen=True)
class Fusion:
    """What int8 fusion left over, the slowest first, and where the time of a run goes."""

    strays: tuple[Stray, ...]
    profile: Profile

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "strays": [stray.to_dict() for stray in self.strays],
            "profile": {
                "runs": self.profile.runs,
                "seconds": self.profile.seconds,
                "integer_share": self.profile.integer_share,
                "conversion_share": self.profile.conversion_share,
                "ops": [dataclasses.asdict(op) for op in self.profile.ops],
            },
        }


def stray_nodes(path: Path, options: Mapping[str, str] | None = None) -> list[Stray]:
    """Every QuantizeLinear and DequantizeLinear of `path` that did not fuse, without its time.

    options: entries for the session, as the file is loaded with.
    Raises ModelError if onnxruntime cannot load the model.
    """
    return _strays(path, named(path), options or {})


def fusion(
    path: Path,
    feed: Feed,
    options: Mapping[str, str] | None = None,
    *,
    threads: int | None = None,
    runs: int = 20,
) -> Fusion:
    """The stray nodes with their share of the time, from a profile of `runs` runs on `feed`.

    options: entries for the session. threads: within an operator, None for all cores.
    Raises ModelError if onnxruntime cannot load or run the model.
    """
    content, entries = named(path), options or {}
    strays = _strays(path, content, entries)
    settings = ort.SessionOptions()
    settings.enable_profiling = True
    if threads is not None:
        settings.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
        settings.profile_file_prefix = str(Path(folder) / "profile")
        active = open_named(path, content, settings, entries)
        profile = profile_of(path, active, feed, runs=runs)
        del active  # its file has to be closed before the directory goes
    timed = [
        dataclasses.replace(s, share=profile.share(s.name), seconds=profile.nodes.get(s.name, 0.0))
        for s in strays
    ]
    timed.sort(key=lambda s: -(s.share or 0.0))
    return Fusion(tuple(timed), profile)


def _strays(path: Path, content: bytes, entries: Mapping[str, str]) -> list[Stray]:
    final = optimized(path, content, entries)
    left = [n for n in ir.traversal.RecursiveGraphIterator(final.graph) if _converts(n)]
    if not left:
        return []
    before = optimized(path, content, entries, before_int8=True)
    judge = _Judge(before, final, folding=entries.get(FOLD_KEY) == "1")
    return [judge.stray(node) for node in left]


def _converts(node: ir.Node | None) -> bool:
    return is_quantize(node) or is_dequantize(node)


class _Judge:
    """Finds the reasons for the nodes left in one model."""

    def __init__(self, before: ir.Model, final: ir.Model, *, folding: bool) -> None:
        self.folding = folding
        self.opset = before.opset_imports.get("", 0)
        nodes = list(ir.traversal.RecursiveGraphIterator(before.graph))
        self.by_name = {node.name: node for node in nodes}
        self.by_output = {o.name: node for node in nodes for o in node.outputs}
        self.left = {
            n.name for n in ir.traversal.RecursiveGraphIterator(final.graph) if _converts(n)
        }

    def stray(self, node: ir.Node) -> Stray:
        """node: of the final graph."""
        known = self.by_name.get(node.name) or self.by_output.get(node.outputs[0].name)
        inserted = known is None or known.op_type != node.op_type
        if known is None or inserted:
            known = node  # its neighbours in the final graph are all there is
        cause = self._cause(known)
        if inserted and cause.reason is Reason.UNKNOWN:
            cause = _LAYOUT
        counterparts = self._counterparts(known)
        remedy = cause.remedy
        if counterparts and cause.reason not in _REPAIRABLE:
            remedy = "leave the tensor float: nothing computes with these integers"
            repairable = [c for n in counterparts if (c := self._cause(n)).reason in _REPAIRABLE]
            if repairable:
                remedy = repairable[0].remedy
        producer = source_of(node.inputs[0])
        return Stray(
            name=node.name or "",
            op_type=node.op_type,
            tensor=_float_tensor(known),
            producer=None if producer is None else Neighbour(producer.name or "", producer.op_type),
            consumers=tuple(
                Neighbour(reader.name or "", reader.op_type) for reader, _ in node.outputs[0].uses()
            ),
            reason=cause.reason,
            why=cause.why,
            remedy=remedy,
            pointless=bool(counterparts),
        )

    def _cause(self, node: ir.Node) -> Cause:
        if self.folding:
            return Cause(
                Reason.FUSION_OFF,
                f"the session has {FOLD_KEY}=1, which turns int8 fusion off",
                f"load the model without {FOLD_KEY}",
            )
        return self._of_quantize(node) if is_quantize(node) else self._of_dequantize(node)

    def _of_quantize(self, node: ir.Node) -> Cause:
        value = node.inputs[0]
        producer = source_of(value)
        if producer is None:
            return _of_source(node)
        if is_dequantize(producer):
            return _requantized(producer, node)
        rule = rule_of(producer)
        if rule is not None and rule.role is Role.ABSORBED:
            behind = source_of(producer.inputs[0])
            if behind is None:
                return _alone(producer)
            cause = explain(behind, self.opset)
            if is_dequantize(behind):
                return explain(producer, self.opset)
            return cause if cause.reason is not Reason.UNKNOWN else explain(producer, self.opset)
        return explain(producer, self.opset)

    def _of_dequantize(self, node: ir.Node) -> Cause:
        output = node.outputs[0]
        readers = [reader for reader, _ in output.uses()]
        if not readers or output.is_graph_output():
            return Cause(
                Reason.MODEL_OUTPUT,
                f"turns the integers of the model's output {_float_tensor(node)!r} back into float",
                "--integer-io gives integers out instead",
            )
        causes = [self._of_reader(node, reader) for reader in readers]
        return next((c for c in causes if c.reason is not Reason.UNKNOWN), causes[0])

    def _of_reader(self, node: ir.Node, reader: ir.Node) -> Cause:
        """Why `reader` did not take the integers of a DequantizeLinear."""
        if reader.graph is not node.graph:
            return Cause(
                Reason.BODY,
                f"{label(reader)} in the body of an If, Loop or Scan reads it, and int8 fusion "
                "does not look across that border",
                "put the DequantizeLinear into the body, beside the node that reads it",
            )
        if is_quantize(reader):
            return _requantized(node, reader)
        if constant(node.inputs[0]) is not None and not _integers_arrive(reader):
            return Cause(
                Reason.WEIGHT_ONLY,
                f"the weight {_float_tensor(node)!r} of {label(reader)} is dequantized on every "
                "run: its activations are float",
                f"load with {FOLD_KEY}=1 to fold it at load, or quantize the activations too",
            )
        rule = rule_of(reader)
        if rule is not None and rule.role is Role.ABSORBED:
            return _alone(reader)
        return explain(reader, self.opset)

    def _counterparts(self, node: ir.Node) -> list[ir.Node]:
        """The DQs of a Q if all of them are left, or the Q of such a DQ; else none."""
        q = node if is_quantize(node) else source_of(node.inputs[0])
        if q is None or not is_quantize(q) or q.name not in self.left:
            return []
        readers = [reader for reader, _ in q.outputs[0].uses()]
        if q.outputs[0].is_graph_output() or not all(
            is_dequantize(reader) and reader.name in self.left for reader in readers
        ):
            return []
        return readers if q is node else [q]


def _of_source(node: ir.Node) -> Cause:
    value = node.inputs[0]
    name = value.name if value is not None else ""
    if value is not None and value.is_graph_input():
        return Cause(
            Reason.MODEL_INPUT,
            f"turns the model's float input {name!r} into integers",
            "--integer-io takes integers instead",
        )
    if constant(value) is not None:
        return Cause(
            Reason.CONSTANT,
            f"the constant {name!r} is stored in float and quantized on every run",
            "store it as integers with a DequantizeLinear",
        )
    return Cause(
        Reason.BODY,
        f"{name!r} comes from outside of the body of an If, Loop or Scan, in float",
        "leave the tensor float",
    )


def _requantized(dq: ir.Node, q: ir.Node) -> Cause:
    return Cause(
        Reason.REQUANTIZE,
        f"{_float_tensor(dq)!r} changes from one scale, zero point or integer type to another",
        f"give {_float_tensor(q)!r} the same parameters on both sides",
    )


def _alone(node: ir.Node) -> Cause:
    return Cause(
        Reason.ACTIVATION_KEPT,
        f"{label(node)} has no int8 kernel of its own; only right behind a quantized node is it "
        "absorbed",
        "quantize behind it and not before it",
    )


def _integers_arrive(node: ir.Node) -> bool:
    """Some input of `node` is dequantized, and no constant."""
    sources = [source_of(value) for value in node.inputs]
    return any(
        s is not None and is_dequantize(s) and constant(s.inputs[0]) is None for s in sources
    )


def _float_tensor(node: ir.Node) -> str:
    """The user's name for what a Q or DQ converts."""
    value = node.inputs[0]
    if is_dequantize(node):
        producer = source_of(value)
        if node.outputs[0].is_graph_output():
            value = node.outputs[0]
        elif producer is not None and is_quantize(producer):
            value = producer.inputs[0]
    return (value.name or "") if value is not None else ""
