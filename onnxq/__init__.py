"""onnxq: post-training quantization of ONNX models for onnxruntime.

    import onnxq

    onnxq.quantize_dynamic("model.onnx", "model.int8.onnx")
    onnxq.quantize_static("model.onnx", "model.int8.onnx", data="samples.npz")
    onnxq.compare("model.onnx", "model.int8.onnx", data="samples.npz")
    session = onnxq.load_session("model.int8.onnx")

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from onnxq._version import __version__

if TYPE_CHECKING:
    from onnxq.api import calibrate, export, quantize, quantize_dynamic, quantize_static
    from onnxq.calibration import Calibration
    from onnxq.comparison import compare
    from onnxq.errors import (
        CalibrationError,
        ConversionError,
        DataError,
        ExternalDataError,
        ModelError,
        OnnxqError,
        OptionError,
        OutputError,
    )
    from onnxq.images import ImageOptions
    from onnxq.inspection import inspect
    from onnxq.planning import plan
    from onnxq.recipe import DynamicRecipe, Recipe, Rule, StaticRecipe
    from onnxq.recipe_file import load_recipe
    from onnxq.report import Report
    from onnxq.session import load_session

_HOME = {
    "Calibration": "onnxq.calibration",
    "CalibrationError": "onnxq.errors",
    "ConversionError": "onnxq.errors",
    "DataError": "onnxq.errors",
    "DynamicRecipe": "onnxq.recipe",
    "ExternalDataError": "onnxq.errors",
    "ImageOptions": "onnxq.images",
    "ModelError": "onnxq.errors",
    "OnnxqError": "onnxq.errors",
    "OptionError": "onnxq.errors",
    "OutputError": "onnxq.errors",
    "Recipe": "onnxq.recipe",
    "Report": "onnxq.report",
    "Rule": "onnxq.recipe",
    "StaticRecipe": "onnxq.recipe",
    "calibrate": "onnxq.api",
    "compare": "onnxq.comparison",
    "export": "onnxq.api",
    "inspect": "onnxq.inspection",
    "load_recipe": "onnxq.recipe_file",
    "load_session": "onnxq.session",
    "plan": "onnxq.planning",
    "quantize": "onnxq.api",
    "quantize_dynamic": "onnxq.api",
    "quantize_static": "onnxq.api",
}

__all__ = [
    "Calibration",
    "CalibrationError",
    "ConversionError",
    "DataError",
    "DynamicRecipe",
    "ExternalDataError",
    "ImageOptions",
    "ModelError",
    "OnnxqError",
    "OptionError",
    "OutputError",
    "Recipe",
    "Report",
    "Rule",
    "StaticRecipe",
    "__version__",
    "calibrate",
    "compare",
    "export",
    "inspect",
    "load_recipe",
    "load_session",
    "plan",
    "quantize",
    "quantize_dynamic",
    "quantize_static",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'onnxq' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
