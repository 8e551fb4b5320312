"""Writing a prepared ONNX model as a Paddle inference model.

table.py        ONNX operator -> its rule; the rules are in one file a family
op.py           what a rule sees of a node, and the small steps that it is made of
emitter.py      the walk over the graph
builder.py      the program
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxq.prepare import infer_shapes

__all__ = ["emit"]


def emit(
    model: str,
    directory: str,
    model_filename: str,
    params_filename: str,
    label: str,
    pir: bool,
    feeds: list[str],
    runs: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Write the ONNX file `model` to two files in `directory`, and run what was written.

    feeds: .npz files of inputs. runs: by a name for each, settings of the predictor and the files
    for its `outputs`.

    Returns how many kernels of oneDNN ran in int8 and in float, by the name of the run.
    """
    os.environ["ONEDNN_VERBOSE"] = "1"  # before oneDNN starts
    from onnxq_paddle.worker.emit.emitter import Emitter

    loaded = ir.load(model)
    infer_shapes(loaded)  # they are not stored
    builder = Emitter(loaded, label).emit()
    program, params = Path(directory, model_filename), Path(directory, params_filename)
    if pir:
        from onnxq_paddle.worker.emit.pir import save_as_pir

        save_as_pir(builder, program, params)
    else:
        builder.save(program, params)
    kernels = {name: _run(program, params, feeds, **run) for name, run in runs.items()}
    return {"kernels": kernels}


def _run(
    model: Path, params: Path, feeds: list[str], *, onednn: bool, int8: bool, outputs: list[str]
) -> dict[str, int]:
    from onnxq_paddle.arrays import read_arrays, write_arrays
    from onnxq_paddle.worker.kernels import count_kernels, listened
    from onnxq_paddle.worker.predicting import open_predictor, predict

    file = str(params) if params.stat().st_size else None
    predictor = open_predictor(str(model), file, onednn=onednn, int8=int8)
    lines: list[str] = []
    for source, dest in zip(feeds, outputs, strict=True):
        feed = read_arrays(Path(source))
        with listened() as heard:
            results = predict(predictor, feed)
        write_arrays(Path(dest), results)
        lines = heard
    return count_kernels(lines)
