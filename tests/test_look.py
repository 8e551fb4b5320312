"""inspect and plan: what they tell of a model without running it."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.demo import DIGITS, digits_data
from onnxq.recipe import DynamicRecipe, Rule, StaticRecipe
from tests.models import build, normal, weights_of

X86 = "onnxruntime-x86"
TEXT = """(float[N,3,8,8] x, int64[N] i) => (float[N,10] y, float[N,4] e) {
  a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) t = Tanh(r) p = GlobalAveragePool(t)
  f = Flatten(p) y = Gemm(f, v) e = Gather(table, i) }"""
NET = build(
    TEXT,
    {
        "w": normal(16, 3, 3, 3),
        "b": normal(16),
        "v": normal(16, 10),
        "table": normal(50, 4),
    },
)


# inspect


def test_inspect_tells_what_is_there() -> None:
    found = onnxq.inspect(NET)
    assert found.ops == {
        "Conv": 1,
        "Flatten": 1,
        "Gather": 1,
        "Gemm": 1,
        "GlobalAveragePool": 1,
        "Relu": 1,
        "Tanh": 1,
    }
    assert found.opsets == {"ai.onnx": 17}
    assert [(t.name, t.dtype, t.shape) for t in found.inputs] == [
        ("x", "float", ("N", 3, 8, 8)),
        ("i", "int64", ("N",)),
    ]
    assert [t.name for t in found.outputs] == ["y", "e"]
    sizes = [(w.name, w.bytes or 0, w.used_by) for w in found.weights]
    assert sizes[0] == ("w", 16 * 3 * 9 * 4, "Conv")
    assert [s for _, s, _ in sizes] == sorted((s for _, s, _ in sizes), reverse=True)
    assert found.weight_bytes == {"float": sum(s for _, s, _ in sizes)}
    assert found.quantized == {}
    assert found.dynamic.weights == 3
    assert found.static.nodes == {"Conv": 1, "Gemm": 1}
    assert any("Tanh" in reason for reason in found.static.left)
    json.dumps(found.to_dict())


def test_inspect_tells_what_is_quantized_already(tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    onnxq.quantize_static(DIGITS, path, digits_data()[0][:8], target=X86)
    found = onnxq.inspect(path)
    model = onnx.load(str(path))
    count = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    assert found.quantized["QuantizeLinear"] == count > 0
    assert found.written_by_onnxq["target"] == X86
    assert found.weight_bytes["int8"] > 80_000


def test_inspect_counts_constants_of_nodes_and_of_bodies() -> None:
    model = build(
        "(float[N,4] x, bool c) => (float[N,4] y) {"
        " k = Constant<value=float[4] {1.0,2.0,3.0,4.0}>()"
        " z = Add(x, k) y = If(c)<then_branch = t () => (float[N,4] u) { u = MatMul(z, w) },"
        " else_branch = e () => (float[N,4] v) { v = Neg(z) }> }",
        {"w": normal(4, 4)},
    )
    found = onnxq.inspect(model)
    assert found.ops["MatMul"] == 1
    assert {(w.name, w.bytes) for w in found.weights} == {("k", 16), ("w", 64)}


# plan


def test_plan_is_what_is_written() -> None:
    data = [{"x": normal(1, 3, 8, 8, seed=s), "i": np.array([s])} for s in range(12)]
    statistics = onnxq.calibrate(NET, data)
    recipe = StaticRecipe(target=X86, method="KL")
    made = onnxq.plan(NET, recipe, statistics=statistics).to_dict()
    result = onnxq.quantize(NET, None, recipe, statistics=statistics)
    found = weights_of(result)
    for row in (*made["activations"], *made["weights"]):
        owner = row.get("range", "").removeprefix("range of ")
        name = owner if f"{owner}_scale" in found else row["tensor"]
        np.testing.assert_array_equal(np.asarray(row["scale"], np.float32), found[f"{name}_scale"])
        np.testing.assert_array_equal(row["zero_point"], found[f"{name}_zero_point"])
    reasons = {row["name"]: row["reason"] for row in made["left_float"]}
    assert "no int8 kernel" in reasons["n_t"]


def test_plan_without_statistics_has_placements_and_the_weights_scales() -> None:
    made = onnxq.plan(NET, StaticRecipe(target=X86)).to_dict()
    assert {row["tensor"] for row in made["activations"]} == {"x", "r", "f"}
    assert all(row["scale"] is None for row in made["activations"])
    (w,) = (row for row in made["weights"] if row["tensor"] == "w")
    expected = np.abs(weights_of(NET)["w"]).max(axis=(1, 2, 3)) / 127
    np.testing.assert_allclose(w["scale"], expected, rtol=1e-6)
    text = str(onnxq.plan(NET, StaticRecipe(target=X86)))
    assert "scale from samples" in text
    assert "float Tanh n_t: Tanh has no int8 kernel" in text


@pytest.mark.parametrize("recipe", [StaticRecipe(target=X86), DynamicRecipe()])
def test_two_plans_differ_where_the_recipes_do(recipe: Any) -> None:
    import dataclasses

    one = str(onnxq.plan(NET, recipe)).splitlines()
    assert one == str(onnxq.plan(NET, recipe)).splitlines()
    rule = Rule(nodes=("n_y",), granularity="tensor")
    other = str(onnxq.plan(NET, dataclasses.replace(recipe, rules=(rule,)))).splitlines()
    changed = [
        line
        for line in difflib.unified_diff(one, other, lineterm="", n=0)
        if line[0] in "+-" and line[:3] not in ("+++", "---")
    ]
    assert [line.split()[0][1:] for line in changed] == ["recipe", "weight", "weight"]
    assert all(" v: " in line for line in changed[1:])


def test_plan_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnxq.plan(DIGITS)
    assert list(tmp_path.iterdir()) == []
