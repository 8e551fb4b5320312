"""Which Q and DQ onnxruntime does not fuse: each rule on a model that breaks just that one."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnxruntime.quantization as ort_quantization
import pytest

import onnxq
from onnxq.measure.fusion import Stray, fusion, stray_nodes
from onnxq.measure.fusion_rules import Reason
from onnxq.measure.profiling import read_profile
from tests.models import Array, Feed, build, normal, samples
from tests.test_static import NETS

ARM = platform.machine().lower() in ("arm64", "aarch64")
X86 = "onnxruntime-x86"
Q, DQ = "QuantizeLinear", "DequantizeLinear"
HEAD = "(float[1,16,8,8] x) => (float[a,b,c,d] y)"


def f32(x: float) -> Array:
    return np.array(x, np.float32)


def i8(*shape: int) -> Array:
    return np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)


# u: uint8 around 128, v: another scale, t: uint8 from 0, i: int8, h: uint16, w: of weights
CONSTANTS: dict[str, Array] = {
    "su": f32(0.05), "zu": np.array(128, np.uint8),
    "sv": f32(0.07), "zv": np.array(128, np.uint8),
    "st": f32(0.05), "zt": np.array(0, np.uint8),
    "si": f32(0.05), "zi": np.array(0, np.int8),
    "sh": f32(0.001), "zh": np.array(32768, np.uint16),
    "sw": f32(0.01), "zw": np.array(0, np.int8),
    "sb": f32(0.0005), "zb": np.array(0, np.int32),
    "w": i8(16, 16, 1, 1), "b": np.arange(16, dtype=np.int32),
    "wf": normal(16, 16, 1, 1), "bf": normal(16), "k": normal(1, 16, 1, 1),
    "lo": f32(0), "hi": f32(6), "lo1": f32(0).reshape(1), "wl": i8(16, 5),
    "wu": i8(16, 5).view(np.uint8), "swu": f32(0.01), "zwu": np.array(9, np.uint8),
     "bl": normal(5),
}  # fmt: skip


def qdq(source: str, result: str, kind: str = "u") -> str:
    return (
        f" q_{result} = QuantizeLinear({source}, s{kind}, z{kind})"
        f" {result} = DequantizeLinear(q_{result}, s{kind}, z{kind})"
    )


def weight(result: str = "dw", name: str = "w", kind: str = "w") -> str:
    return f" {result} = DequantizeLinear({name}, s{kind}, z{kind})"


def conv(source: str, result: str) -> str:
    """A Conv whose input and weight are quantized."""
    return (
        qdq(source, f"d_{result}")
        + weight(f"w_{result}")
        + f" {result} = Conv(d_{result}, w_{result})"
    )


Expected = set[tuple[str, str, Reason]]
BORDERS: Expected = {(Q, "x", Reason.MODEL_INPUT), (DQ, "y", Reason.MODEL_OUTPUT)}


@dataclass(frozen=True)
class Row:
    """A model's nodes, and what is left of its Q and DQ: op, tensor, reason.

    exact: there is nothing else; otherwise these are among what is left.
    """

    nodes: str
    expected: Expected
    head: str = HEAD
    opset: int = 17
    exact: bool = True
    options: Mapping[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        text = f"{self.head} {{ {self.nodes} }}"
        words = set(text.replace("(", " ").replace(",", " ").replace(")", " ").split())
        known = {n: a for n, a in CONSTANTS.items() if n in words}
        onnx.save(build(text, known, opset=self.opset), str(folder / "model.onnx"))
        return folder / "model.onnx"


ROWS = {
    "all quantized": Row(conv("x", "a") + qdq("a", "y"), BORDERS),
    "op without a kernel": Row(
        conv("x", "a") + qdq("a", "da") + " t = Tanh(da)" + conv("t", "c") + qdq("c", "y"),
        {*BORDERS, (DQ, "a", Reason.NO_KERNEL), (Q, "t", Reason.NO_KERNEL)},
    ),
    "op that is taken apart": Row(
        conv("x", "a") + qdq("a", "da") + " t = HardSwish(da)" + conv("t", "c") + qdq("c", "y"),
        {*BORDERS, (DQ, "a", Reason.NO_KERNEL), (Q, "t", Reason.NO_KERNEL)},
    ),
    "float bias and output": Row(
        qdq("x", "dx") + weight() + " y = Conv(dx, dw, bf)",
        {(DQ, "x", Reason.FLOAT_OUTPUT), (DQ, "w", Reason.FLOAT_OUTPUT)},
        exact=False,
    ),
    "Clip bounds of one element": Row(
        qdq("x", "dx", "t") + weight() + " a = Conv(dx, dw) r = Clip(a, lo1)" + qdq("r", "y"),
        {(DQ, "x", Reason.ACTIVATION_KEPT), (Q, "r", Reason.ACTIVATION_KEPT)},
        exact=False,
    ),
    "output not quantized": Row(
        conv("x", "y"),
        {
            (Q, "x", Reason.MODEL_INPUT),
            (DQ, "x", Reason.FLOAT_OUTPUT),
            (DQ, "w", Reason.FLOAT_OUTPUT),
        },
    ),
    "float weight": Row(
        qdq("x", "dx") + " y = Conv(dx, wf)",
        {(Q, "x", Reason.MODEL_INPUT), (DQ, "x", Reason.FLOAT_INPUT)},
    ),
    "weight only": Row(weight() + " y = Conv(x, dw)", {(DQ, "w", Reason.WEIGHT_ONLY)}),
    "weight only of an op without a kernel": Row(
        weight() + " y = ConvTranspose(x, dw)", {(DQ, "w", Reason.WEIGHT_ONLY)}
    ),
    "weight only, folded": Row(
        weight() + " y = Conv(x, dw)", set(), options={"session.disable_quant_qdq": "1"}
    ),
    "one of two inputs float": Row(
        conv("x", "a") + qdq("a", "da") + " s = Add(da, x)" + qdq("s", "y"),
        {*BORDERS, (DQ, "a", Reason.FLOAT_INPUT), (Q, "s", Reason.FLOAT_INPUT)},
    ),
    "float before int8": Row(
        "f = Conv(x, wf) g = Add(f, k)" + conv("g", "c") + qdq("c", "y"),
        {(Q, "g", Reason.FLOAT_NEIGHBOUR), (DQ, "y", Reason.MODEL_OUTPUT)},
    ),
    "read in float too": Row(
        conv("x", "a") + qdq("a", "y") + " z = Tanh(a)",
        {*BORDERS, (Q, "a", Reason.FLOAT_READER), (DQ, "x", Reason.FLOAT_READER)},
        head="(float[1,16,8,8] x) => (float[a,b,c,d] y, float[e,f,g,h] z)",
        exact=False,
    ),
    "raw output is the model's": Row(
        conv("x", "a") + qdq("a", "y"),
        {(Q, "a", Reason.FLOAT_READER), (DQ, "w", Reason.FLOAT_READER)},
        head="(float[1,16,8,8] x) => (float[a,b,c,d] y, float[e,f,g,h] a)",
        exact=False,
    ),
    "quantized twice": Row(
        conv("x", "a") + qdq("a", "y") + qdq("a", "z", "v"),
        {(Q, "a", Reason.FLOAT_READER), (DQ, "x", Reason.FLOAT_READER)},
        head="(float[1,16,8,8] x) => (float[a,b,c,d] y, float[e,f,g,h] z)",
        exact=False,
    ),
    "16 bits": Row(
        qdq("x", "dx", "h") + weight() + " a = Conv(dx, dw)" + qdq("a", "y", "h"),
        {(DQ, "x", Reason.INTEGER_TYPES), (Q, "a", Reason.INTEGER_TYPES)},
        opset=21,
        exact=False,
    ),
    "two integer types": Row(
        qdq("x", "dx", "h") + qdq("x", "du") + " s = Add(dx, du)" + qdq("s", "y"),
        {(DQ, "x", Reason.INTEGER_TYPES), (Q, "s", Reason.INTEGER_TYPES)},
        opset=21,
        exact=False,
    ),
    "view between two scales": Row(
        qdq("x", "dx") + " m = MaxPool<kernel_shape=[2,2]>(dx)" + qdq("m", "y", "v"),
        {
            *BORDERS,
            (DQ, "x", Reason.PARAMETERS_DIFFER),
            (Q, "m", Reason.PARAMETERS_DIFFER),
        },
    ),
    "view between two zero points": Row(
        qdq("x", "dx") + " m = Flatten(dx)" + qdq("m", "y", "t"),
        {*BORDERS, (DQ, "x", Reason.PARAMETERS_DIFFER), (Q, "m", Reason.PARAMETERS_DIFFER)},
        head="(float[1,16,8,8] x) => (float[a,b] y)",
    ),
    "view read in float": Row(
        conv("x", "a") + qdq("a", "da") + " y = Flatten(da)",
        {(Q, "x", Reason.MODEL_INPUT), (DQ, "a", Reason.FLOAT_OUTPUT)},
        head="(float[1,16,8,8] x) => (float[a,b] y)",
        exact=False,
    ),
    "Relu within the range": Row(
        conv("x", "a") + " r = Relu(a)" + qdq("r", "y"),
        {(DQ, "x", Reason.ACTIVATION_KEPT), (Q, "r", Reason.ACTIVATION_KEPT)},
        exact=False,
    ),
    "Relu at the range's end": Row(
        qdq("x", "dx", "t") + weight() + " a = Conv(dx, dw) r = Relu(a)" + qdq("r", "y", "t"),
        BORDERS,
    ),
    "Clip within the range": Row(
        qdq("x", "dx", "t")
        + weight()
        + " a = Conv(dx, dw) r = Clip(a, lo, hi)"
        + qdq("r", "y", "t"),
        {(DQ, "x", Reason.ACTIVATION_KEPT), (Q, "r", Reason.ACTIVATION_KEPT)},
        exact=False,
    ),
    "Relu alone": Row(
        qdq("x", "dx") + " r = Relu(dx)" + qdq("r", "y"),
        {*BORDERS, (DQ, "x", Reason.ACTIVATION_KEPT), (Q, "r", Reason.ACTIVATION_KEPT)},
    ),
    "bias that is no constant": Row(
        qdq("x", "dx") + weight() + " c = Neg(bias) a = Conv(dx, dw, c)" + qdq("a", "y"),
        {(DQ, "x", Reason.FLOAT_BIAS), (Q, "a", Reason.FLOAT_BIAS)},
        head="(float[1,16,8,8] x, float[16] bias) => (float[a,b,c,d] y)",
        exact=False,
    ),
    "MatMul and Add": Row(
        qdq("x", "dx") + weight("dw", "wl") + " m = MatMul(dx, dw) y = Add(m, bl)",
        {
            (Q, "x", Reason.MODEL_INPUT),
            (DQ, "x", Reason.FLOAT_BIAS),
            (DQ, "wl", Reason.FLOAT_BIAS),
        },
        head="(float[1,16] x) => (float[1,5] y)",
    ),
    "MatMul with a float output": Row(
        qdq("x", "dx") + weight("dw", "wl") + " y = MatMul(dx, dw)",
        {(Q, "x", Reason.MODEL_INPUT)},
        head="(float[1,16] x) => (float[1,5] y)",
    ),
    "from one integer type to another": Row(
        conv("x", "a") + qdq("a", "da") + qdq("da", "y", "h"),
        {*BORDERS, (DQ, "a", Reason.REQUANTIZE), (Q, "da", Reason.REQUANTIZE)},
        opset=21,
    ),
    "float bias at opset 11": Row(
        qdq("x", "dx") + weight() + " a = Conv(dx, dw, bf)" + qdq("a", "y"), BORDERS, opset=11
    ),
    "float bias": Row(
        qdq("x", "dx") + weight() + " a = Conv(dx, dw, bf)" + qdq("a", "y"), BORDERS
    ),
    "view without zero points": Row(
        conv("x", "a") + qdq("a", "da") + " e = Flatten(da) q = QuantizeLinear(e, su)"
        + " y = DequantizeLinear(q, su)",
        {(DQ, "a", Reason.PARAMETERS_FORM), (Q, "e", Reason.PARAMETERS_FORM)},
        head="(float[1,16,8,8] x) => (float[a,b] y)",
        exact=False,
    ),
    "Split into two scales": Row(
        qdq("x", "dx") + " k1, k2 = Split<axis=1>(dx)" + qdq("k1", "y") + qdq("k2", "z", "v"),
        {(DQ, "x", Reason.PARAMETERS_DIFFER), (Q, "k2", Reason.PARAMETERS_DIFFER)},
        head="(float[1,16,8,8] x) => (float[a,b,c,d] y, float[e,f,g,h] z)",
        opset=13,
        exact=False,
    ),
    "Split read in part": Row(
        qdq("x", "dx") + " k1, k2 = Split<axis=1>(dx)" + qdq("k1", "y") + " z = Tanh(k2)",
        {(DQ, "x", Reason.FLOAT_READER), (Q, "k1", Reason.FLOAT_READER)},
        head="(float[1,16,8,8] x) => (float[a,b,c,d] y, float[e,f,g,h] z)",
        opset=13,
        exact=False,
    ),
    "constant in float": Row(
        qdq("x", "dx") + qdq("k", "dk") + " s = Add(dx, dk)" + qdq("s", "y"), BORDERS
    ),
    "Gemm with a Relu before a float reader": Row(
        qdq("x", "dx") + weight("dw", "wl") + " g = Gemm(dx, dw) r = Relu(g) y = Tanh(r)",
        {(DQ, "x", Reason.FLOAT_OUTPUT), (DQ, "wl", Reason.FLOAT_OUTPUT)},
        head="(float[1,16] x) => (float[1,5] y)",
        exact=False,
    ),
    "uint8 weight and int8 activation": Row(
        qdq("x", "dx", "i") + weight("dw", "wu", "wu") + " a = Gemm(dx, dw)" + qdq("a", "y", "i"),
        {(DQ, "x", Reason.INTEGER_TYPES)} if ARM else BORDERS,
        head="(float[1,16] x) => (float[1,5] y)",
        exact=not ARM,
    ),
    "Softmax in between": Row(
        qdq("x", "dx") + " s = Softmax(dx)" + qdq("s", "y", "t"), BORDERS
    ),
    "MaxPool of opset 11": Row(
        qdq("x", "dx") + " m = MaxPool<kernel_shape=[2,2]>(dx)" + qdq("m", "y"),
        {*BORDERS, (DQ, "x", Reason.OPSET), (Q, "m", Reason.OPSET)},
        opset=11,
    ),
    "only the shape is read": Row(
        conv("x", "a") + qdq("a", "da") + " y = Shape(da)",
        {(DQ, "a", Reason.SHAPE_ONLY)},
        head="(float[1,16,h,w] x) => (int64[4] y)",
        exact=False,
    ),
    "read in a body": Row(
        qdq("x", "dx") + " y = If<then_branch = g () => (float[1,16,8,8] p) { p = Neg(dx) },"
        " else_branch = h () => (float[1,16,8,8] r) { r = Abs(dx) }>(c)",
        {(Q, "x", Reason.MODEL_INPUT), (DQ, "x", Reason.BODY)},
        head="(float[1,16,8,8] x, bool c) => (float[1,16,8,8] y)",
    ),
    "in a body": Row(
        "y = If<then_branch = g () => (float[1,16,8,8] p)"
        " { n = Neg(x)" + qdq("n", "dn") + " p = Tanh(dn) },"
        " else_branch = h () => (float[1,16,8,8] r) { r = Abs(x) }>(c)",
        {(Q, "n", Reason.NO_KERNEL), (DQ, "n", Reason.NO_KERNEL)},
        head="(float[1,16,8,8] x, bool c) => (float[1,16,8,8] y)",
    ),
    "int8 fusion off": Row(
        conv("x", "a") + qdq("a", "y"),
        {(Q, "x", Reason.FUSION_OFF), (DQ, "x", Reason.FUSION_OFF), (Q, "a", Reason.FUSION_OFF)},
        options={"session.disable_quant_qdq": "1"},
        exact=False,
    ),
}  # fmt: skip
# Where int8 activations fuse as they are, there is nothing to explain
X86_ROWS = {
    "int8 activations": Row(
        qdq("x", "dx", "i") + weight() + " a = Conv(dx, dw)"
        + " q = QuantizeLinear(a, si, zi) y = DequantizeLinear(q, si, zi)"
        + " d = DequantizeLinear(q, si, zi) z = Tanh(d)",
        {(DQ, "x", Reason.INTEGER_TYPES), (Q, "a", Reason.INTEGER_TYPES)},
        head="(float[1,16,8,8] x) => (float[a,b,c,d] y, float[e,f,g,h] z)",
        exact=False,
    ),
}  # fmt: skip
ALL_ROWS = ROWS if ARM else {**ROWS, **X86_ROWS}


def found(strays: Sequence[Stray]) -> Expected:
    return {(s.op_type, s.tensor, s.reason) for s in strays}


@pytest.mark.parametrize("name", ALL_ROWS)
def test_reason(name: str, tmp_path: Path) -> None:
    row = ALL_ROWS[name]
    strays = stray_nodes(row.save(tmp_path), row.options)
    assert found(strays) >= row.expected
    if row.exact:
        assert found(strays) == row.expected
    assert all(s.reason is not Reason.UNKNOWN and s.why for s in strays)


@pytest.mark.parametrize("name", ALL_ROWS)
def test_strays_are_what_the_optimized_graph_has(name: str, tmp_path: Path) -> None:
    from tests.models import all_nodes, optimized_graph

    row = ALL_ROWS[name]
    path = row.save(tmp_path)
    left = [n for n in all_nodes(optimized_graph(path, row.options)) if n.op_type in (Q, DQ)]
    assert len(stray_nodes(path, row.options)) == len(left)


class Reader(ort_quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A residual network as onnxruntime.quantization makes it by default: int8 activations."""
    net = NETS["residual Add"]
    source, result = tmp_path / "float.onnx", tmp_path / "foreign.onnx"
    onnx.save(net.model(), str(source))
    ort_quantization.quantize_static(
        str(source),
        str(result),
        Reader(net.feeds()),
        quant_format=ort_quantization.QuantFormat.QDQ,
        per_channel=True,
    )
    return result


