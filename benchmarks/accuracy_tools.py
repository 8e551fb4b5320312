"""The tools of the accuracy table: each at its levels, and how it quantizes a network."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environments import UnavailableError
from benchmarks.subjects import Subject
from benchmarks.wholeprocess import Child
from benchmarks.workshop import Workshop

__all__ = ["LEVELS", "ONLY_PADDLE", "OURS", "SAMPLES", "TOOLS", "Setting"]

SAMPLES = 300
# onnxruntime keeps each activation of each sample for these: more than this many and memory ends
FEWER = 64
OURS = "onnxq"
LEVELS = ("none", "fast", "balanced", "best")
ONLY_PADDLE = "it reads Paddle's models only, and this network is there as ONNX only"


@dataclass(frozen=True)
class Setting:
    """A tool at one level. level: of ours, the accuracy level; of a peer, its settings in words.

    default: what a user of the tool gets who sets nothing.
    arguments: of its script, before model, samples and output. samples: how many it gets.
    environment: None for that of this process.
    paddle: it reads and writes directories of Paddle models.
    """

    tool: str
    level: str
    script: str = ""
    arguments: tuple[str, ...] = ()
    environment: str | None = None
    samples: int = SAMPLES
    default: bool = False
    paddle: bool = False

    def child(self, shop: Workshop, subject: Subject, out: Path) -> Child:
        """The process that writes `out`. Raises UnavailableError."""
        if not self.paddle:
            model = subject.model(shop)
        elif subject.paddle and subject.network is not None:
            model = subject.network.file.parent
        else:
            raise UnavailableError(ONLY_PADDLE)
        given: tuple[str, ...] = (
            str(model),
            str(subject.samples(shop, self.samples)),
            str(out),
        )
        if self.environment is None:
            given = (*given, str(report_of(out)))
            return Child(Path(sys.executable), self.script, (*self.arguments, *given), own=True)
        python = shop.peer(self.environment).python
        return Child(python, self.script, (*self.arguments, *given))


def report_of(out: Path) -> Path:
    """Where the report of a model of ours is."""
    return out.with_suffix(".report.json")


def notes(out: Path) -> dict[str, Any]:
    """What is kept of the report of a model: the stages' seconds and the ledger."""
    path = report_of(out)
    if not path.is_file():
        return {}
    report: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {key: report[key] for key in ("seconds", "improvement") if key in report}


def _ours(level: str) -> Setting:
    arguments = ("accuracy", level)
    return Setting(OURS, level, "run_onnxq.py", arguments, default=level == "fast")


def _onnxruntime(level: str, method: str, samples: int = SAMPLES, *, default: bool) -> Setting:
    arguments = ("static", method)
    return Setting(
        "onnxruntime",
        level,
        "run_onnxruntime.py",
        arguments,
        "onnxruntime",
        samples,
        default=default,
    )


def _nncf(level: str, how: str, *, default: bool) -> Setting:
    return Setting("NNCF", level, "run_nncf.py", ("static", how), "nncf", default=default)


PEERS = (
    _onnxruntime("default (S8S8)", "defaults", default=True),
    _onnxruntime("U8S8 MinMax", "MinMax", default=False),
    _onnxruntime("U8S8 Percentile", "Percentile", FEWER, default=False),
    _onnxruntime("U8S8 Entropy", "Entropy", FEWER, default=False),
    _nncf("default", "fast", default=True),
    _nncf("full correction", "full", default=False),
    Setting(
        "PaddleSlim",
        "default",
        "run_paddleslim.py",
        ("hist",),
        "paddleslim",
        default=True,
        paddle=True,
    ),
)
SETTINGS = (*PEERS, *(_ours(level) for level in LEVELS))
TOOLS: Mapping[str, tuple[Setting, ...]] = {
    tool: tuple(s for s in SETTINGS if s.tool == tool)
    for tool in dict.fromkeys(setting.tool for setting in SETTINGS)
}
