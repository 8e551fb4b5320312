"""The embedded network, quantized in three ways and compared with itself in float.

digits.onnx   a small convolutional network trained on scikit-learn's handwritten digits
digits.npz    calibration_images, heldout_images (uint8 [n, 8, 8], 0..16), heldout_labels
Both are made by benchmarks/train_digits.py in the repository.
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.errors import OutputError

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["DIGITS", "DemoRow", "digits_data", "run_demo"]

DIGITS = Path(__file__).parent / "digits.onnx"
BATCH = 64


@dataclass(frozen=True)
class DemoRow:
    """One model of the comparison. latency: seconds for one image, in batches of 64."""

    name: str
    file: str
    bytes: int
    top1: float
    latency: float

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def digits_data() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Calibration images, held-out images (float32 [n, 1, 8, 8] in 0..1) and held-out labels."""
    with np.load(DIGITS.with_suffix(".npz")) as content:
        calibration, heldout = content["calibration_images"], content["heldout_images"]
        labels = content["heldout_labels"]
    return _scaled(calibration), _scaled(heldout), labels


def _scaled(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (images[:, None] / 16).astype(np.float32)


def run_demo(directory: Path | None = None) -> list[DemoRow]:
    """Quantize, and measure top-1 on the held-out images, size and latency of all four."""
    with tempfile.TemporaryDirectory(prefix="onnxq-demo-") as temporary:
        folder = directory or Path(temporary)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: no directory can be made there: {error}") from error
        return _compare(_quantize(folder))


def _quantize(folder: Path) -> list[tuple[str, Path]]:
    from onnxq.api import quantize_dynamic, quantize_static

    calibration, _, _ = digits_data()
    int8, int16, static = (folder / f"digits.{kind}.onnx" for kind in ("int8", "int16", "static"))
    quantize_dynamic(DIGITS, int8)
    quantize_dynamic(DIGITS, int16, bits=16)
    quantize_static(DIGITS, static, calibration)
    return [
        ("float32", DIGITS),
        ("dynamic, 8 bits", int8),
        ("dynamic, 16 bits", int16),
        ("static, 8 bits", static),
    ]


def _compare(models: list[tuple[str, Path]]) -> list[DemoRow]:
    from onnxq.measure.timing import latencies
    from onnxq.session import load_session

    _, images, labels = digits_data()
    sessions = [load_session(path) for _, path in models]
    name = sessions[0].get_inputs()[0].name
    seconds = latencies(sessions, {name: images[:BATCH]})
    return [
        DemoRow(label, path.name, path.stat().st_size, _top1(active, images, labels), taken / BATCH)
        for (label, path), active, taken in zip(models, sessions, seconds, strict=True)
    ]


def _top1(
    active: ort.InferenceSession, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]
) -> float:
    name = active.get_inputs()[0].name
    scores = np.asarray(active.run(None, {name: images})[0])
    return float((scores.argmax(axis=1) == labels).mean())