def test_foreign_model_is_explained(foreign: Path) -> None:
    strays = stray_nodes(foreign)
    assert strays
    assert all(s.reason is not Reason.UNKNOWN for s in strays)
    if not ARM:
        assert Reason.INTEGER_TYPES in {s.reason for s in strays}
        assert any("uint8" in (s.remedy or "") for s in strays)


def quantized(name: str, folder: Path, target: str) -> tuple[Path, Feed]:
    net = NETS[name]
    path = folder / f"{target}.onnx"
    onnxq.quantize_static(net.model(), path, net.feeds(), method="min_max", target=target)
    return path, net.feeds()[0]


@pytest.mark.parametrize("target", [X86, "onnxruntime-arm", "tensorrt"])
@pytest.mark.parametrize("name", NETS)
def test_own_models_are_explained(name: str, target: str, tmp_path: Path) -> None:
    path, _ = quantized(name, tmp_path, target)
    strays = stray_nodes(path)
    assert {s.reason for s in strays} >= {Reason.MODEL_INPUT}
    assert all(s.reason is not Reason.UNKNOWN for s in strays)


@pytest.mark.parametrize("name", NETS)
def test_no_rule_speaks_against_what_did_fuse(name: str, tmp_path: Path) -> None:
    from onnxq.measure.fusion_rules import explain
    from onnxq.measure.optimized import is_dequantize, is_quantize, named, optimized

    path, _ = quantized(name, tmp_path, X86)
    content = named(path)
    before = optimized(path, content, {}, before_int8=True)
    left = {n.name for n in optimized(path, content, {}).graph}
    fused = [
        reader
        for node in before.graph
        if is_dequantize(node) and node.name not in left
        for reader, _ in node.outputs[0].uses()
        if not is_quantize(reader)
    ]
    assert fused
    for node in fused:
        assert explain(node, before.opset_imports[""]).reason is Reason.UNKNOWN, node.name


