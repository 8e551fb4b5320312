"""The `openvino` target, run in OpenVINO (`pip install openvino`): SQNR and latency beside float.

SQNR is that of OpenVINO's int8 result against onnxruntime's float one. `python -m
benchmarks.openvino_check`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from rich.console import Console
from rich.table import Table

import onnxq
from benchmarks.assets import NETWORKS, Network, load_images
from benchmarks.common import plain_session
from onnxq.numerics.metrics import ErrorSums

IMAGES, ROUNDS = 100, 40


def compiled(path: Path, shape: tuple[int, ...]) -> Any:
    """The model compiled for the processor, with a static batch and float in float32."""
    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape(list(shape))
    return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def measure(network: Network, folder: Path) -> list[str]:
    """One row of the table."""
    reference = plain_session(network.file)
    name = reference.get_inputs()[0].name
    validation = load_images(network, "validation", IMAGES, name)
    target = folder / "int8.onnx"
    calibration = load_images(network, "calibration", IMAGES, name)
    onnxq.quantize_static(network.file, target, calibration, target="openvino")
    shape = validation[0][name].shape
    models = [compiled(network.file, shape), compiled(target, shape)]
    sums = ErrorSums(centred=True)
    for i in range(len(validation)):
        feed = dict(validation[i])
        sums.add(reference.run(None, feed)[0], np.asarray(models[1](feed)[0]))
    times: list[list[float]] = [[], []]
    feed = dict(validation[0])
    for _ in range(ROUNDS):
        for model, taken in zip(models, times, strict=True):
            start = time.perf_counter()
            model(feed)
            taken.append(time.perf_counter() - start)
    fp32, int8 = (float(np.median(taken)) for taken in times)
    return [
        network.name,
        f"{sums.sqnr:.2f}",
        f"{fp32 * 1e3:.2f} -> {int8 * 1e3:.2f}",
        f"{fp32 / int8:.2f}x",
    ]


def main() -> None:
    table = Table("network", "SQNR dB", "ms in OpenVINO", "speed-up")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("mobilenet_v2_1.0", "squeezenet_v1.1", "resnet20", "resnet50"):
            table.add_row(*measure(NETWORKS[name], Path(folder)))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
