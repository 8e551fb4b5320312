"""Back to Paddle: an ONNX model, float or quantized, as a Paddle inference model."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from onnxq.data.samples import DataLike
from onnxq.errors import ConversionError, OptionError, OutputError
from onnxq.files import make_public
from onnxq.model import ModelLike, SourceModel, constant, load
from onnxq.prepare import prepare
from onnxq.prepare.constants import lift_constants
from onnxq.save import save
from onnxq_paddle.child import call
from onnxq_paddle.judging import Judgement, Trial, before_boxes, judge, trial_of
from onnxq_paddle.worker.emit.quantization import is_activation, stored_of
from onnxq_paddle.worker.emit.table import FOREIGN, RULES

__all__ = ["EmitReport", "Format", "Kind", "to_paddle"]

PathLike = str | os.PathLike[str]
Format = Literal["legacy", "pir"]
Kind = Literal["float", "weight-only", "static"]

OPSET = 13
BORDER = (
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.INT32,
    ir.DataType.INT64,
    ir.DataType.INT8,
    ir.DataType.UINT8,
    ir.DataType.BOOL,
)
HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class EmitReport:
    """What became of an ONNX model.

    kind: what its quantization is. bytes: of both files. judgement: how Paddle's results compare;
        None if that was not verified.
    """

    model: Path
    params: Path
    kind: Kind
    format: Format
    bytes: int
    judgement: Judgement | None


def to_paddle(
    model: ModelLike,
    directory: PathLike,
    *,
    model_filename: str | None = None,
    params_filename: str | None = None,
    format: Format = "legacy",  # noqa: A002  # the word that users know
    verify: bool = True,
    tolerance: float = 1e-4,
    samples: DataLike | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    reference: ModelLike | None = None,
) -> EmitReport:
    """Write an ONNX model as a Paddle inference model, under the names that it has in ONNX.

    directory: it is made if it does not exist; other files in it stay.
    model_filename, params_filename: inference.pdmodel (or .json) and inference.pdiparams.
    format: `legacy`, a program that every Paddle reads and whose int8 oneDNN runs; or `pir`, that
        of Paddle 3, for float and weight-only models.
    verify: run Paddle Inference, with and without oneDNN, and onnxruntime on random input and on up
        to 4 of `samples`. Static int8 models: on samples alone, if there are any.
    tolerance: the largest difference accepted of a model whose activations are float, as a share of
        the output's range. Static int8 models may lose 1 dB of SQNR against onnxruntime.
    shapes: of inputs, by name, for the random input, where the model's own leave them open.
    reference: the float model that a static int8 one was made from, to measure its SQNR against;
        else that is measured against the int8 model without the quantization of its activations.

    Raises ConversionError, which lists all operators that cannot be written, OptionError, DataError
    or OutputError. Then nothing has been written.
    """
    if format not in ("legacy", "pir"):
        raise OptionError(f"format {format!r}: there are legacy and pir")
    folder = Path(directory)
    names = _names(model_filename, params_filename, format)
    _check_folder(folder)
    source = load(model)
    ready, label = ready_for_paddle(source), source.label
    kind = kind_of(ready)
    if kind == "static":
        _check_symmetric(ready, label)
        if format == "pir":
            raise ConversionError(
                f"{label}: its activations are quantized, and Paddle's .json format runs "
                "dequantize_linear with the kernel of quantize_linear; write the legacy format"
            )
    with tempfile.TemporaryDirectory(prefix="onnxq-to-paddle-") as workspace:
        work = Path(workspace)
        file = work / "prepared.onnx"
        save(ready, file, lambda _: None)
        trial = judgement = None
        part = before_boxes(ready) if verify and kind == "static" else None
        if part is not None:
            judgement = _judged_apart(part, work, label, tolerance, samples, shapes)
        elif verify:
            given = None if reference is None else load(reference)
            trial = trial_of(file, kind == "static", work, samples, shapes, given)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
        try:
            answer = call("emit", _request(file, made, names, label, format, trial), legacy=True)
            if trial is not None:
                judgement = judge(trial, label, tolerance, answer["kernels"])
            size = sum(entry.stat().st_size for entry in made.iterdir())
            _move(made, folder, names)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return EmitReport(folder / names[0], folder / names[1], kind, format, size, judgement)


def _judged_apart(
    part: ir.Model,
    work: Path,
    label: str,
    tolerance: float,
    samples: DataLike | None,
    shapes: Mapping[str, Sequence[int]] | None,
) -> Judgement:
    """Verify the part of an int8 detector that can be measured, as a model of its own."""
    file, made = work / "part.onnx", work / "part"
    made.mkdir()
    save(part, file, lambda _: None)
    trial = trial_of(file, True, work, samples, shapes, None)
    names = _names(None, None, "legacy")
    answer = call("emit", _request(file, made, names, label, "legacy", trial), legacy=True)
    return judge(trial, label, tolerance, answer["kernels"])


def ready_for_paddle(source: SourceModel) -> ir.Model:
    """The model prepared as for quantization: Q and DQ stay, constants are initializers.

    Raises ConversionError for operators and types that Paddle has not.
    """
    prepared = prepare(source, min_opset=OPSET, static=False)
    lift_constants(prepared.ir)  # those that a raised opset has put in
    _check_covered(prepared.ir, source.label)
    _check_types(prepared.ir, source.label)
    return prepared.ir


def kind_of(model: ir.Model) -> Kind:
    """What of a model is quantized."""
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    if any(node.op_type == "QuantizeLinear" for node in nodes) or any(
        is_activation(output) for node in nodes for output in node.outputs
    ):
        return "static"
    integers = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16)
    stored = any(
        node.op_type in ("DequantizeLinear", "Cast")
        and (tensor := constant(node.inputs[0])) is not None
        and tensor.dtype in integers
        for node in nodes
    )
    return "weight-only" if stored else "float"


def _names(model: str | None, params: str | None, format_: Format) -> tuple[str, str]:
    names = (
        model or ("inference.json" if format_ == "pir" else "inference.pdmodel"),
        params or "inference.pdiparams",
    )
    for name in names:
        if Path(name).name != name:
            raise OptionError(f"{name!r}: a file name in the directory, without a path")
    if names[0] == names[1]:
        raise OptionError(f"model and parameters cannot both be {names[0]!r}")
    suffix = ".json" if format_ == "pir" else ".pdmodel"
    if not names[0].endswith(suffix) and not (format_ == "legacy" and names[0] == "__model__"):
        raise OptionError(f"model_filename {names[0]!r}: in {format_} format it ends in {suffix}")
    return names


def _check_folder(folder: Path) -> None:
    """Raises OutputError, before any work is done, if nothing can be written there."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; name a directory")
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise OutputError(f"{folder}: the directory {parent} does not exist")
    for place in (parent, folder):
        if place.exists() and not os.access(place, os.W_OK):
            raise OutputError(f"{folder}: the directory {place} cannot be written to")


