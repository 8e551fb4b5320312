"""Programs from before Paddle 3.0, translated to PIR, which is all that paddle2onnx 2.x reads.

Paddle translates them itself. PIR has no names for what lies between operations, so every such
variable is fetched in the program that is translated: the fetch leads from the name to the value,
and is removed afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import paddle
from paddle.base.executor import global_scope

from onnxq.errors import ConversionError, one_line
from onnxq_paddle.worker.pir import Program, attribute

__all__ = ["translate"]


def translate(model: Path, params: Path | None, folder: Path) -> tuple[Path, Path, dict[int, str]]:
    """Write the program as PIR to `folder`: its files, and the variable names of values.

    Raises ConversionError if Paddle cannot read or translate it.
    """
    paddle.enable_static()
    executor = paddle.static.Executor(paddle.CPUPlace())
    try:
        with paddle.pir_utils.OldIrGuard():
            program, _, fetched = paddle.static.load_inference_model(
                str(model.parent),
                executor,
                model_filename=model.name,
                params_filename=None if params is None else params.name,
            )
            outputs = [variable.name for variable in fetched]
            inner = fetch_inner(program, outputs)
        translated = paddle.pir.translate_to_pir(program.desc)
        _load_parameters(translated, executor)
        prefix = folder / "translated"
        _save(translated, prefix, executor)
    except Exception as error:  # Paddle raises RuntimeError, ValueError, SystemError and others
        raise ConversionError(
            f"{model}: Paddle {paddle.__version__} cannot read this program, or not translate it: "
            f"{one_line(error)}"
        ) from error
    result = Program.read(prefix.with_suffix(".json"))
    names = take_names(result, outputs, inner)
    result.write(prefix.with_suffix(".json"))
    return prefix.with_suffix(".json"), prefix.with_suffix(".pdiparams"), names


def fetch_inner(program: Any, outputs: Sequence[str]) -> list[str]:
    """Fetch every variable that one operation makes and another reads; returns their names."""
    block = program.global_block()
    ops = [op for op in block.ops if op.type not in ("feed", "fetch")]
    read = {name for op in ops for name in op.input_arg_names}
    dense = paddle.base.core.VarDesc.VarType.LOD_TENSOR
    names: list[str] = []
    for name in dict.fromkeys(name for op in ops for name in op.output_arg_names):
        variable = block.var(name)
        if name not in read or name in outputs or variable.persistable or variable.type != dense:
            continue
        block.append_op(
            type="fetch",
            inputs={"X": [name]},
            outputs={"Out": ["fetch"]},
            attrs={"col": len(outputs) + len(names)},
        )
        names.append(name)
    return names


def take_names(program: Program, outputs: Sequence[str], inner: Sequence[str]) -> dict[int, str]:
    """What each fetched value is called. The outputs stay fetched, under their own names."""
    fetches = program.fetches()
    found = {}
    for op, name in zip(fetches, [*outputs, *inner], strict=True):
        attribute(op, "name")["D"] = name
        found[op["I"][0]["%"]] = name
    extra = {id(op) for op in fetches[len(outputs) :]}
    program.block["ops"] = [op for op in program.ops if id(op) not in extra]
    return found


def _load_parameters(program: Any, executor: Any) -> None:
    """Give the translated program the values that the legacy one was loaded with."""
    parameters, buffers = [], []
    for variable in program.list_vars():
        maker = variable.get_defining_op().name()
        if variable.is_parameter or maker == "builtin.parameter":
            parameters.append(variable)
        elif variable.persistable and maker == "pd_op.data":
            buffers.append(variable)
    paddle.base.libpaddle.pir.create_loaded_parameter(
        [variable for variable in parameters + buffers if variable.persistable],
        global_scope(),
        executor._default_executor,
    )


def _save(program: Any, prefix: Path, executor: Any) -> None:
    feeds, fetches = [], []
    for op in program.global_block().ops:
        if op.name() == "pd_op.feed":
            feeds.extend(op.results())
        elif op.name() in ("pd_op.fetch", "builtin.shadow_output"):
            fetches.extend(op.operands_source())
    with paddle.pir_utils.IrGuard():
        paddle.static.save_inference_model(str(prefix), feeds, fetches, executor, program=program)
