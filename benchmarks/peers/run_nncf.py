"""NNCF on its ONNX backend.

`run_nncf.py dynamic INT8_SYM MODEL OUT` compresses weights alone,
`run_nncf.py static fast|full MODEL SAMPLES.npy OUT` quantizes with fast or full bias correction.
"""

from __future__ import annotations

import sys

import nncf
import numpy as np
import onnx


def main() -> None:
    mode, how, *rest = sys.argv[1:]
    if mode == "dynamic":
        model, out = rest
        result = nncf.compress_weights(onnx.load(model), mode=nncf.CompressWeightsMode[how])
    else:
        model, samples, out = rest
        loaded = onnx.load(model)
        name = loaded.graph.input[0].name
        feeds = [{name: row[None]} for row in np.load(samples, mmap_mode="r")]
        result = nncf.quantize(
            loaded,
            nncf.Dataset(feeds),
            subset_size=len(feeds),
            fast_bias_correction=how == "fast",
        )
    onnx.save(result, out)


if __name__ == "__main__":
    main()
