"""Dynamic mode: bytes, INT16 error, latency and load time of every model beside float.

Latencies and load times are ratios to float, taken in turn in one run:
`python -m benchmarks.dynamic`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from rich.console import Console
from rich.table import Table

import onnxq
from benchmarks.assets import ASSETS
from benchmarks.common import plain_session, random_feed
from benchmarks.models import MODELS
from onnxq.measure.timing import latencies
from onnxq.report import Report

ENCODINGS: tuple[Literal["qdq", "fold"], ...] = ("qdq", "fold")
LOADS = 7


def measure(model: Path, folder: Path) -> list[str]:
    """One row of the table."""
    files: dict[tuple[int, str], Path] = {}
    reports: dict[tuple[int, str], Report] = {}
    for bits in (8, 16):
        for encoding in ENCODINGS:
            path = folder / f"{bits}.{encoding}.onnx"
            files[bits, encoding] = path
            reports[bits, encoding] = onnxq.quantize_dynamic(
                model, path, bits=bits, encoding=encoding
            )
            onnx.checker.check_model(str(path))
    float_session = plain_session(model)
    sessions = {key: onnxq.load_session(path) for key, path in files.items()}
    error = _error(float_session, sessions[16, "qdq"], model.name)
    everything = [float_session, *sessions.values(), plain_session(files[8, "fold"])]
    seconds = latencies(everything, random_feed(float_session, model.name, 0), seconds=4)
    loads = _load_times(
        [
            lambda: plain_session(model),
            lambda: onnxq.load_session(files[8, "qdq"]),
            lambda: plain_session(files[8, "fold"]),
        ]
    )
    skipped = reports[8, "qdq"].skips
    return [
        model.name,
        " / ".join(f"{reports[b, 'qdq'].weights.ratio:.3f}" for b in (8, 16)),
        f"{max(_file_ratio(r) for r in reports.values()):.3f}",
        f"{sum(s.bytes for s in skipped):,} in {len(skipped)}",
        f"{error:.0e}",
        " / ".join(f"{s / seconds[0]:.2f}" for s in seconds[1:]),
        f"{loads[0] * 1e3:.0f} ms, " + " / ".join(f"{s / loads[0]:.2f}" for s in loads[1:]),
    ]


def _file_ratio(report: Report) -> float:
    """The file over what it may have: covered weights with their scales, and the rest of fp32."""
    weights, before = report.weights, report.bytes_before or 0
    allowed = weights.integers + weights.scales + before - weights.floats
    return (report.bytes_after or 0) / allowed


def _error(reference: Any, quantized: Any, name: str) -> float:
    """Largest error over the range of the output; a lone number counts in absolute terms."""
    worst = 0.0
    for seed in range(3):
        feed = random_feed(reference, name, seed)
        for r, q in zip(reference.run(None, feed), quantized.run(None, feed), strict=True):
            span = float(np.ptp(r)) if r.size > 1 else 1.0
            worst = max(worst, float(np.abs(r - q).max()) / span)
    return worst


def _load_times(loads: list[Callable[[], object]]) -> list[float]:
    taken: list[list[float]] = [[] for _ in loads]
    for _ in range(LOADS):
        for load, times in zip(loads, taken, strict=True):
            start = time.perf_counter()
            load()
            times.append(time.perf_counter() - start)
    return [float(np.median(times)) for times in taken]


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    table = Table(
        "model",
        "weights 8 / 16 (0.25, 0.50)",
        "file (<= 1.01)",
        "left float",
        "INT16 error",
        "latency: qdq8 / fold8 / qdq16 / fold16 / fold8 plain",
        "load: fp32, qdq8 / fold8 plain",
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = sorted((ASSETS / "models").rglob("*.onnx"))
        for name in ("resnet50", "mobilenet_v1"):
            models.append(folder / f"generated_{name}.onnx")
            ir.save(MODELS[name](), models[-1])
        for model in models:
            table.add_row(*measure(model, folder))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
