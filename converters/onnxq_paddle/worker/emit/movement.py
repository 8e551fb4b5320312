"""Operators that move values, or make them from a shape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxq_paddle.worker.emit.op import EXTREME, FLOATS, Op
from onnxq_paddle.worker.emit.quantization import source_of

__all__ = ["RULES"]

PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _concat(op: Op) -> None:
    """Of quantized tensors without their Q and DQ: oneDNN goes by the range of the result."""
    values = [source_of(value) for value in op.node.inputs if value is not None]
    xs = [op.emitter.variable_of(value) for value in values if value is not None]
    op.concat(xs, op.integer("axis", 0), op.y()) if len(xs) > 1 else op.end(xs[0])


def _constant(op: Op) -> None:
    """Where it is what a body gives; all others have become initializers."""
    tensor = op.node.attributes.get_tensor("value")
    if tensor is None:
        raise op.refuse("a Constant without a tensor")
    op.end(op.fixed(tensor.numpy(), tensor.numpy().dtype.name))


def _constant_of_shape(op: Op) -> None:
    given = op.node.attributes.get_tensor("value")
    value = np.zeros(1, np.float32) if given is None else given.numpy()
    shape = op.cast(op.x(), "int64")
    op.end(op.filled(shape, value.reshape(-1)[0].item(), value.dtype.name))


def _expand(op: Op) -> None:
    """Both ways: a 1 in the shape keeps the input's dimension; missing ones are put in front."""
    x, shape = op.x(0), op.array(1)
    dims = op.shape(x)
    if shape is not None:
        wanted = [int(v) for v in shape]
        ahead = max(len(wanted) - len(dims), 0)
        wanted = [1] * (len(dims) - len(wanted)) + wanted
        own = [1] * ahead + dims
        target = [a if b == 1 else b for a, b in zip(own, wanted, strict=True)]
        op.unary("expand_v2", x, op.y(), shape=target)
        return
    target_shape = op.cast(op.x(1), "int64")
    own = op.shape_tensor(x)
    length = op.shape(target_shape)[0]
    if length < 0:
        raise op.refuse("the length of its shape (input 1) is not known")
    rank = max(length, len(dims))
    target_shape = _padded_front(op, target_shape, rank - length)
    together = op.binary("elementwise_max", target_shape, _padded_front(op, own, rank - len(dims)))
    op.give("expand_v2", {"X": x, "Shape": together}, {"shape": [-1] * rank})


def _padded_front(op: Op, shape: str, count: int) -> str:
    return op.concat([op.fixed([1] * count, "int64"), shape], 0) if count else shape


def _flatten(op: Op) -> None:
    """To two dimensions: those before the axis, and the rest."""
    x = op.x()
    dims = op.shape(x)
    axis = op.integer("axis", 1)
    axis = axis + len(dims) if axis < 0 else axis
    if axis == 0:
        op.reshaped(x, [1, -1], op.y())
    elif axis == len(dims):
        op.reshaped(x, [-1, 1], op.y())
    elif axis == 1 and len(dims) > 1:
        attributes = {"start_axis": 1, "stop_axis": -1}
        op.give("flatten_contiguous_range", {"X": x}, attributes, beside=("XShape",))
    else:
        first = {"start_axis": 0, "stop_axis": axis - 1}
        x = op.run("flatten_contiguous_range", {"X": x}, first, beside=("XShape",))
        rest = {"start_axis": 1, "stop_axis": -1}
        op.give("flatten_contiguous_range", {"X": x}, rest, beside=("XShape",))


def _pad(op: Op) -> None:
    x = op.x()
    rank = op.rank(x)
    pads = op.listed(1, "pads", "pads") or []
    axes = [a % rank for a in (op.listed(3, "axes") or range(rank))]
    ends = [[0, 0] for _ in range(rank)]
    for i, axis in enumerate(axes):
        ends[axis] = [pads[i], pads[i + len(axes)]]
    mode = op.text("mode", "constant")
    fill = op.array(2) if op.has(2) else np.zeros(1)
    if fill is None:
        raise op.refuse("the value that it pads with (input 2) is not a constant")
    cut = [max(0, -v) for pair in ends for v in pair]
    if any(cut):
        x = op.sliced(x, range(rank), cut[::2], [-v if v else EXTREME for v in cut[1::2]])
    ends = [[max(0, a), max(0, b)] for a, b in ends]
    value = float(fill.reshape(-1)[0]) if fill.size else 0.0
    if mode == "constant" and (op.dtype(x) not in FLOATS or any(map(any, ends[:-3])) or rank > 5):
        given = op.dtype(x)
        wide = given if given in ("float32", "float64", "int32", "int64") else "int32"
        attributes = {"paddings": [v for pair in ends for v in pair], "pad_value": value}
        op.cast(op.run("pad", {"X": op.cast(x, wide)}, attributes), given, op.y())
        return
    _pad_around(op, x, ends, mode, value)


