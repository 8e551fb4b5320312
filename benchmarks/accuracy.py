"""What int8 costs in accuracy, ours beside the peers': `python -m benchmarks.accuracy`.

A network x a tool x a level is a row: top-1 and its drop with the paired 95 % interval, agreement,
SQNR, seconds and peak memory of the whole process, latency, share of the multiplications in int8.
All get the same calibration samples and are compared on the same validation samples.
"""

from __future__ import annotations

import argparse
import datetime
import signal
import sys
import time
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from rich.console import Console

from benchmarks.accuracy_bars import judged
from benchmarks.accuracy_measure import Bench
from benchmarks.accuracy_rows import Result, Rows
from benchmarks.accuracy_table import absent, figures
from benchmarks.accuracy_tools import LEVELS, OURS, TOOLS, Setting
from benchmarks.machine import machine, pin, versions
from benchmarks.rows import table
from benchmarks.subjects import SUBJECTS
from benchmarks.workshop import Settings, Workshop


def main() -> int:
    arguments = _arguments()
    # as an exception, so that the process which is being measured is ended, too
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    about = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
    }
    pin()
    rows = Rows()
    if (arguments.resume or arguments.timings) and arguments.json.is_file():
        rows = Rows.read(arguments.json).finished()
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    start = time.perf_counter()
    shop = Workshop(
        Settings(cache=arguments.cache),
        lambda text: errors.print(f"{time.perf_counter() - start:6.0f} s  {text}", markup=False),
    )
    if arguments.show:
        show(Rows.read(arguments.json), arguments.peers)
        return 0
    settings = chosen(arguments.tool or TOOLS, arguments.level or LEVELS)
    for name in arguments.network or SUBJECTS:
        bench = Bench(shop, SUBJECTS[name], arguments.validation)
        make = timed_again if arguments.timings else measured
        for row in make(bench, settings, rows):
            rows.add(row)
            # after every row, so that a run that is stopped leaves what it has
            rows.write(arguments.json, about)
            shop.note(f"{' '.join(row.key)}: {row.reason or f'{row.sqnr} dB, {row.ratio}x'}")
    show(rows, arguments.peers)
    return 0


def chosen(tools: Iterable[str], levels: Container[str]) -> list[Setting]:
    """The settings of these tools; levels: of ours."""
    every = [setting for tool in tools for setting in TOOLS[tool]]
    return [one for one in every if one.tool != OURS or one.level in levels]


def measured(bench: Bench, settings: Iterable[Setting], rows: Rows) -> Iterator[Result]:
    """The rows of a network that are not there yet, each when it is made."""
    commit = versions().get("commit")
    for setting in settings:
        if (bench.subject.name, setting.tool, setting.level) not in rows:
            yield bench.measure(setting, commit)


def timed_again(bench: Bench, settings: Iterable[Setting], rows: Rows) -> Iterator[Result]:
    """The rows that are there, with new latencies, where the cache has their models."""
    for setting in settings:
        row = rows.get(bench.subject.name, setting.tool, setting.level)
        again = None if row is None else bench.timed(row)
        if again is not None:
            yield again


def show(rows: Rows, peers: Path | None) -> None:
    """The figures, then what they are held to. peers: file of a run that has the peers' rows."""
    everything = Rows(rows)
    for row in Rows.read(peers) if peers is not None else ():
        if row.tool != OURS and row.key not in everything:
            everything.add(row)
    console = Console(width=max(150, Console().width))
    console.print(figures(everything))
    for line in absent(everything):
        console.print(line, markup=False, soft_wrap=True)
    groups = judged(everything)
    if groups:
        console.print(table(groups))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--network", nargs="+", choices=SUBJECTS, metavar="NAME", help=", ".join(SUBJECTS))
    add("--tool", nargs="+", choices=TOOLS, metavar="NAME", help=", ".join(TOOLS))
    add("--level", nargs="+", choices=LEVELS, metavar="LEVEL", help=f"of ours: {', '.join(LEVELS)}")
    add("--validation", type=int, metavar="N", help="the first N validation samples alone")
    add("--json", type=Path, metavar="FILE", help="the file to write (CACHE/accuracy.json)")
    add("--resume", action="store_true", help="keep the rows that the file has")
    add("--timings", action="store_true", help="only the latencies of the file's rows, anew")
    add("--peers", type=Path, metavar="FILE", help="an earlier run, to show its peers' rows, too")
    add("--show", action="store_true", help="print what the file has, and measure nothing")
    add("--cache", type=Path, default=Settings.cache, help="models, samples, environments")
    arguments = parser.parse_args()
    if arguments.validation is not None and arguments.validation < 2:
        parser.error("--validation has to be 2 or more")
    if arguments.json is None:
        arguments.json = arguments.cache / "accuracy.json"
    return arguments


if __name__ == "__main__":
    sys.exit(main())
