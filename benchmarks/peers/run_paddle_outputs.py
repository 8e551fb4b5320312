"""What a Paddle model gives for samples, one by one: `run_paddle_outputs.py DIRECTORY SAMPLES OUT`.

SAMPLES is an .npy file, [samples, ...]; OUT an .npz file: output -> [samples, 1, ...].
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle.inference


def main() -> None:
    folder, samples, out = sys.argv[1:]
    models = [path for path in Path(folder).iterdir() if path.suffix == ".pdmodel"]
    config = paddle.inference.Config(str(models[0]), str(models[0].with_suffix(".pdiparams")))
    config.disable_gpu()
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(2)
    predictor = paddle.inference.create_predictor(config)
    source = predictor.get_input_handle(predictor.get_input_names()[0])
    handles = {name: predictor.get_output_handle(name) for name in predictor.get_output_names()}
    rows: dict[str, list[Any]] = {name: [] for name in handles}
    for row in np.load(samples, mmap_mode="r"):
        source.copy_from_cpu(np.ascontiguousarray(row[None]))
        predictor.run()
        for name, handle in handles.items():
            rows[name].append(handle.copy_to_cpu())
    found: Any = {name: np.stack(arrays) for name, arrays in rows.items()}
    np.savez(out, **found)


if __name__ == "__main__":
    main()
