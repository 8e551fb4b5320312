"""Shape arithmetic: what is calculated from the shapes of tensors, calculated now where it can be.

Exporters write `y = Reshape(x, Concat(Shape(x)[0:1], [1000]))` where a batch dimension is dynamic.
In such a vector every entry is a number or the size of a dimension that is not known yet.

1. A vector of numbers alone becomes an initializer.
2. The shape of a Reshape becomes one if each open entry is the dimension of x at the same place
   (then it is 0, "as in x"), or if it is the only one and all others are positive (then it is -1:
   beside a 0 that would fail where the dimension is 0, as where a detector finds nothing).
Calculated through: Shape, Slice, Gather, Concat, Squeeze, Unsqueeze, Cast and Identity.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.model import constant
from onnxq.prepare.layers import add_constant, tensor_names

__all__ = ["fold_shapes"]

# A number, or what identifies a dimension: its symbol, or the tensor and the axis
Entry = int | str | tuple[int, int]
INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
LONGEST = 64


def fold_shapes(model: ir.Model) -> bool:
    """Fold, in all graphs of the model. Shapes have been inferred. Whether there was anything."""
    found = False
    for graph in model.graphs():
        known: dict[ir.Value, list[Entry]] = {}
        reshapes: list[ir.Node] = []
        for node in graph:
            if node.domain != "" or not node.outputs:
                continue
            entries = _evaluate(node, known)
            if entries is not None:
                known[node.outputs[0]] = entries
            elif node.op_type == "Reshape":
                reshapes.append(node)
        if not known:
            continue
        taken = tensor_names(graph)
        for node in reshapes:
            found = _fold_reshape(graph, node, known, taken) or found
        for value, entries in known.items():
            found = _replace(graph, value, entries, taken) or found
    return found


def _evaluate(node: ir.Node, known: dict[ir.Value, list[Entry]]) -> list[Entry] | None:
    """The entries of the node's output, a vector or a single number; None if they are not known."""
    first = node.inputs[0] if node.inputs else None
    if node.op_type == "Shape":
        return _dimensions(node, first)
    if node.op_type == "Concat":
        parts = [_entries(value, known) for value in node.inputs]
        if any(part is None for part in parts):
            return None
        return [entry for part in parts if part is not None for entry in part]
    if first not in known:  # what depends on constants alone has been folded before
        return None
    entries = known[first]
    if node.op_type in ("Cast", "Identity", "Squeeze", "Unsqueeze"):
        to_integer = ir.DataType(node.attributes.get_int("to", ir.DataType.INT64)) in INTEGERS
        return entries if to_integer and _is_short(node.outputs[0]) else None
    if node.op_type == "Gather":
        indices = _numbers(node.inputs[1])
        if indices is None or not all(-len(entries) <= i < len(entries) for i in indices):
            return None
        return [entries[i] for i in indices] if _is_short(node.outputs[0]) else None
    if node.op_type == "Slice":
        return _sliced(node, entries)
    return None


def _dimensions(node: ir.Node, value: ir.Value | None) -> list[Entry] | None:
    if value is None or value.shape is None:
        return None
    entries: list[Entry] = []
    for axis, dim in enumerate(value.shape):
        if isinstance(dim, int):
            entries.append(dim)
        else:
            entries.append(_identity(dim.value, value, axis))
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(entries))
    return entries[start:end]


def _sliced(node: ir.Node, entries: list[Entry]) -> list[Entry] | None:
    arguments = [_numbers(value) for value in node.inputs[1:]]
    if any(x is None or len(x) != 1 for x in arguments) or len(arguments) < 2:
        return None
    numbers = [x[0] for x in arguments if x is not None]
    step = numbers[3] if len(numbers) > 3 else 1
    return entries[numbers[0] : numbers[1] : step] if step > 0 else None


def _is_short(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.rank() <= 1


def _entries(value: ir.Value | None, known: dict[ir.Value, list[Entry]]) -> list[Entry] | None:
    if value is not None and value in known:
        return known[value]
    numbers = _numbers(value)
    return None if numbers is None else list(numbers)


def _numbers(value: ir.Value | None) -> list[int] | None:
    """A short constant vector of integers, or a single one."""
    tensor = constant(value)
    if tensor is None or tensor.dtype not in INTEGERS:
        return None
    if tensor.shape.rank() > 1 or tensor.size > LONGEST:
        return None
    return [int(x) for x in np.atleast_1d(tensor.numpy())]


def _fold_reshape(
    graph: ir.Graph, node: ir.Node, known: dict[ir.Value, list[Entry]], taken: set[str]
) -> bool:
    x, shape = node.inputs[0], node.inputs[1]
    if x is None or shape not in known or node.attributes.get_int("allowzero", 0) != 0:
        return False
    entries = known[shape]
    if all(isinstance(entry, int) for entry in entries):
        return False  # case 1
    own = _own_dimensions(x)
    target: list[int] = []
    for i, entry in enumerate(entries):
        if isinstance(entry, int):
            target.append(entry)
        else:
            target.append(0 if i < len(own) and own[i] == entry else -1)
    if 0 in entries or target.count(-1) > 1:
        return False
    ours = -1 in target and -1 not in entries  # one that was there before means what it meant
    if ours and min(size for size in target if size != -1) < 1:
        return False
    constant_shape = np.asarray(target, np.int64)
    node.replace_input_with(1, add_constant(graph, f"{node.name}.shape", constant_shape, taken))
    return True


def _own_dimensions(x: ir.Value) -> list[Entry]:
    dims = enumerate(x.shape or ())
    return [-1 if isinstance(d, int) else _identity(d.value, x, axis) for axis, d in dims]


def _identity(symbol: object, value: ir.Value, axis: int) -> Entry:
    """What says that two dimensions are one: a name ("?" and the like are none), or the place."""
    named = isinstance(symbol, str) and symbol.isidentifier()
    return str(symbol) if named else (id(value), axis)


def _replace(graph: ir.Graph, value: ir.Value, entries: list[Entry], taken: set[str]) -> bool:
    numbers = [entry for entry in entries if isinstance(entry, int)]
    if len(numbers) != len(entries) or value.is_graph_output() or not value.uses():
        return False
    if value.shape is None or value.dtype not in INTEGERS:
        return False
    array = np.asarray(numbers, value.dtype.numpy())
    if value.shape.rank() == 0:
        if len(numbers) != 1:
            return False
        array = array.reshape(())
    value.replace_all_uses_with(add_constant(graph, f"{value.name}.known", array, taken))
    return True
