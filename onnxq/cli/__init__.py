"""The command line. Importing it imports nothing heavy; each command does when it runs."""

from __future__ import annotations

import signal
import sys
from types import FrameType

__all__ = ["main"]


def main() -> None:
    """Entry point of the `onnxq` command: exit code 0 only on success, 130 when interrupted."""
    interrupted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        from onnxq.cli.app import run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
    except ImportError:  # what an interrupt becomes in a library that is being loaded
        if interrupted:
            sys.exit(130)
        raise
