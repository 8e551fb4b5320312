"""Plain fp32 inference of the samples, one by one, two threads: what no calibration can undercut.

`run_floor.py MODEL SAMPLES.npy`
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime as ort

THREADS = 2


def main() -> None:
    model, samples = sys.argv[1:]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = THREADS
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for row in np.load(samples, mmap_mode="r"):
        session.run(None, {name: row[None]})


if __name__ == "__main__":
    main()
