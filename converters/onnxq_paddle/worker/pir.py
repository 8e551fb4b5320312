"""Paddle's PIR programs as they are stored: JSON, read and changed as plain values.

An operation is {"#": "1.conv2d", "A": attributes, "I": inputs, "O": results}, with "1." for
Paddle's own dialect and "p" for a parameter; a value is a number, unique in the program.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Program", "p2o_names"]

Operation = dict[str, Any]

PARAMETER = "p"
DIALECTS = {"0": "builtin", "1": "pd_op"}


@dataclass
class Program:
    """A program, changed in place."""

    document: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Program:
        return cls(json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.document, separators=(",", ":")), encoding="utf-8")

    @property
    def block(self) -> dict[str, Any]:
        """The main block; its "ops" are the program."""
        block: dict[str, Any] = self.document["program"]["regions"][0]["blocks"][0]
        return block

    @property
    def ops(self) -> list[Operation]:
        ops: list[Operation] = self.block["ops"]
        return ops

    def blocks(self) -> Iterator[dict[str, Any]]:
        """Every block, the main one first, those inside operations such as If after it."""
        waiting = [self.block]
        while waiting:
            block = waiting.pop(0)
            yield block
            for op in block["ops"]:
                for region in op.get("regions", ()):
                    waiting += region["blocks"]

    def values(self) -> Iterator[int]:
        """The numbers of all values, arguments of blocks too."""
        for block in self.blocks():
            for made in (*block.get("args", ()), *(v for op in block["ops"] for v in results(op))):
                yield abs(int(made["%"] if "%" in made else made["#"]))

    @property
    def has_blocks(self) -> bool:
        """Whether an operation holds further ones, as If and While do."""
        return any(op.get("regions") for op in self.ops)

    def parameters(self) -> Iterator[tuple[str, list[int]]]:
        """Name and declared shape of each parameter."""
        for op in (op for block in self.blocks() for op in block["ops"]):
            if op["#"] == PARAMETER:
                yield op["A"][-1], shape_of(op["O"])

    def fetches(self) -> list[Operation]:
        """The operations that name the outputs, in their order."""
        found = [op for op in self.ops if op["#"] == "1.fetch"]
        return sorted(found, key=lambda op: int(attribute(op, "col")["D"]))


def attribute(op: Operation, name: str) -> dict[str, Any]:
    """An attribute: {"#": its type, "D": its value}. Raises KeyError."""
    for entry in op.get("A", ()):
        if isinstance(entry, dict) and entry["N"] == name:
            value: dict[str, Any] = entry["AT"]
            return value
    raise KeyError(name)


def results(op: Operation) -> list[dict[str, Any]]:
    """The values that an operation makes."""
    made = op.get("O", [])
    return [made] if isinstance(made, dict) else made


def shape_of(value: dict[str, Any]) -> list[int]:
    """Declared shape of a dense tensor, -1 where it is dynamic."""
    shape: list[int] = value["TT"]["D"][1]
    return shape


def title(op: Operation) -> str:
    """The operation's name as Paddle writes it: `pd_op.conv2d`."""
    dialect, dot, name = op["#"].partition(".")
    return f"{DIALECTS.get(dialect, dialect)}.{name}" if dot else dialect


def p2o_names(program: Program) -> dict[str, int]:
    """The names that paddle2onnx gives to tensors, and the values that they are.

    A result is `p2o.<operation>.<how many of that operation came before>.<which result>`.
    """
    counts: Counter[str] = Counter()
    names = {}
    for op in program.ops:
        if op["#"] == PARAMETER:
            continue
        for i, value in enumerate(results(op)):
            names[f"p2o.{title(op)}.{counts[title(op)]}.{i}"] = value["%"]
        counts[title(op)] += 1
    return names