def test_neighbours_names_and_tensors(tmp_path: Path) -> None:
    path = ROWS["op without a kernel"].save(tmp_path)
    strays = {(s.op_type, s.tensor): s for s in stray_nodes(path)}
    dq = strays[DQ, "a"]
    assert dq.name == "n_da"
    assert [str(c) for c in dq.consumers] == ["Tanh n_t"]
    assert "Tanh" in dq.why
    q = strays[Q, "t"]
    assert str(q.producer) == "Tanh n_t"
    assert strays[Q, "x"].producer is None
    assert "'x'" in strays[Q, "x"].why
    assert not dq.pointless


def test_an_op_that_is_taken_apart_goes_by_its_own_name(tmp_path: Path) -> None:
    strays = stray_nodes(ROWS["op that is taken apart"].save(tmp_path))
    assert sum("HardSwish has no int8 kernel" in s.why for s in strays) == 2


def test_pair_between_float_nodes_is_pointless(tmp_path: Path) -> None:
    row = Row("n = Neg(x)" + qdq("n", "dn") + " y = Tanh(dn)", set())
    strays = stray_nodes(row.save(tmp_path))
    assert [s.pointless for s in strays] == [True, True]
    assert all("leave the tensor float" in (s.remedy or "") for s in strays)


def test_remedy_for_a_pair_is_that_of_what_could_run_on_integers(tmp_path: Path) -> None:
    path = ROWS["view between two scales"].save(tmp_path)
    strays = {(s.op_type, s.tensor): s for s in stray_nodes(path)}
    assert strays[Q, "x"].pointless
    assert "same scale" in (strays[Q, "x"].remedy or "")


