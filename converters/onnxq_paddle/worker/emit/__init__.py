"""Writing a prepared ONNX model as a Paddle inference model.

table.py        ONNX operator -> its rule; the rules are in one file a family
op.py           what a rule sees of a node, and the small steps that it is made of
emitter.py      the walk over the graph
builder.py      the program: the only file here that imports Paddle
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

__all__ = ["emit"]


def emit(model: str, directory: str, model_filename: str, params_filename: str, label: str) -> dict[str, object]:
    """Write the ONNX file `model` as a legacy program with its parameters, into `directory`."""
    from onnxq_paddle.worker.emit.emitter import Emitter

    loaded = ir.load(model)
    builder = Emitter(loaded, label).emit()
    builder.save(Path(directory, model_filename), Path(directory, params_filename))
    return {"operators": builder.program.block(0).op_size()}
