"""Parametrize: a placement, statistics and a method become a `Plan`: scales and zero points."""

from __future__ import annotations

import dataclasses
import os
from collections import ChainMap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir

from onnxq.calibration import Calibration
from onnxq.errors import CalibrationError, ModelError
from onnxq.lean import collector_paused
from onnxq.model import initializers, read
from onnxq.numerics.correction import round_to_mean, spread_ratio
from onnxq.numerics.quantize import (
    SMALLEST_SCALE,
    abs_max,
    extremes,
    params_from_range,
    range_of,
    symmetric_params,
)
from onnxq.numerics.ranges import METHODS, RangeOptions
from onnxq.numerics.statistics import TensorStatistics
from onnxq.plans import (
    ActivationPlacement,
    Placement,
    Plan,
    Use,
    WeightPlacement,
    WeightUpdate,
)
from onnxq.prepare import Prepared
from onnxq.qtypes import (
    INT32,
    Array,
    Float32Array,
    Float64Array,
    PerChannel,
    PerTensor,
    QuantParams,
    QuantSpec,
)

__all__ = [
    "check_finite",
    "joined",
    "parametrize",
    "params_from_statistics",
    "refit_biases",
    "tensor_of",
    "untied",
]

THREADS = min(4, os.cpu_count() or 1)
# The integer that the bias of a channel without weights becomes
DEAD_BIAS = 1 << 20


@collector_paused()
def parametrize(
    prepared: Prepared,
    placement: Placement,
    calibration: Calibration | None = None,
) -> Plan:
    """Scale and zero point of every placed tensor.

    Raises ModelError for a weight that holds NaN or Inf, CalibrationError if the statistics lack a
    tensor.
    """
    tensors = _tensors(prepared)

    def of(weight: WeightPlacement) -> QuantParams:
        return _weight_params(prepared, weight, tensors[weight.tensor])

    def of_activation(activation: ActivationPlacement) -> QuantParams:
        return _activation_params(activation, calibration)

    # numpy releases the interpreter's lock; the result does not depend on the number of threads
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(of, placement.weights)
        params = {w.tensor: p for w, p in zip(placement.weights, found, strict=True)}
    nearest = {w.tensor: params[w.tensor] for w in placement.weights if w.corrected}
    params |= {name: _with_spread(prepared, name, found) for name, found in nearest.items()}
    spread = {name: params[name].scale for name in nearest}
    owners: dict[str, ActivationPlacement] = {}
    for activation in placement.activations:
        if activation.owner not in params and not activation.joins:
            owners.setdefault(activation.owner, activation)
    with ThreadPoolExecutor(THREADS) as pool:
        params.update(zip(owners, pool.map(of_activation, owners.values()), strict=True))
    params.update(joined(placement.activations, params))
    biases = _fit_biases(prepared, placement, params)
    return Plan(placement, params, biases, _to_mean(nearest, spread, params))


def joined(
    activations: Sequence[ActivationPlacement], params: Mapping[str, QuantParams]
) -> dict[str, QuantParams]:
    """Parameters of the tensors that a Concat gives, and of those that are tied to it.

    params: of all tensors that are not made by a Concat.
    """
    found: dict[str, QuantParams] = {}
    known = ChainMap(found, dict(params))
    pending = [a for a in activations if a.joins]
    tied = {a.owner: a.spec for a in activations if a.tied}
    while pending:  # a Concat may join what another one gives, in order one pass does
        waiting = []
        for activation in pending:
            if all(part in known for part in activation.joins):
                parts = [known[part] for part in activation.joins]
                found[activation.owner] = _union(activation.spec, parts)
            else:
                waiting.append(activation)
        pending = waiting
    for activation in reversed([a for a in activations if a.joins]):  # an outer Concat first
        whole = found[activation.owner]
        for part in activation.joins:
            if tied.get(part) == whole.spec:
                found[part] = whole
    return found


def untied(plan: Plan, calibration: Calibration) -> dict[str, QuantParams]:
    """Parameters by tensor, those of tied tensors by their own statistics."""
    tied = [a for a in plan.placement.activations if a.tied and not a.joins]
    return {**plan.params, **{a.owner: _activation_params(a, calibration) for a in tied}}