def test_nodes_without_names_go_by_their_output(tmp_path: Path) -> None:
    path = ROWS["op without a kernel"].save(tmp_path)
    model = onnx.load(str(path))
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, str(path))
    feed = samples("x", (1, 16, 8, 8), 1)[0]
    result = fusion(path, feed, threads=1, runs=3)
    assert {s.name for s in result.strays} >= {"da", "q_d_a"}
    assert all((s.share or 0) > 0 for s in result.strays)


def test_weights_in_another_file(tmp_path: Path) -> None:
    row = ROWS["all quantized"]
    path = row.save(tmp_path)
    model = onnx.load(str(path))
    onnx.save(
        model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=100
    )
    before = sorted(tmp_path.iterdir())
    assert found(stray_nodes(path)) == row.expected
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["residual Add", "head", "squeeze and excite"])
def test_shares_of_the_time(name: str, tmp_path: Path) -> None:
    path, feed = quantized(name, tmp_path, X86)
    before = sorted(tmp_path.iterdir())
    result = fusion(path, feed, threads=1, runs=5)
    assert sorted(tmp_path.iterdir()) == before
    profile = result.profile
    shares = [s.share for s in result.strays]
    assert all(share is not None and 0 < share < 1 for share in shares)
    assert shares == sorted(shares, key=lambda s: -(s or 0))
    assert sum(s or 0 for s in shares) == pytest.approx(profile.conversion_share)
    assert sum(op.share for op in profile.ops) == pytest.approx(1)
    assert profile.seconds == pytest.approx(sum(profile.nodes.values()))
    assert profile.runs == 5
    integer = {op.op_type for op in profile.ops if op.integer}
    assert "QLinearConv" in integer
    assert not integer & {Q, DQ}
    assert 0 < profile.integer_share <= 1 - profile.conversion_share + 1e-9


