"""Saving: the old file or the new one, never half, with and without a data file."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxq.errors import OutputError
from onnxq.save import save
from tests.models import Array, build, normal, open_session

LIMIT = 1 << 12
FEED = {"x": normal(2, 64, seed=1)}
ROOT = Path(__file__).resolve().parent.parent


def proto(seed: int) -> onnx.ModelProto:
    return build(
        "(float[N,64] x) => (float[N,32] y) { a = MatMul(x, w) y = Add(a, b) }",
        {"w": normal(64, 32, seed=seed), "b": normal(32, seed=seed)},
    )


def model(seed: int) -> ir.Model:
    return ir.from_proto(proto(seed))


def output(path: Path) -> Array:
    return np.asarray(open_session(path).run(None, FEED)[0])


def loads(path: Path) -> None:
    onnx.checker.check_model(str(path))
    output(path)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def data_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.data"))


def expected(seed: int) -> Array:
    return np.asarray(open_session(proto(seed)).run(None, FEED)[0])


def test_small_model_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    size = save(model(0), path, loads)
    assert names(tmp_path) == {"m.onnx"}
    assert size == path.stat().st_size
    np.testing.assert_array_equal(output(path), expected(0))


def test_large_model_is_a_pair(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    size = save(model(0), path, loads, limit=LIMIT)
    (data,) = data_files(tmp_path)
    assert names(tmp_path) == {"m.onnx", data.name}
    assert size == path.stat().st_size + data.stat().st_size
    assert data.stat().st_size == 64 * 32 * 4  # the small bias stays inside
    assert path.stat().st_size < 1024
    np.testing.assert_array_equal(output(path), expected(0))


def test_permissions_are_those_of_a_plain_file(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    save(model(0), tmp_path / "m.onnx", loads, limit=LIMIT)
    assert {p.stat().st_mode for p in tmp_path.iterdir()} == {plain.stat().st_mode}


def test_new_pair_replaces_the_old_pair(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(model(0), path, loads, limit=LIMIT)
    (old,) = data_files(tmp_path)
    save(model(1), path, loads, limit=LIMIT)
    (new,) = data_files(tmp_path)
    assert old != new
    assert names(tmp_path) == {"m.onnx", new.name}
    np.testing.assert_array_equal(output(path), expected(1))


def test_same_content_keeps_its_data_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(model(0), path, loads, limit=LIMIT)
    before = names(tmp_path), path.read_bytes()
    save(model(0), path, loads, limit=LIMIT)
    assert (names(tmp_path), path.read_bytes()) == before
    np.testing.assert_array_equal(output(path), expected(0))


def test_small_model_over_a_pair_removes_the_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(model(0), path, loads, limit=LIMIT)
    save(model(1), path, loads)
    assert names(tmp_path) == {"m.onnx"}
    np.testing.assert_array_equal(output(path), expected(1))


def test_other_data_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    others = {"m.data", "other-0123456789ab.data", "m-0123456789ab.data", "weights.bin"}
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    save(model(0), path, loads, limit=LIMIT)
    save(model(1), path, loads, limit=LIMIT)
    assert others < names(tmp_path)
    assert len(names(tmp_path)) == len(others) + 2


@pytest.mark.parametrize("limit", [LIMIT, 1 << 30])
def test_failure_in_the_check_leaves_the_old_pair(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "m.onnx"
    save(model(0), path, loads, limit=LIMIT)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def refuse(_: Path) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match=r"^no$"):
        save(model(1), path, refuse, limit=limit)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_failure_with_the_same_content_keeps_the_data_it_shares(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(model(0), path, loads, limit=LIMIT)

    def refuse(_: Path) -> None:
        raise OSError("disk on fire")

    with pytest.raises(OutputError, match="disk on fire"):
        save(model(0), path, refuse, limit=LIMIT)
    np.testing.assert_array_equal(output(path), expected(0))


def test_the_check_sees_the_new_model_while_the_old_one_is_in_place(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(model(0), path, loads, limit=LIMIT)
    seen: list[Array] = []

    def look(temporary: Path) -> None:
        assert temporary != path
        assert temporary.parent == path.parent
        seen.extend((output(temporary), output(path)))

    save(model(1), path, look, limit=LIMIT)
    np.testing.assert_array_equal(seen[0], expected(1))
    np.testing.assert_array_equal(seen[1], expected(0))


def killed(path: Path, body: str) -> None:
    """Save another model to `path` in a process that ends, without any clean-up, in `body`."""
    script = f"""
        import os, sys
        from pathlib import Path
        from onnxq.save import save
        from tests.test_save import LIMIT, model
        path = Path(sys.argv[1])
        check = lambda _: None
        {body}
        save(model(1), path, check, limit=LIMIT)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 9, done.stderr


@pytest.mark.parametrize("old_limit", [LIMIT, 1 << 30])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param("check = lambda _: os._exit(9)", id="in the check"),
        # the moments at which files change their names, as the operating system sees them
        pytest.param(
            "sys.addaudithook(lambda e, a: os._exit(9) if e == 'os.rename' and "
            "str(a[1]).endswith('.data') else None)",
            id="before the data is in place",
        ),
        pytest.param(
            "sys.addaudithook(lambda e, a: os._exit(9) if e == 'os.rename' and "
            "str(a[1]) == str(path) else None)",
            id="between data and model",
        ),
    ],
)
def test_kill_leaves_the_old_model(tmp_path: Path, body: str, old_limit: int) -> None:
    path = tmp_path / "m.onnx"
    save(model(0), path, loads, limit=old_limit)
    before = path.read_bytes()
    killed(path, body)
    assert path.read_bytes() == before
    np.testing.assert_array_equal(output(path), expected(0))
    # and the next save works
    save(model(1), path, loads, limit=LIMIT)
    np.testing.assert_array_equal(output(path), expected(1))


def test_kill_before_the_old_data_is_removed_leaves_the_new_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(model(0), path, loads, limit=LIMIT)
    killed(
        path,
        "sys.addaudithook(lambda e, a: os._exit(9) if e == 'os.remove' and "
        "str(a[0]).endswith('.data') else None)",
    )
    np.testing.assert_array_equal(output(path), expected(1))
    assert len(data_files(tmp_path)) == 2
