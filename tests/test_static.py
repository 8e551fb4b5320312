"""quantize_static: what onnxruntime makes of the result, and that the values are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from tests.models import (
    Array,
    Feed,
    assert_close,
    build,
    normal,
    open_session,
    opsets,
    optimized_graph,
    optimized_ops,
    run,
    samples,
    sqnr,
    weights_of,
)

X86 = "onnxruntime-x86"
QDQ = ("QuantizeLinear", "DequantizeLinear")
IMAGE = (1, 8, 10, 10)


def quantize(
    model: onnx.ModelProto, feeds: Sequence[Feed], *, method: str = "min_max", **options: Any
) -> onnx.ModelProto:
    options.setdefault("target", X86)
    return onnxq.quantize_static(model, None, list(feeds), method=method, **options)


def conv(out: int, inp: int, kernel: int = 3, seed: int = 0) -> Array:
    return normal(out, inp, kernel, kernel, seed=seed, scale=(inp * kernel * kernel) ** -0.5)


@dataclass(frozen=True)
class Net:
    """integer: ops that the optimized graph has, exactly. gone: ops that it no longer has.

    edges: QuantizeLinear and DequantizeLinear left at entry and exit.
    """

    text: str
    weights: dict[str, Array]
    integer: dict[str, int]
    gone: tuple[str, ...] = ()
    edges: tuple[int, int] = (1, 1)
    shape: tuple[int, ...] = IMAGE

    def model(self, opset: int = 17) -> onnx.ModelProto:
        return build(self.text, self.weights, opset=opset)

    def feeds(self, count: int = 8) -> list[Feed]:
        return samples("x", self.shape, count)


_TWO = {"w1": conv(16, 8), "b1": normal(16, seed=1), "w2": conv(8, 16, seed=2)}
_HEAD = "(float[N,8,10,10] x) => (float[N,c,h,w] y)"
_P = "<pads=[1,1,1,1]>"

NETS = {
    "Conv Relu Conv": Net(
        f"{_HEAD} {{ a = Conv{_P}(x, w1, b1) r = Relu(a) y = Conv{_P}(r, w2) }}",
        _TWO,
        {"QLinearConv": 2},
        ("Relu", "Conv"),
    ),
    "Conv Relu6 Conv": Net(
        f"{_HEAD} {{ a = Conv{_P}(x, w1, b1) r = Clip(a, lo, hi) y = Conv{_P}(r, w2) }}",
        {**_TWO, "lo": np.array(0, np.float32), "hi": np.array(6, np.float32)},
        {"QLinearConv": 2},
        ("Clip", "Conv"),
    ),
    "depthwise": Net(
        f"{_HEAD} {{ a = Conv{_P}(x, w1) r = Relu(a) d = Conv<group=16, pads=[1,1,1,1]>(r, wd, b1)"
        f" s = Relu(d) y = Conv{_P}(s, w2) }}",
        {**_TWO, "wd": conv(16, 1)},
        {"QLinearConv": 3},
        ("Relu", "Conv"),
    ),
    "residual Add": Net(
        f"{_HEAD} {{ a = Conv{_P}(x, w1, b1) r = Relu(a) b = Conv{_P}(r, w2) s = Add(b, x)"
        f" t = Relu(s) y = Conv{_P}(t, w3) }}",
        {**_TWO, "w3": conv(8, 8, seed=3)},
        {"QLinearConv": 3, "QLinearAdd": 1},
        ("Add", "Relu", "Conv"),
    ),
    "Concat": Net(
        f"{_HEAD} {{ a = Conv{_P}(x, w1, b1) b = Conv{_P}(x, w4) c = Concat<axis=1>(a, b)"
        f" r = Relu(c) y = Conv{_P}(r, w5) }}",
        {**_TWO, "w4": conv(8, 8, seed=3), "w5": conv(8, 24, seed=4)},
        {"QLinearConv": 3, "QLinearConcat": 1},
        ("Concat", "Relu", "Conv"),
    ),
    "MaxPool": Net(
        f"{_HEAD} {{ a = Conv{_P}(x, w1, b1) r = Relu(a)"
        f" m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) y = Conv{_P}(m, w2) }}",
        _TWO,
        {"QLinearConv": 2, "NhwcMaxPool": 1},
        ("Relu", "Conv", "MaxPool"),
    ),
    "GlobalAveragePool": Net(
        f"{_HEAD} {{ a = Conv{_P}(x, w1, b1) g = GlobalAveragePool(a) y = Conv(g, wp) }}",
        {**_TWO, "wp": conv(8, 16, 1)},
        {"QLinearConv": 2, "QLinearGlobalAveragePool": 1},
        ("GlobalAveragePool", "Conv"),
    ),
    "AveragePool": Net(
        f"{_HEAD} {{ a = Conv{_P}(x, w1, b1)"
        f" g = AveragePool<kernel_shape=[2,2], strides=[2,2]>(a) y = Conv(g, w2) }}",
        _TWO,
        {"QLinearConv": 2, "QLinearAveragePool": 1},
        ("AveragePool", "Conv"),
    ),
    "LeakyRelu": Net(
        f"{_HEAD} {{ a = Conv{_P}(x, w1, b1) r = LeakyRelu<alpha=0.1>(a) y = Conv{_P}(r, w2) }}",
        _TWO,
        {"QLinearConv": 2, "QLinearLeakyRelu": 1},
        ("LeakyRelu", "Conv"),
    ),
    "squeeze and excite": Net(
        f"{_HEAD} {{ a = Conv{_P}(x, w1, b1) g = GlobalAveragePool(a) e = Conv(g, we)"
        f" s = Sigmoid(e) m = Mul(a, s) y = Conv{_P}(m, w2) }}",
        {**_TWO, "we": conv(16, 16, 1)},
        {
            "QLinearConv": 3,
            "QLinearSigmoid": 1,
            "QLinearMul": 1,
            "QLinearGlobalAveragePool": 1,
        },
        ("Sigmoid", "Mul", "Conv"),
    ),
    "Add of a constant": Net(
        f"{_HEAD} {{ a = Conv{_P}(x, w1, b1) s = Add(a, k) y = Conv{_P}(s, w2) }}",
        {**_TWO, "k": normal(1, 16, 10, 10, seed=5)},
        {"QLinearConv": 2, "QLinearAdd": 1},
        ("Add", "Conv"),
    ),
    "Gemm": Net(
        "(float[N,16] x) => (float[N,5] y) { a = Gemm(x, w1, b1) r = Relu(a) y = Gemm(r, w2, b2) }",
        {"w1": normal(16, 24), "b1": normal(24), "w2": normal(24, 5), "b2": normal(5)},
        {"QGemm": 2},
        ("Gemm", "Relu"),
        (1, 0),
        (1, 16),
    ),
    "MatMul": Net(
        "(float[N,16] x) => (float[N,5] y) { y = MatMul(x, w) }",
        {"w": normal(16, 5)},
        {"MatMulIntegerToFloat": 1},
        ("MatMul",),
        (1, 0),
        (1, 16),
    ),
    "MatMul Add Relu MatMul": Net(
        "(float[N,16] x) => (float[N,5] y)"
        " { a = MatMul(x, w1) s = Add(a, b1) r = Relu(s) y = MatMul(r, w2) }",
        {"w1": normal(16, 24), "b1": normal(24), "w2": normal(24, 5)},
        {"QGemm": 1, "MatMulIntegerToFloat": 1},
        ("MatMul", "Gemm", "Add", "Relu"),
        (1, 0),
        (1, 16),
    ),
    "rank 3": Net(
        "(float[N,4,16] x) => (float[N,4,5] y)"
        " { a = MatMul(x, w1) s = Add(b1, a) r = Relu(s) y = MatMul(r, w2) }",
        {"w1": normal(16, 24), "b1": normal(24), "w2": normal(24, 5)},
        {"QGemm": 1, "MatMulIntegerToFloat": 1},
        ("MatMul", "Gemm", "Add", "Relu"),
        (1, 0),
        (1, 4, 16),
    ),
    "head": Net(
        "(float[N,8,10,10] x) => (float[N,5] y) { a = Conv(x, w1, b1) r = Relu(a)"
        " g = GlobalAveragePool(r) f = Flatten(g) y = Gemm<transB=1>(f, wf, bf) }",
        {**_TWO, "wf": normal(5, 16), "bf": normal(5)},
        {"QLinearConv": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1},
        ("Conv", "Gemm", "GlobalAveragePool", "Relu"),
        (1, 0),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_optimized_graph(name: str) -> None:
    net = NETS[name]
    found = optimized_ops(quantize(net.model(), net.feeds()))
    assert {op: found[op] for op in net.integer} == net.integer
    assert {op: found[op] for op in net.gone} == dict.fromkeys(net.gone, 0)
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == net.edges


@pytest.mark.parametrize("method", ["min_max", "mse"])
@pytest.mark.parametrize("name", NETS)
def test_close_to_float_and_to_its_own_fake_quantization(name: str, method: str) -> None:
    net = NETS[name]
    model, feeds = net.model(), net.feeds()
    result = quantize(model, feeds, method=method)
    feed = {"x": np.concatenate([f["x"] for f in net.feeds(12)[8:]])}
    (reference,), (integer,) = run(model, feed), run(result, feed)
    # without optimizations Q and DQ run as such, and all between them in float
    (simulated,) = run(result, feed, optimize=False)
    assert sqnr(reference, integer) >= 25
    assert sqnr(simulated, integer) >= 34


@pytest.mark.parametrize("name", NETS)
def test_other_targets_are_close_too(name: str) -> None:
    net = NETS[name]
    model, feeds = net.model(), net.feeds()
    feed = {"x": np.concatenate([f["x"] for f in net.feeds(12)[8:]])}
    (reference,) = run(model, feed)
    for target in ("onnxruntime-arm", "openvino", "tensorrt", "paddle"):
        result = quantize(model, feeds, target=target)
        assert sqnr(reference, run(result, feed, optimize=False)[0]) >= 22, target


# the model as stored


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {o: n for n in model.graph.node for o in n.output}


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    nodes: dict[str, onnx.NodeProto] = {n.name: n for n in model.graph.node}
    return nodes[name]


def dequantized(model: onnx.ModelProto, tensor: str) -> tuple[str, Array, Array] | None:
    """Source, scale and zero point if a DequantizeLinear gives the tensor."""
    node = producers(model).get(tensor)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    values = weights_of(model)
    return node.input[0], values[node.input[1]], values[node.input[2]]


def test_weights_are_symmetric_int8_per_channel() -> None:
    net = NETS["Conv Relu Conv"]
    result = quantize(net.model(), net.feeds())
    values = weights_of(result)
    for node, w in (("n_a", net.weights["w1"]), ("n_y", net.weights["w2"])):
        found = dequantized(result, node_of(result, node).input[1])
        assert found is not None
        source, scale, zero = found
        q = values[source]
        assert q.dtype == zero.dtype == np.int8
        assert not zero.any()
        assert q.shape == w.shape
        # every channel uses its whole range, and -128 is not in it
        assert (np.abs(q.astype(int)).max(axis=(1, 2, 3)) == 127).all()
        np.testing.assert_allclose(scale, np.abs(w).max(axis=(1, 2, 3)) / 127, rtol=1e-6)
        np.testing.assert_array_equal(q, np.rint(w / scale.reshape(-1, 1, 1, 1)))


def test_granularity_tensor() -> None:
    net = NETS["Conv Relu Conv"]
    result = quantize(net.model(), net.feeds(), granularity="tensor")
    found = dequantized(result, node_of(result, "n_a").input[1])
    assert found is not None
    assert found[1].shape == found[2].shape == ()
    assert optimized_ops(result)["QLinearConv"] == 2


@pytest.mark.parametrize("name", ["Conv Relu Conv", "depthwise", "Gemm", "head"])
def test_bias_scale_is_exactly_the_product(name: str) -> None:
    net = NETS[name]
    result = quantize(net.model(), net.feeds())
    checked = 0
    for node in result.graph.node:
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
            continue
        parts = [dequantized(result, name) for name in node.input]
        assert parts[0] is not None
        assert parts[1] is not None
        assert parts[2] is not None
        product = np.float32(parts[0][1]) * parts[1][1].astype(np.float32)
        assert parts[2][1].dtype == np.float32
        assert parts[2][1].tobytes() == product.astype(np.float32).tobytes()
        assert weights_of(result)[parts[2][0]].dtype == np.int32
        checked += 1
    assert checked > 0


def test_zero_points_are_stored_and_scalar() -> None:
    net = NETS["residual Add"]
    result = quantize(net.model(), net.feeds())
    values = weights_of(result)
    nodes = [n for n in result.graph.node if n.op_type == "QuantizeLinear"]
    assert nodes
    for node in nodes:
        assert len(node.input) == 3
        assert values[node.input[2]].shape == ()
        assert values[node.input[2]].dtype == np.uint8


def test_views_share_their_input_s_parameters() -> None:
    net = NETS["MaxPool"]
    result = quantize(net.model(), net.feeds())
    before = dequantized(result, node_of(result, "n_m").input[0])
    after = dequantized(result, node_of(result, "n_y").input[0])
    assert before is not None
    assert after is not None
    assert before[1:] == after[1:]


@pytest.mark.parametrize("also", [False, True])
@pytest.mark.parametrize("ruled", [False, True])
def test_parts_that_only_a_concat_reads_have_its_parameters(also: bool, ruled: bool) -> None:
    """The wide part sets the range; the narrow one is tied unless something else reads it.

    Or unless a rule says what its range is.
    """
    weights = {
        "w1": conv(16, 8)[:, :, :1, :1] * np.float32(0.1),
        "w4": conv(8, 8, seed=3)[:, :, :1, :1],
        "w5": conv(8, 24, seed=4),
        "w6": conv(8, 16, seed=5)[:, :, :1, :1],
    }
    end, second = (" z = Conv(p, w6)", ", float[N, 8, 10, 10] z") if also else ("", "")
    model = build(
        f"(float[N, 8, 10, 10] x) => (float[N, 8, h, w] y{second}) {{"
        f" p = Conv(x, w1) q = Conv(x, w4) c = Concat<axis = 1>(p, q) y = Conv(c, w5){end} }}",
        {name: weights[name] for name in ("w1", "w4", "w5", *(["w6"] if also else []))},
    )
    rules = (onnxq.Rule(nodes=("p",), method="min_max"),) if ruled else ()
    result = quantize(model, NETS["Concat"].feeds(), rules=rules)
    values = weights_of(result)
    scales = {
        node.input[0]: float(values[node.input[1]])
        for node in result.graph.node
        if node.op_type == "QuantizeLinear"
    }
    assert scales["q"] == scales["c"]
    free = also or ruled
    assert (scales["p"] < scales["c"] / 2) if free else (scales["p"] == scales["c"])


@pytest.mark.parametrize("target", ["paddle", "tensorrt"])
@pytest.mark.parametrize("name", ["residual Add", "squeeze and excite", "Gemm"])
def test_symmetric_targets_have_zero_points_of_0(name: str, target: str) -> None:
    net = NETS[name]
    result = quantize(net.model(), net.feeds(), target=target)
    values = weights_of(result)
    quantizers = [n for n in result.graph.node if n.op_type in QDQ]
    assert quantizers
    for node in quantizers:
        zero = values[node.input[2]]
        assert zero.dtype in (np.int8, np.int32)
        assert not zero.any()


def test_tensorrt_biases_are_float_and_only_the_skip_input_is_quantized() -> None:
    net = NETS["residual Add"]
    # the skip is not the input, but a Relu, as in a real network
    text = net.text.replace("s = Add(b, x)", "k = Relu(x) s = Add(b, k)")
    result = quantize(build(text, net.weights), net.feeds(), target="tensorrt", accuracy="none")
    assert all(w.dtype != np.int32 for w in weights_of(result).values())
    assert node_of(result, "n_a").input[2] == "b1"
    np.testing.assert_array_equal(weights_of(result)["b1"], net.weights["b1"])
    add = node_of(result, "n_s")
    assert [dequantized(result, name) is not None for name in add.input] == [False, True]
    for name in ("n_a", "n_b", "n_y"):
        conv_node = node_of(result, name)
        assert dequantized(result, conv_node.input[0]) is not None
        assert dequantized(result, conv_node.input[1]) is not None


# what stays float


def test_excluded_conv_in_the_middle_stays_float() -> None:
    text = (
        f"{_HEAD} {{ a = Conv{_P}(x, w1, b1) r = Relu(a) m = Conv{_P}(r, wm, b1) s = Relu(m)"
        f" y = Conv{_P}(s, w2) }}"
    )
    wm = conv(16, 16, seed=4)
    wm *= np.logspace(-2, 0, 16, dtype=np.float32).reshape(-1, 1, 1, 1)  # bad per tensor
    model = build(text, {**_TWO, "wm": wm})
    feeds = samples("x", IMAGE)
    rules = [onnxq.Rule(nodes=("n_a", "n_y"), leave_float=False)]  # small as they are
    result = quantize(model, feeds, exclude=["n_m"], rules=rules)
    found = optimized_ops(result)
    assert found["QLinearConv"] == 2
    assert found["Conv"] + found["FusedConv"] == 1
    np.testing.assert_array_equal(weights_of(result)["wm"], wm)
    # the float Conv's own values: what it makes of its input is what it always made
    dq = producers(result)[node_of(result, "n_m").input[0]].output[0]
    probe = onnx.ModelProto()
    probe.CopyFrom(result)
    (guard,) = [n for n in probe.graph.node if n.op_type == "LeakyRelu"]
    for name in (dq, guard.output[0]):
        probe.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        )
    _, x, m = run(probe, feeds[0], optimize=False)
    alone = build(
        f"(float[N,16,10,10] x) => (float[N,c,h,w] y) {{ y = Conv{_P}(x, wm, b1) }}",
        {"wm": wm, "b1": _TWO["b1"]},
    )
    assert_close(run(alone, {"x": x})[0], m)
    (integer,), (simulated,) = run(result, feeds[0]), run(result, feeds[0], optimize=False)
    assert sqnr(simulated, integer) >= 34
    assert sqnr(run(model, feeds[0])[0], integer) >= 25


def test_excluded_conv_stays_float_though_the_quantizer_is_behind_views() -> None:
    """onnxruntime moves a QuantizeLinear up over MaxPool and Reshape, to the Conv."""
    text = (
        f"{_HEAD} {{ a = Conv{_P}(x, w1, b1) r = Relu(a) m = Conv{_P}(r, wm, b1) s = Relu(m)"
        f" p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(s) y = Conv{_P}(p, w2) }}"
    )
    model = build(text, {**_TWO, "wm": conv(16, 16, seed=4)})
    rules = [onnxq.Rule(nodes=("n_a", "n_y"), leave_float=False)]  # small as they are
    result = quantize(model, samples("x", IMAGE), exclude=["n_m"], rules=rules)
    found = optimized_ops(result)
    assert found["QLinearConv"] == 2
    assert found["Conv"] + found["FusedConv"] == 1


def test_excluded_gemm_in_the_middle_stays_float() -> None:
    text = (
        "(float[N,16] x) => (float[N,5] y)"
        " { a = Gemm(x, w1) r = Relu(a) m = Gemm(r, wm) s = Relu(m) y = Gemm(s, w2) }"
    )
    weights = {"w1": normal(16, 24), "wm": normal(24, 24), "w2": normal(24, 5)}
    model, feeds = build(text, weights), samples("x", (1, 16))
    result = quantize(model, feeds, exclude=["n_m"])
    found = optimized_ops(result)
    assert found["QGemm"] == 2
    assert found["Gemm"] + found["FusedGemm"] == 1
    assert sqnr(run(result, feeds[0], optimize=False)[0], run(result, feeds[0])[0]) >= 34


@pytest.mark.parametrize("tail", ["y = Relu(a)", "r = Relu(a) y = Tanh(r)"])
def test_gemm_with_a_relu_before_a_float_reader_runs_on_integers(tail: str) -> None:
    text = f"(float[N,16] x) => (float[N,24] y) {{ a = Gemm(x, w1) {tail} }}"
    model, feeds = build(text, {"w1": normal(16, 24)}), samples("x", (1, 16))
    result = quantize(model, feeds)
    found = optimized_ops(result)
    assert found["FusedGemm"] + found["Gemm"] == 0  # its weight would be dequantized on each run
    assert found["QGemm"] == 1
    assert sqnr(run(model, feeds[0])[0], run(result, feeds[0])[0]) >= 25


def test_tensor_with_float_and_quantized_consumers() -> None:
    text = (
        "(float[N,8,10,10] x) => (float[N,c,h,w] y, float[N,16,10,10] z)"
        f" {{ a = Conv{_P}(x, w1, b1) r = Relu(a) t = Tanh(r) z = Neg(t) y = Conv{_P}(r, w2) }}"
    )
    model, feeds = build(text, _TWO), samples("x", IMAGE)
    result = quantize(model, feeds)
    found = optimized_ops(result)
    assert found["QLinearConv"] == 2
    assert found["Tanh"] == 1
    assert found["Conv"] + found["FusedConv"] == 0
    for a, b in zip(run(model, feeds[0]), run(result, feeds[0]), strict=True):
        assert sqnr(a, b) >= 25


def test_graph_output_that_is_also_consumed() -> None:
    text = (
        "(float[N,8,10,10] x) => (float[N,16,10,10] r, float[N,c,h,w] y)"
        f" {{ a = Conv{_P}(x, w1, b1) r = Relu(a) y = Conv{_P}(r, w2) }}"
    )
    model, feeds = build(text, _TWO), samples("x", IMAGE)
    result = quantize(model, feeds)
    assert [o.name for o in result.graph.output] == ["r", "y"]
    found = optimized_ops(result)
    assert found["QLinearConv"] == 2
    assert found["Conv"] + found["FusedConv"] == 0
    for a, b in zip(run(model, feeds[0]), run(result, feeds[0]), strict=True):
        assert a.shape == b.shape
        assert sqnr(a, b) >= 25


def test_gelu_is_fused_in_float_and_not_touched() -> None:
    text = (
        "(float[N,4,16] x) => (float[N,4,5] y) { a = MatMul(x, w1) s = Add(a, b1)"
        " d = Div(s, root) e = Erf(d) o = Add(e, one) p = Mul(s, o) g = Mul(p, half)"
        " y = MatMul(g, w2) }"
    )
    weights = {"w1": normal(16, 24, scale=0.3), "b1": normal(24), "w2": normal(24, 5)}
    scalars = {
        "root": np.array(2**0.5, np.float32),
        "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
    }
    model, feeds = build(text, {**weights, **scalars}), samples("x", (1, 4, 16))
    assert optimized_ops(model)["BiasGelu"] + optimized_ops(model)["Gelu"] == 1
    found = optimized_ops(quantize(model, feeds))
    assert found["BiasGelu"] + found["Gelu"] == 1
    assert found["Erf"] == 0
    assert found["MatMulIntegerToFloat"] + found["QGemm"] == 2
    assert found["QuantizeLinear"] == 2
    assert found["DequantizeLinear"] == 0


# values at the edge


@pytest.mark.parametrize("target", [X86, "onnxruntime-arm", "paddle", "tensorrt"])
def test_dead_channel_gives_its_bias(target: str) -> None:
    w, b = conv(16, 8), np.zeros(16, np.float32)
    w[3], b[3] = 0, 0.5
    w[5], b[5] = 1e-12, 0.5
    model = build(f"{_HEAD} {{ y = Conv(x, w, b) }}", {"w": w, "b": b})
    feeds = samples("x", IMAGE)
    result = quantize(model, feeds, target=target)
    for optimize in (True, False):
        (y,) = run(result, feeds[0], optimize=optimize)
        step = (np.abs(y).max() * 2) / 255
        assert np.abs(y[:, [3, 5]] - 0.5).max() <= step


def test_dead_channel_gives_its_bias_however_large_the_input_is() -> None:
    w, b = conv(16, 8) * np.array(0.01, np.float32), np.zeros(16, np.float32)
    w[3], b[3] = 0, 0.5
    model = build(f"{_HEAD} {{ y = Conv(x, w, b) }}", {"w": w, "b": b})
    pixels = [{"x": np.abs(normal(*IMAGE, seed=i) * 80).clip(0, 255)} for i in range(4)]
    result = quantize(model, pixels)
    for optimize in (True, False):
        (y,) = run(result, pixels[0], optimize=optimize)
        assert np.abs(y[:, 3] - 0.5).max() <= (y.max() - y.min()) / 255


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_huge_bias_does_not_overflow(granularity: str) -> None:
    w = conv(16, 8) * np.float32(1e-8)
    b = normal(16, seed=3) * np.float32(100)
    model = build(f"{_HEAD} {{ y = Conv(x, w, b) }}", {"w": w, "b": b})
    feeds = samples("x", IMAGE)
    result = quantize(model, feeds, granularity=granularity)
    (reference,) = run(model, feeds[0])
    for optimize in (True, False):
        assert sqnr(reference, run(result, feeds[0], optimize=optimize)[0]) >= 30


def test_constant_zero_input() -> None:
    net = NETS["Conv Relu Conv"]
    zeros = [{"x": np.zeros(IMAGE, np.float32)}] * 3
    result = quantize(net.model(), zeros)
    (y,) = run(result, zeros[0])
    assert np.isfinite(y).all()
    assert sqnr(run(net.model(), zeros[0])[0], y) >= 25


def test_shared_weight_serves_both_readers() -> None:
    w = conv(8, 8)
    model = build(
        f"{_HEAD} {{ a = Conv{_P}(x, w, b) r = Relu(a) y = Conv{_P}(r, w) }}",
        {"w": w, "b": normal(8)},
    )
    feeds = samples("x", IMAGE)
    result = quantize(model, feeds)
    assert sum(v.dtype == np.int8 and v.size == w.size for v in weights_of(result).values()) == 1
    assert optimized_ops(result)["QLinearConv"] == 2
    assert sqnr(run(model, feeds[0])[0], run(result, feeds[0])[0]) >= 25


# the call


def test_default_target_on_this_machine_and_explicit_one_give_the_same_bytes(
    tmp_path: Path,
) -> None:
    from onnxq.targets import default_target

    net = NETS["residual Add"]
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnxq.quantize_static(net.model(), a, net.feeds())
    onnxq.quantize_static(net.model(), b, net.feeds(), target=default_target().name)
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("opset", [11, 12])
def test_old_opset_is_raised(tmp_path: Path, opset: int) -> None:
    net = NETS["Conv Relu6 Conv"]
    report = onnxq.quantize_static(net.model(opset), tmp_path / "q.onnx", net.feeds(), target=X86)
    result = onnx.load(str(tmp_path / "q.onnx"))
    assert result.opset_import[0].version == 13
    assert any(f"raised from {opset} to 13" in note for note in report.notes)
    assert optimized_ops(result)["QLinearConv"] == 2


@pytest.mark.parametrize("opset", opsets(13, 17, 19, 21, 23))
def test_opsets_fuse_alike(opset: int) -> None:
    net = NETS["residual Add"]
    result = quantize(net.model(opset), net.feeds())
    assert result.opset_import[0].version == opset
    found = optimized_ops(result)
    assert {op: found[op] for op in net.integer} == net.integer


def test_inputs_and_outputs_are_those_of_the_float_model() -> None:
    net = NETS["head"]
    model = net.model()
    a, b = open_session(model), open_session(quantize(model, net.feeds()))
    for mine, theirs in ((a.get_inputs(), b.get_inputs()), (a.get_outputs(), b.get_outputs())):
        assert [(v.name, v.type, v.shape) for v in mine] == [
            (v.name, v.type, v.shape) for v in theirs
        ]


def test_nothing_to_quantize_gives_a_copy(tmp_path: Path) -> None:
    net = NETS["Conv Relu Conv"]
    model, feeds = net.model(), net.feeds()
    report = onnxq.quantize_static(
        model, tmp_path / "q.onnx", feeds, target=X86, exclude_ops=["Conv"]
    )
    assert report.weights.count == 0
    assert not report.placement.activations
    assert len([skip for skip in report.skips if skip.op_type == "Conv"]) == 2
    assert_close(run(model, feeds[0])[0], run(tmp_path / "q.onnx", feeds[0])[0])


def test_report_counts_what_runs_on_integers(tmp_path: Path) -> None:
    net = NETS["residual Add"]
    report = onnxq.quantize_static(net.model(), tmp_path / "q.onnx", net.feeds(), target=X86)
    assert report.operators == {"Add": 1, "Conv": 3}
    assert report.weights.count == 3
    assert report.settings["samples"] == 7  # of 8, one is held out
    assert report.bytes_after == (tmp_path / "q.onnx").stat().st_size


def test_no_float_between_integer_nodes() -> None:
    """In the optimized graph each DequantizeLinear feeds the output, none a node."""
    net = NETS["residual Add"]
    graph = optimized_graph(quantize(net.model(), net.feeds()))
    outputs = {o.name for o in graph.output}
    found = [n for n in graph.node if n.op_type == "DequantizeLinear"]
    assert [n.output[0] in outputs for n in found] == [True]
