"""What is around a run: full disks, interrupts, other runs, links, odd paths, broken sources."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.api import quantize_dynamic
from onnxq.demo import DIGITS, digits_data
from onnxq.model import load
from tests.models import Array, build, normal, run

OLD = b"what was here before"


def external(folder: Path, name: str = "model.onnx", *, seed: int = 0) -> Path:
    """A model with its weights in a file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = build(
        "(float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }", {"w": normal(64, 64, seed=seed)}
    )
    path = folder / name
    onnx.save(
        model, str(path), save_as_external_data=True, location=f"{name}_data", size_threshold=0
    )
    return path


def command(*arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onnxq", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **more,
    )


# a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False
    )
    if not made or made.returncode != 0:
        pytest.skip("no permission to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_full_disk(small_disk: Path, tmp_path: Path, mode: str) -> None:
    out = small_disk / "q.onnx"
    out.write_bytes(OLD)
    np.save(tmp_path / "x.npy", digits_data()[0][:8])
    data = ("--data", tmp_path / "x.npy") if mode == "static" else ()
    done = command(mode, DIGITS, "-o", out, *data)
    assert done.returncode == 1
    assert "error:" in done.stderr
    assert f"{out}: could not be written: No space left on device" in done.stderr.replace("\n", "")
    assert out.read_bytes() == OLD
    assert [p.name for p in small_disk.iterdir()] == ["q.onnx"]


def limit_files() -> None:
    """The same on any machine: the system lets no file of this process grow beyond 64 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))


@pytest.mark.parametrize("what", ["model", "statistics"])
def test_files_that_cannot_grow(tmp_path: Path, what: str) -> None:
    out = tmp_path / "out" / "q"
    out.parent.mkdir()
    out.write_bytes(OLD)
    np.save(tmp_path / "x.npy", digits_data()[0][:8])
    arguments: dict[str, tuple[object, ...]] = {
        "model": ("dynamic", DIGITS, "-o", out),
        "statistics": ("calibrate", DIGITS, "--data", tmp_path / "x.npy", "-o", out),
    }
    done = command(*arguments[what], preexec_fn=limit_files)
    assert done.returncode == 1
    assert "could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert out.read_bytes() == OLD
    assert [p.name for p in out.parent.iterdir()] == ["q"]


# interrupts


def wait_for_onnxruntime(process: subprocess.Popen[str]) -> None:
    """Until the process has loaded it; before that there is nothing to leave behind."""
    maps = Path(f"/proc/{process.pid}/maps")
    if not maps.parent.parent.is_dir():
        time.sleep(3)
        return
    for _ in range(600):
        if "onnxruntime_pybind11" in maps.read_text():
            return
        time.sleep(0.05)


@pytest.mark.parametrize("after", [0.1, 0.5, 1.2])
def test_interrupt_leaves_nothing_behind(tmp_path: Path, after: float) -> None:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    (out / "q.onnx").write_bytes(OLD)
    np.save(tmp_path / "x.npy", np.tile(digits_data()[0], (200, 1, 1, 1)))
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxq", "static", str(DIGITS), "-o", str(out / "q.onnx")]
        + ["--data", str(tmp_path / "x.npy")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    wait_for_onnxruntime(process)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    # both are 130 to a shell; Python ends by the signal if it was in a library's own Python code
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in stderr
    assert (out / "q.onnx").read_bytes() == OLD
    assert [p.name for p in out.iterdir()] == ["q.onnx"]
    assert list(scratch.iterdir()) == []


# two runs with one output


def test_two_runs_writing_one_file(tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    options = [("--bits", "8"), ("--bits", "16"), ("--encoding", "fold")]
    expected = set()
    for i, option in enumerate(options):
        alone = tmp_path / f"alone{i}.onnx"
        assert command("dynamic", DIGITS, "-o", alone, *option).returncode == 0
        expected.add(alone.read_bytes())
    assert len(expected) == 3
    for _ in range(2):
        runs = [
            subprocess.Popen(
                [sys.executable, "-m", "onnxq", "dynamic", str(DIGITS), "-o", str(out), *option],
                stdout=subprocess.DEVNULL,
            )
            for option in options
        ]
        assert [r.wait() for r in runs] == [0, 0, 0]
        assert out.read_bytes() in expected
    assert sorted(p.name for p in tmp_path.glob("*q*")) == ["q.onnx"]
    assert not list(tmp_path.glob(".*"))


def test_two_runs_with_data_files_leave_one_whole_model(tmp_path: Path) -> None:
    """Each of them replaces the other's model and data, again and again."""
    source = tmp_path / "float.onnx"
    onnx.save(
        build("(float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }", {"w": normal(64, 64)}),
        str(source),
    )
    body = (
        "import sys; from pathlib import Path; from onnxq.model import load\n"
        "from onnxq.api import quantize_dynamic; from onnxq.save import save\n"
        "source, out, bits = sys.argv[1:]\n"
        "for _ in range(25):\n"
        "    model = load(quantize_dynamic(source, bits=int(bits))).ir\n"
        "    save(model, Path(out), lambda path: None, limit=0)\n"
    )
    out = tmp_path / "q.onnx"
    runs = [
        subprocess.Popen([sys.executable, "-c", body, str(source), str(out), bits])
        for bits in ("8", "16", "8")
    ]
    assert [r.wait() for r in runs] == [0, 0, 0]
    run(out, {"x": normal(2, 64)})
    assert len(list(tmp_path.glob("q-*.data"))) == 1
    assert not list(tmp_path.glob(".*"))


# where models are


def test_read_only_input(tmp_path: Path) -> None:
    folder = tmp_path / "readonly"
    path = external(folder)
    for file in folder.iterdir():
        file.chmod(0o444)
    folder.chmod(0o555)
    try:
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        quantize_dynamic(path, tmp_path / "q.onnx")
        onnxq.quantize_static(path, tmp_path / "s.onnx", normal(8, 64))
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize("name", ["with spaces", "größe", "模型 [v2]*", "-dash", "%s{}"])
def test_odd_paths(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    path = external(folder, f"{name}.onnx")
    np.save(folder / f"{name}.npy", normal(8, 64))
    out, report = folder / f"{name} q.onnx", folder / f"{name}.json"
    data = ("--data", folder / f"{name}.npy")
    for mode, more in (("dynamic", ()), ("static", data)):
        done = command(mode, path, "-o", out, "--report", report, *more)
        assert done.returncode == 0, done.stderr
        assert out.is_file()
        assert report.is_file()
    done = command("compare", path, out, *data, "--layers")
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_model_linked_from_a_package_cache(tmp_path: Path, kind: str) -> None:
    """The names are links in a directory of their own; the files have names made from content."""
    store, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1a2b"
    snapshot.mkdir(parents=True)
    expected = run(external(store), {"x": normal(4, 64)})[0]
    for file, digest in (("model.onnx", "aaaa"), ("model.onnx_data", "bbbb")):
        (store / file).rename(store / digest)
        if kind == "symbolic":
            (snapshot / file).symlink_to(Path("../../blobs") / digest)
        else:
            os.link(store / digest, snapshot / file)
    model, out = snapshot / "model.onnx", tmp_path / "q.onnx"
    report = quantize_dynamic(model, out)
    assert report.bytes_before == sum(p.stat().st_size for p in store.iterdir())
    assert report.weights.count == 1
    found = run(out, {"x": normal(4, 64)})[0]
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    onnxq.quantize_static(model, out, normal(8, 64))
    assert onnxq.compare(model, out, normal(8, 64)).outputs[0].sqnr > 25


def test_output_through_a_link_is_written_where_it_points(tmp_path: Path) -> None:
    real = tmp_path / "real.onnx"
    real.write_bytes(OLD)
    link = tmp_path / "link.onnx"
    link.symlink_to(real)
    quantize_dynamic(DIGITS, link)
    assert link.exists()
    load(link)


# sources that fail


def items(good: int) -> Iterator[dict[str, Array]]:
    for i in range(good):
        yield {"image": digits_data()[0][i : i + 1]}
    raise ConnectionError("the database is gone")


class Broken:
    """A sequence that fails at one index."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, Array]:
        if index == 13:
            raise KeyError("no such row")
        return {"image": digits_data()[0][index : index + 1]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: items(7), ["sample 7", "ConnectionError: the database is gone", "7 samples"]),
        (Broken, ["sample 13", "KeyError", "no such row"]),
    ],
)
def test_a_source_that_fails_half_way(tmp_path: Path, data: Any, words: list[str]) -> None:
    out = tmp_path / "q.onnx"
    with pytest.raises(onnxq.DataError) as caught:
        onnxq.quantize_static(DIGITS, out, data())
    for word in [*words, "nothing has been written"]:
        assert word in str(caught.value)
    assert caught.value.__cause__ is not None
    assert not out.exists()


# outputs that are inputs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dynamic", "m.onnx", "-o", "q.onnx", "--report", "m.onnx"), "m.onnx: is an input itself"),
        (("dynamic", "m.onnx", "-o", "./m.onnx"), "is an input itself"),
        (
            ("dynamic", "m.onnx", "-o", "q.onnx", "--report", "./q.onnx"),
            "the output and the report",
        ),
        (("dynamic", "m.onnx", "-o", "q.onnx", "--test-model", "q.onnx"), "and the test model"),
        (("dynamic", "m.onnx", "-o", "r.toml", "--recipe", "r.toml"), "is an input itself"),
        (("static", "m.onnx", "-o", "x.npy", "--data", "x.npy"), "x.npy: is an input itself"),
        (
            ("static", "m.onnx", "-o", "q.onnx", "--data", "x.npy", "--report", "x.npy"),
            "is an input",
        ),
        (("calibrate", "m.onnx", "-o", "m.onnx", "--data", "x.npy"), "m.onnx: is an input itself"),
        (("calibrate", "m.onnx", "-o", "x.npy", "--data", "x.npy"), "x.npy: is an input itself"),
    ],
)
def test_nothing_that_is_read_is_written_over(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    shutil.copy(DIGITS, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", digits_data()[0][:8])
    (tmp_path / "r.toml").write_text('mode = "dynamic"\n')
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = command(*arguments, cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert words in done.stderr
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
