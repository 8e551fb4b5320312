"""Models that several tests share, saved once; and no tests of Paddle without Paddle."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paddle.slim import SAVE, script

MISSING = [m for m in ("paddle", "paddle2onnx") if importlib.util.find_spec(m) is None]
# `make test` sets it where Paddle can be installed, so that these tests are not lost unnoticed
REQUIRED = os.environ.get("ONNXQ_REQUIRE_PADDLE") == "1" and sys.version_info < (3, 13)


class WithoutPaddle(pytest.Module):
    """A test module that is not imported, since it may import Paddle."""

    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        reason = f"{' and '.join(MISSING)} not installed: pip install 'onnxq[paddle]'"
        if REQUIRED:
            pytest.fail(f"{reason} (ONNXQ_REQUIRE_PADDLE is set)", pytrace=False)
        pytest.skip(reason, allow_module_level=True)


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    return WithoutPaddle.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope="session")
def slim_saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of the same networks in both formats."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("pir", "legacy")}
    for kind, folder in folders.items():
        script(SAVE, folder, pir=kind == "pir")
    assert (folders["pir"] / "net" / "inference.json").exists()
    assert (folders["legacy"] / "net" / "inference.pdmodel").exists()
    return folders


@pytest.fixture(scope="session")
def slim_net(slim_saved: dict[str, Path]) -> Path:
    return slim_saved["legacy"] / "net"