def _check_covered(model: ir.Model, label: str) -> None:
    """Raises ConversionError with all operators that have no rule."""
    missing: Counter[str] = Counter()
    first: dict[str, str] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        known = FOREIGN if node.domain == "com.microsoft" else RULES
        if node.domain not in ("", "com.microsoft") or node.op_type not in known:
            op = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
            missing[op] += 1
            first.setdefault(op, node.name or "")
    if missing:
        listed = ", ".join(
            f"{op} ({count}, as {first[op]!r})" for op, count in sorted(missing.items())
        )
        raise ConversionError(
            f"{label}: operators that cannot be written for Paddle: {listed}; replace them in the "
            "float model, or run the model in onnxruntime"
        )


def _check_types(model: ir.Model, label: str) -> None:
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype not in BORDER and not value.is_initializer():
            kind = "of no known type" if value.dtype is None else value.dtype.name.lower()
            raise ConversionError(
                f"{label}: {value.name!r} is {kind}; Paddle Inference takes and gives "
                f"{', '.join(one.name.lower() for one in BORDER)}; cast it in the float model"
            )
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for tensor in (*node.inputs, *node.outputs):
            if tensor is not None and tensor.dtype in HALF:
                raise ConversionError(
                    f"{label}: {tensor.name!r} is of type {tensor.dtype.name.lower()}, for which "
                    "Paddle's CPU kernels are missing; convert the float model to float32"
                )


def _check_symmetric(model: ir.Model, label: str) -> None:
    """Raises ConversionError with the number of tensors that Paddle's int8 cannot have."""
    wrong: dict[str, str] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if node.op_type == "DequantizeLinear" and stored_of(node.outputs[0]) is not None:
            continue
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        tensor = constant(zero)
        values = None if tensor is None else tensor.numpy()
        if values is None or values.dtype.name != "int8" or values.any():
            kind = "uint8" if values is None else values.dtype.name
            at = 0 if values is None else int(values.reshape(-1)[0])
            name = node.inputs[0].name if node.inputs[0] is not None else ""
            wrong[name or ""] = f"{kind} with zero point {at}"
    if wrong:
        name, what = next(iter(wrong.items()))
        raise ConversionError(
            f"{label}: {len(wrong)} quantized tensors are not symmetric int8, as Paddle's int8 is "
            f"({name!r} is {what}); quantize the float model with target paddle (--target paddle)"
        )


def _request(
    file: Path,
    made: Path,
    names: tuple[str, str],
    label: str,
    format_: Format,
    trial: Trial | None,
) -> dict[str, object]:
    return {
        "model": str(file),
        "directory": str(made),
        "model_filename": names[0],
        "params_filename": names[1],
        "label": label,
        "pir": format_ == "pir",
        "feeds": [] if trial is None else [str(path) for path in trial.feeds],
        "runs": {} if trial is None else trial.asked(),
    }


def _move(made: Path, folder: Path, names: tuple[str, str]) -> None:
    """Put both files in place, each of them complete."""
    try:
        folder.mkdir(exist_ok=True)
        for name in reversed(names):
            make_public(str(made / name))
            os.replace(made / name, folder / name)
    except OSError as error:
        raise OutputError(f"{folder}: could not be written: {error.strerror or error}") from error
