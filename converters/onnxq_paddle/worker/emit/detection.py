"""Boxes: NonMaxSuppression, and sampling at given places."""

from __future__ import annotations

from collections.abc import Callable

from onnxq_paddle.worker.emit.op import Op

__all__ = ["RULES"]


def _non_max_suppression(op: Op) -> None:
    """multiclass_nms3 gives rows of (class, score, box) and the index of each box in the batch.

    ONNX wants (image, class, box index). Both sort by image, class and falling score. The limit of
    boxes for each class is applied after: a box has as many before it as its place in its class.
    """
    boxes, scores = op.x(0), op.x(1)
    limit = int(op.constant(2, "max_output_boxes_per_class").reshape(-1)[0]) if op.has(2) else 0
    if limit == 0:
        raise op.refuse("max_output_boxes_per_class is 0: it would give nothing")
    boxes = _corners(op, boxes)
    attributes = {
        "score_threshold": _number(op, 4, -3.4e38),
        "nms_threshold": _number(op, 3, 0.0),
        "nms_top_k": -1,
        "keep_top_k": -1,
        "nms_eta": 1.0,
        "normalized": True,
        "background_label": -1,
    }
    fresh = op.builder.fresh
    found, index, counts = (fresh(op.y()) for _ in range(3))
    outputs = {"Out": found, "Index": index, "NmsRoisNum": counts}
    op.several("multiclass_nms3", {"BBoxes": boxes, "Scores": scores}, outputs, **attributes)
    kind = op.cast(op.sliced(found, [1], [0], [1]), "int64")
    place = op.cast(index, "int64")
    size = op.cast(op.sliced(op.run("shape", {"Input": boxes}), [0], [1], [2]), "int64")
    image = op.binary("elementwise_floordiv", place, size)
    box = op.binary("elementwise_mod", place, size)
    rows = op.concat([image, kind, box], 1)
    many = op.shape(boxes)[1]
    if 0 <= many <= limit:
        op.end(rows)
        return
    classes = op.cast(op.sliced(op.run("shape", {"Input": scores}), [0], [1], [2]), "int64")
    group = op.binary("elementwise_add", op.binary("elementwise_mul", image, classes), kind)
    group = op.reshaped(group, [-1])
    sought = {"SortedSequence": group, "Values": group}
    first = op.run("searchsorted", sought, {"out_int32": False, "right": False})
    ones = op.run("fill_any_like", {"X": group}, {"value": 1.0, "dtype": op.emitter.types["int64"]})
    position = op.run("cumsum", {"X": ones}, {"axis": 0, "exclusive": True})
    before = op.binary("elementwise_sub", position, first)
    kept = op.binary("less_than", before, op.fixed(min(limit, 2**31 - 1), "int64"))
    where = op.run("where_index", {"Condition": kept})
    op.give("gather_nd", {"X": rows, "Index": where})


def _number(op: Op, i: int, default: float) -> float:
    return float(op.constant(i, "threshold").reshape(-1)[0]) if op.has(i) else default


def _corners(op: Op, boxes: str) -> str:
    """Lower and upper corner, from any two opposite ones or from the middle and the size."""
    one, two = op.sliced(boxes, [2], [0], [2]), op.sliced(boxes, [2], [2], [4])
    if op.integer("center_point_box", 0):
        half = op.scaled(two, 0.5)
        low, high = (op.binary(f"elementwise_{kind}", one, half) for kind in ("sub", "add"))
    else:
        low, high = (op.binary(f"elementwise_{kind}", one, two) for kind in ("min", "max"))
    return op.concat([low, high], 2)


def _grid_sample(op: Op) -> None:
    modes = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest"}
    mode = op.text("mode", "linear")
    if mode not in modes:
        raise op.refuse(f"GridSample in {mode} mode: Paddle has none")
    attributes = {
        "mode": modes[mode],
        "padding_mode": op.text("padding_mode", "zeros"),
        "align_corners": bool(op.integer("align_corners", 0)),
    }
    op.give("grid_sampler", {"X": op.x(0), "Grid": op.x(1)}, attributes, slot="Output")


RULES: dict[str, Callable[[Op], None]] = {
    "GridSample": _grid_sample,
    "NonMaxSuppression": _non_max_suppression,
}
