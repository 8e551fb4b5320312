"""Time of each stage as the model grows: seconds ~ nodes ** exponent, fitted on log-log.

A network of small layers, so that what is measured is the work for each node: blocks of Conv,
BatchNormalization, Relu and a residual Add for static mode, of MatMul, Add and Gelu for dynamic
mode. `python -m benchmarks.growth`.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from onnxq.calibration import Calibration
from onnxq.fingerprint import fingerprint
from onnxq.model import load
from onnxq.numerics.statistics import StatisticsBuilder
from onnxq.parametrize import check_finite, parametrize
from onnxq.pipeline import place, prepare_for
from onnxq.recipe import DynamicRecipe, Recipe, StaticRecipe
from onnxq.rewrite import rewrite
from onnxq.save import save

T = TypeVar("T")

__all__ = ["SIZES", "exponent", "measure", "network"]

SIZES = (100, 316, 1000, 3162, 10_000)
CHANNELS = 4


class _Network:
    """A graph under construction."""

    def __init__(self, rank: int) -> None:
        shape = [1, CHANNELS, *[8] * (rank - 2)]
        self.rng = np.random.default_rng(0)
        self.input = ir.val("x", ir.DataType.FLOAT, shape)
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []

    def weight(self, *shape: int) -> ir.Value:
        name = f"w{len(self.weights)}"
        tensor = ir.tensor(self.rng.uniform(0.5, 1, shape).astype(np.float32), name=name)
        self.weights.append(ir.val(name, const_value=tensor))
        return self.weights[-1]

    def add(self, op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=f"{op}_{len(self.nodes)}")
        node.outputs[0].name = f"t{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]


def network(nodes: int, mode: str) -> ir.Model:
    """About so many nodes; the same for every call."""
    made = _Network(4 if mode == "static" else 2)
    x = made.input
    while len(made.nodes) < nodes:
        if mode == "static":
            y = made.add("Conv", x, made.weight(CHANNELS, CHANNELS, 1, 1))
            norm = [made.weight(CHANNELS) for _ in range(4)]
            y = made.add("Relu", made.add("BatchNormalization", y, *norm))
        else:
            y = made.add("MatMul", x, made.weight(CHANNELS, CHANNELS))
            y = made.add("Tanh", made.add("Add", y, made.weight(CHANNELS)))
        x = made.add("Add", x, y)
    x.type, x.shape, x.name = ir.TensorType(ir.DataType.FLOAT), made.input.shape, "y"
    opset = {"": 17}
    graph = ir.Graph(
        [made.input], [x], nodes=made.nodes, initializers=made.weights, opset_imports=opset
    )
    return ir.Model(graph, ir_version=8)


class _Clock:
    """CPU seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, stage: str, call: Callable[[], T]) -> T:
        start = time.process_time()
        result = call()
        self.seconds[stage] = time.process_time() - start
        return result


def _stages(nodes: int, mode: str, folder: Path) -> dict[str, float]:
    """Seconds of each stage, the least of three."""
    recipe: Recipe = (
        StaticRecipe(method="min_max", target="onnxruntime-x86").effective()
        if mode == "static"
        else DynamicRecipe().effective()
    )
    model = network(nodes, mode)
    best: dict[str, float] = {}
    for _ in range(3):
        clock = _Clock()
        source = clock.timed("load", lambda: load(model))
        prepared = clock.timed("prepare", functools.partial(prepare_for, source, recipe))
        placement = clock.timed("place", functools.partial(place, prepared, recipe))
        clock.timed("check", functools.partial(check_finite, prepared, placement))
        statistics = _statistics(prepared, placement.owners) if mode == "static" else None
        made = functools.partial(parametrize, prepared, placement, statistics)
        plan = clock.timed("parametrize", made)
        result = clock.timed("rewrite", functools.partial(rewrite, prepared, plan))
        written = functools.partial(save, result, folder / "model.onnx", lambda _: None)
        clock.timed("save", written)
        seconds = clock.seconds
        best = {k: min(v, best.get(k, math.inf)) for k, v in seconds.items()}
    return {**best, "all": sum(best.values())}


def _statistics(prepared: Any, owners: Sequence[str]) -> Calibration:
    """The same statistics for every tensor."""
    builder = StatisticsBuilder(histogram=False)
    builder.add(np.linspace(0, 1, 64, dtype=np.float32), 1)
    return Calibration(fingerprint(prepared), 1, dict.fromkeys(owners, builder.build()))


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of log(seconds) over log(size): 1 for linear."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def measure(sizes: Sequence[int] = SIZES) -> dict[str, Any]:
    """For each mode and stage: CPU seconds at each size, and the exponent over the last three.

    (Of small models what is fixed counts, which would make any exponent look small.)
    """
    found: dict[str, Any] = {"sizes": list(sizes)}
    with TemporaryDirectory() as folder:
        for mode in ("static", "dynamic"):
            rows = [_stages(nodes, mode, Path(folder)) for nodes in sizes]
            found[mode] = {
                stage: {
                    "seconds": [row[stage] for row in rows],
                    "exponent": exponent(sizes[-3:], [max(row[stage], 1e-6) for row in rows[-3:]]),
                }
                for stage in rows[0]
            }
    return found


def main() -> None:
    found = measure()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