def _pad_around(op: Op, x: str, ends: list[list[int]], mode: str, value: float) -> None:
    """By pad3d, which pads the last three of five dimensions.

    Not `pad`, where that can be had: its oneDNN kernel writes outside of its memory.
    """
    rank = len(ends)
    first = next((i for i, pair in enumerate(ends) if any(pair)), rank)
    if rank - first > 3:
        raise op.refuse(f"Pad in {mode} mode of more than the last three dimensions")
    split = max(rank - 3, 0)
    ahead = [1] * (2 - split) if split < 2 else []
    if split > 2:
        raise op.refuse(f"Pad in {mode} mode of more than five dimensions")
    y = op.unsqueezed(x, range(len(ahead))) if ahead else x
    behind = 3 - (rank - split)
    y = op.unsqueezed(y, range(2, 2 + behind)) if behind else y
    last = [[0, 0]] * behind + ends[split:]
    paddings = [v for pair in reversed(last) for v in pair]
    kind = PAD_MODES[mode]
    attributes = {"paddings": paddings, "mode": kind, "data_format": "NCDHW"}
    y = op.run("pad3d", {"X": y}, {**attributes, "value": value})
    inserted = [*range(len(ahead)), *range(2, 2 + behind)]
    op.squeezed(y, inserted, op.y()) if inserted else op.end(y)


def _range(op: Op) -> None:
    names = ("Start", "End", "Step")
    op.give("range", {name: op.x(i) for i, name in enumerate(names)})


def _reshape(op: Op) -> None:
    x, shape = op.x(0), op.array(1)
    if shape is not None:
        dims = [int(v) for v in shape]
        if op.integer("allowzero", 0) and 0 in dims:
            raise op.refuse("Reshape to an empty tensor (allowzero): Paddle has none")
        op.reshaped(x, dims, op.y())
        return
    inputs = {"X": x, "Shape": op.cast(op.x(1), "int32")}
    op.give("reshape2", inputs, beside=("XShape",))


def _shape(op: Op) -> None:
    x = op.x()
    rank = op.rank(x)
    start, end = op.integer("start", 0), op.integer("end", EXTREME)
    shape = op.run("shape", {"Input": x})
    if (start, end) != (0, EXTREME):
        first, last, _ = slice(start, end).indices(rank)
        shape = op.sliced(shape, [0], [first], [max(first, last)])
    op.cast(shape, "int64", op.y())


def _size(op: Op) -> None:
    op.cast(op.run("size", {"Input": op.x()}), "int64", op.y())


def _slice(op: Op) -> None:
    x = op.x()
    rank = op.rank(x)
    axes = op.listed(3, "axes", "axes")
    steps = op.listed(4, "steps")
    starts, ends = op.array(1), op.array(2)
    if starts is None or ends is None:
        _slice_by_variables(op, x, axes, steps)
        return
    axes = [a % rank for a in (axes if axes is not None else range(starts.size))]
    steps = steps or [1] * len(axes)
    if all(step == 1 for step in steps):
        op.sliced(x, axes, starts.reshape(-1).tolist(), ends.reshape(-1).tolist(), op.y())
        return
    first, last = [], []
    for axis, start, end, step in zip(axes, starts.tolist(), ends.tolist(), steps, strict=True):
        size = op.shape(x)[axis]
        if size >= 0 and step < 0:
            low, high, _ = slice(start, end if end > -EXTREME else None, step).indices(size)
            start, end = low, (high if high >= 0 else -size - 1)
        first.append(max(-EXTREME, min(EXTREME, start)))
        last.append(max(-EXTREME, min(EXTREME, end)))
    flags = [1] * len(axes)
    attributes = {"axes": axes, "starts": first, "ends": last, "strides": steps}
    op.give("strided_slice", {"Input": x}, {**attributes, "infer_flags": flags})