def test_time_in_bodies_is_counted_once(tmp_path: Path) -> None:
    path = ROWS["in a body"].save(tmp_path)
    feed = {"x": normal(1, 16, 8, 8), "c": np.array(True)}
    result = fusion(path, feed, threads=1, runs=5)
    assert {op.op_type for op in result.profile.ops} >= {"Neg", "Tanh", Q, DQ}
    assert "If" not in {op.op_type for op in result.profile.ops}
    assert sum(op.share for op in result.profile.ops) == pytest.approx(1)


def test_a_float_model_has_none(digits: Path) -> None:
    assert stray_nodes(digits) == []


def test_missing_file() -> None:
    with pytest.raises(onnxq.ModelError, match="no such file"):
        stray_nodes(Path("absent.onnx"))


def test_read_profile_leaves_warm_up_out() -> None:
    def kernel(name: str, op: str, start: int, duration: int, dtype: str) -> dict[str, object]:
        args = {"op_name": op, "input_type_shape": [{dtype: [1]}]}
        return {"name": f"{name}_kernel_time", "ts": start, "dur": duration, "args": args}

    events: list[dict[str, object]] = []
    for i, (a, b) in enumerate([(900, 900), (10, 30), (20, 40)]):
        start = i * 1000
        events.append({"name": "model_run", "ts": start, "dur": 999})
        events.append(kernel("a", "QLinearConv", start + 1, a, "uint8"))
        events.append(kernel("b", "Softmax", start + 2, b, "float"))
        events.append({"name": "b_fence_before", "ts": start + 2, "dur": 500, "args": {}})
    profile = read_profile(events, warmup=1)
    assert profile.runs == 2
    assert profile.nodes == {"a": pytest.approx(15e-6), "b": pytest.approx(35e-6)}
    assert profile.integer_share == pytest.approx(0.3)
    assert [op.op_type for op in profile.ops] == ["Softmax", "QLinearConv"]
    assert profile.share("a") == pytest.approx(0.3)
    assert profile.share("absent") == 0
