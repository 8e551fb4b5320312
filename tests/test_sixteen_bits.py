"""Static mode in 16 bits: weights and activations as INT16, in float kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import pytest

import onnxq
from onnxq.demo import DIGITS, digits_data
from onnxq.numerics.ranges import METHODS
from onnxq.targets import TARGETS
from tests.models import build, normal, run, samples, sqnr

CALIBRATION, HELDOUT, _ = digits_data()


def quantized_types(model: onnx.ModelProto) -> set[tuple[str, int]]:
    """Domain of each QuantizeLinear and type of its zero point."""
    types = {t.name: t.data_type for t in model.graph.initializer}
    return {(n.domain, types[n.input[2]]) for n in model.graph.node if n.op_type[-6:] == "Linear"}


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("target", TARGETS)
def test_nearly_nothing_is_lost(target: str, optimize: bool) -> None:
    model = onnxq.quantize_static(
        DIGITS, data=CALIBRATION, bits=16, target=target, method="abs_max", verify=False
    )
    x = {"image": CALIBRATION[:50]}
    assert sqnr(run(DIGITS, x)[0], run(model, x, optimize=optimize)[0]) >= 75


@pytest.mark.parametrize("opset", [17, 21])
def test_the_operators_are_those_of_the_opset(opset: int) -> None:
    source = onnx.load(DIGITS)
    if opset > 17:
        source = onnx.version_converter.convert_version(source, opset)
    model = onnxq.quantize_static(source, data=CALIBRATION[:9], bits=16)
    domain = "" if opset >= 21 else "com.microsoft"
    assert (domain, onnx.TensorProto.INT16) in quantized_types(model)
    onnx.checker.check_model(model)


@pytest.mark.parametrize("optimize", [True, False])
def test_a_large_bias_is_kept(optimize: bool) -> None:
    """As a float it would be made int32 by onnxruntime, at the scale s_x * s_w, and overflow."""
    text = "(float[N,8,8,8] x) => (float[N,16,6,6] y) { r = Conv(x, w, b) y = Relu(r) }"
    weights = {"w": normal(16, 8, 3, 3), "b": normal(16, seed=1, scale=50)}
    model, feeds = build(text, weights), samples("x", (1, 8, 8, 8))
    result = onnxq.quantize_static(model, data=feeds, bits=16, method="abs_max", verify=False)
    assert sqnr(run(model, feeds[0])[0], run(result, feeds[0], optimize=optimize)[0]) >= 75


def test_a_rule_takes_weights_to_8_bits() -> None:
    recipe = onnxq.StaticRecipe(bits=16, rules=(onnxq.Rule(ops=("Conv",), bits=8),))
    types = {row["tensor"]: row["type"] for row in onnxq.plan(DIGITS, recipe).to_dict()["weights"]}
    assert {kind.split(" per-")[0] for kind in types.values()} == {
        "symmetric int8",
        "symmetric int16",
    }
    model = onnxq.quantize(DIGITS, None, recipe, CALIBRATION)
    x = {"image": CALIBRATION[:50]}
    assert sqnr(run(DIGITS, x)[0], run(model, x)[0]) >= 34


def test_integer_inputs_and_outputs() -> None:
    model = onnxq.quantize_static(DIGITS, data=CALIBRATION, bits=16, integer_io=True)
    (value,) = model.graph.input
    assert value.type.tensor_type.elem_type == onnx.TensorProto.INT16
    assert np.isfinite(run(model, {"image": np.zeros((1, 1, 8, 8), np.int16)})[0]).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "KL"}, "KL degenerates above 8 bits"),
        ({"rules": (onnxq.Rule(ops=("Conv",), method="KL"),)}, "KL degenerates"),
        ({"symmetric": False}, "of 16 bits are symmetric"),
        ({"target": "paddle", "symmetric": False}, "symmetric activations only"),
    ],
)
def test_what_16_bits_cannot_do(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(onnxq.OptionError, match=words):
        onnxq.StaticRecipe(bits=16, **settings)
    with pytest.raises(onnxq.OptionError, match="bits must be one of 8, 16"):
        onnxq.StaticRecipe(bits=4)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"KL"}))
def test_every_other_method_has_a_range(method: str) -> None:
    model = onnxq.quantize_static(DIGITS, data=CALIBRATION[:20], bits=16, method=method)
    assert sqnr(run(DIGITS, x := {"image": HELDOUT[:50]})[0], run(model, x)[0]) >= 20
