"""Normalizations, and the softmaxes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onnxq_paddle.worker.emit.op import Op

__all__ = ["RULES"]


def _softmax(op: Op) -> None:
    kind = "softmax" if op.node.op_type == "Softmax" else "log_softmax"
    op.give(kind, {"X": op.x()}, {"axis": op.integer("axis", -1)})


def _hardmax(op: Op) -> None:
    x = op.x()
    rank = op.rank(x)
    axis = op.integer("axis", -1) % rank
    depth = op.shape(x)[axis]
    if depth < 0:
        raise op.refuse("Hardmax over an axis of unknown size")
    kinds = op.emitter.types
    found = {"axis": axis, "keepdims": False, "flatten": False, "dtype": kinds["int64"]}
    index = op.run("arg_max", {"X": x}, found)
    hot = op.run("one_hot_v2", {"X": index}, {"depth": depth, "dtype": kinds["float32"]})
    order = [i if i < axis else i - 1 if i > axis else rank - 1 for i in range(rank)]
    op.transposed(op.cast(hot, op.dtype(x)), order, op.y())


def _normalized(
    op: Op, kind: str, inputs: Mapping[str, str], attributes: Mapping[str, Any]
) -> None:
    statistics = {
        "instance_norm": ("SavedMean", "SavedVariance"),
        "batch_norm": ("SavedMean", "SavedVariance"),
    }
    beside = statistics.get(kind, ("Mean", "Variance"))
    op.give(kind, inputs, attributes, slot="Y", beside=beside)


def _batch(op: Op) -> None:
    if op.integer("training_mode", 0) or op.wants(1):
        raise op.refuse("BatchNormalization in training mode is not for inference")
    slots = ("X", "Scale", "Bias", "Mean", "Variance")
    inputs = {slot: op.x(i) for i, slot in enumerate(slots)}
    attributes = {
        "epsilon": op.number("epsilon", 1e-5),
        "momentum": op.number("momentum", 0.9),
        "data_layout": "NCHW",
        "is_test": True,
        "use_global_stats": True,
        "trainable_statistics": False,
    }
    outputs = {
        "Y": op.y(),
        "MeanOut": inputs["Mean"],
        "VarianceOut": inputs["Variance"],
        "SavedMean": op.builder.fresh(op.y()),
        "SavedVariance": op.builder.fresh(op.y()),
    }
    op.several("batch_norm", inputs, outputs, **attributes)


def _instance(op: Op) -> None:
    x = op.x()
    inputs = {"X": x, "Scale": op.x(1), "Bias": op.x(2)}
    _normalized(op, "instance_norm", inputs, {"epsilon": op.number("epsilon", 1e-5)})


def _group(op: Op) -> None:
    """Opset 18 has scale and bias for each group, 21 for each channel, as Paddle."""
    x, groups = op.x(), op.integer("num_groups", 1)
    channels = op.shape(x)[1]
    inputs = {"X": x}
    for i, slot in ((1, "Scale"), (2, "Bias")):
        values = op.constant(i, slot.lower())
        if values.size == groups != channels:
            values = np.repeat(values, channels // groups)
            inputs[slot] = op.fixed(values, values.dtype.name)
        else:
            inputs[slot] = op.x(i)
    attributes = {"epsilon": op.number("epsilon", 1e-5), "groups": groups, "data_layout": "NCHW"}
    _normalized(op, "group_norm", inputs, attributes)


def _layer(op: Op) -> None:
    if op.wants(1) or op.wants(2):
        raise op.refuse("LayerNormalization that also gives its mean or deviation")
    x = op.x()
    axis = op.integer("axis", -1) % op.rank(x)
    inputs = {"X": x}
    for i, slot in ((1, "Scale"), (2, "Bias")):
        if op.has(i):
            values = op.x(i)
            size = math.prod(op.shape(values))
            inputs[slot] = values if op.rank(values) == 1 else op.reshaped(values, [size])
    attributes = {"epsilon": op.number("epsilon", 1e-5), "begin_norm_axis": axis}
    _normalized(op, "layer_norm", inputs, attributes)


def _rms(op: Op) -> None:
    x = op.x()
    axes = list(range(op.integer("axis", -1) % op.rank(x), op.rank(x)))
    mean = op.reduced("reduce_mean", op.unary("square", x), axes)
    root = op.unary("rsqrt", op.scaled(mean, 1.0, op.number("epsilon", 1e-5)))
    op.binary("elementwise_mul", op.binary("elementwise_mul", x, root), op.x(1), op.y())


def _mean_variance(op: Op) -> None:
    x, axes = op.x(), op.integers("axes", [0, 2, 3])
    centred = op.binary("elementwise_sub", x, op.reduced("reduce_mean", x, axes))
    variance = op.reduced("reduce_mean", op.unary("square", centred), axes)
    deviation = op.scaled(op.unary("sqrt", variance), 1.0, 1e-9)
    op.binary("elementwise_div", centred, deviation, op.y())


def _lp(op: Op) -> None:
    x, axis, p = op.x(), op.integer("axis", -1), op.integer("p", 2)
    if p == 1:
        norm = op.reduced("reduce_sum", op.unary("abs", x), [axis])
    else:
        norm = op.unary("sqrt", op.reduced("reduce_sum", op.unary("square", x), [axis]))
    op.binary("elementwise_div", x, norm, op.y())


def _lrn(op: Op) -> None:
    """Paddle does not divide alpha by the size of the window."""
    size = op.integer("size", 5)
    if size % 2 == 0:
        raise op.refuse("LRN of an even size: Paddle's window is odd")
    attributes = {
        "n": size,
        "k": op.number("bias", 1.0),
        "alpha": op.number("alpha", 1e-4) / size,
        "beta": op.number("beta", 0.75),
        "data_format": "NCHW",
    }
    op.give("lrn", {"X": op.x()}, attributes, beside=("MidOut",))


RULES: dict[str, Callable[[Op], None]] = {
    "BatchNormalization": _batch,
    "GroupNormalization": _group,
    "Hardmax": _hardmax,
    "InstanceNormalization": _instance,
    "LRN": _lrn,
    "LayerNormalization": _layer,
    "LogSoftmax": _softmax,
    "LpNormalization": _lp,
    "MeanVarianceNormalization": _mean_variance,
    "RMSNormalization": _rms,
    "Softmax": _softmax,
}
