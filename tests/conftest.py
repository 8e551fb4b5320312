"""Fixtures that several test files share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import assets


@pytest.fixture(scope="session")
def digits() -> Path:
    """The network that comes with the package."""
    path = Path(__file__).resolve().parent.parent / "onnxq" / "demo" / "digits.onnx"
    assert path.is_file()
    return path


@pytest.fixture(scope="session")
def networks() -> dict[str, assets.Network]:
    """The real networks on this machine; a test that needs them is skipped where there are none."""
    found = {name: n for name, n in assets.NETWORKS.items() if n.file.is_file()}
    if not found:
        pytest.skip(f"no models in {assets.ASSETS}")
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What became of the models of the `onnx` package, if test_backend.py has run."""
    module = sys.modules.get("tests.test_backend")
    lines = module.summary() if module is not None else []
    if lines:
        terminalreporter.section("models of the onnx package")
        for line in lines:
            terminalreporter.write_line(line)
