"""A legacy program in the making: variables and operators under the names that ONNX gave them.

It is written on Paddle's own descriptions (`ProgramDesc`), not through `paddle.static`: that would
put a trace of this machine's Python files into each operator, and rename what the model gives.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from paddle.base import core

from onnxq.qtypes import Array
from onnxq_paddle.worker.reasons import reason_of

__all__ = ["Builder", "RefusedError", "Slot"]

VarType = core.VarDesc.VarType
# numpy's name of a type: Paddle's value for it. uint16 stands for bfloat16 there, so it has none
TYPES: dict[str, Any] = {
    "bool": VarType.BOOL,
    "int8": VarType.INT8,
    "uint8": VarType.UINT8,
    "int16": VarType.INT16,
    "int32": VarType.INT32,
    "int64": VarType.INT64,
    "float16": VarType.FP16,
    "float32": VarType.FP32,
    "float64": VarType.FP64,
}
NAMES = {value: name for name, value in TYPES.items()}

# Operators of the framework itself, which has no rule for the shapes that they give
WITHOUT_KERNEL = frozenset({"feed", "fetch", "conditional_block", "select_input"})

Slot = str | Sequence[str]


class RefusedError(Exception):
    """Paddle refuses an operator as it was written; the message is its reason."""


class Builder:
    """Collects one program and its parameters."""

    def __init__(self, taken: set[str], known: Mapping[str, Sequence[int]] | None = None) -> None:
        """taken: the names that the model gives itself. known: shapes, -1 where they are not."""
        self.program = core.ProgramDesc()
        self.block = self.program.block(0)
        self.parameters: dict[str, Array] = {}
        self._taken, self._known = taken, known or {}
        self._counts: dict[str, int] = {}

    # variables

    def fresh(self, stem: str) -> str:
        """A name that nothing has yet."""
        while True:
            count = self._counts[stem] = self._counts.get(stem, 0) + 1
            name = f"{stem}.{count}"
            if name not in self._taken:
                self._taken.add(name)
                return name

    def variable(
        self,
        name: str,
        *,
        shape: Sequence[int] | None = None,
        dtype: str = "",
        block: Any = None,
    ) -> None:
        """Declare a variable in a block, the current one if none is named.

        Paddle finds what is not said here.
        """
        described = (block or self.block).var(name.encode())
        described.set_type(VarType.LOD_TENSOR)
        if dtype:
            described.set_dtype(TYPES[dtype])
        if shape is not None:
            described.set_shape(list(shape))

    def parameter(self, name: str, array: Array) -> str:
        """A persistent variable of the main block, with its value."""
        described = self.program.block(0).var(name.encode())
        described.set_type(VarType.LOD_TENSOR)
        described.set_dtype(TYPES[array.dtype.name])
        described.set_shape(list(array.shape))
        described.set_persistable(True)
        self.parameters[name] = array
        return name

    def shape(self, name: str) -> list[int]:
        """Dimensions as Paddle knows them, -1 for those that only a run gives."""
        return [int(d) for d in self._find(name).shape()]

    def dtype(self, name: str) -> str:
        """The type as numpy calls it."""
        return NAMES[self._find(name).dtype()]

    def has(self, name: str) -> bool:
        """Whether the current block, or one around it, has the variable."""
        return bool(self.block.has_var_recursive(name.encode()))

    def _find(self, name: str) -> Any:
        return self.block.find_var_recursive(name.encode())

    # operators

    def append(
        self,
        kind: str,
        inputs: Mapping[str, Slot],
        outputs: Mapping[str, Slot],
        attributes: Mapping[str, Any],
    ) -> None:
        """An operator at the end of the current block. Raises RefusedError."""
        described = self.block.append_op()
        described.set_type(kind)
        for slot, names in inputs.items():
            described.set_input(slot, _listed(names))
        # where Paddle leaves the type of an output out, as of XShape, any will do
        given = [name for names in inputs.values() for name in _listed(names)]
        dtype = self.dtype(given[0]) if given and kind not in WITHOUT_KERNEL else "float32"
        for slot, names in outputs.items():
            described.set_output(slot, _listed(names))
            for name in _listed(names):
                if not self.has(name):
                    self.variable(name, dtype=dtype)
        for name, value in attributes.items():
            if isinstance(value, core.BlockDesc):
                described.set_block_attr(name, value)
            else:
                described._set_attr(name, value)
        if kind in WITHOUT_KERNEL:
            return
        try:
            described.check_attrs()
            described.infer_var_type(self.block)
            described.infer_shape(self.block)
        except Exception as error:  # Paddle's C++ raises RuntimeError, ValueError and others
            raise RefusedError(reason_of(error)) from error
        for name in described.output_arg_names():
            self._complete(name)

    def _complete(self, name: str) -> None:
        """Put in dimensions that ONNX knows and Paddle does not."""
        described, known = self._find(name), self._known.get(name)
        shape = described.shape()
        if known is not None and len(known) == len(shape) and -1 in shape:
            described.set_shape([a if a >= 0 else b for a, b in zip(shape, known, strict=True)])

    @contextlib.contextmanager
    def body(self) -> Iterator[Any]:
        """A block inside the current one, which operators go to meanwhile."""
        outer = self.block
        self.block = self.program.append_block(outer)
        yield self.block
        self.block = outer

    def scope(self, stem: str) -> str:
        """A variable for the scope of a body."""
        name = self.fresh(stem)
        self.block.var(name.encode()).set_type(VarType.STEP_SCOPES)
        return name

    def reads(self, block: Any) -> list[str]:
        """What the operators of a body take from outside, apart from parameters."""
        found: dict[str, None] = {}
        for i in range(block.op_size()):
            for name in block.op(i).input_arg_names():
                if not block.has_var(name.encode()) and name not in self.parameters:
                    found[name] = None
        return list(found)

    # the border

    def feed(self, names: Sequence[str]) -> None:
        """The model's inputs, of variables that are declared."""
        holder = self._holder("feed", VarType.FEED_MINIBATCH)
        for i, name in enumerate(names):
            self._find(name).set_need_check_feed(True)
            self.append("feed", {"X": holder}, {"Out": name}, {"col": i})

    def fetch(self, names: Sequence[str]) -> None:
        holder = self._holder("fetch", VarType.FETCH_LIST)
        for i, name in enumerate(names):
            self.append("fetch", {"X": name}, {"Out": holder}, {"col": i})

    def _holder(self, name: str, kind: Any) -> str:
        name = name if name not in self._taken else self.fresh(name)
        described = self.block.var(name.encode())
        described.set_type(kind)
        described.set_persistable(True)
        return name

    # files

    def prune(self) -> None:
        """Take out the operators of the main block that nobody reads, and their variables."""
        block = self.program.block(0)
        wanted = {n for i in range(1, self.program.num_blocks()) for n in self._taken_by(i)}
        for i in reversed(range(block.op_size())):
            described = block.op(i)
            outputs = set(described.output_arg_names())
            if described.type() == "feed" or described.type() == "fetch" or outputs & wanted:
                wanted |= set(described.input_arg_names()) | outputs
            else:
                block._remove_op(i, i + 1)
        for variable in block.all_vars():
            name = variable.name()
            if name not in wanted:
                block._remove_var(name.encode())
                self.parameters.pop(name, None)

    def _taken_by(self, i: int) -> set[str]:
        block = self.program.block(i)
        return {n for j in range(block.op_size()) for n in block.op(j).input_arg_names()}

    def save(self, model: Path, parameters: Path) -> None:
        """Write both files: parameters in the order of their names, as Paddle reads them."""
        self.program._set_version()
        core.save_op_version_info(self.program)
        model.write_bytes(self.program.serialize_to_string())
        if not self.parameters:
            parameters.write_bytes(b"")
            return
        names = sorted(self.parameters)
        scope, place = core.Scope(), core.CPUPlace()
        program = core.ProgramDesc()
        described = program.block(0).append_op()
        described.set_type("save_combine")
        described.set_input("X", names)
        described._set_attr("file_path", str(parameters))
        for name in names:
            variable = program.block(0).var(name.encode())
            variable.set_type(VarType.LOD_TENSOR)
            variable.set_persistable(True)
            scope.var(name).get_tensor().set(np.ascontiguousarray(self.parameters[name]), place)
        core.Executor(place).run(program, scope, 0, False, True, [])


def _listed(names: Slot) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
