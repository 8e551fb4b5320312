"""Run by tests in a process of its own: emit each ONNX file of a folder, and run what was emitted.

`python emitting_child.py FOLDER RESULTS`: a model is NAME.onnx, its inputs and outputs NAME.npz.
A line of JSON a model and mode goes to RESULTS as soon as it is known, so that the parent sees where
a crash happened, and starts again behind it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.errors import OnnxqError
from onnxq_paddle.verifying import difference
from onnxq_paddle.worker.emit.emitter import Emitter
from onnxq_paddle.worker.predicting import open_predictor, predict

MODES = {"plain": False, "oneDNN": True}


def main(folder: Path, results: Path) -> None:
    done = {json.loads(line)["name"] for line in results.read_text().splitlines()}
    for file in sorted(folder.glob("*.onnx")):
        for mode, onednn in MODES.items():
            name = f"{file.stem} {mode}"
            if name in done:
                continue
            say(results, name=name, outcome="started")
            try:
                error = tried(file, onednn)
                say(results, name=name, outcome="ran", error=error)
            except OnnxqError as refusal:
                say(results, name=name, outcome="refused", reason=str(refusal))


def tried(file: Path, onednn: bool) -> float:
    """The largest difference of an output, as a share of its range."""
    with tempfile.TemporaryDirectory() as folder:
        model, params = Path(folder, "m.pdmodel"), Path(folder, "m.pdiparams")
        Emitter(ir.load(file), file.stem).emit().save(model, params)
        given = str(params) if params.stat().st_size else None
        predictor = open_predictor(str(model), given, onednn=onednn)
        with np.load(file.with_suffix(".npz")) as arrays:
            feed = {k[3:]: v for k, v in arrays.items() if k.startswith("in:")}
            wanted = {k[4:]: v for k, v in arrays.items() if k.startswith("out:")}
        got = predict(predictor, feed)
    found = difference(list(wanted), list(wanted.values()), [got[name] for name in wanted])
    return max(one.relative_error for one in found)


def say(results: Path, **line: object) -> None:
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
