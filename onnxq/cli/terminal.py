"""What all commands print with."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

__all__ = ["console", "print_json", "progress_bar", "size", "tell"]

# What goes into a file or a pipe is not folded to the width of a terminal
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr while something long runs; nothing if that is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def tell(line: str) -> None:
    """A line about what is going on, on stderr: stdout is for results."""
    sys.stderr.write(f"{line}\n")  # looked up now: a progress bar puts its own in place


def print_json(value: Any) -> None:
    """One JSON document on stdout and nothing else."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def size(count: int | None) -> str:
    """Bytes in words."""
    if count is None:
        return "in memory"
    if count < 1000:
        return f"{count} B"
    if count < 1000_000:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.2f} MB"
