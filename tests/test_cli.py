"""The command line as users run it: in processes of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.cli.options import Method, TargetName
from onnxq.demo import DIGITS, digits_data
from onnxq.numerics.ranges import METHODS
from onnxq.recipe import DEFAULT_METHOD
from onnxq.session import load_session
from onnxq.targets import TARGETS


def onnxq(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxq", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def figures(*arguments: object) -> Any:
    done = onnxq(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "samples.npy"
    np.save(path, digits_data()[0][:40])
    return path


def test_choices_are_those_of_the_tables() -> None:
    assert {m.value for m in Method} == set(METHODS)
    assert {t.value for t in TargetName} == set(TARGETS)
    assert f"default {DEFAULT_METHOD}" in onnxq("static", "--help").stdout


def test_calibrate_with_workers_and_in_a_file_that_grows(tmp_path: Path, samples: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    command = ("calibrate", DIGITS, "--data", samples, "--statistics")
    assert figures(*command, one, "--workers", 2)["samples"] == 40
    assert figures(*command, other)["samples"] == 40
    assert one.read_bytes() == other.read_bytes()
    both = onnxq(*command, one, "-o", other)
    neither = onnxq("calibrate", DIGITS, "--data", samples)
    for refused in (both, neither):
        assert refused.returncode == 1
        assert "needs one file to write" in refused.stderr
    nobody = onnxq(*command, tmp_path / "no", "--dask", "tcp://127.0.0.1:9")
    assert nobody.returncode == 1
    assert "tcp://127.0.0.1:9" in nobody.stderr


@pytest.mark.parametrize(("bits", "share"), [(8, 0.27), (16, 0.52)])
def test_dynamic(tmp_path: Path, bits: int, share: float) -> None:
    out = tmp_path / "out.onnx"
    report = figures("dynamic", DIGITS, "-o", out, "--bits", bits)
    assert report["weights"]["ratio"] < share
    assert report["bytes_after"] == out.stat().st_size
    assert any("load_session" in note for note in report["notes"])
    load_session(out)


def test_static_from_data_and_from_statistics_give_the_same_bytes(
    tmp_path: Path, samples: Path
) -> None:
    direct, statistics, indirect = (tmp_path / n for n in ("a.onnx", "s.npz", "b.onnx"))
    common = ("--method", "KL", "--target", "onnxruntime-x86", "--no-verify", "--accuracy", "none")
    report = figures("static", DIGITS, "-o", direct, "--data", samples, *common)
    assert report["operators"]["Conv"] == 9
    assert report["settings"]["target"] == "onnxruntime-x86"
    figures("calibrate", DIGITS, "--data", samples, "-o", statistics)
    figures("static", DIGITS, "-o", indirect, "--statistics", statistics, *common)
    assert direct.read_bytes() == indirect.read_bytes()


def test_text_output_names_what_stays_float_and_why(tmp_path: Path, samples: Path) -> None:
    done = onnxq(
        "static", DIGITS, "-o", tmp_path / "o.onnx", "--data", samples, "--exclude", "block1*"
    )
    assert done.returncode == 0, done.stderr
    assert "excluded by pattern 'block1*'" in done.stdout
    # no progress bar where nobody watches; what the accuracy level will cost, and did
    before, after = done.stderr.splitlines()
    assert before.startswith("accuracy fast: bias_correction: about ")
    assert after.startswith("accuracy fast: took ")


def test_explain_prints_what_each_pass_tried(tmp_path: Path, samples: Path) -> None:
    done = onnxq("static", DIGITS, "-o", tmp_path / "o.onnx", "--data", samples, "--explain")
    assert "bias_correction: " in done.stdout
    assert "kept: 10 biases, one layer after the other" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dynamic", "missing.onnx"), "missing.onnx: no such file"),
        (("dynamic", DIGITS, "--exclude", "blok1*"), "near are"),
        (("static", DIGITS), "data or statistics"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(
    tmp_path: Path, arguments: tuple[object, ...], words: str
) -> None:
    out = tmp_path / "out.onnx"
    done = onnxq(*arguments, "-o", out)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.startswith("error:")
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_help_and_import_load_nothing_heavy() -> None:
    code = (
        "import sys, onnxq, onnxq.cli.app\n"
        "names = {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'sympy', 'paddle'}\n"
        "heavy = names & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert onnxq("--help").returncode == 0


def test_demo(tmp_path: Path) -> None:
    rows = figures("demo", "--directory", tmp_path)
    fp32, int8, int16, static = rows
    assert fp32["top1"] > 0.98
    for row in (int8, int16, static):
        assert row["top1"] >= fp32["top1"] - 0.005
    assert int8["bytes"] < 0.28 * fp32["bytes"]
    assert int16["bytes"] < 0.52 * fp32["bytes"]


def test_calibrate_takes_no_options_that_it_would_ignore(tmp_path: Path, samples: Path) -> None:
    done = onnxq("calibrate", DIGITS, "--data", samples, "-o", tmp_path / "s", "--method", "KL")
    assert done.returncode == 2
    assert "No such option" in done.stderr
    assert not (tmp_path / "s").exists()


def test_the_mode_of_a_recipe_file_counts(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('mode = "dynamic"\nbits = 16\n')
    assert figures("plan", DIGITS, "--recipe", recipe)["recipe"]["bits"] == 16
    assert figures("recipe", "--recipe", recipe)["mode"] == "dynamic"
    done = onnxq("plan", DIGITS, "--recipe", recipe, "--mode", "static")
    assert "a recipe for dynamic mode, not static" in done.stderr
    done = onnxq("recipe", "--data", "a.npy", "--statistics", "b")
    assert "either data or statistics" in done.stderr
