"""Dynamic mode above 2 GB, beside copying the data: `python -m benchmarks.big FOLDER`."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

__all__ = ["measure", "write_model"]

WIDTH = 2048
LAYERS = 16  # of 12 * WIDTH**2 float32 values each: 3.2 GB
CHILD = """
import sys, onnxq
onnxq.quantize_dynamic(sys.argv[1], sys.argv[2], bits=int(sys.argv[3]))
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


def write_model(folder: Path, layers: int = LAYERS, width: int = WIDTH) -> Path:
    """A stack of attention-like and feed-forward products, its weights in one file beside it."""
    rng = np.random.default_rng(0)
    block = rng.standard_normal(width * width, dtype=np.float32) * np.float32(0.02)
    nodes, weights, offset, current = [], [], 0, "x"
    with open(folder / "big.data", "wb") as file:
        for layer in range(layers):
            sizes = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
            for i, shape in enumerate(sizes):
                name = f"layer{layer}.w{i}"
                for piece in range(shape[0] * shape[1] // block.size):
                    file.write(np.roll(block, 7919 * (piece + i + 6 * layer)).tobytes())
                length = shape[0] * shape[1] * 4
                tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
                tensor.data_location = TensorProto.EXTERNAL
                place = {"location": "big.data", "offset": str(offset), "length": str(length)}
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=value)
                weights.append(tensor)
                offset += length
                nodes.append(helper.make_node("MatMul", [current, name], [f"{name}.y"]))
                current = f"{name}.y"
    shape_of: list[str | int | None] = [1, "tokens", width]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape_of) for n in ("x", current)]
    graph = helper.make_graph(nodes, "big", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "big.onnx"))
    return folder / "big.onnx"


def measure(
    folder: Path, rounds: int = 3, layers: int = LAYERS, width: int = WIDTH
) -> dict[str, Any]:
    """Medians of seconds (whole process) and peak bytes at 8 and 16 bits, and seconds of `cp`.

    folder: where about three times the model's size is free; what is written there is removed.
    """
    work = folder / "big-model"
    work.mkdir(parents=True)
    try:
        model = write_model(work, layers, width)
        data = work / "big.data"
        rows: list[dict[str, float]] = []
        for _ in range(rounds):
            start = time.perf_counter()
            subprocess.run(["cp", str(data), str(work / "copy")], check=True)
            row = {"cp": time.perf_counter() - start}
            (work / "copy").unlink()
            for bits in (8, 16):
                output = work / "out" / "model.onnx"
                output.parent.mkdir()
                start = time.perf_counter()
                command = [sys.executable, "-c", CHILD, str(model), str(output), str(bits)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                row[f"int{bits}"] = time.perf_counter() - start
                row[f"int{bits} peak"] = int(done.stdout) * 1024
                shutil.rmtree(output.parent)
            rows.append(row)
        size = data.stat().st_size
    finally:
        shutil.rmtree(work)
    medians = {key: float(np.median([row[key] for row in rows])) for key in rows[0]}
    ratios = {f"int{b} / cp": medians[f"int{b}"] / medians["cp"] for b in (8, 16)}
    return {"bytes": size, "rounds": rows, **medians, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(json.dumps(measure(given.folder, given.rounds), indent=2))


if __name__ == "__main__":
    main()
