"""Which nodes the user wants quantized: by op type and by name pattern."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.errors import OptionError
from onnxq.optable import OP_TABLE
from onnxq.prepare import Prepared

__all__ = ["Selection"]

NEAR = 5


@dataclass(frozen=True)
class Selection:
    """Nodes to quantize.

    include, exclude: glob patterns (`*`, `?`, `[...]`) for the names of nodes or of the tensors
        they give. include_ops, exclude_ops: op types. Without any include all nodes are meant;
        an exclude wins over an include.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    include_ops: tuple[str, ...] = ()
    exclude_ops: tuple[str, ...] = ()

    def reasons(self, prepared: Prepared) -> dict[str, str]:
        """Node name -> why the user's choice leaves it float, for the nodes that it leaves.

        Raises OptionError, with names that are near, for a pattern or an op type that no node has.
        """
        nodes = list(ir.traversal.RecursiveGraphIterator(prepared.ir.graph))
        names = {node.name or "": prepared.names.of(node) for node in nodes}
        self._check_patterns({name for all_names in names.values() for name in all_names})
        self._check_ops({node.op_type for node in nodes})
        reasons: dict[str, str] = {}
        for node in nodes:
            name = node.name or ""
            pattern = _first_match(names[name], self.exclude)
            if pattern is not None:
                reasons[name] = f"excluded by pattern {pattern!r}"
            elif node.op_type in self.exclude_ops:
                reasons[name] = f"excluded: op type {node.op_type}"
            elif (
                (self.include or self.include_ops)
                and node.op_type not in self.include_ops
                and _first_match(names[name], self.include) is None
            ):
                reasons[name] = "not included"
        return reasons

    def _check_patterns(self, known: set[str]) -> None:
        for pattern in (*self.include, *self.exclude):
            if not fnmatch.filter(known, pattern):
                near = _near(pattern, known)
                raise OptionError(f"pattern {pattern!r} matches no node or tensor{near}")

    def _check_ops(self, present: set[str]) -> None:
        for op in (*self.include_ops, *self.exclude_ops):
            if op in present:
                continue
            if op in OP_TABLE:
                raise OptionError(f"the model has no {op}; it has {', '.join(sorted(present))}")
            raise OptionError(f"op type {op!r} is not in the model{_near(op, present)}")


def _first_match(names: Iterable[str], patterns: Iterable[str]) -> str | None:
    for pattern in patterns:
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            return pattern
    return None


def _near(word: str, known: set[str]) -> str:
    plain = word.strip("*")
    near = difflib.get_close_matches(plain, sorted(known), n=NEAR, cutoff=0.4)
    contains = [name for name in sorted(known) if plain and plain.lower() in name.lower()]
    found = list(dict.fromkeys([*near, *contains]))[:NEAR]
    return (
        f"; near are {', '.join(found)}"
        if found
        else f"; there is {', '.join(sorted(known)[:NEAR])}"
    )
