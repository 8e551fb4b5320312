"""The command line. Importing it imports nothing heavy; each command does when it runs."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Entry point of the `onnxq` command: exit code 0 only on success."""
    from onnxq.cli.app import run

    run()
