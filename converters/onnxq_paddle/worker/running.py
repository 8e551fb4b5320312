"""Run: what a Paddle model makes of given inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxq_paddle.arrays import read_arrays, write_arrays
from onnxq_paddle.worker.predicting import open_predictor, predict

__all__ = ["run"]


def run(
    model: str,
    params: str | None,
    feeds: list[str],
    outputs: list[str],
    *,
    onednn: bool = False,
    int8: bool = False,
) -> dict[str, Any]:
    """For each .npz of `feeds` (input name -> array) write one of `outputs` (output name -> array).

    Raises ConversionError or DataError as the predictor does.
    """
    predictor = open_predictor(model, params, onednn=onednn, int8=int8)
    for source, dest in zip(feeds, outputs, strict=True):
        write_arrays(Path(dest), predict(predictor, read_arrays(Path(source))))
    return {"outputs": predictor.outputs}
