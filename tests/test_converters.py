"""A framework of its own, added by a package that the core knows nothing of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq import errors
from onnxq.converters import from_onnx
from tests.models import normal, run

# A "framework" whose models are JSON files of dense layers
TOY = '''
"""Models of the toy framework: {"layers": [[[...], ...], ...]}, Relu between the layers."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from onnxq.errors import ConversionError


def matches(path: Path) -> bool:
    return path.suffix == ".toy"


def to_onnx(path: Path, dest: Path, *, opset: int = 17, relu: bool = True) -> None:
    layers = json.loads(path.read_text())["layers"]
    if not layers:
        raise ConversionError(f"{path}: has no layers")
    arrays = [np.asarray(layer, np.float32) for layer in layers]
    nodes, last = "", "x"
    for i in range(len(arrays)):
        nodes += f"m{i} = MatMul({last}, w{i}) "
        last = f"m{i}"
        if relu and i + 1 < len(arrays):
            nodes += f"r{i} = Relu(m{i}) "
            last = f"r{i}"
    rows, columns = arrays[0].shape[0], arrays[-1].shape[1]
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> '
        f"toy (float[N,{rows}] x) => (float[N,{columns}] y) {{ {nodes} y = Identity({last}) }}"
    )
    for i, array in enumerate(arrays):
        model.graph.initializer.append(numpy_helper.from_array(array, f"w{i}"))
    onnx.save(model, str(dest))


def from_onnx(path: Path, dest: Path, *, indent: int = 0) -> None:
    model = onnx.load(str(path))
    layers = [numpy_helper.to_array(t).tolist() for t in model.graph.initializer]
    dest.write_text(json.dumps({"layers": layers}, indent=indent or None))
'''


def install(folder: Path, name: str, source: str) -> None:
    """What pip leaves behind of a package with one module and one entry point."""
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    entry = name.removeprefix("onnxq_")
    (info / "entry_points.txt").write_text(f"[onnxq.converters]\n{entry} = {name}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    install(folder, "onnxq_toy", TOY)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "onnxq_toy", raising=False)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.toy"
    layers = [normal(16, 32).tolist(), normal(32, 4, seed=1).tolist()]
    path.write_text(json.dumps({"layers": layers}))
    return path


def command(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{Path.cwd()}"}
    return subprocess.run(
        [sys.executable, "-m", "onnxq", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def test_every_call_takes_the_other_framework_s_model(
    site: Path, model: Path, tmp_path: Path
) -> None:
    x = normal(64, 16, seed=2)
    layers = [np.asarray(w, np.float32) for w in json.loads(model.read_text())["layers"]]
    expected = np.maximum(x @ layers[0], 0) @ layers[1]
    out = tmp_path / "q.onnx"
    onnxq.export(model, tmp_path / "net.onnx")
    np.testing.assert_allclose(run(tmp_path / "net.onnx", {"x": x})[0], expected, rtol=1e-4)
    for report in (onnxq.quantize_dynamic(model, out), onnxq.quantize_static(model, out, x)):
        assert report.model == str(model)
        assert report.weights.count == 2
        (found,) = run(out, {"x": x})
        assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()
    assert onnxq.inspect(model).ops["MatMul"] == 2
    assert len(onnxq.plan(model).placement.weights) == 2
    (output,) = onnxq.compare(model, out, x).outputs
    assert output.sqnr > 25


def test_command_line(site: Path, model: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "net.onnx", tmp_path / "back.toy"
    done = command(site, "export", model, "-o", out, "--option", "opset=15")
    assert done.returncode == 0, done.stderr
    assert onnx.load(str(out)).opset_import[0].version == 15
    done = command(site, "dynamic", model, "-o", tmp_path / "q.onnx")
    assert done.returncode == 0, done.stderr
    done = command(site, "to", "toy", out, "-o", back)
    assert done.returncode == 0, done.stderr
    assert json.loads(back.read_text()) == json.loads(model.read_text())


def test_what_a_converter_writes_does_not_stay_behind(
    site: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    onnxq.quantize_dynamic(model, tmp_path / "q.onnx")
    assert list(scratch.iterdir()) == []


def test_a_converter_s_own_error_is_passed_on(site: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.toy"
    empty.write_text('{"layers": []}')
    with pytest.raises(errors.ConversionError, match=r"empty\.toy: has no layers"):
        onnxq.quantize_dynamic(empty, tmp_path / "q.onnx")
    empty.write_text("no JSON")
    with pytest.raises(errors.ConversionError, match="converter 'toy' failed: JSONDecodeError"):
        onnxq.quantize_dynamic(empty, tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("opsett=15", "no option 'opsett'; it has opset, relu"),
        ("opset=new", "'opset' takes an int, got 'new'"),
        ("relu=maybe", "'relu' takes a bool"),
        ("opset", "KEY=VALUE"),
    ],
)
def test_options_are_typed(
    site: Path, model: Path, tmp_path: Path, option: str, words: str
) -> None:
    done = command(site, "export", model, "-o", tmp_path / "o.onnx", "--option", option)
    assert done.returncode == 1
    assert words in done.stderr
    assert not (tmp_path / "o.onnx").exists()


def test_two_that_match_one_that_is_broken_and_none(
    site: Path, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(errors.ModelError, match="no converter takes it"):
        onnxq.quantize_dynamic(site, tmp_path / "q.onnx")
    with pytest.raises(errors.OptionError, match="no converter 'toi'; near are toy"):
        onnxq.export(model, tmp_path / "o.onnx", converter="toi")
    install(site, "onnxq_twin", TOY)
    with pytest.raises(errors.ConversionError, match="toy, twin all take it"):
        onnxq.quantize_dynamic(model, tmp_path / "q.onnx")
    install(site, "onnxq_broken", "import a_package_that_is_not_there")
    with pytest.raises(errors.ConversionError, match="'broken' cannot be imported"):
        onnxq.quantize_dynamic(model, tmp_path / "q.onnx")
    install(site, "onnxq_reader", TOY.split("def from_onnx")[0])
    with pytest.raises(errors.ConversionError, match="only reads"):
        from_onnx(model, tmp_path / "o.toy", name="reader")
