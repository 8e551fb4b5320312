"""onnx's own test models as a folder for `emitting_child`, and what became of each."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper

from onnxq.errors import OnnxqError
from onnxq.model import load
from onnxq.save import save
from onnxq_paddle.emitting import ready_for_paddle
from onnxq_paddle.worker.emit.table import RULES
from tests.backend import Case, cases

# Types that both numpy and Paddle have
KNOWN = frozenset({"bool", "float32", "float64", "int8", "uint8", "int16", "int32", "int64"})
CHILD = Path(__file__).with_name("emitting_child.py")


@dataclasses.dataclass(frozen=True)
class Outcome:
    name: str
    outcome: str
    error: float = 0.0
    reason: str = ""


def covered_cases() -> Iterator[Case]:
    """Those of onnx's test models whose operators are all covered, and their values arrays."""
    for case in cases():
        nodes = case.model.graph.node
        if "int4" in case.name:  # numpy has no such type
            continue
        if any(node.op_type not in RULES or node.domain for node in nodes) or not nodes:
            continue
        values = [*case.feeds[0].values(), *case.expected[0]]
        if all(isinstance(x, np.ndarray) and x.dtype.name in KNOWN for x in values):
            yield case


def with_constants(case: Case) -> onnx.ModelProto:
    """All inputs but the first as initializers, as weights and axes are in real models."""
    changed = onnx.ModelProto()
    changed.CopyFrom(case.model)
    for name, array in list(case.feeds[0].items())[1:]:
        changed.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        changed.graph.input.remove(next(v for v in changed.graph.input if v.name == name))
    return changed


def write(folder: Path, name: str, model: onnx.ModelProto, case: Case) -> str | None:
    """One model for the child; or why onnxq itself cannot prepare it."""
    try:
        save(ready_for_paddle(load(model)), folder / f"{name}.onnx", lambda _: None)
    except OnnxqError as error:
        return str(error)
    inputs = {value.name for value in model.graph.input}
    given = {f"in:{k}": x for k, x in case.feeds[0].items() if k in inputs}
    outputs = zip(model.graph.output, case.expected[0], strict=True)
    wanted = {f"out:{value.name}": y for value, y in outputs}
    np.savez(folder / f"{name}.npz", allow_pickle=False, **given, **wanted)
    return None


def outcomes(folder: Path) -> list[Outcome]:
    """Of every model in the folder; a model at which the process died has the outcome `died`."""
    results = folder / "results.jsonl"
    results.touch()
    environment = {
        **os.environ,
        "FLAGS_enable_pir_api": "0",
        "GLOG_minloglevel": "3",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    while True:
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", str(CHILD), str(folder), str(results)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode == 0:
            break
        last = json.loads(results.read_text().splitlines()[-1])
        if last["outcome"] != "started":
            raise AssertionError(ended.stderr[-2000:])
        with results.open("a") as file:
            line = {"name": last["name"], "outcome": "died", "reason": ended.stderr[-1500:]}
            file.write(json.dumps(line) + "\n")
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return [Outcome(**line) for line in lines if line["outcome"] != "started"]
