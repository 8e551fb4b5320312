"""onnxq: post-training quantization of ONNX models for onnxruntime.

    import onnxq

    onnxq.quantize_dynamic("model.onnx", "model.int8.onnx")
    onnxq.quantize_static("model.onnx", "model.int8.onnx", data="samples.npz")
    session = onnxq.load_session("model.int8.onnx")

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from onnxq._version import __version__

if TYPE_CHECKING:
    from onnxq.api import calibrate, quantize_dynamic, quantize_static
    from onnxq.calibration import Calibration
    from onnxq.errors import (
        CalibrationError,
        DataError,
        ExternalDataError,
        ModelError,
        OnnxqError,
        OptionError,
        OutputError,
    )
    from onnxq.report import Report
    from onnxq.session import load_session

__all__ = [
    "Calibration",
    "CalibrationError",
    "DataError",
    "ExternalDataError",
    "ModelError",
    "OnnxqError",
    "OptionError",
    "OutputError",
    "Report",
    "__version__",
    "calibrate",
    "load_session",
    "quantize_dynamic",
    "quantize_static",
]

_HOME = {
    "Calibration": "onnxq.calibration",
    "Report": "onnxq.report",
    "calibrate": "onnxq.api",
    "load_session": "onnxq.session",
    "quantize_dynamic": "onnxq.api",
    "quantize_static": "onnxq.api",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'onnxq' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME.get(name, "onnxq.errors")), name)
    globals()[name] = value
    return value
