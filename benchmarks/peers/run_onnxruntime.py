"""onnxruntime.quantization at its best for x86: U8S8, per channel, its own preparation first.

`run_onnxruntime.py dynamic MODEL OUT`, or `run_onnxruntime.py static METHOD MODEL SAMPLES.npy OUT`
with MinMax, Percentile or Entropy for METHOD.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, model: str, samples: str) -> None:
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        self._feeds = iter([{name: row[None]} for row in np.load(samples, mmap_mode="r")])

    def get_next(self) -> Any:
        return next(self._feeds, None)


def main() -> None:
    mode, *rest = sys.argv[1:]
    if mode == "dynamic":
        model, out = rest
        quantize_dynamic(model, out, per_channel=True)
        return
    method, model, samples, out = rest
    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder) / "prepared.onnx")
        quant_pre_process(model, prepared)
        quantize_static(
            prepared,
            out,
            Reader(prepared, samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
        )


if __name__ == "__main__":
    main()
