"""Paddle models for onnxq: from a Paddle inference model to ONNX, and back.

The core finds this package by its entry point; nothing of Paddle is imported in this process.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq_paddle.files import is_paddle as matches

if TYPE_CHECKING:
    from onnxq_paddle.exporting import ExportReport, export, from_layer

__all__ = ["ExportReport", "export", "from_layer", "matches", "to_onnx"]

_HOMES = {
    "ExportReport": "onnxq_paddle.exporting",
    "export": "onnxq_paddle.exporting",
    "from_layer": "onnxq_paddle.exporting",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for: the core imports this package for its `matches` alone."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def to_onnx(
    path: Path,
    dest: Path,
    *,
    model_filename: str | None = None,
    params_filename: str | None = None,
    opset: int = 17,
    verify: bool = True,
    tolerance: float = 1e-4,
    data: Path | None = None,
    shape: str | None = None,
) -> None:
    """The converter's way in; see `onnxq_paddle.export`.

    shape: of inputs, as text: `image=1x3x224x224,ids=1x16`. data: samples to verify on.
    """
    from onnxq.cli.options import shapes_of
    from onnxq_paddle.exporting import export

    export(
        path,
        dest,
        model_filename=model_filename,
        params_filename=params_filename,
        opset=opset,
        verify=verify,
        tolerance=tolerance,
        samples=data,
        shapes=shapes_of(shape.split(",") if shape else None),
    )
