"""Static mode with defaults on real networks: SQNR, agreement, top-1, and latency beside a peer.

The peer is onnxruntime.quantization at its best for x86: U8S8, per channel, MinMax. Latencies of
the three models are taken in turn in one run. `python -m benchmarks.static [NETWORK ...]`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from rich.console import Console
from rich.table import Table

import onnxq
from benchmarks.assets import NETWORKS, Images, Network, load_images
from benchmarks.common import optimized_ops, plain_session
from onnxq.measure.comparison import compare_outputs
from onnxq.measure.timing import latencies
from onnxq.runner import Runner


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Samples for the peer."""

    def __init__(self, images: Images, count: int) -> None:
        self._feeds = iter([images[i] for i in range(min(count, len(images)))])

    def get_next(self) -> Any:
        return next(self._feeds, None)


def measure(network: Network, samples: int, peer_samples: int, folder: Path) -> list[str]:
    """One row of the table."""
    reference = plain_session(network.file)
    name = reference.get_inputs()[0].name
    calibration = load_images(network, "calibration", samples, name)
    validation = load_images(network, "validation", None, name)
    ours, peer = folder / "ours.onnx", folder / "peer.onnx"
    onnxq.quantize_static(network.file, ours, calibration, target="onnxruntime-x86", verify=False)
    _peer(network.file, peer, Reader(calibration, peer_samples))
    quantized = plain_session(ours)
    outputs, _ = compare_outputs(Runner(reference, {}), Runner(quantized, {}), validation)
    result = outputs[0]
    seconds = latencies([reference, quantized, plain_session(peer)], dict(validation[0]), seconds=5)
    fp32, int8 = (_top1(network, active, validation) for active in (reference, quantized))
    ops = optimized_ops(ours)
    stray = ops["QuantizeLinear"] + ops["DequantizeLinear"]
    return [
        network.name,
        f"{network.least_sqnr}",
        f"{result.sqnr:.2f}{'' if result.sqnr >= network.least_sqnr else ' MISSED'}",
        f"{result.agreement or 0:.2%}",
        f"{fp32:.2%}",
        f"{int8:.2%}",
        f"{ops['QLinearConv']}, {stray}",
        " / ".join(f"{s * 1e3:.2f}" for s in seconds),
        f"{seconds[1] / seconds[2]:.2f}",
    ]


def _peer(source: Path, target: Path, reader: Reader) -> None:
    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(target),
        reader,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _top1(network: Network, active: Any, images: Images) -> float:
    found = [
        int(network.scores(active.run(None, dict(images[i]))[0])[0].argmax())
        for i in range(len(images))
    ]
    return float((np.array(found) == images.labels).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--peer-samples", type=int, default=64)
    arguments = parser.parse_args()
    table = Table(
        "network",
        "bar dB",
        "SQNR dB",
        "agreement",
        "fp32",
        "int8",
        "QLinearConv, Q/DQ",
        "ms: fp32 / ours / peer",
        "ours/peer",
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.networks:
            network = NETWORKS[name]
            table.add_row(
                *measure(network, arguments.samples, arguments.peer_samples, Path(folder))
            )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
