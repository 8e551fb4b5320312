"""The emitted program in Paddle 3's own format, by Paddle's translation of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from onnxq_paddle.worker.emit.builder import Builder
from onnxq_paddle.worker.legacy import translate

__all__ = ["save_as_pir"]


def save_as_pir(builder: Builder, model: Path, params: Path) -> None:
    """Write both files. Raises ConversionError if Paddle cannot translate the program."""
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        legacy = Path(folder, "legacy.pdmodel"), Path(folder, "legacy.pdiparams")
        builder.save(*legacy)
        made, weights, _ = translate(legacy[0], legacy[1], Path(folder))
        os.replace(made, model)
        os.replace(weights, params)
