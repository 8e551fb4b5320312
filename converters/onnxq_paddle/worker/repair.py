"""Repair: a PIR program as paddle2onnx reads it, where that is not as Paddle writes it.

1. Paddle 3 stores most real attributes as doubles (the slope of `leaky_relu`, the `scale` of an
   interpolation, the value of a padding). paddle2onnx takes them for floats and gets noise or
   refuses. They become floats, but for `full` and its like, which it reads as doubles.
2. Of `hardtanh` it does not read the bounds, and takes -1 and 1. It becomes a `clip`.
3. An operation in place (`relu_`) is one that paddle2onnx does not know. In PIR values are assigned
   once, so the same one out of place (`relu`) means the same.
4. A `slice` that drops the only axis left gave a tensor of shape [1] before Paddle 3.0, which had
   none without axes; the translation keeps the axis to drop, and [1] as the type.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from onnxq_paddle.worker.pir import Operation, Program, attribute, results, shape_of

__all__ = ["repair"]

DOUBLE, FLOAT = "0.a_f64", "0.a_f32"
READ_AS_DOUBLES = frozenset({"1.full", "1.full_like", "1.full_with_tensor", "1.assign_value"})

# Of these paddle2onnx knows the form in place, or there is no other
IN_PLACE = frozenset(
    f"1.{name}_"
    for name in (
        "array_write",
        "assign_out",
        "batch_norm",
        "set_value",
        "set_value_with_tensor",
        "share_data",
    )
)


def repair(program: Program) -> None:
    """The cases of this module's docstring, in place."""
    free = itertools.count(1 + max(program.values(), default=0))
    for block in program.blocks():
        for op in block["ops"]:
            if op["#"].endswith("_") and op["#"] not in IN_PLACE:
                op["#"] = op["#"].removesuffix("_")
        block["ops"] = [
            new
            for op in block["ops"]
            for new in (_as_clip(op, free) if op["#"] == "1.hardtanh" else [op])
        ]
    every = [op for block in program.blocks() for op in block["ops"]]
    made = {value["%"]: value for op in every for value in results(op)}
    for op in every:
        if op["#"] not in READ_AS_DOUBLES:
            _doubles_to_floats(op.get("A", []))
        if op["#"] == "1.slice" and shape_of(results(op)[0]) == [1]:
            dropped, source = attribute(op, "decrease_axis"), made.get(op["I"][0]["%"])
            if source is not None and len(dropped["D"]) == len(shape_of(source)):
                dropped["D"] = []


def _as_clip(op: Operation, free: Iterator[int]) -> list[Operation]:
    """A hardtanh as two constants and a clip. free: numbers for new values."""
    bounds: list[Operation] = []
    for name in ("t_min", "t_max"):
        attributes = {
            "shape": ("1.a_intarray", [1]),
            "value": (DOUBLE, attribute(op, name)["D"]),
            "dtype": ("1.a_dtype", "float32"),
            "place": ("1.a_place", [1, 0, ""]),
        }
        kind = {"#": "0.t_dtensor", "D": [{"#": "0.t_f32"}, [1], "NCHW", [], 0]}
        bounds.append(
            {
                "#": "1.full",
                "A": [{"AT": {"#": t, "D": d}, "N": n} for n, (t, d) in attributes.items()],
                "I": [],
                "O": [{"%": next(free), "TT": kind}],
                "OA": [],
            }
        )
    limits = [{"%": bound["O"][0]["%"]} for bound in bounds]
    return [*bounds, {**op, "#": "1.clip", "A": [], "I": [*op["I"], *limits]}]


def _doubles_to_floats(value: Any) -> None:
    if isinstance(value, list):
        for entry in value:
            _doubles_to_floats(entry)
    elif isinstance(value, dict):
        if value.get("#") == DOUBLE:
            value["#"] = FLOAT
        for entry in value.values():
            _doubles_to_floats(entry)
