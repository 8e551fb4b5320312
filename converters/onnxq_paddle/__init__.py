"""Paddle models for onnxq: from a Paddle inference model to ONNX, and back.

The core finds this package by its entry point; nothing of Paddle is imported in this process.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq_paddle.files import is_paddle as matches

if TYPE_CHECKING:
    from onnxq_paddle.emitting import EmitReport, to_paddle
    from onnxq_paddle.exporting import ExportReport, export, from_layer

__all__ = [
    "EmitReport",
    "ExportReport",
    "export",
    "from_layer",
    "from_onnx",
    "matches",
    "to_onnx",
    "to_paddle",
]

_HOMES = {
    "EmitReport": "onnxq_paddle.emitting",
    "ExportReport": "onnxq_paddle.exporting",
    "export": "onnxq_paddle.exporting",
    "from_layer": "onnxq_paddle.exporting",
    "to_paddle": "onnxq_paddle.emitting",
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
) -> str:
    """Convert for the core, as `onnxq_paddle.export` does; returns how far off onnxruntime is.

    shape: of inputs, as text: `image=1x3x224x224,ids=1x16`. data: samples to verify on.
    """
    from onnxq_paddle.exporting import export

    report = export(
        path,
        dest,
        model_filename=model_filename,
        params_filename=params_filename,
        opset=opset,
        verify=verify,
        tolerance=tolerance,
        samples=data,
        shapes=_shapes_of(shape),
    )
    if not verify:
        return "not verified against Paddle"
    inputs = "a random input" if report.runs == 1 else f"{report.runs} inputs"
    return f"onnxruntime is within {report.relative_error:.1e} of Paddle's range on {inputs}"


def _shapes_of(text: str | None) -> dict[str, list[int]] | None:
    """Shapes by name from `image=1x3x224x224,ids=1x16`. Raises OptionError."""
    from onnxq.errors import OptionError

    if not text:
        return None
    shapes = {}
    for part in text.split(","):
        name, equals, dims = part.rpartition("=")
        sizes = [size.strip() for size in dims.lower().split("x")] if dims else []
        if not equals or not all(size.isdigit() for size in sizes):
            raise OptionError(f"shape takes INPUT=1x3x224x224, several with commas; got {part!r}")
        shapes[name.strip()] = [int(size) for size in sizes]
    return shapes


def from_onnx(
    path: Path,
    dest: Path,
    *,
    model_filename: str | None = None,
    params_filename: str | None = None,
    format: str = "legacy",  # noqa: A002  # the word that users know
    verify: bool = True,
    tolerance: float = 1e-4,
    data: Path | None = None,
    shape: str | None = None,
    reference: Path | None = None,
) -> str:
    """Convert for the core, as `onnxq_paddle.to_paddle` does; returns how Paddle compares.

    data: samples to verify on. shape: of inputs, as text: `image=1x3x224x224,ids=1x16`.
    reference: the float model that a static int8 one was made from.
    """
    from typing import cast

    from onnxq_paddle.emitting import to_paddle
    from onnxq_paddle.judging import described

    report = to_paddle(
        path,
        dest,
        model_filename=model_filename,
        params_filename=params_filename,
        format=cast("Any", format),
        verify=verify,
        tolerance=tolerance,
        samples=data,
        shapes=_shapes_of(shape),
        reference=reference,
    )
    return described(report.judgement)
