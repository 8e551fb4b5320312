"""Recipes: files, errors, rules, and the same bytes from the same recipe."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxq
from onnxq.data.images import ImageOptions
from onnxq.numerics.quantize import dequantize, quantize
from onnxq.numerics.ranges import METHODS
from onnxq.qtypes import INT8, UINT8, PerTensor, QuantSpec
from onnxq.recipe import DynamicRecipe, MethodOptions, Recipe, Rule, StaticRecipe
from onnxq.recipe_file import load_recipe, recipe_from_dict, recipe_to_dict, recipe_to_toml
from onnxq.targets import TARGETS
from tests.models import Array, build, normal, open_session, ops, optimized_ops, run, weights_of
from tests.models import samples as feeds

X86 = "onnxruntime-x86"

NET = build(
    "(float[N,3,8,8] x) => (float[N,10] y) { a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a)"
    " c = Conv<pads=[1,1,1,1]>(r, w2, b2) s = Relu(c) p = GlobalAveragePool(s)"
    " f = Flatten(p) y = Gemm(f, w3, b3) }",
    {
        "w1": normal(16, 3, 3, 3),
        "b1": normal(16, seed=1),
        "w2": normal(16, 16, 3, 3, seed=2, scale=0.2),
        "b2": normal(16, seed=3),
        "w3": normal(16, 10, seed=4),
        "b3": normal(10, seed=5),
    },
)
FEEDS = feeds("x", (1, 3, 8, 8), 24)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(NET, str(path))
    np.save(tmp_path / "x.npy", np.concatenate([feed["x"] for feed in FEEDS]))
    return path


# files

names = st.lists(st.text(min_size=1, max_size=8), max_size=3).map(tuple)
rules = st.lists(
    st.builds(
        Rule,
        nodes=names.filter(bool),
        ops=st.just(("Conv",)) | st.just(()),
        leave_float=st.none() | st.booleans(),
        bits=st.sampled_from([8, 16]),
        granularity=st.sampled_from([None, "channel", "tensor"]),
    ),
    max_size=3,
).map(tuple)
images = st.builds(
    ImageOptions,
    size=st.none() | st.tuples(st.integers(1, 999), st.integers(1, 999)),
    resize=st.none() | st.integers(1, 999),
    mean=st.just((0.5,)) | st.just((0.485, 0.456, 0.406)),
    scale=st.sampled_from([1.0, 1 / 255]),
    channels=st.sampled_from(["RGB", "BGR"]),
)
recipes: st.SearchStrategy[Recipe] = st.builds(
    DynamicRecipe,
    bits=st.sampled_from([8, 16]),
    encoding=st.sampled_from(["qdq", "fold"]),
    symmetric=st.booleans(),
    exclude=names,
    rules=rules,
) | st.builds(
    StaticRecipe,
    target=st.none() | st.sampled_from(["onnxruntime-x86", "openvino"]),
    method=st.sampled_from(list(METHODS)),
    percentile=st.floats(0.51, 1.0),
    symmetric=st.none() | st.booleans(),
    integer_io=st.booleans(),
    data=st.none() | st.text(max_size=9),
    samples=st.none() | st.integers(1, 10**6),
    include_ops=st.just(("Conv",)) | st.just(()),
    rules=rules,
    images=st.none() | images,
)


@settings(deadline=None, max_examples=60)
@given(recipes, st.sampled_from(["toml", "json"]))
def test_a_recipe_survives_its_file(tmp_path_factory: Any, recipe: Recipe, kind: str) -> None:
    path = tmp_path_factory.mktemp("recipe") / f"r.{kind}"
    text = recipe_to_toml(recipe) if kind == "toml" else json.dumps(recipe_to_dict(recipe))
    path.write_text(text, encoding="utf-8")
    assert load_recipe(path) == recipe


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("bits = 8", ["mode must be one of dynamic, static"]),
        ('mode = "dynamc"', ["dynamic, static", "'dynamc'"]),
        ('mode = "dynamic"\nbitz = 8', ["'bitz'", "near are bits", "valid are granularity"]),
        ('mode = "dynamic"\nmethod = "KL"', ["'method' is for static mode"]),
        ('mode = "static"\nencoding = "qdq"', ["'encoding' is for dynamic mode"]),
        ('mode = "static"\nbitz = 16', ["'bitz' in static mode", "valid are"]),
        ('mode = "dynamic"\nbits = 4', ["bits must be one of 8, 16, got 4"]),
        ('mode = "dynamic"\nbits = "8"', ["bits must be an integer, got '8'"]),
        ('mode = "dynamic"\nsymmetric = 1', ["symmetric must be true or false"]),
        ('mode = "dynamic"\nexclude = "a"', ["exclude must be a list"]),
        ('mode = "static"\nmethod = "KLL"', ["method must be one of KL, hist"]),
        ('mode = "static"\ntarget = "x86"', ["onnxruntime-x86"]),
        ('mode = "static"\npercentile = 0.2', ["0.2 is out of range"]),
        ('mode = "static"\nbatch_size = 0', ["batch_size must be at least 1"]),
        ('mode = "static"\n[images]\nsiez = 3', ["images: unknown key 'siez'", "near are size"]),
        ('mode = "static"\n[[rules]]\nbits = 8', ["rules[0]", "matches nothing"]),
        ('mode = "static"\n[[rules]]\nops = ["Conv"]', ["sets nothing", "leave_float"]),
        ('mode = "static"\n[[rules]]\nnode = ["a"]', ["rules[0]", "'node'", "near are nodes"]),
        ('mode = "dynamic"\n[[rules]]\nops = ["Conv"]\nmethod = "KL"', ["dynamic mode leaves"]),
        (
            'mode = "static"\ntarget = "paddle"\nsymmetric = false',
            ["paddle runs symmetric activations only", "onnxruntime-x86"],
        ),
        ("mode = ", ["not a recipe"]),
    ],
)
def test_mistakes_in_a_file_name_it_and_what_is_valid(
    tmp_path: Path, content: str, words: list[str]
) -> None:
    path = tmp_path / "r.toml"
    path.write_text(content)
    with pytest.raises(onnxq.OptionError) as caught:
        load_recipe(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"percentile": 0.0}, {"method": ""}, {"bits": 0}, {"granularity": ""}]
)
def test_a_rule_with_an_empty_value_is_a_mistake(settings: Any) -> None:
    with pytest.raises(onnxq.OptionError, match=f"{next(iter(settings))}|out of range"):
        Rule(nodes=("a",), **settings)


def test_data_and_statistics_exclude_each_other() -> None:
    with pytest.raises(onnxq.OptionError, match="either data or statistics"):
        StaticRecipe(data="x.npy", statistics="x.statistics")


def test_missing_files_and_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(onnxq.OptionError, match="no such recipe file"):
        load_recipe(tmp_path / "no.toml")
    with pytest.raises(onnxq.OptionError, match=r"\.toml or a \.json"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule(nodes=("n_aa*",), bits=16), ["'n_aa*'", "near are"]),
        (Rule(ops=("Cnov",), bits=16), ["'Cnov'", "near are Conv"]),
        (Rule(ops=("MatMul",), bits=16), ["the model has no MatMul"]),
        (Rule(nodes=("n_y",), ops=("Conv",), bits=16), ["no node has both"]),
    ],
)
@pytest.mark.parametrize("mode", [DynamicRecipe, StaticRecipe])
def test_rules_without_a_match(mode: Any, rule: Rule, words: list[str]) -> None:
    with pytest.raises(onnxq.OptionError) as caught:
        onnxq.plan(NET, mode(rules=(rule,)))
    for word in words:
        assert word in str(caught.value)


# what rules do


def test_dynamic_rules_and_the_last_match_wins() -> None:
    recipe = DynamicRecipe(
        rules=(
            Rule(ops=("Conv",), bits=16, granularity="tensor"),
            Rule(nodes=("w2",), bits=8),  # by the weight that the node reads
            Rule(nodes=("n_y",), leave_float=True),
        )
    )
    result = onnxq.quantize(NET, None, recipe)
    found = weights_of(result)
    assert found["w1_q"].dtype == np.int16
    assert found["w1_scale"].shape == ()
    assert found["w2_q"].dtype == np.int8
    assert found["w2_scale"].shape == ()
    assert "w3" in found
    again = dataclasses.replace(
        recipe, rules=(*recipe.rules, Rule(ops=("Gemm",), leave_float=False))
    )
    assert "w3_q" in weights_of(onnxq.quantize(NET, None, again))


def test_a_rule_brings_back_what_was_excluded() -> None:
    recipe = DynamicRecipe(exclude=("n_*",), rules=(Rule(nodes=("n_c",), leave_float=False),))
    assert {n for n in weights_of(onnxq.quantize(NET, None, recipe)) if n.endswith("_q")} == {
        "w2_q"
    }


@pytest.mark.parametrize("encoding", ["qdq", "fold"])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("bits", [8, 16])
def test_asymmetric_weights(encoding: Any, granularity: Any, bits: int) -> None:
    w = normal(6, 5) + 2.0  # all but one side of zero: symmetric wastes half of the integers
    model = build("(float[N,6] x) => (float[N,5] y) { y = MatMul(x, w) }", {"w": w}, opset=21)
    x = normal(7, 6, seed=3)
    errors = []
    for symmetric in (True, False):
        result = onnxq.quantize_dynamic(
            model, symmetric=symmetric, encoding=encoding, granularity=granularity, bits=bits
        )
        errors.append(float(np.abs(run(result, {"x": x})[0] - x @ w).max()))
    assert errors[1] < 0.8 * errors[0]
    levels = 2**bits - 1
    low, high = np.minimum(w.min(0), 0), np.maximum(w.max(0), 0)
    if granularity == "tensor":
        low, high = low.min(), high.max()
    step = (high - low) / levels
    assert errors[1] <= float((np.abs(x).sum(1).max() * step).max())


def test_static_rule_leaves_float_and_the_rest_fuses() -> None:
    model = onnxq.quantize_static(
        NET, None, FEEDS, target=X86, rules=[Rule(nodes=("n_a",), leave_float=True)]
    )
    counted = optimized_ops(model)
    assert counted["QLinearConv"] == 1
    assert counted["Conv"] + counted["FusedConv"] == 1


def test_static_rule_for_16_bits_stores_int16_and_calculates_in_float() -> None:
    # the first Conv alone would be too small to gain
    rules = [Rule(nodes=("n_c",), bits=16), Rule(nodes=("n_a",), leave_float=False)]
    plain = onnxq.quantize_static(NET, None, FEEDS, target=X86, accuracy="none")
    # symmetric or not is said of activations: integers that are stored are symmetric
    model = onnxq.quantize_static(
        NET, None, FEEDS, target=X86, rules=rules, symmetric=False, accuracy="none"
    )
    assert "w2_zero_point" not in weights_of(model)
    found = weights_of(model)
    assert found["w2_q"].dtype == np.int16
    assert found["w1_quantized"].dtype == np.int8
    counted = optimized_ops(model)
    assert counted["QLinearConv"] == 1
    assert counted["Cast"] == 0  # folded at load, with default options
    float_result, (x,) = run(NET, FEEDS[0])[0], [FEEDS[0]]
    wide, narrow = (np.abs(run(m, x)[0] - float_result).max() for m in (model, plain))
    assert wide < narrow


def test_static_rule_for_the_method_of_a_tensor_and_of_an_input(net: Path, tmp_path: Path) -> None:
    statistics = onnxq.calibrate(NET, FEEDS)
    rules = (
        Rule(nodes=("n_a",), method="min_max"),  # the Conv's Relu gives the tensor
        Rule(nodes=("x",), method="hist", percentile=0.9),
    )
    by = {
        a["tensor"]: a
        for a in onnxq.plan(
            NET, StaticRecipe(target=X86, rules=rules), statistics=statistics
        ).to_dict()["activations"]
    }
    assert by["r"]["range"] == "by min_max"
    assert by["x"]["range"] == "by hist 0.9"
    assert by["s"]["range"] == "by mse"
    stats = statistics.tensors["r"]
    assert stats is not None
    assert by["r"]["scale"] == pytest.approx(stats.maximum / 255, rel=1e-6)


@pytest.mark.parametrize("target", ["onnxruntime-x86", "onnxruntime-arm", "openvino"])
def test_symmetric_activations(target: str) -> None:
    model = onnxq.quantize_static(NET, None, FEEDS, target=target, symmetric=True)
    kind = TARGETS[target].activation.qtype
    zeros = {
        int(value)
        for name, value in weights_of(model).items()
        if name.endswith("zero_point") and value.ndim == 0 and value.dtype == kind.dtype
    }
    assert zeros == {128 if kind is UINT8 else 0}
    result = run(NET, FEEDS[0])[0]
    assert np.abs(run(model, FEEDS[0])[0] - result).max() < 0.1 * np.abs(result).max()


@pytest.mark.parametrize("kind", [UINT8, INT8])
def test_symmetric_integers_are_as_many_below_the_middle_as_above(kind: Any) -> None:
    from onnxq.numerics.quantize import symmetric_params

    params = symmetric_params(QuantSpec(kind, PerTensor(), symmetric=True), np.asarray(2.0))
    x = np.linspace(-3, 3, 601).astype(np.float32)
    q = quantize(x, params)
    middle = int(params.zero_point)
    assert q.max() - middle == middle - q.min() == 127
    inside = np.abs(x) <= 2
    assert np.abs(dequantize(q, params) - x)[inside].max() <= 1.0001 / 127


SHARED = build(
    "(float[N,16,8,8] x) => (float[N,16,8,8] y) { a = Conv<pads=[1,1,1,1]>(x, w) r = Relu(a)"
    " y = Conv<pads=[1,1,1,1]>(r, w) }",
    {"w": normal(16, 16, 3, 3)},
)


@pytest.mark.parametrize(
    ("rules", "stored", "reason"),
    [
        ([Rule(nodes=("n_y",), bits=16)], [], "stays float, as others read it"),
        ([Rule(ops=("Conv",), bits=16)], ["w_q"], "its weights are stored in 16 bits"),
        (
            [Rule(nodes=("n_a",), bits=16), Rule(nodes=("n_y",), leave_float=True)],
            [],
            "stays float, as others read it",
        ),
    ],
)
def test_16_bits_of_a_shared_weight(tmp_path: Path, rules: Any, stored: Any, reason: str) -> None:
    data = feeds("x", (1, 16, 8, 8), 8)
    report = onnxq.quantize_static(SHARED, tmp_path / "q.onnx", data, rules=rules)
    found = weights_of(tmp_path / "q.onnx")
    assert [name for name in found if name == "w_q"] == stored
    skips = [skip for skip in report.skips if "16 bits" in skip.reason]
    assert skips
    assert all(reason in skip.reason for skip in skips)
    assert all((skip.bytes == 0) == bool(stored) for skip in skips)


def test_what_is_stored_in_16_bits_is_no_float_weight_among_the_skips(tmp_path: Path) -> None:
    model = build(
        "(float[5,1,8] x) => (float[5,1,1,6] y) { y, h, c = LSTM<hidden_size=6>(x, w, r) }",
        {"w": normal(1, 24, 8), "r": normal(1, 24, 6)},
    )
    rules = [Rule(ops=("LSTM",), bits=16)]
    report = onnxq.quantize_static(
        model, tmp_path / "q.onnx", feeds("x", (5, 1, 8), 4), rules=rules
    )
    assert {w.tensor for w in report.placement.weights} == {"w", "r"}
    (skip,) = report.skips
    assert "its weights are stored in 16 bits" in skip.reason
    assert skip.bytes == 0


def test_a_name_with_brackets_can_be_written_as_it_is() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(NET)
    model.graph.node[0].name = "layer[0]/conv"
    report = onnxq.plan(model, DynamicRecipe(exclude=("layer[0]/conv",)))
    assert {w.tensor for w in report.placement.weights} == {"w2", "w3"}


@pytest.mark.parametrize("settings", [{"leave_float": True}, {"bits": 16}])
def test_a_rule_on_an_input_that_means_nothing_there(settings: Any) -> None:
    with pytest.raises(onnxq.OptionError, match="matches inputs of the model only"):
        onnxq.plan(NET, StaticRecipe(rules=(Rule(nodes=("x",), **settings),)))


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (DynamicRecipe, {"bits": 8.0}, "bits must be an integer, got 8.0"),
        (DynamicRecipe, {"symmetric": "yes"}, "symmetric must be True or False"),
        (DynamicRecipe, {"include": "Conv*"}, "include must be a tuple"),
        (DynamicRecipe, {"rules": ({"bits": 8},)}, "rules must be a tuple of Rule values"),
        (StaticRecipe, {"percentile": "0.9"}, "percentile must be a number"),
        (StaticRecipe, {"samples": 2.5}, "samples must be an integer"),
        (Rule, {"nodes": "a*", "bits": 16}, "nodes must be a tuple"),
    ],
)
def test_values_of_another_type_are_refused(kind: Any, settings: Any, words: str) -> None:
    with pytest.raises(onnxq.OptionError, match=words.replace("*", r"\*")):
        kind(**settings)


def test_a_single_pattern_is_not_a_list_of_letters() -> None:
    with pytest.raises(onnxq.OptionError, match="include must be a list of names"):
        onnxq.quantize_dynamic(NET, include="Conv*")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.json", '{"mode": ["dynamic"]}'),
        ("r.json", '{"mode": "static", "percentile": 1' + "0" * 400 + "}"),
        ("r.json", '{"mode": "static", "rules": ' + "[" * 100_000 + "}"),
    ],
)
def test_absurd_files_are_one_error(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(onnxq.OptionError):
        load_recipe(tmp_path / name)


# the same bytes again


def test_the_effective_recipe_gives_the_same_bytes(net: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    report = onnxq.quantize_static(
        net, first, tmp_path / "x.npy", method="KL", rules=[Rule(ops=("Gemm",), symmetric=True)]
    )
    saved = tmp_path / "r.json"
    saved.write_text(json.dumps({**report.recipe, "data": str(tmp_path / "x.npy")}))
    onnxq.quantize(net, second, saved)
    assert first.read_bytes() == second.read_bytes()


def test_a_call_s_data_goes_before_the_recipe_s(net: Path, tmp_path: Path) -> None:
    recipe = StaticRecipe(data="there is no such file", verify=False)
    onnxq.quantize(net, tmp_path / "q.onnx", recipe, tmp_path / "x.npy")
    with pytest.raises(onnxq.DataError, match="no such file"):
        onnxq.quantize(net, tmp_path / "q.onnx", recipe)


def test_method_options_take_percent_and_share() -> None:
    assert MethodOptions("hist", 99.9).share == pytest.approx(MethodOptions("hist", 0.999).share)
    with pytest.raises(onnxq.OptionError):
        recipe_from_dict({"mode": "static", "percentile": 40})


# integer inputs and outputs

IO_NETS = {
    "int8 at both ends": "a = Conv<pads=[1,1,1,1]>(x, w1, b1) y = Relu(a)",
    "float at both ends": "a = Elu(x) c = Conv<pads=[1,1,1,1]>(a, w1, b1) y = Tanh(c)",
    "input with two kinds of readers": "a = Conv<pads=[1,1,1,1]>(x, w1, b1) s = ReduceSum(x)"
    " y = Add(a, s)",
    "output read inside": "y = Conv<pads=[1,1,1,1]>(x, w1, b1) z = Conv<pads=[1,1,1,1]>(y, w2, b2)",
}


@pytest.mark.parametrize("name", IO_NETS)
def test_integer_inputs_and_outputs(tmp_path: Path, name: str) -> None:
    weights: dict[str, Array] = {
        "w1": normal(8, 8, 3, 3, scale=0.2),
        "b1": normal(8, seed=1),
        "w2": normal(8, 8, 3, 3, seed=2, scale=0.2),
        "b2": normal(8, seed=3),
    }
    used = {k: v for k, v in weights.items() if k in IO_NETS[name]}
    outputs = "float[N,8,6,6] y" + (", float[N,8,6,6] z" if " z = " in IO_NETS[name] else "")
    net = build(f"(float[N,8,6,6] x) => ({outputs}) {{ {IO_NETS[name]} }}", used)
    path, out = tmp_path / "net.onnx", tmp_path / "q.onnx"
    onnx.save(net, str(path))
    data = feeds("x", (1, 8, 6, 6), 16)
    report = onnxq.quantize_static(path, out, data, target=X86, integer_io=True)
    session = open_session(out)
    assert session.get_inputs()[0].type == "tensor(uint8)"
    assert {o.type for o in session.get_outputs()} == {"tensor(uint8)"}
    assert [o.name for o in session.get_outputs()] == [o.name for o in net.graph.output]
    assert ops(out)["QuantizeLinear"] <= ops(out)["DequantizeLinear"] + len(net.graph.output)
    io = report.settings["integer_io"]
    q = np.clip(np.rint(data[0]["x"] / io["x"]["scale"]) + io["x"]["zero_point"], 0, 255)
    for (value, found), want in zip(
        zip(net.graph.output, run(out, {"x": q.astype(np.uint8)}), strict=True),
        run(net, data[0]),
        strict=True,
    ):
        real = (found.astype(np.float32) - io[value.name]["zero_point"]) * io[value.name]["scale"]
        assert np.abs(real - want).max() < 0.1 * np.abs(want).max()
    # compare gives it float, and reads float from it
    for output in onnxq.compare(path, out, data).outputs:
        assert output.sqnr > 20
    assert report.verification is not None
    assert all(o.sqnr > 20 for o in report.verification.outputs)
    assert sum("real value" in note for note in report.notes) == len(io)


OVERRIDDEN = [
    "b = Add(a, c) z = Conv<pads=[1,1,1,1]>(b, w2)",
    "b = Mul(a, c) z = Conv<pads=[1,1,1,1]>(b, w2)",
    "b = Concat<axis=0>(a, c) z = Conv<pads=[1,1,1,1]>(b, w2)",
    "k = Conv<pads=[1,1,1,1]>(c, w2) z = Add(a, k)",
]


@pytest.mark.parametrize("integer_io", [False, True])
@pytest.mark.parametrize("body", OVERRIDDEN)
def test_a_constant_that_a_caller_may_override_stays_float(body: str, integer_io: bool) -> None:
    net = build(
        "(float[N,3,8,8] x, float[1,4,8,8] c) => (float[M,4,8,8] z) {"
        f" a = Conv<pads=[1,1,1,1]>(x, w) {body} }}",
        {"w": normal(4, 3, 3, 3), "w2": normal(4, 4, 3, 3, seed=1), "c": normal(1, 4, 8, 8)},
    )
    data = feeds("x", (1, 3, 8, 8), 8)
    model = onnxq.quantize_static(net, None, data, integer_io=integer_io)
    (output,) = onnxq.compare(net, model, data).outputs
    assert output.sqnr > 25


@pytest.mark.parametrize("target", TARGETS)
def test_an_input_that_is_also_an_output_stays_float(target: str) -> None:
    net = build(
        "(float[N,3,8,8] x) => (float[N,4,8,8] a, float[N,3,8,8] x) {"
        " a = Conv<pads=[1,1,1,1]>(x, w) }",
        {"w": normal(4, 3, 3, 3)},
    )
    data = feeds("x", (1, 3, 8, 8), 8)
    model = onnxq.quantize_static(net, None, data, integer_io=True, target=target)
    outputs = {o.output: o for o in onnxq.compare(net, model, data).outputs}
    assert outputs["a"].sqnr > 25
    assert outputs["x"].max_error == 0


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_the_rest_of_a_model_with_integer_inputs_and_outputs(tmp_path: Path, mode: str) -> None:
    net = build(
        "(float[N,3,8,8] x) => (float[N,4,8,8] z) { a = Conv<pads=[1,1,1,1]>(x, w) b = Tanh(a)"
        " z = Conv<pads=[1,1,1,1]>(b, w2) }",
        {"w": normal(4, 3, 3, 3), "w2": normal(4, 4, 3, 3, seed=1)},
    )
    data = feeds("x", (1, 3, 8, 8), 8)
    part, whole = tmp_path / "part.onnx", tmp_path / "whole.onnx"
    first = onnxq.quantize_static(net, part, data, integer_io=True, exclude=["n_a"])
    if mode == "dynamic":
        report = onnxq.quantize_dynamic(part, whole)
    else:
        io = first.settings["integer_io"]["x"]
        q = [{"x": np.rint(d["x"] / io["scale"] + io["zero_point"]).clip(0, 255)} for d in data]
        integers = [{"x": d["x"].astype(io["dtype"])} for d in q]
        report = onnxq.quantize_static(part, whole, integers)
        assert report.verification is not None
        assert report.verification.outputs[0].sqnr > 20
    assert report.settings["integer_io"]["x"] == first.settings["integer_io"]["x"]
    (output,) = onnxq.compare(net, whole, data).outputs
    assert output.sqnr > 20
