"""onnxq: post-training quantization of ONNX models for onnxruntime.

    import onnxq

    onnxq.quantize_dynamic("model.onnx", "model.int8.onnx")
    onnxq.quantize_static("model.onnx", "model.int8.onnx", data="samples.npz")
    onnxq.compare("model.onnx", "model.int8.onnx", data="samples.npz")
    session = onnxq.load_session("model.int8.onnx")

Nothing heavy is imported until it is used. Nothing phones home: onnxruntime's builds from 1.32 on
report their use to its maker unless ORT_DISABLE_TELEMETRY says otherwise before they are imported,
so it is set here where the environment does not say anything.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from onnxq._version import __version__

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from onnxq.analysis import AnalysisReport, analyze
    from onnxq.api import calibrate, export, quantize, quantize_dynamic, quantize_static
    from onnxq.calibration import Calibration
    from onnxq.data.images import ImageOptions
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
    from onnxq.inspection import Inspection, inspect
    from onnxq.measure.benchmarking import BenchmarkReport, benchmark
    from onnxq.measure.comparison import ComparisonReport, compare
    from onnxq.planning import PlanReport, plan
    from onnxq.recipe import DynamicRecipe, Recipe, Rule, StaticRecipe
    from onnxq.recipe_file import load_recipe
    from onnxq.report import Report
    from onnxq.session import load_session

_HOME = {
    "AnalysisReport": "onnxq.analysis",
    "BenchmarkReport": "onnxq.measure.benchmarking",
    "Calibration": "onnxq.calibration",
    "CalibrationError": "onnxq.errors",
    "ComparisonReport": "onnxq.measure.comparison",
    "ConversionError": "onnxq.errors",
    "DataError": "onnxq.errors",
    "DynamicRecipe": "onnxq.recipe",
    "ExternalDataError": "onnxq.errors",
    "ImageOptions": "onnxq.data.images",
    "Inspection": "onnxq.inspection",
    "ModelError": "onnxq.errors",
    "OnnxqError": "onnxq.errors",
    "OptionError": "onnxq.errors",
    "OutputError": "onnxq.errors",
    "PlanReport": "onnxq.planning",
    "Recipe": "onnxq.recipe",
    "Report": "onnxq.report",
    "Rule": "onnxq.recipe",
    "StaticRecipe": "onnxq.recipe",
    "analyze": "onnxq.analysis",
    "benchmark": "onnxq.measure.benchmarking",
    "calibrate": "onnxq.api",
    "compare": "onnxq.measure.comparison",
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
    "AnalysisReport",
    "BenchmarkReport",
    "Calibration",
    "CalibrationError",
    "ComparisonReport",
    "ConversionError",
    "DataError",
    "DynamicRecipe",
    "ExternalDataError",
    "ImageOptions",
    "Inspection",
    "ModelError",
    "OnnxqError",
    "OptionError",
    "OutputError",
    "PlanReport",
    "Recipe",
    "Report",
    "Rule",
    "StaticRecipe",
    "__version__",
    "analyze",
    "benchmark",
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
    from onnxq.lean import lean_imports

    with lean_imports():
        value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