def _slice_by_variables(op: Op, x: str, axes: list[int] | None, steps: list[int] | None) -> None:
    count = op.shape(op.x(1))[0]
    if count < 0:
        raise op.refuse("the length of its starts (input 1) is not known")
    axes = [a % op.rank(x) for a in (axes if axes is not None else range(count))]
    if steps and any(step < 1 for step in steps):
        raise op.refuse("Slice backwards, between limits that are not constant")
    limit = op.fixed([EXTREME] * count, "int64")
    inputs = {"Input": x}
    for i, name in ((1, "StartsTensor"), (2, "EndsTensor")):
        inputs[name] = op.cast(
            op.binary("elementwise_min", op.cast(op.x(i), "int64"), limit), "int32"
        )
    unknown = {"axes": axes, "starts": [-1] * count, "ends": [-1] * count}
    if steps and any(step != 1 for step in steps):
        attributes = {**unknown, "strides": steps, "infer_flags": [-1] * count}
        op.give("strided_slice", inputs, attributes)
    else:
        op.give("slice", inputs, {**unknown, "infer_flags": [-1] * count, "decrease_axis": []})


def _split(op: Op) -> None:
    x = op.x()
    axis = op.integer("axis", 0) % op.rank(x)
    outputs = [op.y(i) for i in range(len(op.node.outputs))]
    sections = op.listed(1, "sizes", "split")
    size = op.shape(x)[axis]
    if sections is None and size >= 0 and size % len(outputs):  # the last part is smaller
        part = -(-size // len(outputs))
        sections = [part] * (len(outputs) - 1) + [size - part * (len(outputs) - 1)]
    names = [name or op.builder.fresh("unused") for name in outputs]
    if len(names) == 1:
        op.end(x)
        return
    given = {"sections": sections or [], "num": 0 if sections else len(names)}
    op.several("split", {"X": x}, {"Out": names}, axis=axis, **given)


def _squeeze(op: Op) -> None:
    x, axes = op.x(), op.listed(1, "axes", "axes")
    if axes is None:
        axes = [i for i, d in enumerate(op.shape(x)) if d == 1]
    op.squeezed(x, axes, op.y()) if axes else op.end(x)


def _unsqueeze(op: Op) -> None:
    x, axes = op.x(), op.listed(1, "axes", "axes") or []
    rank = op.rank(x) + len(axes)
    op.unsqueezed(x, sorted(a % rank for a in axes), op.y())


def _tile(op: Op) -> None:
    x, times = op.x(0), op.array(1)
    if times is not None:
        op.unary("tile", x, op.y(), repeat_times=[int(v) for v in times])
        return
    inputs = {"X": x, "RepeatTimes": op.cast(op.x(1), "int32")}
    op.give("tile", inputs, {"repeat_times": [-1] * op.rank(x)})


def _transpose(op: Op) -> None:
    x = op.x()
    perm = op.integers("perm", range(op.rank(x))[::-1])
    op.transposed(x, perm, op.y()) if perm else op.end(x)


def _depth_to_space(op: Op) -> None:
    """Paddle's pixel_shuffle takes the channels in the order that ONNX calls CRD."""
    x, block = op.x(), op.integer("blocksize", 1)
    if op.text("mode", "DCR") == "DCR":
        channels = op.shape(x)[1]
        order = np.arange(channels).reshape(block, block, -1).transpose(2, 0, 1).reshape(-1)
        x = op.run("gather", {"X": x, "Index": op.fixed(order, "int64")}, {"axis": 1})
    op.unary("pixel_shuffle", x, op.y(), upscale_factor=block, data_format="NCHW")


def _space_to_depth(op: Op) -> None:
    x, block = op.x(), op.integer("blocksize", 1)
    channels = op.shape(x)[1]
    y = op.unary("pixel_unshuffle", x, downscale_factor=block, data_format="NCHW")
    order = np.arange(channels * block * block).reshape(channels, block, block)
    index = op.fixed(order.transpose(1, 2, 0).reshape(-1), "int64")
    op.give("gather", {"X": y, "Index": index}, {"axis": 1})


def _trilu(op: Op) -> None:
    shift = int(op.constant(1, "diagonal").reshape(())) if op.has(1) else 0
    lower = not op.integer("upper", 1)
    op.unary("tril_triu", op.x(), op.y(), diagonal=shift, lower=lower)


RULES: dict[str, Callable[[Op], None]] = {
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
