"""onnxq in a fresh process.

`run_onnxq.py dynamic MODEL OUT`, or `run_onnxq.py static METHOD MODEL SAMPLES.npy OUT`.
`run_onnxq.py made METHOD MODEL COUNT BATCH OUT` makes the samples when they are asked for, so that
they cost no memory of their own.
"""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt

import onnxq

SHAPE = (3, 224, 224)


class Made:
    """`count` images of noise, each made when it is read."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int, /) -> dict[str, npt.NDArray[np.float32]]:
        if not 0 <= index < self._count:
            raise IndexError(index)
        image = np.random.default_rng(index).standard_normal((1, *SHAPE), np.float32)
        return {"input": image}


def main() -> None:
    mode, *rest = sys.argv[1:]
    if mode == "dynamic":
        model, out = rest
        onnxq.quantize_dynamic(model, out)
    elif mode == "static":
        method, model, samples, out = rest
        onnxq.quantize_static(model, out, samples, method=method, verify=False)
    else:
        method, model, count, batch, out = rest
        data = Made(int(count))
        onnxq.quantize_static(model, out, data, method=method, batch_size=int(batch), verify=False)


if __name__ == "__main__":
    main()
