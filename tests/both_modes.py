"""What tests of both modes share: weights, inputs, and quantizing to a file to be compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

import onnxq
from tests.models import Array, Feed, normal, run, sqnr

LEAST_SQNR = {"dynamic": 30.0, "static": 22.0}


def w(*shape: int, seed: int = 0) -> Array:
    """A weight that keeps the variance."""
    return normal(*shape, seed=seed, scale=float(np.prod(shape[1:])) ** -0.5)


def images(i: int) -> Feed:
    return {"x": normal(1, 8, 10, 10, seed=i)}


def rows(i: int) -> Feed:
    return {"x": normal(2, 8, seed=i)}


def rows_and_condition(i: int) -> Feed:
    return {"x": normal(2, 8, seed=i), "c": np.array(i % 2 == 0)}


def c(**values: float) -> dict[str, Array]:
    """Scalar constants."""
    return {name: np.array(value, np.float32) for name, value in values.items()}


def quantize(
    model: onnx.ModelProto, feeds: Sequence[Feed], mode: str, folder: Path
) -> tuple[onnxq.Report, Path]:
    path = folder / f"{mode}.onnx"
    if mode == "dynamic":
        return onnxq.quantize_dynamic(model, path), path
    rules = in_int8(model)
    return onnxq.quantize_static(
        model, path, list(feeds), target="onnxruntime-x86", rules=rules
    ), path


def in_int8(model: onnx.ModelProto) -> list[onnxq.Rule]:
    """Rules for Convs that are too small to gain, where a test is about how they are quantized."""
    known = {node.op_type for node in model.graph.node}
    return [onnxq.Rule(ops=("Conv",), leave_float=False)] if "Conv" in known else []


def assert_close(model: onnx.ModelProto, result: Path, feeds: Sequence[Feed], mode: str) -> None:
    for feed in feeds:
        for reference, actual in zip(run(model, feed), run(result, feed), strict=True):
            assert (reference.shape, reference.dtype) == (actual.shape, actual.dtype)
            if reference.dtype.kind != "f":
                np.testing.assert_array_equal(reference, actual)
            elif not reference.any():
                assert not actual.any()
            else:
                assert sqnr(reference, actual) >= LEAST_SQNR[mode]
