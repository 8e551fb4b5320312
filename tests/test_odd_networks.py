"""Networks that are not a chain of convolutions: each in both modes, against the float model.

A row says what is quantized; everything else has to be among the skips with its reason. The results
are run on samples that were not calibrated on, beside the float model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.both_modes import (
    assert_close,
    c,
    images,
    quantize,
    rows,
    rows_and_condition,
    w,
)
from tests.models import Array, Feed, build, normal, optimized_ops

P = "<pads=[1,1,1,1]>"


@dataclass(frozen=True)
class Odd:
    """dynamic: the weights that become integers. static: the op types that run on integers.

    reasons: op type -> a part of the reason for which static mode leaves nodes of that type.
    dynamic_reasons: weight -> the same in dynamic mode.
    """

    text: str
    weights: Mapping[str, Array]
    feed: Callable[[int], Feed]
    dynamic: Sequence[str]
    static: Mapping[str, int]
    reasons: Mapping[str, str] = field(default_factory=dict)
    dynamic_reasons: Mapping[str, str] = field(default_factory=dict)
    opset: int = 17

    def model(self) -> onnx.ModelProto:
        return build(self.text, self.weights, opset=self.opset)


_IMAGE = "(float[N,8,10,10] x) => (float[N,d,e,f] y)"
_CONVS = {"w1": w(16, 8, 3, 3), "b1": w(16), "w2": w(8, 16, 3, 3, seed=3)}
_ROWS = "(float[2,8] x) => (float[2,4] y)"
_TEMPLATE = f"{_IMAGE} {{{{ a = Conv{P}(x, w1, b1) {{}} y = Conv{P}(h, w2) }}}}"
NO_KERNEL = "no int8 kernel"
BETWEEN = "not between quantized tensors"

# Transformer block: attention of 4 heads over 6 tokens, then an MLP
D = 32
_BLOCK = {
    "wq": w(D, D),
    "wk": w(D, D, seed=1),
    "wv": w(D, D, seed=2),
    "wo": w(D, D, seed=3),
    "bq": w(D),
    "ga": w(D) + 1,
    "be": w(D),
    "w1": w(D, 64, seed=4),
    "b1": w(64, seed=5),
    "w2": w(64, D, seed=6),
    "b2": w(D),
    "heads": np.array([1, 6, 4, 8]),
    "joined": np.array([1, 6, D]),
    **c(sc=8**-0.5, half=0.5, one=1, root2=2**0.5, two=2, eps=1e-5),
}
_BLOCK_WEIGHTS = ("wq", "wk", "wv", "wo", "w1", "w2")


def _attention(norm: str, softmax: str) -> str:
    return (
        f"{norm} q0 = MatMul(n1, wq) q1 = Add(q0, bq) q2 = Reshape(q1, heads)"
        " q = Transpose<perm=[0,2,1,3]>(q2) k0 = MatMul(n1, wk) k2 = Reshape(k0, heads)"
        " k = Transpose<perm=[0,2,3,1]>(k2) v0 = MatMul(n1, wv) v2 = Reshape(v0, heads)"
        " v = Transpose<perm=[0,2,1,3]>(v2) s0 = MatMul(q, k) s1 = Mul(s0, sc)"
        f" {softmax} o0 = MatMul(p, v) o1 = Transpose<perm=[0,2,1,3]>(o0)"
        " o2 = Reshape(o1, joined) o3 = MatMul(o2, wo) r1 = Add(x, o3)"
    )


def _layer_norm(x: str, y: str) -> str:
    return (
        f"{y}m = ReduceMean<axes=[-1]>({x}) {y}d = Sub({x}, {y}m) {y}p = Pow({y}d, two)"
        f" {y}v = ReduceMean<axes=[-1]>({y}p) {y}e = Add({y}v, eps) {y}s = Sqrt({y}e)"
        f" {y}q = Div({y}d, {y}s) {y}g = Mul({y}q, ga) {y} = Add({y}g, be)"
    )


_SOFTMAX = (
    "sx = ReduceMax<axes=[-1]>(s1) ss = Sub(s1, sx) se = Exp(ss)"
    " su = ReduceSum<keepdims=1>(se, last) p = Div(se, su)"
)
_TOKENS = "(float[1,6,32] x) => (float[1,6,32] y)"
_MLP = "f0 = MatMul(n2, w1) f1 = Add(f0, b1) {} f3 = MatMul(f2, w2) f4 = Add(f3, b2)"
_ERF = "ga1 = Div(f1, root2) gb = Erf(ga1) gc = Add(gb, one) gd = Mul(f1, gc) f2 = Mul(gd, half)"
_FUSED = (
    _attention("n1 = LayerNormalization<axis=-1>(x, ga, be)", "p = Softmax<axis=-1>(s1)")
    + " n2 = LayerNormalization<axis=-1>(r1, ga, be) "
    + _MLP.format("f2 = Gelu(f1)")
)
_DECOMPOSED = (
    f"{_attention(_layer_norm('x', 'n1'), _SOFTMAX)} {_layer_norm('r1', 'n2')} {_MLP.format(_ERF)}"
)

NETS = {
    "squeeze and excite with hard activations": Odd(
        f"{_IMAGE} {{ a = Conv{P}(x, w1, b1) h = HardSwish(a) g = GlobalAveragePool(h)"
        " e = Conv(g, we1) r = Relu(e) f = Conv(r, we2)"
        f" s = HardSigmoid<alpha=0.1666667, beta=0.5>(f) m = Mul(h, s) y = Conv{P}(m, w2) }}",
        {**_CONVS, "we1": w(8, 16, 1, 1, seed=1), "we2": w(16, 8, 1, 1, seed=2)},
        images,
        ("w1", "we1", "we2", "w2"),
        {"Conv": 4},
        {"HardSwish": NO_KERNEL, "HardSigmoid": NO_KERNEL, "Mul": BETWEEN},
    ),
    "transformer of fused ops": Odd(
        f"{_TOKENS} {{ {_FUSED} y = Add(r1, f4) }}",
        _BLOCK,
        lambda i: {"x": normal(1, 6, D, seed=i)},
        _BLOCK_WEIGHTS,
        {"Gemm": 3, "MatMul": 3, "Reshape": 1},
        {"LayerNormalization": NO_KERNEL, "Gelu": NO_KERNEL, "Softmax": BETWEEN}
        | {"MatMul": "not a constant"},
        opset=20,
    ),
    "transformer of decomposed ops": Odd(
        f"{_TOKENS} {{ {_DECOMPOSED} y = Add(r1, f4) }}",
        {**_BLOCK, "last": np.array([-1])},
        lambda i: {"x": normal(1, 6, D, seed=i)},
        _BLOCK_WEIGHTS,
        {"Gemm": 3, "MatMul": 3, "Reshape": 1},
        {"Erf": "Gelu", "ReduceMean": "normalization", "Sqrt": "normalization", "Exp": NO_KERNEL},
    ),
    "fast Gelu behind a Conv": Odd(
        _TEMPLATE.format(
            "p = Pow(a, three) d = Mul(p, k1) e = Add(a, d) f = Mul(e, k2) t = Tanh(f)"
            " u = Add(t, one) v = Mul(a, u) h = Mul(v, half)"
        ),
        {**_CONVS, **c(three=3, k1=0.044715, k2=0.7978846, one=1, half=0.5)},
        images,
        ("w1", "w2"),
        {"Conv": 2},
        {"Mul": "Gelu", "Add": "Gelu", "Tanh": "Gelu"},
    ),
    "RMS normalization behind a Conv": Odd(
        "(float[N,8,10,10] x) => (float[N,100,5] y) { a = Conv<pads=[1,1,1,1]>(x, w1, b1)"
        " b = Reshape(a, s) t = Transpose<perm=[0,2,1]>(b) d = Pow(t, two)"
        " e = ReduceMean<axes=[-1]>(d) f = Add(e, eps) h = Sqrt(f)"
        " j = Div(t, h) k = Mul(ga, j) y = MatMul(k, w2) }",
        {"w1": _CONVS["w1"], "b1": w(16), "w2": w(16, 5), "ga": w(16) + 1}
        | {"s": np.array([0, 16, 100]), **c(two=2, eps=1e-5)},
        images,
        ("w1", "w2"),
        {"Conv": 1, "MatMul": 1},
        {"Mul": "normalization", "Add": "normalization"},
    ),
    "product with a scalar between Convs": Odd(
        _TEMPLATE.format("h = Mul(a, half)"),
        {**_CONVS, **c(half=0.5)},
        images,
        ("w1", "w2"),
        {"Conv": 2, "Mul": 1},
    ),
    "LSTM and GRU": Odd(
        "(float[5,1,8] x) => (float[5,1,1,6] y, float[1,1,6] z) {"
        " y, h, k = LSTM<hidden_size=6>(x, w, r, b) a = Squeeze(y, ax)"
        " u, z = GRU<hidden_size=6>(a, w2, r2) }",
        {"w": w(1, 24, 8), "r": w(1, 24, 6), "b": w(1, 48), "w2": w(1, 18, 6), "r2": w(1, 18, 6)}
        | {"ax": np.array([1])},
        lambda i: {"x": normal(5, 1, 8, seed=i)},
        ("w", "r", "w2", "r2"),
        {},
        {"LSTM": NO_KERNEL, "GRU": NO_KERNEL},
        {"b": "bias or state of LSTM"},
    ),
    "grouped Conv and ConvTranspose": Odd(
        "(float[N,8,10,10] x) => (float[N,8,20,20] y) { a = Conv<pads=[1,1,1,1], group=4>(x, w1)"
        " y = ConvTranspose<kernel_shape=[2,2], strides=[2,2], group=2>(a, w2, b2) }",
        {"w1": w(16, 2, 3, 3), "w2": w(16, 4, 2, 2), "b2": w(8)},
        images,
        ("w1", "w2"),
        {"Conv": 1},
        {"ConvTranspose": NO_KERNEL},
    ),
    "float16": Odd(
        "(float16[N,8,10,10] x) => (float16[N,16,10,10] y) { a = Conv<pads=[1,1,1,1]>(x, w1)"
        " y = Relu(a) }",
        {"w1": _CONVS["w1"].astype(np.float16)},
        lambda i: {"x": images(i)["x"].astype(np.float16)},
        ("w1",),
        {},
        {"Conv": "float16: static mode"},
        {},
    ),
    "float16 in the middle": Odd(
        f"{_IMAGE} {{ a = Conv{P}(x, w1, b1) r = Relu(a) k = Cast<to=10>(r) d = Conv{P}(k, wh)"
        f" s = Add(d, d) e = Cast<to=1>(s) y = Conv{P}(e, w2) }}",
        {**_CONVS, "wh": w(16, 16, 3, 3).astype(np.float16)},
        images,
        ("w1", "w2", "wh"),
        {"Conv": 2},
        {"Conv": "float16: static mode", "Add": BETWEEN},
        {},
    ),
    "If with weights of the outer graph": Odd(
        "(float[2,8] x, bool c) => (float[2,4] y) { z = MatMul(x, w1) q = MatMul(x, w2)"
        " a = Relu(q) y = If(c) <then_branch = t () => (float[2,4] ta)"
        " { m = MatMul(x, w1) ta = Add(m, z) }, else_branch = e () => (float[2,4] eb)"
        " { n = Neg(a) eb = MatMul(n, w3) }> }",
        {"w1": w(8, 4), "w2": w(8, 4, seed=1), "w3": w(4, 4)},
        rows_and_condition,
        ("w1", "w2", "w3"),
        {"MatMul": 2},
        {"MatMul": "in the body", "If": "bodies"},
    ),
    "If that reads integers of the outer graph": Odd(
        "(float[1,8,10,10] x, bool c) => (float[1,8,10,10] y) {"
        f" z = Conv{P}(x, w1, b1) r = Relu(z) u = Conv{P}(r, w2)"
        f" y = If(c) <then_branch = t () => (float[1,8,10,10] ta) {{ m = Conv{P}(r, w2)"
        " ta = Add(m, u) }, else_branch = e () => (float[1,8,10,10] eb) { eb = Identity(u) }> }",
        _CONVS,
        lambda i: {**images(i), "c": np.array(i % 2 == 0)},
        ("w1", "w2"),
        {"Conv": 2},
        {"Conv": "in the body"},
    ),
    "Loop": Odd(
        "(float[2,8] x, int64 n) => (float[2,8] y) { i0 = MatMul(x, w1)"
        " c = Constant<value = bool {1}>() y = Loop(n, c, i0) <body = b"
        " (int64 i, bool ci, float[2,8] s) => (bool co, float[2,8] so)"
        " { m = MatMul(s, w1) a = Add(m, x) so = Tanh(a) co = Identity(ci) }> }",
        {"w1": w(8, 8)},
        lambda i: {**rows(i), "n": np.array(3)},
        ("w1",),
        {"MatMul": 1},
        {"MatMul": "in the body", "Loop": "bodies"},
    ),
    "an initializer that is also an input": Odd(
        "(float[2,8] x, float[8,4] w1) => (float[2,4] y) { y = MatMul(x, w1) }",
        {"w1": w(8, 4)},
        rows,
        (),
        {},
        {"MatMul": "also a graph input"},
        {"w1": "also a graph input"},
    ),
    "an initializer that is also an output": Odd(
        "(float[2,8] x) => (float[2,4] y, float[8,4] w1) { y = MatMul(x, w1) }",
        {"w1": w(8, 4)},
        rows,
        (),
        {"MatMul": 1},
        {},
        {"w1": "also a graph output"},
    ),
    "a weight handed to an output": Odd(
        "(float[2,8] x) => (float[2,4] y, float[8,4] z) { y = MatMul(x, w1) z = Identity(w1) }",
        {"w1": w(8, 4)},
        rows,
        (),
        {"MatMul": 1},
        {},
        {"w1": "also a graph output"},
    ),
    "several inputs and outputs": Odd(
        "(float[2,8] x, float[2,8] z, int64[1] i) => (float[2,4] y, float[2,4] u, int64[1] j,"
        " float[2,4] k) { y = MatMul(x, w1) u = MatMul(z, w1) j = Add(i, i) k = Add(y, u) }",
        {"w1": w(8, 4)},
        lambda i: {**rows(i), "z": normal(2, 8, seed=i + 50), "i": np.array([i])},
        ("w1",),
        {"MatMul": 2},
        {"Add": BETWEEN},
    ),
    "tied embedding": Odd(
        "(int64[2,3] ids) => (float[2,3,10] y) { e = Gather(w1, ids)"
        " t = Transpose<perm=[1,0]>(w1) y = MatMul(e, t) }",
        {"w1": w(10, 8)},
        lambda i: {"ids": np.array([[1, 2, i % 10], [4, 5, 6]])},
        ("t", "w1"),
        {"MatMul": 1},
    ),
    "scalar and vector inputs": Odd(
        "(float x, float[K] v) => (float[4] y) { s = Mul(v, x) y = MatMul(s, w1) }",
        {"w1": w(8, 4)},
        lambda i: {"x": np.array(1 + i % 3, np.float32), "v": normal(8, seed=i)},
        ("w1",),
        {"MatMul": 1},
    ),
    "every dimension dynamic": Odd(
        "(float[A,B,C,D] x) => (float[E,F,G,H] y) { a = Conv<pads=[1,1,1,1]>(x, w1, b1)"
        " r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, w2) }",
        _CONVS,
        lambda i: {"x": normal(1, 8, 7 + i % 4, 9, seed=i)},
        ("w1", "w2"),
        {"Conv": 2},
    ),
    "tensors without elements": Odd(
        "(float[2,8] x) => (float[2,4] y, float[2,0] z) { y = MatMul(x, w1) z = MatMul(x, w0) }",
        {"w1": w(8, 4), "w0": np.zeros((8, 0), np.float32)},
        rows,
        ("w1",),
        {"MatMul": 1},
        {"MatMul": "no elements"},
        {"w0": "no elements"},
    ),
    "a layer of zeros": Odd(
        f"{_IMAGE} {{ a = Conv{P}(x, w1) r = Relu(a) y = Conv{P}(r, w2, b2) }}",
        {"w1": np.zeros((16, 8, 3, 3), np.float32), "w2": _CONVS["w2"], "b2": w(8)},
        images,
        ("w1", "w2"),
        {"Conv": 2},
    ),
    "an input that is multiplied by 0": Odd(
        f"{_IMAGE} {{ z = Mul(x, zero) a = Conv{P}(z, w1, b1) r = Relu(a) y = Conv{P}(r, w2) }}",
        {**_CONVS, **c(zero=0)},
        images,
        ("w1", "w2"),
        {"Conv": 2},
    ),
    "every second channel of zeros": Odd(
        f"{_IMAGE} {{ a = Conv{P}(x, w1, b1) r = Relu(a) y = Conv{P}(r, w2) }}",
        {
            **_CONVS,
            "w1": _CONVS["w1"] * (np.arange(16) % 2).reshape(-1, 1, 1, 1).astype(np.float32),
        },
        images,
        ("w1", "w2"),
        {"Conv": 2},
    ),
    "ends and shapes near the largest integer": Odd(
        "(float[2,8] x) => (float[2,4] y, float[2,4] z) { y = MatMul(x, w1)"
        " z = Slice(y, start, end, ax) }",
        {"w1": w(8, 4), "start": np.array([-(2**63)]), "end": np.array([2**63 - 1])}
        | {"ax": np.array([1])},
        rows,
        ("w1",),
        {"MatMul": 1},
    ),
}


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("name", NETS)
def test_network(name: str, mode: str, tmp_path: Path) -> None:
    net = NETS[name]
    model = net.model()
    report, path = quantize(model, [net.feed(i) for i in range(16)], mode, tmp_path)
    assert_close(model, path, [net.feed(i) for i in range(16, 20)], mode)
    if mode == "dynamic":
        assert {weight.tensor for weight in report.placement.weights} == set(net.dynamic)
        skipped = {(skip.name, skip.reason) for skip in report.skips}
        expected = net.dynamic_reasons
    else:
        assert dict(report.operators) == dict(net.static)
        skipped = {(skip.op_type, skip.reason) for skip in report.skips}
        expected = net.reasons
    for what, words in expected.items():
        assert any(known == what and words in reason for known, reason in skipped), what
    quantized = net.dynamic if mode == "dynamic" else net.static
    assert any(note.startswith("nothing was quantized") for note in report.notes) != bool(quantized)


def test_float_groups_are_fused_as_in_the_float_model(tmp_path: Path) -> None:
    net = NETS["transformer of decomposed ops"]
    model = net.model()
    _, path = quantize(model, [net.feed(i) for i in range(4)], "static", tmp_path)
    found = optimized_ops(path)
    assert (found["Gelu"] or found["BiasGelu"], found["LayerNormalization"]) == (1, 2)
