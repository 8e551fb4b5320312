"""Fixtures that several test files share."""

from __future__ import annotations

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
