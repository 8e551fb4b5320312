"""Bias correction, sequential: each layer keeps the mean that it has in the float network.

    db_c = E[y]_c - E[y^]_c,  b_c += s_c * db_c,  s_c = max(0, 1 - se_c^2 / db_c^2)

y being the output of a weighted node in the float network, y^ the same of the quantized one, whose
inputs come through the layers before it, quantized and already corrected. Means are over samples
and positions, of the same samples for both. se_c is the standard error of db_c over the samples:
what cannot be told from chance is not corrected (the positive-part James-Stein estimator).

Source: M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction"
(arXiv 1906.04721), section 4.2 and appendix D.

Left out: a node without a bias (see own_bias.py), and one whose bias others read as well.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from onnxq.improve.context import Context
from onnxq.improve.own_bias import own_bias
from onnxq.model import constant
from onnxq.plans import Plan, WeightUpdate
from onnxq.qtypes import Float64Array

__all__ = ["NAME", "correct_biases", "shrunk_mean"]

NAME = "bias_correction"


def correct_biases(context: Context, plan: Plan) -> None:
    """Offer the plan with all biases corrected."""
    candidate, corrected = sequentially(context, plan)
    if not corrected:
        context.ledger.skip(NAME, "no weighted node has a bias of its own")
        return
    context.offer(NAME, None, candidate, f"{corrected} biases, one layer after the other")


def sequentially(context: Context, plan: Plan) -> tuple[Plan, int]:
    """The plan with corrected biases, and how many they are."""
    frontier, corrected = context.fit, 0
    for part in context.emulated.parts:
        node = part.weighted
        bias = None if node is None else own_bias(node, plan.placement)
        if node is not None and bias is not None:
            expected = context.means[node.outputs[0].name or ""]
            shift = shrunk_mean(expected - frontier.means(plan))
            plan = shifted(plan, bias, shift)
            corrected += 1
        frontier = frontier.advance(plan)
    return plan, corrected


def shrunk_mean(differences: Float64Array) -> Float64Array:
    """The mean over axis 0 of [samples, channels], less what may be chance."""
    count = len(differences)
    if count < 2:
        return np.zeros(differences.shape[1])
    mean = differences.mean(axis=0)
    squared_error = differences.var(axis=0, ddof=1) / count
    share = np.zeros_like(mean)
    np.divide(squared_error, np.square(mean), out=share, where=mean != 0)
    return np.asarray(mean * np.maximum(0.0, 1.0 - share))


def shifted(plan: Plan, bias: ir.Value, shift: Float64Array) -> Plan:
    """The plan with `shift` added to the bias, which is a channel's or one for all."""
    name = bias.name or ""
    update = plan.updates.get(name, WeightUpdate())
    tensor = constant(bias)
    assert tensor is not None
    values = update.values if update.values is not None else tensor.numpy()
    moved = (values.reshape(-1).astype(np.float64) + shift).astype(np.float32)
    if moved.size == values.size:
        moved = moved.reshape(values.shape)
    changed = dataclasses.replace(update, values=moved)
    return dataclasses.replace(plan, updates={**plan.updates, name: changed})
