"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import assets

SUMMARY = "models of the onnx package"


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
    """What tests recorded under SUMMARY: what became of the models of the `onnx` package.

    Reports carry it, so it does not matter in which process a test has run.
    """
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, ())]
    recorded = [
        lines
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, lines in report.user_properties
        if name == SUMMARY
    ]
    if recorded:
        terminalreporter.section(SUMMARY)
        for line in (line for lines in recorded for line in lines):
            terminalreporter.write_line(line)
