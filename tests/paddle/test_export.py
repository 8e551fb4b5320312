"""From Paddle: real models, converted, cleaned, and equal to what Paddle calculates."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from benchmarks import assets
from onnxq.errors import ConversionError, DataError, OptionError
from onnxq_paddle import export, from_layer
from onnxq_paddle.verifying import check, difference
from tests.models import ops, run
from tests.paddle.networks import layer, legacy, samples_of, saved

NETWORKS = {  # what is left of each in the cleaned graph, as far as it tells of the cleaning
    "small_convnet": {"Conv": 3, "Relu": 2, "Clip": 1, "Reshape": 1},
    "bert": {"LayerNormalization": 7, "Erf": 3, "Softmax": 3},
    "lstm": {"LSTM": 2},
    "conv_transpose": {"Conv": 2, "ConvTranspose": 2, "LeakyRelu": 1},
    "mobilenet_v3_small": {"Conv": 52, "HardSwish": 19, "BatchNormalization": 0},
    "squeezenet1_1": {"Conv": 26, "Concat": 8},
    "shufflenet_v2_x1_0": {"Conv": 56, "Shape": 0, "BatchNormalization": 0},
}
REAL = assets.ASSETS / "models" / "paddle"


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    report = export(saved(name), out)
    assert report.relative_error < 5e-6
    assert report.runs == 1
    found = ops(onnx.load(str(out)))
    assert {op: found[op] for op in NETWORKS[name]} == NETWORKS[name]
    assert found["Identity"] == 0
    x = samples_of(name, 16)
    onnxq.quantize_dynamic(out, tmp_path / "dynamic.onnx")
    onnxq.quantize_static(out, tmp_path / "static.onnx", x)
    for mode in ("dynamic", "static"):
        (output,) = onnxq.compare(out, tmp_path / f"{mode}.onnx", x).outputs
        assert output.sqnr > 15, mode


@pytest.mark.parametrize("form", ["two", "one", "many"])
def test_legacy_forms(form: str, tmp_path: Path) -> None:
    report = export(legacy() / form, tmp_path / "net.onnx")
    assert report.relative_error < 5e-6
    graph = onnx.load(str(tmp_path / "net.onnx")).graph
    tensors = {name for node in graph.node for name in (*node.input, *node.output)}
    # a weight, an activation of the program, and the output, as Paddle calls them
    assert {"conv2d_0.w_0", "relu_0.tmp_0", graph.output[0].name} <= tensors
    assert graph.output[0].name == "linear_0.tmp_1"
    assert [node.name for node in graph.node if node.op_type == "Conv"] == [
        "conv2d_0",
        "conv2d_1",
        "conv2d_2",
    ]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("mobilenet_v3_small_0.35_cls", {"Conv": 54, "BatchNormalization": 0}),
        ("ch_ppocr_mobile_v2.0_cls_infer", {"Conv": 53, "Reshape": 1, "Shape": 0}),
        ("ch_PP-OCRv3_det_infer", {"Conv": 72, "Resize": 6, "BatchNormalization": 0}),
        ("ppyolo_tiny_650e_coco", {"Conv": 83, "NonMaxSuppression": 1}),
    ],
)
def test_real_legacy_models(name: str, found: dict[str, int], tmp_path: Path) -> None:
    if not (REAL / name).is_dir():
        pytest.skip(f"no {REAL / name}")
    out = tmp_path / "net.onnx"
    report = export(REAL / name, out)
    assert all(o.relative_error < 5e-6 or o.error < 2.4e-7 for o in report.outputs)
    counts = ops(onnx.load(str(out)))
    assert {op: counts[op] for op in found} == found
    onnxq.quantize_dynamic(REAL / name, tmp_path / "int8.onnx")
    assert (tmp_path / "int8.onnx").stat().st_size < 0.4 * out.stat().st_size


def test_layer(tmp_path: Path) -> None:
    import paddle

    net = layer("small_convnet")
    net.train()
    spec = paddle.static.InputSpec([None, 3, 32, 32], "float32", "pixels")
    model = from_layer(net, [spec], opset=15)
    assert net.training
    assert model.opset_import[0].version == 15
    net.eval()
    x = samples_of("small_convnet", 3)
    np.testing.assert_allclose(
        run(model, {"pixels": x})[0], net(paddle.to_tensor(x)).numpy(), atol=1e-5
    )
    onnxq.quantize_static(model, tmp_path / "q.onnx", x)
    assert ops(onnx.load(str(tmp_path / "q.onnx")))["QuantizeLinear"] > 0


def test_patterns_speak_paddle_s_names(tmp_path: Path) -> None:
    for model, pattern in (
        (saved("small_convnet"), "linear_0"),
        (legacy() / "two", "*norm_0.tmp*"),
    ):
        report = onnxq.quantize_dynamic(model, tmp_path / "q.onnx", exclude=[pattern])
        assert report.weights.count == 3, pattern


def test_samples_are_verified_on_too(tmp_path: Path) -> None:
    report = export(
        saved("small_convnet"), tmp_path / "a.onnx", samples=samples_of("small_convnet", 6)
    )
    assert report.runs == 5  # a random input, and four samples


def test_a_difference_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"output 'fetch_name_0' differs by .* allowed is 0"):
        export(saved("bert"), tmp_path / "a.onnx", tolerance=0.0)
    assert not (tmp_path / "a.onnx").exists()
    assert export(saved("bert"), tmp_path / "a.onnx", tolerance=0.0, verify=False).outputs == ()


def test_command_line_prints_nothing_of_others(tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    command = [sys.executable, "-m", "onnxq", "export", str(saved("small_convnet")), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first.endswith("converted by paddle")
    assert second.startswith("onnxruntime is within")
    done = subprocess.run(
        [*command, "--no-verify", "--opset", "14"], capture_output=True, text=True
    )
    assert "not verified" in done.stdout
    assert onnx.load(str(out)).opset_import[0].version == 14
    done = subprocess.run([*command, "--params-filename", "x"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "no such file (params_filename)" in done.stderr


# bad input


def copied(tmp_path: Path, name: str = "small_convnet") -> Path:
    return Path(shutil.copytree(saved(name), tmp_path / "copy"))


def test_parameters_of_another_model(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    shutil.copy(saved("conv_transpose") / "inference.pdiparams", folder)
    with pytest.raises(ConversionError, match=r"inference\.json: Paddle Inference cannot load it"):
        export(folder, tmp_path / "a.onnx")
    # as many bytes and parameters, in other shapes
    document = json.loads((saved("small_convnet") / "inference.json").read_text())
    text = json.dumps(document, separators=(",", ":")).replace("[32,10]", "[10,32]")
    shutil.copy(saved("small_convnet") / "inference.pdiparams", folder)
    (folder / "inference.json").write_text(text)
    with pytest.raises(ConversionError, match="inference"):
        export(folder, tmp_path / "a.onnx")


@pytest.mark.parametrize("file", ["inference.json", "inference.pdiparams"])
def test_corrupted(file: str, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ConversionError, match="inference"):
        export(folder, tmp_path / "a.onnx")


def test_corrupted_program(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(legacy() / "two", tmp_path / "copy"))
    content = (folder / "inference.pdmodel").read_bytes()
    (folder / "inference.pdmodel").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConversionError, match="inference"):
        export(folder, tmp_path / "a.onnx")


def test_operators_that_cannot_be_converted(tmp_path: Path) -> None:
    import paddle

    class Net(paddle.nn.Layer):
        def forward(self, x):  # type: ignore[no-untyped-def]  # traced by Paddle
            return paddle.stanh(paddle.linalg.svd(paddle.nn.functional.relu(x))[1])

    with pytest.raises(ConversionError, match=r"operators pd_op\.svd, pd_op\.stanh"):
        from_layer(Net(), [paddle.static.InputSpec([4, 8], "float32", "x")])


def test_dimensions_that_need_a_value(tmp_path: Path) -> None:
    import paddle

    class Net(paddle.nn.Layer):
        def forward(self, a, b):  # type: ignore[no-untyped-def]  # traced by Paddle
            return paddle.matmul(a.reshape([-1, 7, 11]), b)

    specs = [
        paddle.static.InputSpec([None, None], "float32", "a"),
        paddle.static.InputSpec([11, None], "float32", "b"),
    ]
    with pytest.raises(DataError, match=r"give the shape of its inputs with --shape"):
        from_layer(Net(), specs)
    from onnxq_paddle.exporting import save_layer

    prefix = save_layer(Net(), specs, tmp_path / "net")
    report = export(prefix, tmp_path / "a.onnx", shapes={"a": [1, 77], "b": [11, 2]})
    assert report.relative_error < 1e-5
    with pytest.raises(OptionError, match="no input 'c'; it has"):
        export(prefix, tmp_path / "b.onnx", shapes={"c": [1]})


def test_one_array_for_several_inputs(tmp_path: Path) -> None:
    import paddle

    class Net(paddle.nn.Layer):
        def forward(self, a, b):  # type: ignore[no-untyped-def]  # traced by Paddle
            return a + b

    specs = [paddle.static.InputSpec([None, 8], "float32", name) for name in "ab"]
    model = from_layer(Net(), specs)
    with pytest.raises(DataError, match=r"\ba\b.*\bb\b"):
        onnxq.quantize_static(model, tmp_path / "q.onnx", np.zeros((4, 8), np.float32))


def test_what_paddle2onnx_reads_wrong_is_repaired() -> None:
    import paddle
    from paddle.nn import functional as f

    class Net(paddle.nn.Layer):
        def forward(self, x):  # type: ignore[no-untyped-def]  # traced by Paddle
            x = f.leaky_relu(x, 0.3) + f.hardtanh(x, -0.2, 0.7)
            x = f.pad(x, [1, 2, 1, 0], value=0.5)
            return f.interpolate(x, scale_factor=2.0, mode="bilinear")

    spec = paddle.static.InputSpec([None, 3, 8, 8], "float32", "x")
    model = from_layer(Net(), [spec])
    assert ops(model)["Clip"] == 1
    slope = next(node for node in model.graph.node if node.op_type == "LeakyRelu")
    assert slope.attribute[0].f == pytest.approx(0.3)


def test_repairs_reach_the_branch_that_did_not_run() -> None:
    import paddle
    from paddle.nn import functional as f

    class Net(paddle.nn.Layer):
        def forward(self, x):  # type: ignore[no-untyped-def]  # traced by Paddle
            return paddle.static.nn.cond(
                paddle.sum(x) > 1e6, lambda: f.leaky_relu(x, 0.3), lambda: x * 2
            )

    model = from_layer(Net(), [paddle.static.InputSpec([2, 8], "float32", "x")])
    branch = next(node for node in model.graph.node if node.op_type == "If")
    nodes = [node for body in branch.attribute for node in body.g.node]
    slopes = [node.attribute[0].f for node in nodes if node.op_type == "LeakyRelu"]
    assert slopes == [pytest.approx(0.3)]


@pytest.mark.parametrize(("shape", "left"), [((4, 1), (1,)), ((4,), ())])
def test_an_index_keeps_the_axes_that_it_leaves(
    shape: tuple[int, ...], left: tuple[int, ...]
) -> None:
    import paddle

    class Net(paddle.nn.Layer):
        def forward(self, x):  # type: ignore[no-untyped-def]  # traced by Paddle
            return x[1] * 2.0

    model = from_layer(Net(), [paddle.static.InputSpec(list(shape), "float32", "x")])
    x = np.arange(4, dtype=np.float32).reshape(shape)
    np.testing.assert_array_equal(run(model, {"x": x})[0], np.full(left, 2.0, np.float32))


def test_integers_have_to_be_equal() -> None:
    one, other = np.array([0, 50000]), np.array([0, 49999])
    assert difference(["y"], [one], [one])[0].relative_error == 0
    with pytest.raises(ConversionError, match="differs"):
        check(difference(["y"], [one], [other]), 1e-4, "net")
    with pytest.raises(ConversionError, match="no finite value"):
        difference(["y"], [np.full(3, np.nan)], [np.full(3, np.nan)])


def test_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        export(legacy() / "two", tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, scratch = copied(tmp_path), tmp_path / "scratch"
    scratch.mkdir()
    before = sorted(folder.iterdir())
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setenv("TMPDIR", str(scratch))
    export(folder, tmp_path / "a.onnx")
    assert sorted(folder.iterdir()) == before
    assert Counter(path.name for path in scratch.iterdir()) == Counter()
