"""PaddleSlim's calls, with real Paddle: the tutorial's snippets, each argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxq
from onnxq.qtypes import Array, Float64Array
from onnxq_paddle import paddleslim
from onnxq_paddle.exporting import export
from tests.models import run, sqnr
from tests.paddle.slim import images, integers, kept, reader, script, static
from tests.test_numerics import kl_divergences

quant = paddleslim.quant


@pytest.fixture(scope="module")
def floats(slim_net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as a float ONNX model."""
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    export(slim_net, path)
    return path


# the tutorial


@pytest.mark.parametrize("kind", ["pir", "legacy"])
def test_the_first_snippet_of_the_tutorial(
    slim_saved: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    script(
        """
        import sys
        from onnxq_paddle import paddleslim

        paddleslim.quant.quant_post_dynamic(
            model_dir=sys.argv[1],
            save_model_dir=sys.argv[2],
            weight_bits=8,
            quantizable_op_type=['conv2d', 'mul'],
            weight_quantize_type="channel_wise_abs_max",
            generate_test_model=False)
        """,
        slim_saved[kind] / "net",
        tmp_path,
        pir=kind == "pir",
    )
    written = sorted(path.name for path in (tmp_path / "quantized_model").iterdir())
    assert written == ["model.onnx", "model.pdiparams", "model.pdmodel"]
    assert not (tmp_path / "test_model").exists()


@pytest.mark.parametrize("kind", ["pir", "legacy"])
def test_the_second_snippet_of_the_tutorial(
    slim_saved: dict[str, Path], floats: Path, tmp_path: Path, kind: str
) -> None:
    np.save(tmp_path / "images.npy", images())
    script(
        """
        import sys
        import numpy as np
        import paddle
        from onnxq_paddle import paddleslim

        def reader():
            for image in np.load(sys.argv[3]):
                yield (image,)

        paddle.enable_static()
        place = paddle.CPUPlace()
        exe = paddle.static.Executor(place)
        paddleslim.quant.quant_post(
            executor=exe,
            model_dir=sys.argv[1],
            quantize_model_path=sys.argv[2],
            sample_generator=reader,
            model_filename=sys.argv[4],
            params_filename='inference.pdiparams',
            batch_nums=10)
        """,
        slim_saved[kind] / "net",
        tmp_path / "out",
        tmp_path / "images.npy",
        "inference.json" if kind == "pir" else "inference.pdmodel",
        pir=kind == "pir",
    )
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["model.onnx", "model.pdiparams", "model.pdmodel"]
    x = {"x": images(seed=5)}
    assert sqnr(run(floats, x)[0], run(tmp_path / "out" / "model.onnx", x)[0]) >= 20


def test_data_loaders_of_paddle(slim_saved: dict[str, Path], tmp_path: Path) -> None:
    """With lists of tensors in dynamic mode, and dicts by name in static mode."""
    np.save(tmp_path / "images.npy", images())
    script(
        """
        import sys
        import numpy as np
        import paddle
        from onnxq_paddle import paddleslim

        class Images(paddle.io.Dataset):
            pixels = np.load(sys.argv[3])
            def __len__(self):
                return len(self.pixels)
            def __getitem__(self, index):
                return (self.pixels[index],)

        loaders = [paddle.io.DataLoader(Images(), batch_size=4)]
        paddle.enable_static()
        x = paddle.static.data("x", [None, 3, 16, 16])
        for returns in (True, False):
            loaders.append(paddle.io.DataLoader(
                Images(), feed_list=[x], batch_size=4, return_list=returns))
        for i, loader in enumerate(loaders):
            report = paddleslim.quant.quant_post_static(
                paddle.static.Executor(), sys.argv[1], f"{sys.argv[2]}/{i}", None, None, loader,
                batch_nums=3, algo="abs_max", paddle_model=False)
            assert report.settings["samples"] == 12, report.settings
        """,
        slim_saved["pir"] / "net",
        tmp_path,
        tmp_path / "images.npy",
    )
    first, *others = ((tmp_path / str(i) / "model.onnx").read_bytes() for i in range(3))
    assert all(other == first for other in others)


def test_the_signatures_are_those_of_paddleslim() -> None:
    """Names, order and defaults; what is ours alone comes behind, or by keyword."""

    def of(call: Callable[..., Any]) -> list[tuple[str, Any]]:
        parameters = inspect.signature(call).parameters.values()
        return [
            (p.name, list(p.default) if isinstance(p.default, tuple) else p.default)
            for p in parameters
            if p.kind is not p.KEYWORD_ONLY
        ]

    needed = inspect.Parameter.empty
    assert of(quant.quant_post_dynamic) == [
        ("model_dir", needed),
        ("save_model_dir", needed),
        ("model_filename", None),
        ("params_filename", None),
        ("save_model_filename", "model.pdmodel"),
        ("save_params_filename", "model.pdiparams"),
        ("quantizable_op_type", ["conv2d", "mul"]),
        ("weight_bits", 8),
        ("generate_test_model", False),
        ("weight_quantize_type", "channel_wise_abs_max"),
    ]
    six = ["conv2d", "depthwise_conv2d", "conv2d_transpose", "mul", "matmul", "matmul_v2"]
    assert of(quant.quant_post_static) == [
        *((name, needed) for name in ("executor", "model_dir", "quantize_model_path")),
        *((name, None) for name in ("batch_generator", "sample_generator", "data_loader")),
        *((name, None) for name in ("model_filename", "params_filename")),
        ("save_model_filename", "model.pdmodel"),
        ("save_params_filename", "model.pdiparams"),
        ("batch_size", 1),
        ("batch_nums", None),
        ("scope", None),
        ("algo", "hist"),
        ("round_type", "round"),
        ("hist_percent", 0.9999),
        ("bias_correction", False),
        ("quantizable_op_type", six),
        ("is_full_quantize", False),
        ("weight_bits", 8),
        ("activation_bits", 8),
        ("activation_quantize_type", "range_abs_max"),
        ("weight_quantize_type", "channel_wise_abs_max"),
        ("optimize_model", False),
        ("onnx_format", True),
        ("skip_tensor_list", None),
        ("deploy_backend", None),
    ]
    assert quant.quant_post is quant.quant_post_static
    assert quant.quant_post_only_weight is quant.quant_post_dynamic


# dynamic mode


@pytest.mark.parametrize(
    ("ops", "expected"),
    [
        (["conv2d", "mul"], {"conv", "fc"}),
        (["depthwise_conv2d"], {"dw"}),
        (["matmul_v2", "conv2d_transpose"], {"fc", "up"}),
        (["conv2d", "depthwise_conv2d", "lookup_table_v2"], {"conv", "dw"}),
    ],
)
def test_operators_go_by_paddles_names(
    slim_net: Path, tmp_path: Path, ops: list[str], expected: set[str]
) -> None:
    quant.quant_post_dynamic(
        slim_net, tmp_path, quantizable_op_type=ops, verify=False, paddle_model=False
    )
    assert kept(tmp_path / "quantized_model" / "model.onnx") == expected


@pytest.mark.parametrize("bits", [8, 16])
def test_the_test_model_is_float_and_gives_the_same(
    slim_net: Path, tmp_path: Path, bits: int
) -> None:
    quant.quant_post_dynamic(
        str(slim_net),
        str(tmp_path),
        None,
        None,
        "m.pdmodel",
        "p.pdiparams",
        ["conv2d", "mul"],
        bits,
        True,
    )
    names = ["m.pdmodel", "model.onnx", "p.pdiparams"]
    for folder in ("quantized_model", "test_model"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == names
    paths = [tmp_path / folder / "model.onnx" for folder in ("quantized_model", "test_model")]
    assert {a.dtype for a in integers(paths[0]).values()} == {np.dtype(f"int{bits}")}
    assert not integers(paths[1])
    one, other = (onnxq.load_session(path).run(None, {"x": images(4)})[0] for path in paths)
    assert np.allclose(one, other, atol=1e-5)


def test_one_scale_a_tensor(slim_net: Path, tmp_path: Path) -> None:
    quant.quant_post_only_weight(
        slim_net, tmp_path, weight_quantize_type="abs_max", verify=False, paddle_model=False
    )
    graph = onnx.load(tmp_path / "quantized_model" / "model.onnx").graph
    scales = {t.name: t for t in graph.initializer if t.name.endswith("_scale")}
    assert set(scales) == {"conv2d_0.w_0_scale", "linear_0.w_0_scale"}
    assert not any(t.dims for t in scales.values())


# static mode


def two_pass(x: Array) -> tuple[Float64Array, float, float]:
    counts, edges = np.histogram(np.abs(x.astype(np.float64)), 2048)
    return counts.astype(np.float64), float(edges[0]), float(edges[1] - edges[0])


@pytest.mark.parametrize("algo", ["abs_max", "hist", "KL"])
def test_thresholds_are_those_of_the_references_formulas(
    slim_net: Path, tmp_path: Path, algo: str
) -> None:
    static(slim_net, tmp_path, algo=algo, batch_size=5, hist_percent=0.99)
    graph = onnx.load(tmp_path / "model.onnx").graph
    scale = next(t for t in graph.initializer if t.name == "x_scale")
    alpha = float(numpy_helper.to_array(scale)) * 127
    counts, start, width = two_pass(images())
    if algo == "abs_max":
        assert alpha == pytest.approx(np.abs(images()).max())
        return
    if algo == "hist":
        index = int(np.flatnonzero(np.cumsum(counts) >= 0.99 * counts.sum())[0])
        assert abs(alpha - (start + (index + 0.5) * width)) <= width * 1.01
        return
    divergences = kl_divergences(counts.tolist())
    index = round((alpha - start) / width - 0.5)
    assert divergences[index] <= min(divergences.values()) * 1.01


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {"conv", "dw", "fc"}),
        ({"quantizable_op_type": ["conv2d", "pool2d"]}, {"conv"}),
        ({"quantizable_op_type": ["conv2d"], "is_full_quantize": True}, {"conv", "dw", "fc"}),
        ({"quantizable_op_type": []}, {"conv", "dw", "fc"}),
        ({"skip_tensor_list": ["linear_0.w_0"]}, {"conv", "dw"}),
        ({"skip_tensor_list": ["x", "conv2d_1.w_0"]}, {"fc"}),
    ],
)
def test_what_is_quantized(
    slim_net: Path, tmp_path: Path, arguments: dict[str, Any], expected: set[str]
) -> None:
    report = static(slim_net, tmp_path, algo="abs_max", verify=False, **arguments)
    assert kept(tmp_path / "model.onnx") == expected
    left = {skip.op_type: skip.reason for skip in report.skips}
    named = arguments.get("quantizable_op_type", ["conv2d_transpose"])
    full = arguments.get("is_full_quantize", not named or "conv2d_transpose" in named)
    assert ("no int8 kernel" if full else "excluded") in left["ConvTranspose"]


