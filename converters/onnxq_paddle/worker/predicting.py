"""Running an inference model in Paddle Inference on the CPU, in the child process."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from paddle.inference import Config, create_predictor

from onnxq.errors import ConversionError, DataError
from onnxq.qtypes import Array
from onnxq_paddle.files import OLD_PROGRAM
from onnxq_paddle.worker.reasons import reason_of

__all__ = ["Predictor", "open_predictor", "predict", "run_time"]


@dataclass(frozen=True)
class Predictor:
    """A predictor of Paddle's, and the names of what it takes and gives."""

    active: Any
    inputs: list[str]
    outputs: list[str]


def open_predictor(
    model: str,
    params: str | None,
    *,
    onednn: bool = False,
    int8: bool = False,
    threads: int = 1,
    ir_optim: bool = True,
    optimized: str | None = None,
) -> Predictor:
    """Load a model (`.json`, `.pdmodel` or `__model__`) with its file of parameters.

    int8: quantized operators as oneDNN kernels (with `onednn`). optimized: a directory for the
    program that is really run, of a legacy model.
    Raises ConversionError with Paddle's reason.
    """
    if params is None and os.path.basename(model) == OLD_PROGRAM:  # a file for each parameter
        config = Config(os.path.dirname(model))
    else:
        config = Config(model, params or "")
    config.disable_gpu()
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(threads)
    config.switch_ir_optim(ir_optim)
    if onednn:
        config.enable_mkldnn()
        if int8:
            config.enable_mkldnn_int8()
    else:
        config.disable_mkldnn()  # Paddle 3 turns it on by itself
    if optimized is not None:
        config.set_optim_cache_dir(optimized)
        config.enable_save_optim_model(True)
    try:
        active = create_predictor(config)
    except Exception as error:  # Paddle's C++ raises RuntimeError, ValueError and others
        raise ConversionError(
            f"{os.path.basename(model)}: Paddle Inference cannot load it: {reason_of(error)}"
        ) from error
    return Predictor(active, list(active.get_input_names()), list(active.get_output_names()))


def predict(predictor: Predictor, feed: Mapping[str, Array]) -> dict[str, Array]:
    """One run: output name -> array. The arrays of `feed` must have the types of the inputs.

    Raises DataError for other inputs than the model's, and ConversionError with Paddle's reason.
    """
    if set(feed) != set(predictor.inputs):
        raise DataError(
            f"the Paddle model has the inputs {', '.join(predictor.inputs) or 'none'}; given are "
            f"{', '.join(feed) or 'none'}"
        )
    _run(predictor, feed)
    try:
        return {
            name: np.asarray(predictor.active.get_output_handle(name).copy_to_cpu())
            for name in predictor.outputs
        }
    except Exception as error:  # as in open_predictor
        raise ConversionError(f"Paddle Inference gives no output: {reason_of(error)}") from error


def run_time(predictor: Predictor, feed: Mapping[str, Array], *, runs: int) -> list[float]:
    """Seconds of each of `runs` runs, after a first that is not counted."""
    _run(predictor, feed)
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        _run(predictor)
        times.append(time.perf_counter() - begun)
    return times


def _give(predictor: Predictor, feed: Mapping[str, Array]) -> None:
    for name, array in feed.items():
        handle = predictor.active.get_input_handle(name)
        handle.reshape(list(array.shape))
        handle.copy_from_cpu(np.ascontiguousarray(array))


def _run(predictor: Predictor, feed: Mapping[str, Array] | None = None) -> None:
    try:
        if feed is not None:
            _give(predictor, feed)
        predictor.active.run()
    except Exception as error:  # as in open_predictor
        raise ConversionError(
            f"Paddle Inference cannot run the model: {reason_of(error)}"
        ) from error
