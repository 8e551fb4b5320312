"""Convert: a Paddle model to ONNX as paddle2onnx makes it, and what Paddle itself calculates.

paddle2onnx's compiled part is called, not its `export`: that installs packages at run time,
swallows errors and prints. It aborts the process where it meets an operator that it does not know,
without a word which; so it runs in a fork of the child, and the operator is found by trying.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import paddle2onnx.paddle2onnx_cpp2py_export as p2o

from onnxq.errors import ConversionError, DataError, one_line
from onnxq.measure.random_feeds import candidates, dimensions
from onnxq.qtypes import Array
from onnxq_paddle.arrays import write_arrays
from onnxq_paddle.worker.legacy import translate
from onnxq_paddle.worker.pir import Operation, Program, p2o_names, results, title
from onnxq_paddle.worker.predicting import open_predictor, predict
from onnxq_paddle.worker.repair import repair

__all__ = ["convert"]

# Above this the weights do not fit into one protobuf
LARGE = 1 << 30
ABORTED = "unsupported operators"


def convert(
    model: str,
    params: str | None,
    dest: str,
    *,
    opset: int,
    feed: str | None,
    shapes: dict[str, list[int]],
) -> dict[str, Any]:
    """Write `dest`; with `feed`, also run Paddle on a random input.

    feed: an .npz to write, with the inputs as `in:NAME` and Paddle's outputs as `out:NAME`.
    Returns the names of Paddle's variables by those of tensors in the file, and those of outputs.
    Raises ConversionError.
    """
    predictor = open_predictor(model, params)
    with tempfile.TemporaryDirectory(dir=Path(dest).parent) as folder:
        source, weights = Path(model), None if params is None else Path(params)
        named: dict[int, str] = {}
        if source.suffix != ".json":
            source, weights, named = translate(source, weights, Path(folder))
        program = Program.read(source)
        repair(program)
        repaired = Path(folder) / "repaired.json"
        program.write(repaired)
        _to_onnx(program, repaired, weights, Path(dest), opset)
    names = {}
    if named and not program.has_blocks:
        names = {
            tensor: named[value] for tensor, value in p2o_names(program).items() if value in named
        }
    _check_parameters(program, Path(dest), model, params)
    if feed is not None:
        _run(predictor, Path(dest), Path(feed), shapes)
    return {"names": names, "outputs": predictor.outputs}


def _to_onnx(program: Program, source: Path, weights: Path | None, dest: Path, opset: int) -> None:
    large = weights is not None and weights.stat().st_size > LARGE
    log, died = _forked(source, weights, dest, opset, str(dest) + ".data" if large else "")
    if not died and dest.is_file() and dest.stat().st_size:
        return
    if died and ABORTED in log:
        missing = list(_unsupported(program, source.parent))
        raise ConversionError(
            f"paddle2onnx cannot convert the operator{'s' if len(missing) > 1 else ''} "
            f"{', '.join(missing)}: write that part of the network with others, or leave it out "
            "of the exported model"
        )
    silence = "it died without a word" if died else "it wrote nothing"
    raise ConversionError(f"{source.name}: paddle2onnx failed: {log or silence}")


def _forked(
    source: Path, weights: Path | None, dest: Path, opset: int, external: str
) -> tuple[str, bool]:
    """Run paddle2onnx in a fork: what it reported as an error, and whether it died."""
    with tempfile.TemporaryFile() as log:
        process = os.fork()
        if process == 0:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            status = 1
            try:
                content = p2o.export(
                    str(source),
                    "" if weights is None else str(weights),
                    opset,
                    True,  # auto_upgrade_opset
                    False,  # verbose
                    False,  # enable_onnx_checker: onnxq checks
                    True,  # enable_experimental_op
                    False,  # enable_optimize
                    {},  # custom operators
                    "onnxruntime",
                    "",  # calibration file
                    external,
                    False,  # float16
                )
                dest.write_bytes(content)
                status = 0
            except Exception as error:  # whatever it is, the parent has to hear of it
                os.write(2, f"\n[ERROR] {error}\n".encode())
            finally:
                os._exit(status)
        _, ended = os.waitpid(process, 0)
        log.seek(0)
        text = log.read().decode("utf-8", "replace")
    return _errors(text), os.WIFSIGNALED(ended)


def _errors(text: str) -> str:
    """Of paddle2onnx's output, the lines from its own error on, without Paddle's stack of calls."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = next((i for i, line in enumerate(lines) if "ERROR" in line), len(lines))
    kept = []
    for line in lines[first:]:
        if line.startswith("----"):
            break
        kept.append(line.replace("[Paddle2ONNX]", "").replace("[ERROR]", "").strip())
    return one_line(Exception(" ".join(kept)))