def test_activations_of_legacy_models_can_be_skipped_by_name(
    slim_net: Path, tmp_path: Path
) -> None:
    """The names of a legacy program's variables are those of the ONNX model."""
    export(slim_net, tmp_path / "float.onnx")
    nodes = onnx.load(tmp_path / "float.onnx").graph.node
    depthwise = next(n for n in nodes if n.input[1:2] == ["conv2d_1.w_0"])
    assert depthwise.input[0].startswith("relu_0")
    static(slim_net, tmp_path, skip_tensor_list=[depthwise.input[0]], verify=False)
    assert kept(tmp_path / "model.onnx") == {"conv", "fc"}


class Tensor:
    """As much of a Paddle tensor as is needed of one."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def numpy(self) -> Array:
        return self._array


def batches(wrap: Callable[[Array], Any]) -> Iterator[Any]:
    return (wrap(images()[i : i + 6]) for i in range(0, 24, 6))


SOURCES: dict[str, Callable[[], dict[str, Any]]] = {
    "function of samples": lambda: {"sample_generator": reader, "batch_size": 6},
    "samples, read once": lambda: {"sample_generator": reader(), "batch_size": 6},
    "bare arrays": lambda: {"sample_generator": list(images()), "batch_size": 6},
    "dicts": lambda: {"sample_generator": [{"x": i} for i in images()], "batch_size": 6},
    "function of batches": lambda: {"batch_generator": lambda: batches(lambda x: [x])},
    "batches, read once": lambda: {"batch_generator": batches(lambda x: (x,))},
    "tensors": lambda: {"data_loader": list(batches(lambda x: [Tensor(x)]))},
    "dicts of tensors": lambda: {"data_loader": batches(lambda x: {"x": Tensor(x)})},
    "a dict for each device": lambda: {"data_loader": batches(lambda x: [{"x": Tensor(x)}])},
}


def test_every_source_gives_the_same_file(slim_net: Path, tmp_path: Path) -> None:
    found = {}
    for name, source in SOURCES.items():
        report = static(slim_net, tmp_path, algo="abs_max", batch_nums=3, verify=False, **source())
        assert report.settings["samples"] == 18, name
        found[name] = (tmp_path / "model.onnx").read_bytes()
    assert len(set(found.values())) == 1


def test_without_batch_nums_all_samples_count(slim_net: Path, tmp_path: Path) -> None:
    assert static(slim_net, tmp_path, batch_size=5, verify=False).settings["samples"] == 24


def test_several_inputs(slim_saved: dict[str, Path], tmp_path: Path) -> None:
    left, right = np.ones((8, 4), np.float32), np.full((8, 6), 3.0, np.float32)
    report = static(
        slim_saved["pir"] / "two",
        tmp_path,
        sample_generator=zip(left, right, strict=True),
        algo="mse",
    )
    assert report.settings["samples"] == 8
    scales = {t.name: t for t in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert numpy_helper.to_array(scales["right_scale"]) * 127 == pytest.approx(3.0)
    for item in (right[0], [right[0]]):
        with pytest.raises(onnxq.DataError, match="'left', 'right'"):
            static(slim_saved["pir"] / "two", tmp_path, sample_generator=[item], verify=False)


def test_samples_fill_a_fixed_batch(slim_saved: dict[str, Path], tmp_path: Path) -> None:
    """Eight make two batches of four; two more would be left over, which is an error."""
    left, right = np.ones((10, 4), np.float32), np.full((10, 6), 3.0, np.float32)
    right[8:] = 9

    def run(count: int) -> onnxq.Report:
        return static(
            slim_saved["pir"] / "four",
            tmp_path,
            sample_generator=zip(left[:count], right[:count], strict=True),
            algo="abs_max",
            batch_size=4,
        )

    with pytest.raises(onnxq.DataError, match="fixed at 4, and the last 2 samples"):
        run(10)
    report = run(8)
    assert report.settings["samples"] == 2
    scales = {t.name: t for t in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert numpy_helper.to_array(scales["right_scale"]) * 127 == pytest.approx(3.0)


def test_samples_say_the_sizes_that_a_model_leaves_open(
    slim_saved: dict[str, Path], tmp_path: Path
) -> None:
    model = slim_saved["legacy"] / "open"
    with pytest.raises(onnxq.DataError, match=r"random.*shapes and verify"):
        quant.quant_post_dynamic(model, tmp_path, paddle_model=False)
    quant.quant_post_dynamic(model, tmp_path, shapes={"x": [2, 3, 13, 13]}, paddle_model=False)
    static(model, tmp_path, sample_generator=images(8)[:, :, :13, :13])
    assert (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, []),
        ({"bias_correction": True}, ["bias_correction"]),
        ({"round_type": "adaround"}, ["adaround"]),
        ({"bias_correction": True, "round_type": "adaround"}, ["bias_correction", "adaround"]),
    ],
)
def test_what_is_asked_for_is_tried_and_measured(
    slim_net: Path, tmp_path: Path, options: dict[str, Any], passes: list[str]
) -> None:
    report = static(slim_net, tmp_path, algo="abs_max", verify=False, **options)
    assert report.ledger is not None
    tried = [e.step for e in report.ledger.entries if e.measure == "sqnr" and e.node is None]
    assert tried == passes
    assert all(e.before is not None for e in report.ledger.entries if e.measure == "sqnr")


def test_16_bits_are_for_onnx_alone(slim_net: Path, floats: Path, tmp_path: Path) -> None:
    static(slim_net, tmp_path, weight_bits=16, activation_bits=16, algo="abs_max")
    x = {"x": images()}
    assert sqnr(run(floats, x)[0], run(tmp_path / "model.onnx", x)[0]) >= 60
    with pytest.raises(onnxq.OptionError, match="paddle_model=False"):
        quant.quant_post(None, slim_net, tmp_path, None, reader, weight_bits=16, activation_bits=16)


@pytest.mark.parametrize("backend", [None, "mkldnn", "MKLDNN", "arm", "tensorrt", "TensorRT"])
def test_backends_are_targets(slim_net: Path, tmp_path: Path, backend: str | None) -> None:
    report = static(slim_net, tmp_path, deploy_backend=backend, verify=False, algo="ptf")
    assert report.settings["target"] == (
        "tensorrt" if "T" in (backend or "").upper()[:1] else "paddle"
    )
