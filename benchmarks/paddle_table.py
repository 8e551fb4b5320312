"""Paddle models both ways: exported, quantized in both modes, and written back for Paddle.

    python -m benchmarks.paddle_table [NAME ...]

Networks of paddle.vision and small ones have random weights and get random input; the real models
of the assets get images. SQNR is against float, on samples that nothing was fitted to. Latencies
are ratios to float in one interleaved run: onnxruntime with its defaults; Paddle Inference with
oneDNN for int8, without for weight-only models.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

import onnxq
from benchmarks import assets
from benchmarks.assets import Array
from benchmarks.common import plain_session
from benchmarks.paddle_models import SAMPLES
from onnxq.errors import OnnxqError
from onnxq.measure.timing import latencies
from onnxq_paddle import export, to_paddle

Feed = dict[str, Array]

CALIBRATION, HELD_OUT = 24, 12
ROUNDS, RUNS = 6, 5
FROM = ("model", "export error", "MB fp32", "dynamic", "static", "dB dynamic", "dB static")
RATIOS = ("onnxruntime static/fp32", "dynamic/fp32")
BACK = ("model", "MB fp32", "int8 dir", "int16 dir", "static dir", "dB ORT", "dB Paddle")
BACK_RATIOS = ("int8/fp32 oneDNN", "int8 weights/fp32", "int16 weights/fp32")


def models(names: list[str], folder: Path) -> Mapping[str, tuple[Path, list[Feed]]]:
    """Directory and samples of each model."""
    found: dict[str, tuple[Path, list[Feed]]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Paddle, while it imports and traces
        from benchmarks.paddle_networks import PADDLE_NETWORKS, save

        for name, network in PADDLE_NETWORKS.items():
            if not names or name in names:
                save(network, folder / name / "inference")
                x = network.samples(CALIBRATION + HELD_OUT)
                found[name] = folder / name, [{"x": row[None]} for row in x]
    for name, make in SAMPLES.items():
        path = assets.ASSETS / "models" / "paddle" / name
        if path.is_dir() and (not names or name in names):
            found[name] = path, make(CALIBRATION + HELD_OUT)
    return found


def sqnr(reference: Path, quantized: Path, feeds: list[Feed]) -> str:
    outputs = onnxq.compare(reference, quantized, feeds).outputs
    worst = min(outputs, key=lambda output: output.sqnr) if outputs else None
    boxes = " (other boxes)" if worst and worst.other_rows else ""
    return f"{worst.sqnr:.1f}{boxes}" if worst else "-"


def from_paddle(name: str, source: Path, feeds: list[Feed], folder: Path) -> list[str]:
    """One row of the first table; leaves the ONNX files in `folder`."""
    files = {mode: folder / f"{mode}.onnx" for mode in ("fp32", "dynamic", "int16", "static")}
    report = export(source, files["fp32"], samples=feeds[-2:])
    onnxq.quantize_dynamic(files["fp32"], files["dynamic"])
    onnxq.quantize_dynamic(files["fp32"], files["int16"], bits=16)
    held = feeds[CALIBRATION:]
    onnxq.quantize_static(files["fp32"], files["static"], feeds[:CALIBRATION])
    sessions = [plain_session(files["fp32"]), plain_session(files["static"])]
    sessions.append(onnxq.load_session(files["dynamic"]))
    fp32, static, dynamic = latencies(sessions, held[0], seconds=4)
    sizes = [f"{files[mode].stat().st_size / 1e6:.2f}" for mode in ("fp32", "dynamic", "static")]
    return [
        name,
        f"{report.relative_error:.1e}",
        *sizes,
        sqnr(files["fp32"], files["dynamic"], held),
        sqnr(files["fp32"], files["static"], held),
        f"{static / fp32:.2f}",
        f"{dynamic / fp32:.2f}",
    ]


def back(name: str, feeds: list[Feed], folder: Path) -> list[str]:
    """One row of the second table."""
    held = feeds[CALIBRATION:]
    paddle_file = folder / "paddle.onnx"
    onnxq.quantize_static(folder / "fp32.onnx", paddle_file, feeds[:CALIBRATION], target="paddle")
    written = {
        mode: to_paddle(folder / f"{mode}.onnx", folder / f"{mode}_dir", samples=held)
        for mode in ("fp32", "dynamic", "int16")
    }
    written["static"] = to_paddle(
        paddle_file, folder / "static_dir", samples=held, reference=folder / "fp32.onnx"
    )
    judged = written["static"].judgement
    assert judged is not None
    noise = min(judged.noise, key=lambda one: one.onnxruntime, default=None)
    return [
        name,
        *(f"{written[mode].bytes / 1e6:.2f}" for mode in ("fp32", "dynamic", "int16", "static")),
        f"{noise.onnxruntime:.1f}" if noise else "-",
        f"{noise.paddle['oneDNN int8']:.1f}" if noise else "-",
        f"{_ratio(folder, 'static', 'fp32', held[0], onednn=True):.2f}",
        f"{_ratio(folder, 'dynamic', 'fp32', held[0], onednn=False):.2f}",
        f"{_ratio(folder, 'int16', 'fp32', held[0], onednn=False):.2f}",
    ]


def _ratio(folder: Path, one: str, other: str, feed: Feed, *, onednn: bool) -> float:
    """Latency of one model over that of the other, run in turns."""
    from onnxq_paddle.worker.predicting import open_predictor, run_time

    predictors = []
    for mode in (one, other):
        directory = folder / f"{mode}_dir"
        model, params = directory / "inference.pdmodel", directory / "inference.pdiparams"
        int8 = onednn and mode == "static"
        predictors.append(open_predictor(str(model), str(params), onednn=onednn, int8=int8))
    given = [{name: feed[name] for name in predictor.inputs} for predictor in predictors]
    ratios = []
    for _ in range(ROUNDS):
        times = [
            median(run_time(predictor, x, runs=RUNS))
            for predictor, x in zip(predictors, given, strict=True)
        ]
        ratios.append(times[0] / times[1])
    return float(np.median(ratios))


def main() -> None:
    first, second = Table(*FROM, *RATIOS), Table(*BACK, *BACK_RATIOS)
    console = Console(width=180, soft_wrap=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name, (source, feeds) in models(sys.argv[1:], Path(scratch)).items():
            folder = Path(scratch) / f"{name}.work"
            folder.mkdir()
            try:
                for table, row in (
                    (first, from_paddle(name, source, feeds, folder)),
                    (second, back(name, feeds, folder)),
                ):
                    table.add_row(*row)
                    console.print(*row, markup=False)  # at once: the whole takes many minutes
            except OnnxqError as error:
                console.print(f"{name}: {type(error).__name__}: {error}", markup=False)
    console.print(first)
    console.print(second)


if __name__ == "__main__":
    main()