def check_finite(prepared: Prepared, placement: Placement) -> None:
    """Raises ModelError for a weight or bias with NaN or Inf, before anything runs on it."""
    kinds = [*((w.tensor, "weight") for w in placement.weights)]
    kinds += [(b.tensor, "bias") for b in placement.biases]
    for name, kind in kinds:
        if not np.isfinite(read(tensor_of(prepared, name), lambda values: abs_max(values, None))):
            raise _not_finite(prepared, name, kind)


def _not_finite(prepared: Prepared, name: str, kind: str) -> ModelError:
    return ModelError(
        f"{prepared.label}: {kind} {name!r} holds NaN or Inf; "
        "it cannot be quantized, and the float model is likely broken too"
    )


def _tensors(prepared: Prepared) -> dict[str, ir.TensorProtocol]:
    """All constants by name."""
    values = initializers(prepared.ir)
    return {v.name or "": v.const_value for v in values if v.const_value is not None}


def tensor_of(prepared: Prepared, name: str) -> ir.TensorProtocol:
    """The constant of that name."""
    for graph in prepared.ir.graphs():
        value = graph.initializers.get(name)
        if value is not None and value.const_value is not None:
            return value.const_value
    raise KeyError(name)


def _weight_params(
    prepared: Prepared, weight: WeightPlacement, tensor: ir.TensorProtocol
) -> QuantParams:
    granularity = weight.spec.granularity
    axis = granularity.axis if isinstance(granularity, PerChannel) else None
    low, high = read(tensor, lambda values: extremes(values, axis))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise _not_finite(prepared, weight.tensor, "weight")
    if weight.spec.symmetric:
        return symmetric_params(weight.spec, np.maximum(-low, high))
    return params_from_range(weight.spec, low, high)


def _with_spread(prepared: Prepared, name: str, params: QuantParams) -> QuantParams:
    """The scale at which the integers that keep a channel's mean have its spread as well."""

    def ratio(values: Array) -> Float64Array:
        return spread_ratio(values, round_to_mean(values, params), params)

    factor = read(tensor_of(prepared, name), ratio)
    scale = np.maximum(params.scale * factor, SMALLEST_SCALE).astype(np.float32)
    return QuantParams(params.spec, scale.reshape(params.scale.shape), params.zero_point)


def _to_mean(
    nearest: Mapping[str, QuantParams],
    spread: Mapping[str, Float32Array],
    params: Mapping[str, QuantParams],
) -> dict[str, WeightUpdate]:
    """At which scale corrected weights are rounded: the final one where a bias has raised it."""
    found = {}
    for name, before in nearest.items():
        final = params[name].scale
        scale = np.where(final == spread[name], before.scale, final).astype(np.float32)
        found[name] = WeightUpdate(to_mean=QuantParams(before.spec, scale, before.zero_point))
    return found


def _union(spec: QuantSpec, parts: Sequence[QuantParams]) -> QuantParams:
    """Parameters for all that the parts can hold: those of one part, if it holds the others."""
    ranges = [range_of(part) for part in parts]
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    for part, held in zip(parts, ranges, strict=True):
        if held == (low, high):
            return part
    return params_from_range(spec, low, high)


def _unit_params(spec: QuantSpec) -> QuantParams:
    """0..1 in 256 steps of which the last is 255/256 (1/127 steps if symmetric)."""
    qtype = spec.qtype
    if spec.symmetric:
        return symmetric_params(spec, np.asarray(1.0))
    scale = np.asarray(1 / (qtype.qmax - qtype.qmin + 1), np.float32)
    return QuantParams(spec, scale, np.asarray(qtype.qmin, qtype.dtype))


def _activation_params(
    activation: ActivationPlacement, calibration: Calibration | None
) -> QuantParams:
    if activation.unit_range:
        return _unit_params(activation.spec)
    if calibration is None:
        raise CalibrationError("activations need statistics: none were given")
    return params_from_statistics(activation, calibration.of(activation.owner))


def params_from_statistics(
    activation: ActivationPlacement, stats: TensorStatistics | None
) -> QuantParams:
    """By the method that was chosen for the tensor; stats: None if it had no element."""
    spec, options = activation.spec, activation.method
    if stats is None:
        return params_from_range(spec, 0.0, 0.0)
    low, high = METHODS[options.method](
        stats, RangeOptions(spec.qtype.bits, spec.symmetric, options.share, activation.curve)
    )
    return params_from_range(spec, low, high)


