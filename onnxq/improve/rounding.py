"""Weight rounding: integers that keep a layer's output, for the inputs that it really sees.

Layer by layer in topological order: the covariance of the inputs, which come through the layers
before, quantized and already rounded; integers with the least error on it (`descend`, on demand
from where AdaRound ends), of several scales of each channel where it has few inputs; and the bias
corrected, which takes care of the mean. A layer keeps its new integers only if the error of its
output falls on the judge's samples as well.

Left out: a weight with more than MOST_INPUTS inputs an output channel, for memory and time; one
that several nodes read; and one that is rounded to keep its channels' means (weight_correction).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxq.improve import bias
from onnxq.improve.context import Context
from onnxq.improve.frontier import Frontier
from onnxq.improve.layer import Layer, layer_of
from onnxq.improve.ledger import Entry
from onnxq.improve.own_bias import own_bias
from onnxq.improve.sessions import give_memory_back
from onnxq.numerics.quantize import quantize
from onnxq.numerics.rounding import adaround, descend, layer_error, with_scales
from onnxq.parametrize import refit_biases
from onnxq.plans import Plan, WeightUpdate
from onnxq.qtypes import Float64Array

__all__ = ["ADAROUND", "NAME", "adaround_weights", "round_weights", "rounded"]

NAME, ADAROUND = "rounding", "adaround"
MOST_INPUTS = 2400
# Rows that are enough to know a covariance: so many for each input, and so many at least
ROWS_AN_INPUT, ROWS = 8, 4096
# Share of the diagonal that is added to a covariance, against chance in few rows
RIDGE = 0.02
# How many scales of a channel are tried, and over how many inputs; from and to
FEWEST_SCALES, MOST_SCALES, TRIED_INPUTS = 4, 16, 1024
LOWEST, HIGHEST = 0.75, 1.15


def round_weights(context: Context, plan: Plan) -> None:
    """Offer the plan with chosen integers in all layers."""
    _offer(context, plan, NAME, learned=False)


def adaround_weights(context: Context, plan: Plan) -> None:
    """Likewise, from where AdaRound ends."""
    _offer(context, plan, ADAROUND, learned=True)


def _offer(context: Context, plan: Plan, step: str, *, learned: bool) -> None:
    candidate, changed = rounded(context, plan, step, learned=learned)
    if changed:
        context.offer(step, None, candidate, f"the integers of {changed} weights")


def rounded(context: Context, plan: Plan, step: str, *, learned: bool) -> tuple[Plan, int]:
    """The plan with chosen integers and corrected biases, and how many weights it changes."""
    fit, judge, changed = context.fit, context.judge.start, 0
    for part in context.emulated.parts:
        node = part.weighted
        if node is not None:
            layer = layer_of(node)
            why = layer if isinstance(layer, str) else _why_not(layer, plan)
            label = plan.placement.labels.get(node.name or "", node.name or "")
            if why is not None:
                context.ledger.skip(step, why, label)
            elif isinstance(layer, Layer):
                found = _choose(context, layer, plan, fit, judge, learned=learned)
                entry = Entry(
                    step,
                    label,
                    found.before,
                    found.after,
                    found.kept,
                    "of the layer's output, on samples that it was not fitted to",
                    "error",
                )
                context.ledger.add(entry)
                plan = found.plan
                changed += found.kept
            value = own_bias(node, plan.placement)
            if value is not None:
                expected = context.means[node.outputs[0].name or ""]
                plan = bias.shifted(plan, value, bias.shrunk_mean(expected - fit.means(plan)))
        fit, judge = fit.advance(plan), judge.advance(plan)
        give_memory_back()  # parts differ in what they take, and are many
    return plan, changed


@dataclass(frozen=True, eq=False)
class _Choice:
    plan: Plan
    before: float
    after: float
    kept: bool


def _why_not(layer: Layer, plan: Plan) -> str | None:
    update = plan.updates.get(layer.name)
    if layer.inputs > MOST_INPUTS:
        return f"{layer.inputs} inputs an output channel, more than {MOST_INPUTS}: too slow"
    if update is not None and update.to_mean is not None:
        return "its weight is rounded so that channels keep their means (weight_correction)"
    return None


def _choose(
    context: Context, layer: Layer, plan: Plan, fit: Frontier, judge: Frontier, *, learned: bool
) -> _Choice:
    params = plan.params[layer.name]
    scale, weights = layer.scale(params.scale), layer.weights
    moments = _covariance(layer, fit, plan)
    power = _covariance(layer, judge, plan)
    diagonal = np.einsum("gkk->gk", moments)
    index = np.arange(layer.inputs)
    ridged = moments.copy()
    ridged[:, index, index] += RIDGE * diagonal.mean(axis=1, keepdims=True)
    limits = params.spec.lowest, params.spec.qtype.qmax
    update = plan.updates.get(layer.name, WeightUpdate())
    if update.integers is not None:
        nearest = layer.matrix(update.integers)
    else:
        nearest = layer.matrix(quantize(layer.stored(weights).astype(np.float32), params))
    start = adaround(weights, scale, ridged, *limits) if learned else nearest
    found = descend(weights, start, scale, ridged, *limits)
    scales = scale
    if params.axis is not None:
        factors = _factors(layer.inputs, 1.0 if context.guarded else LOWEST)
        tried, other = with_scales(weights, found, scale, factors, ridged, *limits)
        if other is not scale:
            borne = _borne(context, layer, plan, other)
            found, scales = np.where(borne, tried, found), np.where(borne, other, scale)
    signal = float(layer_error(weights, power).sum())
    before, after = (
        float(layer_error(weights - s * q, power).sum()) / max(signal, 1e-30)
        for s, q in ((scale, nearest), (scales, found))
    )
    if after >= before:
        return _Choice(plan, before, after, kept=False)
    changed = dataclasses.replace(update, integers=layer.stored(found).astype(np.int64))
    updates = {**plan.updates, layer.name: changed}
    plan = dataclasses.replace(plan, updates=updates)
    if scales is not scale:
        plan = _with_scale(context, layer, plan, scales)
    return _Choice(plan, before, after, kept=True)


def _with_scale(context: Context, layer: Layer, plan: Plan, scales: Float64Array) -> Plan:
    """With other scales of a weight, larger where its bias needs that, and a bias that fits."""
    params = plan.params[layer.name]
    scaled = scales.reshape(params.scale.shape).astype(np.float32)
    moved = {**plan.params, layer.name: dataclasses.replace(params, scale=scaled)}
    return refit_biases(context.prepared, dataclasses.replace(plan, params=moved))


def _borne(
    context: Context, layer: Layer, plan: Plan, scales: Float64Array
) -> npt.NDArray[np.bool_]:
    """Where the bias takes the scale of a channel: [groups, channels, 1]."""
    fitted = _with_scale(context, layer, plan, scales).params[layer.name].scale
    return np.asarray(layer.scale(fitted) == scales)


def _factors(inputs: int, lowest: float) -> Float64Array:
    """The scales to try, over the one that the largest weight asks for."""
    count = min(MOST_SCALES, TRIED_INPUTS // inputs)
    return np.linspace(lowest, HIGHEST, count) if count >= FEWEST_SCALES else np.empty(0)


def _covariance(layer: Layer, frontier: Frontier, plan: Plan) -> Float64Array:
    """Of the patches that the layer sees: float64 [groups, inputs, inputs]."""
    samples = sum(batch.samples for batch in frontier.batches)
    wanted = max(ROWS, ROWS_AN_INPUT * layer.inputs)
    most = max(1, -(-wanted // samples))
    total = np.zeros((layer.groups, layer.inputs, layer.inputs))
    sums, rows = np.zeros((layer.groups, layer.inputs)), 0
    for x, params in frontier.inputs(plan):
        patches = layer.patches(x, params, most)
        total += patches.transpose(0, 2, 1) @ patches
        sums += patches.sum(axis=1, dtype=np.float64)
        rows += patches.shape[1]
    mean = sums / rows
    return np.asarray(total / rows - mean[:, :, None] * mean[:, None, :])
