"""Everything that speed and memory are held to, beside the peers: `python -m benchmarks.bench`.

Prints one table with the bar beside each figure. `docs/benchmarks.md` says what each row means.
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import inprocess, processes, separate
from benchmarks.environments import PEERS, UnavailableError, made
from benchmarks.machine import machine, pin, versions
from benchmarks.rows import Group, Row, table
from benchmarks.workshop import Settings, Workshop

__all__ = ["GROUPS", "document", "run_group"]


@dataclass(frozen=True)
class Benchmark:
    """about: in a few words. rows: measures, and gives each row when it is there."""

    about: str
    rows: Callable[[Workshop], Iterator[Row]]


GROUPS: Mapping[str, Benchmark] = {
    "calibration": Benchmark("stage calibrate beside inference", inprocess.calibration),
    "methods": Benchmark("all methods from one calibration", inprocess.methods),
    "after": Benchmark("plan, weights, rewrite, save", inprocess.after),
    "whole": Benchmark("static mode, whole process", processes.whole),
    "memory": Benchmark("peak of a whole process", processes.memory),
    "dynamic": Benchmark("dynamic mode, whole process", processes.dynamic),
    "big": Benchmark("a model above 2 GB", separate.big),
    "growth": Benchmark("time as the model grows", separate.growth),
    "latency": Benchmark("int8 beside fp32 and the peers' int8", separate.latency),
    "imports": Benchmark("start of Python included, warm", processes.imports),
}


def run_group(name: str, benchmark: Benchmark, shop: Workshop) -> tuple[Group, str | None]:
    """The group with all rows that it gave, and the traceback of what ended it early, if anything.

    A group that fails must not take the figures of the others with it; it is shown as failed.
    """
    rows: list[Row] = []
    reason, trace = None, None
    start = time.perf_counter()
    try:
        for row in benchmark.rows(shop):
            rows.append(row)
            shop.note(f"  {row.what}: {row.reason or row.measured} [{row.verdict}]")
    except UnavailableError as error:
        reason = str(error)
    except Exception as error:  # told in the row; the other groups are to run all the same
        reason, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
    return Group(name, benchmark.about, rows, time.perf_counter() - start, reason), trace


def document(
    groups: Sequence[Group], settings: Settings, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The whole run as plain values. about: machine, versions and date."""
    chosen = {"rounds": settings.rounds, "quick": settings.quick}
    return {**about, "settings": chosen, "groups": [group.to_dict() for group in groups]}


def peers_versions(cache: Path) -> dict[str, dict[str, str]]:
    """Of the environments that are there."""
    return {name: found.versions() for name in PEERS if (found := made(name, cache)) is not None}


def main() -> int:
    arguments = _arguments()
    # as an exception, so that the process which is being measured is ended, too
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    settings = Settings(
        rounds=1 if arguments.quick and arguments.rounds is None else arguments.rounds or 3,
        quick=arguments.quick,
        cache=arguments.cache,
    )
    about: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
    }
    pin()
    about["versions"] = versions()
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    start = time.perf_counter()
    shop = Workshop(
        settings,
        lambda text: errors.print(f"{time.perf_counter() - start:6.0f} s  {text}", markup=False),
    )
    groups: list[Group] = []
    failed = False
    for name in arguments.group or GROUPS:
        shop.note(f"== {name}: {GROUPS[name].about}")
        group, trace = run_group(name, GROUPS[name], shop)
        groups.append(group)
        if trace is not None:
            failed = True
            errors.print(trace, markup=False)
        about["peers"] = peers_versions(shop.cache)
        # after every group, so that a run that is stopped leaves what it has
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document(groups, settings, about), indent=1, allow_nan=False)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    console = Console(width=max(150, Console().width))
    console.print(table(groups))
    console.print(_summary(groups, about, settings), markup=False)
    console.print(f"written: {arguments.json}", markup=False)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--group", nargs="+", choices=GROUPS, metavar="NAME", help=", ".join(GROUPS)
    )
    parser.add_argument("--rounds", type=int, help="of everything measured in turn (3)")
    parser.add_argument(
        "--quick", action="store_true", help="one round, fewer samples, no peer that takes minutes"
    )
    parser.add_argument("--cache", type=Path, default=Settings.cache, help="models, environments")
    parser.add_argument("--json", type=Path, help="the file to write (CACHE/bench.json)")
    arguments = parser.parse_args()
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds has to be 1 or more")
    if arguments.json is None:
        arguments.json = arguments.cache / "bench.json"
    return arguments


def _summary(groups: Sequence[Group], about: Mapping[str, Any], settings: Settings) -> str:
    verdicts = [row.verdict for group in groups for row in group.rows]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("met", "short", "absent"))
    unfinished = [group.name for group in groups if group.reason is not None]
    if unfinished:
        counts += f"; not finished: {', '.join(unfinished)}"
    cpu = about["machine"]
    sets = " ".join(cpu["instruction_sets"])
    return (
        f"{counts}; {settings.rounds} rounds{', quick' if settings.quick else ''}\n"
        f"{cpu['cpu']}, {cpu['cores_used']} of {cpu['cores']} cores ({sets}); {about['date']}"
    )


if __name__ == "__main__":
    sys.exit(main())