def _fit_biases(
    prepared: Prepared, placement: Placement, params: dict[str, QuantParams]
) -> dict[Use, QuantParams]:
    """Parameters of the int32 biases, scale s_x * s_w exactly as the kernels assume it.

    Where bias / (s_x * s_w) would not fit, s_w of that channel is raised until it does, in all the
    uses of the weight. Room is left for the sum of products, to which the kernels add the bias.

    With 16 bits no kernel assumes anything, and s_x * s_w is too small a step: the bias has a scale
    of its own. (A float one onnxruntime would quantize itself, with s_x * s_w and an overflow.)
    """
    activations = {a.tensor: a for a in placement.activations}
    plan = Plan(placement, params)
    needed: dict[str, Float64Array] = {}
    fitted: dict[Use, QuantParams] = {}
    found: list[tuple[Use, QuantParams, str]] = []
    for bias in placement.biases:
        s_x = plan.activation_params(activations[bias.activation])
        values = np.asarray(tensor_of(prepared, bias.tensor).numpy(), np.float64).reshape(-1)
        if s_x.spec.qtype.bits > 8:
            alpha = np.abs(values).max(initial=0.0)
            fitted[bias.use] = symmetric_params(QuantSpec(INT32, PerTensor(), True), alpha)
            continue
        scaled = np.abs(values) / float(s_x.scale)
        if params[bias.weight].axis is None:
            scaled = scaled.max(initial=0.0, keepdims=True)
        needed[bias.weight] = np.maximum(scaled, needed.get(bias.weight, 0.0))
        found.append((bias.use, s_x, bias.weight))
    for weight, scaled in needed.items():
        params[weight] = _with_room(tensor_of(prepared, weight), params[weight], scaled)
    # only now are the weights' scales final
    return fitted | {use: _bias_params(s_x, params[weight]) for use, s_x, weight in found}


def refit_biases(prepared: Prepared, plan: Plan) -> Plan:
    """The plan with biases that fit the scales of its weights as they are now.

    A weight's scale is raised where its bias takes that, as in `parametrize`.
    """
    params = dict(plan.params)
    biases = _fit_biases(prepared, plan.placement, params)
    updates = dict(plan.updates)
    for name, update in plan.updates.items():
        if update.to_mean is not None:  # rounded at the scale that its bias has raised, if it has
            at, final = update.to_mean, params[name].scale
            scale = np.where(final == plan.params[name].scale, at.scale, final).astype(np.float32)
            to_mean = QuantParams(at.spec, scale, at.zero_point)
            updates[name] = dataclasses.replace(update, to_mean=to_mean)
    return Plan(plan.placement, params, biases, updates)


def _with_room(tensor: ir.TensorProtocol, params: QuantParams, scaled: Float64Array) -> QuantParams:
    """Weight scales at which a bias, given as |bias| / s_x a channel, fits into int32.

    A channel of zeros may have any scale: it gets one at which its bias keeps 20 bits.
    """
    old = params.scale.reshape(-1)
    scaled = np.broadcast_to(scaled, old.shape)
    terms = int(tensor.size) // max(old.size, 1)
    room = max(INT32.qmax - terms * 255 * 127, 1 << 24)
    # a little more than needed, so that rounding to float32 cannot undo it
    scale = np.maximum(old, (scaled / room * (1 + 1e-6)).astype(np.float32))
    if (old == 1.0).any():
        dead = read(tensor, lambda values: abs_max(values, params.axis)).reshape(-1) == 0.0
        fine = (scaled / DEAD_BIAS).astype(np.float32)
        scale = np.where(dead & (fine >= SMALLEST_SCALE), fine, scale)
    scale = scale.astype(np.float32).reshape(params.scale.shape)
    return QuantParams(params.spec, scale, params.zero_point)


def _bias_params(activation: QuantParams, weight: QuantParams) -> QuantParams:
    scale = np.asarray(activation.scale * weight.scale, np.float32)
    granularity = PerTensor() if weight.axis is None else PerChannel(0)
    spec = QuantSpec(INT32, granularity, symmetric=True)
    return QuantParams(spec, scale, np.zeros(scale.shape, np.int32))
