"""Runs a script and leaves behind how much memory it took: `launch.py OUT SCRIPT ARGUMENT...`

Standard library only, so that it works, and costs the same, in every environment. VmHWM is read
at the end: `ru_maxrss` of a new process on Linux starts at what its parent had in memory.
"""

from __future__ import annotations

import json
import os
import runpy
import sys

THREADS = 2


def main() -> None:
    out, script = sys.argv[1:3]
    sys.argv = sys.argv[2:]
    if hasattr(os, "sched_setaffinity"):  # the same two cores for all, whatever they ask for
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    runpy.run_path(script, run_name="__main__")
    with open(out, "w", encoding="ascii") as file:
        json.dump({"peak": _peak()}, file)


def _peak() -> int | None:
    """Most bytes that were ever resident, None where that cannot be known."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            lines = [line for line in status if line.startswith("VmHWM:")]
    except OSError:
        return None
    return int(lines[0].split()[1]) * 1024 if lines else None


if __name__ == "__main__":
    main()