def _unsupported(program: Program, folder: Path) -> Iterator[str]:
    """Names of the operators that paddle2onnx refuses, in the program's order.

    The program up to an operation is a program. The shortest that is refused ends with a culprit;
    its results then become inputs, and the search goes on.
    """
    text = json.dumps(program.document)
    with tempfile.TemporaryDirectory() as scratch:
        part = Program(json.loads(text))
        whole = list(part.ops)
        while True:
            if not _refused(part, whole, len(whole), Path(scratch)):
                return
            low, high = 0, len(whole)  # accepted up to low, refused up to high
            while high - low > 1:
                middle = (low + high) // 2
                if _refused(part, whole, middle, Path(scratch)):
                    high = middle
                else:
                    low = middle
            culprit = title(whole[high - 1])
            yield culprit
            whole = [
                new for op in whole for new in (_as_inputs(op) if title(op) == culprit else [op])
            ]


def _refused(program: Program, ops: list[Operation], count: int, folder: Path) -> bool:
    program.block["ops"] = ops[:count]
    path = folder / "part.json"
    program.write(path)
    log, died = _forked(path, None, folder / "part.onnx", 17, "")
    return died and ABORTED in log


def _as_inputs(op: Operation) -> list[Operation]:
    """Operations that declare the results of `op` as inputs of the program."""
    made = []
    for value in results(op):
        attributes: list[tuple[str, str, Any]] = [
            ("name", "0.a_str", f"cut_{value['%']}"),
            ("shape", "1.a_intarray", [-1]),
            ("dtype", "1.a_dtype", "float32"),
            ("place", "1.a_place", [0, 0, ""]),
        ]
        entries = [{"AT": {"#": kind, "D": data}, "N": name} for name, kind, data in attributes]
        stop = {"#": "0.a_array", "D": [{"#": "0.a_bool", "D": False}]}
        made.append(
            {
                "#": "1.data",
                "A": entries,
                "I": [],
                "O": [value],
                "OA": [{"AT": stop, "N": "stop_gradient"}],
            }
        )
    return made


def _check_parameters(program: Program, dest: Path, model: str, params: str | None) -> None:
    """The file's parameters have the shapes that the program declares."""
    proto = onnx.load(str(dest), load_external_data=False)
    found = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            found[node.output[0]] = list(node.attribute[0].t.dims)
    for name, declared in program.parameters():
        actual = found.get(name)
        if actual is not None and -1 not in declared and actual != declared:
            raise ConversionError(
                f"{params}: holds {name!r} of shape {actual}, and {Path(model).name} declares it "
                f"{declared}: is this the parameters file of another model?"
            )


def _run(predictor: Any, onnx_file: Path, feed_file: Path, shapes: dict[str, list[int]]) -> None:
    """Run Paddle on the first of the random inputs that it takes, and keep both."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(str(onnx_file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many types, all of them onnxruntime's refusal
        raise ConversionError(
            f"onnxruntime cannot load what paddle2onnx made: {one_line(error)}"
        ) from error
    tried = reason = ""
    # what paddle2onnx makes of a detector's last step takes one image
    batches = (1,) if _has(onnx_file, "NonMaxSuppression") else (2, 1)
    for batch in batches:
        for feed in candidates(session.get_inputs(), batch=batch, shapes=shapes):
            try:
                outputs = predict(predictor, feed)
            except ConversionError as error:
                tried = tried or ", ".join(f"{n} {dimensions(x)}" for n, x in feed.items())
                reason = reason or str(error)
                continue
            _write(feed_file, feed, outputs)
            return
    raise DataError(
        f"Paddle does not run the model on random values ({tried}): {reason}; give the shape of "
        "its inputs with --shape name=1x3x224x224, real values with --data, or --no-verify"
    )


def _has(file: Path, op_type: str) -> bool:
    graph = onnx.load(str(file), load_external_data=False).graph
    return any(node.op_type == op_type for node in graph.node)


def _write(path: Path, feed: dict[str, Array], outputs: dict[str, Array]) -> None:
    arrays = {f"in:{name}": x for name, x in feed.items()}
    arrays.update({f"out:{name}": x for name, x in outputs.items()})
    write_arrays(path, arrays)
