"""Models that several tests share, saved once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.paddle.slim import SAVE, script


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
