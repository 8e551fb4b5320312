"""Processes measured from outside, start to end: seconds and peak memory, taken in turn."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

__all__ = ["Child", "ChildFailedError", "Run", "interleaved"]

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks" / "peers"
THREADS = "2"
# Nobody reports their use while they are timed, and libraries that ask OpenMP get two threads, too
ENVIRONMENT = {
    "OMP_NUM_THREADS": THREADS,
    "NNCF_CI": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
}
TIMEOUT = 1800
LAST_LINES = 3

Result = TypeVar("Result")


class ChildFailedError(Exception):
    """A process ended with an error; the message has the last lines that it wrote."""


@dataclass(frozen=True)
class Run:
    """One run of a process. peak: most bytes that were resident; None where nobody can tell."""

    seconds: float
    peak: int | None


@dataclass(frozen=True)
class Child:
    """A script of `benchmarks/peers` in an environment of its own.

    own: the process gets this checkout's packages.
    """

    python: Path
    script: str
    arguments: tuple[str, ...]
    own: bool = False

    def run(self) -> Run:
        """Start it and wait for it. Raises ChildFailedError."""
        with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as folder:
            figures = Path(folder) / "figures.json"
            command = [str(PEERS / "launch.py"), str(figures), str(PEERS / self.script)]
            seconds = timed([str(self.python), *command, *self.arguments], own=self.own)
            peak = json.loads(figures.read_text(encoding="ascii"))["peak"]
        return Run(seconds, peak)


def timed(command: Sequence[str], *, own: bool) -> float:
    """Seconds from start to end of a process. Raises ChildFailedError."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= ENVIRONMENT
    if own:
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "converters")])
    with (
        tempfile.TemporaryDirectory(prefix="onnxq-bench-") as folder,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as written,
    ):
        start = time.perf_counter()
        try:
            done = subprocess.run(
                list(command),
                cwd=folder,  # some leave files where they run
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ChildFailedError(f"not done after {TIMEOUT} s") from error
        seconds = time.perf_counter() - start
        if done.returncode:
            written.seek(0)
            lines = [line.strip() for line in written.read().splitlines() if line.strip()]
            raise ChildFailedError(
                f"ended with {done.returncode}: {' / '.join(lines[-LAST_LINES:])}"
            )
    return seconds


def interleaved(
    calls: Mapping[str, Callable[[], Result]],
    rounds: int,
    *,
    once_above: float = float("inf"),
    note: Callable[[str, float], None] = lambda name, seconds: None,
) -> dict[str, list[Result]]:
    """What each call gives, round by round, so that what slows the machine hits all alike.

    Every second round goes backwards. A call that took more than `once_above` seconds is not made
    again. note: told the name and the seconds of each call.
    """
    results: dict[str, list[Result]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(rounds):
        slow = []
        for name in order:
            start = time.perf_counter()
            results[name].append(calls[name]())
            seconds = time.perf_counter() - start
            note(name, seconds)
            if seconds > once_above:
                slow.append(name)
        order = [name for name in reversed(order) if name not in slow]
    return results


def seconds_of(runs: Sequence[Run]) -> list[float]:
    return [run.seconds for run in runs]


def peak_of(runs: Sequence[Run]) -> float | None:
    """Median of the peaks in MB."""
    peaks = [run.peak for run in runs if run.peak is not None]
    return median(peaks) / 1e6 if peaks else None


def to_dict(runs: Sequence[Run]) -> dict[str, Any]:
    return {"seconds": seconds_of(runs), "peak_bytes": [run.peak for run in runs]}
