"""The command line. Importing it imports nothing heavy; each command does when it runs."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the `onnxq` command: exit code 0 only on success."""
    try:
        from onnxq.cli.app import run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
