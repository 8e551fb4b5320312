"""Convs on images of few channels get channels of zeros: which do, and that no bit changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from benchmarks.isa import folder_for, machines
from onnxq.errors import ModelError
from onnxq.isa import host_isa
from onnxq.numerics.quantize import with_zero_channels
from tests.models import Array, Feed, build, normal, ops, optimized_ops, run, samples, weights_of

X86 = "onnxruntime-x86"
AVX2 = machines()[1]
needs_qemu = pytest.mark.skipif(AVX2.missing is not None, reason=str(AVX2.missing))
NET = (
    "(float[N,3,32,32] x) => (float[N,c,h,w] y) {"
    " a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, b1) r = Relu(a) y = Conv(r, w2) }"
)
WEIGHTS = {"w1": normal(24, 3, 3, 3), "b1": normal(24), "w2": normal(8, 24, 1, 1, seed=1)}


def net(channels: int = 3, outputs: int = 24, kernel: Sequence[int] = (3, 3)) -> onnx.ModelProto:
    weights = {"w1": normal(outputs, channels, *kernel), "w2": normal(8, outputs, 1, 1, seed=1)}
    return build(
        f"(float[N,{channels},32,32] x) => (float[N,c,h,w] y) {{"
        " a = Conv(x, w1) r = Relu(a) y = Conv(r, w2) }",
        weights,
    )


def feeds(channels: int = 3) -> list[Feed]:
    """Not around 0, so that the zero point of the image is not in the middle."""
    found = samples("x", (1, channels, 32, 32))
    return [{"x": (feed["x"] + np.float32(0.7))} for feed in found]


def quantize(model: onnx.ModelProto, channels: int = 3, **options: Any) -> onnx.ModelProto:
    options = {"target": X86, "method": "min_max", **options}
    return onnxq.quantize_static(model, None, feeds(channels), **options)


def unpadded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without its Pads and the zeros in the weights behind them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    pads = {node.output[0]: node for node in graph.node if node.op_type == "Pad"}
    trimmed: set[str] = set()
    for node in graph.node:
        dq = producers.get(node.input[0])
        if node.op_type == "Conv" and dq is not None and dq.input[0] in pads:
            count = int(onnx.numpy_helper.to_array(constants[pads[dq.input[0]].input[1]])[5])
            tensor = constants[producers[node.input[1]].input[0]]
            w = onnx.numpy_helper.to_array(tensor)
            if tensor.name not in trimmed:
                assert not w[:, -count:].any()
                tensor.CopyFrom(onnx.numpy_helper.from_array(w[:, :-count].copy(), tensor.name))
                trimmed.add(tensor.name)
            dq.input[0] = pads[dq.input[0]].input[0]
    for node in pads.values():
        graph.node.remove(node)
    onnx.checker.check_model(copy, full_check=True)
    return copy


def assert_same_bits(model: onnx.ModelProto, inputs: Sequence[Feed]) -> None:
    plain = unpadded(model)
    for feed in inputs:
        for optimize in (True, False):
            pairs = zip(
                run(model, feed, optimize=optimize),
                run(plain, feed, optimize=optimize),
                strict=True,
            )
            assert all(np.array_equal(a, b) and np.isfinite(a).all() for a, b in pairs)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_no_bit_changes_and_all_stays_fused(granularity: str, symmetric: bool) -> None:
    model = quantize(build(NET, WEIGHTS), granularity=granularity, symmetric=symmetric)
    weights = weights_of(model)
    assert weights["w1_quantized"].shape == (24, 4, 3, 3)
    assert weights["w2_quantized"].shape == (8, 24, 1, 1)
    (pad,) = [node for node in model.graph.node if node.op_type == "Pad"]
    assert list(weights[pad.input[1]]) == [0, 0, 0, 0, 0, 1, 0, 0]
    assert (weights[pad.input[2]] == 128) == symmetric
    assert_same_bits(model, feeds())
    before, after = optimized_ops(unpadded(model)), optimized_ops(model)
    assert after == before + Counter(["Pad"])
    # with a zero point of 128 the Relu has to run, and its Conv with it
    assert after["QLinearConv"] == (1 if symmetric else 2)


@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "to"),
    [
        (3, 16, (3, 3), 4),
        (3, 16, (1, 3), 4),
        (3, 16, (5, 5), 4),
        (3, 32, (7, 7), 4),
        (2, 16, (3, 3), 4),
        (1, 24, (3, 3), 4),
        # what would lose
        (3, 12, (3, 3), 3),
        (3, 16, (7, 7), 3),
        (3, 64, (11, 11), 3),
        (3, 16, (1, 1), 3),
        (2, 16, (5, 5), 2),
        (1, 16, (3, 3), 1),
        (4, 16, (3, 3), 4),
        (5, 16, (3, 3), 5),
    ],
)
def test_only_what_gains_is_padded(
    channels: int, outputs: int, kernel: tuple[int, int], to: int
) -> None:
    model = quantize(net(channels, outputs, kernel), channels)
    assert weights_of(model)["w1_quantized"].shape == (outputs, to, *kernel)
    assert ops(model)["Pad"] == (to > channels)
    assert_same_bits(model, feeds(channels)[:2])


@pytest.mark.parametrize("target", ["onnxruntime-arm", "openvino", "paddle", "tensorrt"])
def test_other_targets_are_not_padded(target: str) -> None:
    model = quantize(build(NET, WEIGHTS), target=target)
    assert not ops(model)["Pad"]
    assert weights_of(model)["w1_quantized"].shape == (24, 3, 3, 3)


def test_sixteen_bits_are_not_padded() -> None:
    assert not ops(quantize(build(NET, WEIGHTS), bits=16, method="abs_max"))["Pad"]


def test_one_pad_serves_the_convs_that_gain_and_no_other() -> None:
    model = quantize(
        build(
            "(float[N,3,32,32] x) => (float[N,16,30,30] a, float[N,16,30,30] b,"
            " float[N,16,32,32] c, float[N,3,30,30] d, float[N,3,32,32] e) {"
            " a = Conv(x, w1) b = Conv(x, w2) c = Conv(x, w3) d = Conv<group=3>(x, w4)"
            " e = Sin(x) }",
            {
                "w1": normal(16, 3, 3, 3),
                "w2": normal(16, 3, 3, 3, seed=1),
                "w3": normal(16, 3, 1, 1, seed=2),
                "w4": normal(3, 1, 3, 3, seed=3),
            },
        )
    )
    (pad,) = [node for node in model.graph.node if node.op_type == "Pad"]
    readers = {
        conv.name: dq.input[0] == pad.output[0]
        for conv in model.graph.node
        for dq in model.graph.node
        if conv.op_type == "Conv" and dq.output[0] == conv.input[0]
    }
    assert readers == {"n_a": True, "n_b": True, "n_c": False, "n_d": False}
    assert_same_bits(model, feeds()[:2])


def test_a_weight_of_two_convs_is_padded_for_both_or_not_at_all() -> None:
    text = (
        "(float[N,3,32,32] x) => (float[N,16,30,30] a, float[N,16,30,30] b) {"
        " a = Conv(x, w) %s b = Conv(v, w) }"
    )
    rules = [onnxq.Rule(ops=("Conv",), leave_float=False)]
    weights = {"w": normal(16, 3, 3, 3)}
    arithmetic = "u = Sub(x, c) v = Mul(c, u)"
    both = quantize(build(text % arithmetic, {**weights, "c": normal(3, 1, 1)}), rules=rules)
    assert ops(both)["Pad"] == 2
    assert weights_of(both)["w_quantized"].shape == (16, 4, 3, 3)
    assert_same_bits(both, feeds()[:2])
    inner = "u = Conv<pads=[1,1,1,1]>(x, w0) v = Relu(u)"
    weights["w0"] = normal(3, 3, 3, 3, seed=1)
    one = quantize(build(text % inner, weights), rules=rules)
    assert not ops(one)["Pad"]
    assert weights_of(one)["w_quantized"].shape == (16, 3, 3, 3)


@pytest.mark.parametrize(
    ("before", "shape"),
    [
        ("v = Transpose<perm=[0,3,1,2]>(x)", (1, 32, 32, 3)),
        ("t = Transpose<perm=[0,3,1,2]>(x) v = Mul(t, c)", (1, 32, 32, 3)),
        ("s = Sin(x) v = Add(x, s)", (1, 3, 32, 32)),
        ("u = Conv<pads=[1,1,1,1]>(x, w0) v = Relu(u)", (1, 3, 32, 32)),
    ],
)
def test_what_need_not_come_channels_first_is_not_padded(
    before: str, shape: tuple[int, ...]
) -> None:
    text = f"(float[{','.join(map(str, shape))}] x) => (float[N,16,30,30] y) {{ "
    weights = {"w": normal(16, 3, 3, 3), "w0": normal(3, 3, 3, 3), "c": normal(3, 1, 1)}
    model = build(f"{text}{before} y = Conv(v, w) }}", weights)
    result = onnxq.quantize_static(model, None, samples("x", shape), target=X86)
    assert isinstance(result, onnx.ModelProto)
    assert weights_of(result)["w_quantized"].shape == (16, 3, 3, 3)
    assert not ops(result)["Pad"]


def test_small_images_are_not_padded() -> None:
    images = samples("x", (1, 3, 14, 14))
    model = build(NET.replace("32,32", "14,14"), WEIGHTS)
    assert not ops(onnxq.quantize_static(model, None, images, target=X86))["Pad"]


def test_a_weight_that_is_read_in_float_too_keeps_its_shape_there() -> None:
    text = (
        "(float[N,3,32,32] x) => (float[N,16,30,30] a, float[16,3,3,3] s) {"
        " a = Conv(x, w) s = Sin(w) }"
    )
    model = quantize(build(text, {"w": normal(16, 3, 3, 3)}))
    assert weights_of(model)["w"].shape == (16, 3, 3, 3)
    assert weights_of(model)["w_quantized"].shape == (16, 4, 3, 3)


def test_integers_of_the_caller_are_padded(tmp_path: Path) -> None:
    path, floats = tmp_path / "q.onnx", build(NET, WEIGHTS)
    report = onnxq.quantize_static(
        floats, path, feeds(), target=X86, method="min_max", integer_io=True
    )
    model = onnx.load(path)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert ops(model)["Pad"] == 1
    io = report.settings["integer_io"]["x"]
    q: list[Array] = [np.rint(f["x"] / io["scale"] + io["zero_point"]) for f in feeds()]
    assert_same_bits(model, [{"x": x.clip(0, 255).astype(np.uint8)} for x in q])
    layers = {row.tensor: row for row in onnxq.compare(floats, path, feeds(), layers=True).layers}
    assert {"x", "w1", "w2"} <= layers.keys()
    assert layers["x"].alone > 30


def test_what_reads_the_file_knows_the_padding(tmp_path: Path) -> None:
    path, floats = tmp_path / "q.onnx", tmp_path / "f.onnx"
    onnx.save(build(NET, WEIGHTS), floats)
    report = onnxq.quantize_static(floats, path, feeds(), target=X86, method="min_max")
    assert report.operators == {"Conv": 2}
    (note,) = [note for note in report.notes if "zeros" in note]
    assert "n_a;" in note
    comparison = onnxq.compare(floats, path, feeds(), layers=True)
    layers = {row.tensor: row for row in comparison.layers}
    assert {"x", "r", "w1", "w2"} <= layers.keys()
    assert layers["w1"].alone > 30
    fusion = onnxq.benchmark(floats, path, seconds=0.1).fusion
    assert {(s.op_type, s.reason.value) for s in fusion.strays} <= {
        ("QuantizeLinear", "model-input"),
        ("DequantizeLinear", "model-output"),
    }
    with pytest.raises(ModelError, match="quantized already"):
        onnxq.quantize_static(path, None, feeds())
    plan = str(onnxq.plan(floats, onnxq.StaticRecipe(target=X86)))
    assert "in an int8 kernel, with 1 more input channel of zeros, 24 scales" in plan


def test_the_same_bytes_again() -> None:
    first, second = (quantize(build(NET, WEIGHTS)).SerializeToString() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("accuracy", ["none", "best"])
def test_integers_that_a_pass_or_the_guard_chose_are_kept(accuracy: str) -> None:
    model = quantize(build(NET, WEIGHTS), accuracy=accuracy, isa="avx2", weight_correction=True)
    assert ops(model)["Pad"] == 1
    assert_same_bits(model, feeds())


@pytest.mark.parametrize("outputs", [12, 16])
def test_the_guard_counts_with_the_zeros(tmp_path: Path, outputs: int) -> None:
    """The neighbour of a third channel is a zero; without them, it is that of the next position."""
    w = np.zeros((outputs, 3, 3, 3), np.float32)
    w[:, (0, 2)] = 1
    data = [{"x": np.abs(feed["x"])} for feed in feeds()]
    options: dict[str, Any] = {"target": X86, "method": "min_max", "isa": "avx2"}
    for channels in (0, 1):
        w[:channels, 1] = 1  # with the first, beyond int16 in any case
        model = build(
            "(float[N,3,32,32] x) => (float[N,8,h,w] y) { a = Conv(x, w) r = Relu(a)"
            " y = Conv(r, v) }",
            {"w": w, "v": normal(8, outputs, 1, 1, scale=0.1)},
        )
        report = onnxq.quantize_static(model, tmp_path / "q.onnx", data, **options)
        assert report.saturation is not None
        found = {row.node: row.channels for row in report.saturation.raised}
        assert found.get("n_a", 0) == (channels if outputs == 16 else 12)


@needs_qemu
def test_the_real_kernels_pair_with_the_zeros(tmp_path: Path) -> None:
    """On AVX2 the guarded file is exact, and the one without the zeros is not."""
    w = np.abs(normal(32, 3, 3, 3))
    w[:, 1] *= 0.3  # so that some pairs fit, and others do not
    text = (
        "(float[1,3,32,32] x) => (float[1,4,h,w] y) { a = Conv(x, w) r = Relu(a) y = Conv(r, v) }"
    )
    model = build(text, {"w": w, "v": normal(4, 32, 1, 1, seed=1)})
    data = [{"x": np.abs(feed["x"])} for feed in feeds()]
    statistics, path = onnxq.calibrate(model, data), tmp_path / "q.onnx"
    report = onnxq.quantize_static(
        model, path, statistics=statistics, target=X86, isa="avx2", method="min_max"
    )
    assert report.saturation is not None
    assert {row.node for row in report.saturation.raised} == {"n_a", "n_y"}
    assert report.saturation.possible == ()
    assert ops(path)["Pad"] == 1
    bright = np.full((1, 3, 32, 32), 9, np.float32)
    inputs = np.stack([bright, *(feed["x"] for feed in data[:2])])
    folders = [folder_for(tmp_path, "q", path, inputs)]
    plain = tmp_path / "plain.onnx"
    onnx.save(unpadded(onnx.load(path)), plain)
    folders.append(folder_for(tmp_path, "plain", plain, inputs))
    here, there = machines()[0].run(folders), AVX2.run(folders)
    assert np.array_equal(here[0], there[0])
    if host_isa() == "vnni":
        assert not np.array_equal(here[1], there[1])


def test_zero_channels_stand_behind_the_others() -> None:
    x = normal(2, 3, 4, 5)
    padded = with_zero_channels(x, 2)
    assert padded.shape == (2, 5, 4, 5)
    assert np.array_equal(padded[:, :3], x)
    assert not padded[:, 3:].any()
    assert with_zero_channels(x, 0) is x
