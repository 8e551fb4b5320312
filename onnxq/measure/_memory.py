"""Run by benchmarking.py in a process of its own: how much memory does a model take?

Reads a job as JSON from stdin: path, entries (of the session), threads, feed (an .npz file).
Writes bytes as JSON to stdout: the peak before the model is loaded, and after it has run; or a
reason why that cannot be known. Imports nothing but numpy and onnxruntime.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RUNS = 3


def peak() -> int | None:
    """Most bytes that were resident so far, None where that cannot be known.

    Linux: from /proc, since ru_maxrss there starts at what the parent process had.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most) if sys.platform == "darwin" else int(most) * 1024


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """The figures for one job."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if job["threads"] is not None:
        options.intra_op_num_threads = job["threads"]
    for key, value in job["entries"].items():
        options.add_session_config_entry(key, value)
    with np.load(job["feed"]) as content:
        feed = dict(content)
    baseline = peak()
    if baseline is None:
        return {"reason": "this system does not tell a process's peak memory"}
    session = ort.InferenceSession(job["path"], options, providers=["CPUExecutionProvider"])
    for _ in range(RUNS):
        session.run(None, feed)
    return {"baseline": baseline, "peak": peak()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(json.load(sys.stdin))))
