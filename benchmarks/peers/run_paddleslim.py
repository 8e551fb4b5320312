"""PaddleSlim 2.6 on Paddle 2.6: `run_paddleslim.py ALGO MODEL_DIRECTORY SAMPLES.npy OUT`.

ALGO: KL, hist, mse or abs_max. The model is what `paddle_model.py` leaves.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import paddle
import paddleslim


class Rows(paddle.io.Dataset):  # type: ignore[misc]  # Paddle has no types
    def __init__(self, samples: Any) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Any:
        return np.asarray(self._samples[index])


def main() -> None:
    algo, model, path, out = sys.argv[1:]
    samples = np.load(path, mmap_mode="r")
    paddle.enable_static()
    place = paddle.CPUPlace()
    executor = paddle.static.Executor(place)
    x = paddle.static.data("x", [None, *samples.shape[1:]], "float32")
    loader = paddle.io.DataLoader(
        Rows(samples), places=place, feed_list=[x], batch_size=1, return_list=False
    )
    paddleslim.quant.quant_post_static(
        executor,
        model,
        out,
        data_loader=loader,
        model_filename="inference.pdmodel",
        params_filename="inference.pdiparams",
        batch_nums=len(samples),
        algo=algo,
    )


if __name__ == "__main__":
    main()
