"""Static mode on the generated networks: what fuses, and the speed-up over float in one run.

Their weights are random: figures of speed and coverage, not of accuracy:
`python -m benchmarks.generated`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir
from rich.console import Console
from rich.table import Table

import onnxq
from benchmarks.common import optimized_ops, plain_session
from benchmarks.models import MODELS, random_inputs
from onnxq.measure.timing import latencies

# network -> QLinearConv, QLinearAdd, speed-up with VNNI that are to be reached
BARS = {"resnet50": (53, 16, 2.4), "mobilenet_v1": (27, 0, 1.8)}
INTEGER = ("QLinearConv", "QLinearAdd", "QGemm", "MatMulIntegerToFloat", "QLinearGlobalAveragePool")


def measure(name: str, folder: Path) -> list[str]:
    """One row of the table."""
    source, target = folder / f"{name}.onnx", folder / f"{name}.int8.onnx"
    ir.save(MODELS[name](), source)
    data = random_inputs(name, 8, 0)
    onnxq.quantize_static(source, target, data, target="onnxruntime-x86")
    fp32, int8 = latencies([plain_session(source), plain_session(target)], data[0], seconds=6)
    ops = optimized_ops(target)
    bar = BARS.get(name)
    found = ", ".join(f"{ops[op]} {op}" for op in INTEGER if ops[op])
    return [
        name,
        found,
        str(ops["QuantizeLinear"] + ops["DequantizeLinear"]),
        f"{fp32 * 1e3:.2f} -> {int8 * 1e3:.2f}",
        f"{fp32 / int8:.2f}x",
        f"{bar[0]} QLinearConv, {bar[1]} QLinearAdd, {bar[2]}x" if bar else "",
    ]


def main() -> None:
    table = Table("network", "in int8", "Q/DQ left", "ms", "speed-up", "bar")
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            table.add_row(*measure(name, Path(folder)))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
