"""Real models and small networks back to Paddle: the same numbers, small files, int8 kernels."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from benchmarks import assets
from onnxq_paddle import EmitReport, to_paddle
from onnxq_paddle.arrays import read_arrays, write_arrays
from onnxq_paddle.child import call
from tests.models import Array, build, normal, samples

MODELS = assets.ASSETS / "models"
FLOAT: dict[str, Mapping[str, Sequence[int]]] = {
    "other/fastestdet.onnx": {},
    "other/silero_vad.onnx": {"input": (1, 288), "state": (2, 1, 128)},
    "other/stories260K.onnx": {},
    "cifar10/vit.onnx": {},
}
CONVNET = """(float[N, 3, 32, 32] x) => (float[N, 10] y) {
    a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w1, b1)
    r = Relu(a)
    d = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 32>(r, w2, b2)
    c = Clip(d, low, high)
    p = Conv<kernel_shape = [1, 1]>(c, w3, b3)
    s = Add(p, r)
    t = Relu(s)
    q = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(t, w4, b3)
    u = Conv<kernel_shape = [1, 1], strides = [2, 2]>(t, w3, b3)
    v = Add(q, u)
    z = Relu(v)
    g = GlobalAveragePool(z)
    f = Flatten(g)
    y = Gemm<transB = 1>(f, w5, b5)
}"""


def convnet() -> onnx.ModelProto:
    """Every kind of residual: behind a Relu, and a signed one from a projection."""
    weights: dict[str, Array] = {
        "w1": normal(32, 3, 3, 3, scale=0.3),
        "w2": normal(32, 1, 3, 3, scale=0.4),
        "w3": normal(32, 32, 1, 1, scale=0.2),
        "w4": normal(32, 32, 3, 3, scale=0.1),
        "w5": normal(10, 32, scale=0.2),
        **{f"b{i}": normal(n, seed=i, scale=0.1) for i, n in ((1, 32), (2, 32), (3, 32), (5, 10))},
        "low": np.asarray(0, np.float32),
        "high": np.asarray(6, np.float32),
    }
    return build(CONVNET, weights)


def attention() -> onnx.ModelProto:
    """A product of rank 3 with a bias, which is no convolution."""
    text = """(float[N, 64, 32] x) => (float[N, 64, 48] y) {
        h = MatMul(x, w1)
        r = Relu(h)
        y = MatMul(r, w2)
    }"""
    return build(text, {"w1": normal(32, 64, scale=0.2), "w2": normal(64, 48, scale=0.2)})


@pytest.mark.parametrize("name", FLOAT)
def test_float_models(name: str, tmp_path: Path) -> None:
    file = MODELS / name
    if not file.is_file():
        pytest.skip("the models of the assets are not here")
    report = to_paddle(file, tmp_path / "out", shapes=FLOAT[name])
    assert report.kind == "float"
    assert report.judgement is not None
    assert max(one.relative_error for one in report.judgement.differences) < 5e-6


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EmitReport]:
    folder = tmp_path_factory.mktemp("static")
    onnxq.quantize_static(
        convnet(), folder / "q.onnx", samples("x", (1, 3, 32, 32)), target="paddle", verify=False
    )
    held = samples("x", (1, 3, 32, 32), count=32, seed=9)
    return folder, to_paddle(folder / "q.onnx", folder / "out", samples=held, reference=convnet())


def test_static_model_runs_in_int8(static: tuple[Path, EmitReport]) -> None:
    _, report = static
    judgement = report.judgement
    assert report.kind == "static"
    assert judgement is not None
    # five convolutions, the projection, and the Gemm as a convolution
    assert (judgement.int8_kernels, judgement.float_kernels) == (6, 0)
    (noise,) = judgement.noise
    assert noise.onnxruntime > 25
    assert noise.paddle["oneDNN int8"] > noise.onnxruntime - 1
    assert noise.paddle["plain"] == pytest.approx(noise.onnxruntime, abs=0.5)


def test_what_is_emitted_is_read_as_written(static: tuple[Path, EmitReport]) -> None:
    """The names are those of the ONNX model, and the weights are int8."""
    folder, report = static
    feed = {"x": normal(2, 3, 32, 32)}
    write_arrays(folder / "feed.npz", feed)
    request = {"model": str(report.model), "params": str(report.params)}
    files = {"feeds": [str(folder / "feed.npz")], "outputs": [str(folder / "got.npz")]}
    assert call("run", {**request, **files})["outputs"] == ["y"]
    assert read_arrays(folder / "got.npz")["y"].shape == (2, 10)
    weights = sum(t.size for t in map(onnx.numpy_helper.to_array, convnet().graph.initializer))
    assert report.params.stat().st_size < 1.6 * weights
    text = report.model.read_bytes()
    assert all(name in text for name in (b"\x01x", b"\x01r", b"\x01z", b"leaky_relu"))
    assert str(Path.cwd()).encode() not in text


def test_same_bytes_for_the_same_model(tmp_path: Path) -> None:
    sums = []
    for name in ("one", "two"):
        report = to_paddle(convnet(), tmp_path / name, verify=False)
        assert report.judgement is None
        sums.append(
            [hashlib.sha256(f.read_bytes()).hexdigest() for f in (report.model, report.params)]
        )
    assert sums[0] == sums[1]


@pytest.mark.parametrize(("bits", "most"), [(8, 0.30), (16, 0.54)])
def test_weight_only(bits: int, most: float, tmp_path: Path) -> None:
    wide = build(
        "(int64[N, 4] i) => (float[N, 4, 256] y) { e = Gather(t, i) h = MatMul(e, w) "
        "y = Add(h, b) }",
        {"t": normal(512, 256), "w": normal(256, 256), "b": normal(256)},
    )
    float_size = to_paddle(wide, tmp_path / "float", verify=False).bytes
    for encoding in ("qdq", "fold"):
        file = tmp_path / f"{encoding}.onnx"
        onnxq.quantize_dynamic(wide, file, bits=bits, encoding=encoding)
        report = to_paddle(file, tmp_path / encoding)
        assert report.kind == "weight-only"
        assert report.bytes < most * float_size
        assert report.judgement is not None
        assert max(one.relative_error for one in report.judgement.differences) < 1e-5


def test_product_of_rank_three(tmp_path: Path) -> None:
    data = samples("x", (1, 64, 32))
    onnxq.quantize_static(attention(), tmp_path / "q.onnx", data, target="paddle", verify=False)
    report = to_paddle(tmp_path / "q.onnx", tmp_path / "out", samples=data)
    assert report.judgement is not None
    assert report.judgement.int8_kernels == 2
    assert report.judgement.noise[0].paddle["oneDNN int8"] > 30


def test_pir(tmp_path: Path) -> None:
    file = tmp_path / "d.onnx"
    onnxq.quantize_dynamic(convnet(), file)
    report = to_paddle(file, tmp_path / "out", format="pir")
    assert report.model.name == "inference.json"
    assert report.judgement is not None
    assert max(one.relative_error for one in report.judgement.differences) < 1e-5


SMALL: dict[str, tuple[str, dict[str, Array]]] = {
    "lp": (
        "(float[2, 3, 4] x) => (float[2, 3, 4] y) { y = LpNormalization<axis = 1, p = 1>(x) }",
        {},
    ),
    "gru": (
        "(float[5, 2, 3] x) => (float[5, 1, 2, 4] y, float[1, 2, 4] h) "
        "{ y, h = GRU<hidden_size = 4, linear_before_reset = 1>(x, w, r, b) }",
        {"w": normal(1, 12, 3), "r": normal(1, 12, 4, seed=1), "b": normal(1, 24, seed=2)},
    ),
    "norm": (
        "(float[2, 3, 8] x) => (float[2, 3, 8] y) { y = LayerNormalization(x, s, b) }",
        {"s": normal(8), "b": normal(8, seed=1)},
    ),
    "swish": (
        "(float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) { s = Sigmoid(x) m = Mul(s, x) "
        "h = HardSigmoid<alpha = 0.16666667, beta = 0.5>(m) y = Mul(m, h) }",
        {},
    ),
    "divide": (
        "(float[N, 4, 8] x) => (float[N, 4, 8] y) { s = Exp(x) d = Div(one, s) y = Sub(one, d) }",
        {"one": np.asarray(1, np.float32)},
    ),
    "half_pixel": (
        "(float[N, 4, 8, 8] x) => (float[N, 4, 16, 16] y) "
        '{ y = Resize<mode = "linear", coordinate_transformation_mode = "half_pixel">(x, , s) }',
        {"s": np.array([1, 1, 2, 2], np.float32)},
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_operators_in_both_modes(name: str, tmp_path: Path) -> None:
    """What onnx's own test models leave out, or oneDNN's kernels get wrong as ONNX has it."""
    text, weights = SMALL[name]
    report = to_paddle(build(text, weights), tmp_path / "out")
    assert report.judgement is not None
    assert max(one.relative_error for one in report.judgement.differences) < 1e-5


def test_report_is_plain_data(static: tuple[Path, EmitReport]) -> None:
    _, report = static
    assert dataclasses.asdict(report)["judgement"]["runs"] == 32
