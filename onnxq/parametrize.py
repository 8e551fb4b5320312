"""Parametrize: a placement, statistics and a method become a `Plan`: scales and zero points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxq.calibration import Calibration
from onnxq.errors import CalibrationError, ModelError, OptionError
from onnxq.model import read
from onnxq.numerics.quantize import (
    SMALLEST_SCALE,
    abs_max,
    extremes,
    params_from_range,
    range_of,
    symmetric_params,
)
from onnxq.numerics.ranges import METHODS, RangeOptions
from onnxq.plans import ActivationPlacement, Placement, Plan, Use, WeightPlacement
from onnxq.prepare import Prepared
from onnxq.qtypes import (
    INT32,
    Float64Array,
    PerChannel,
    PerTensor,
    QuantParams,
    QuantSpec,
)

__all__ = ["check_finite", "parametrize"]

# The integer that the bias of a channel without weights becomes
DEAD_BIAS = 1 << 20


def parametrize(
    prepared: Prepared,
    placement: Placement,
    calibration: Calibration | None = None,
) -> Plan:
    """Scale and zero point of every placed tensor.

    Weights have to be finite (`check_finite`). Raises CalibrationError if the statistics lack a
    tensor.
    """
    params: dict[str, QuantParams] = {}
    for weight in placement.weights:
        params[weight.tensor] = _weight_params(prepared, weight)
    pending = [a for a in placement.activations if a.joins]
    for activation in placement.activations:
        if activation.owner in params or activation.joins:
            continue
        if activation.unit_range:
            params[activation.owner] = _unit_params(activation.spec)
        elif calibration is None:
            raise CalibrationError("activations need statistics: none were given")
        else:
            params[activation.owner] = _activation_params(activation, calibration)
    while pending:  # a Concat may join what another one gives
        ready = [a for a in pending if all(part in params for part in a.joins)]
        for activation in ready:
            parts = [params[part] for part in activation.joins]
            params[activation.owner] = _union(activation.spec, parts)
        pending = [a for a in pending if a not in ready]
    biases = _fit_biases(prepared, placement, params)
    return Plan(placement, params, biases)


def check_finite(prepared: Prepared, placement: Placement) -> None:
    """Raises ModelError for a weight or bias with NaN or Inf, before anything runs on it."""
    kinds = [*((w.tensor, "weight") for w in placement.weights)]
    kinds += [(b.tensor, "bias") for b in placement.biases]
    for name, kind in kinds:
        if not np.isfinite(read(_tensor(prepared, name), lambda values: abs_max(values, None))):
            raise ModelError(
                f"{prepared.label}: {kind} {name!r} holds NaN or Inf; "
                "it cannot be quantized, and the float model is likely broken too"
            )


def _tensor(prepared: Prepared, name: str) -> ir.TensorProtocol:
    for graph in prepared.ir.graphs():
        value = graph.initializers.get(name)
        if value is not None and value.const_value is not None:
            return value.const_value
    raise KeyError(name)


def _weight_params(prepared: Prepared, weight: WeightPlacement) -> QuantParams:
    granularity = weight.spec.granularity
    axis = granularity.axis if isinstance(granularity, PerChannel) else None
    tensor = _tensor(prepared, weight.tensor)
    if weight.spec.symmetric:
        return symmetric_params(weight.spec, read(tensor, lambda values: abs_max(values, axis)))
    return params_from_range(weight.spec, *read(tensor, lambda values: extremes(values, axis)))


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


def _activation_params(activation: ActivationPlacement, calibration: Calibration) -> QuantParams:
    options = activation.method
    stats = calibration.of(activation.owner)
    spec = activation.spec
    if spec.qtype.bits > 8 and options.method == "KL":
        raise OptionError("KL degenerates above 8 bits: choose another method")
    if stats is None:
        return params_from_range(spec, 0.0, 0.0)
    low, high = METHODS[options.method](
        stats, RangeOptions(spec.qtype.bits, spec.symmetric, options.share)
    )
    return params_from_range(spec, low, high)


def _fit_biases(
    prepared: Prepared, placement: Placement, params: dict[str, QuantParams]
) -> dict[Use, QuantParams]:
    """Parameters of the int32 biases, scale s_x * s_w exactly as the kernels assume it.

    Where bias / (s_x * s_w) would not fit, s_w of that channel is raised until it does, in all the
    uses of the weight. Room is left for the sum of products, to which the kernels add the bias.
    """
    activations = {a.tensor: a for a in placement.activations}
    plan = Plan(placement, params)
    needed: dict[str, Float64Array] = {}
    found: list[tuple[Use, QuantParams, str]] = []
    for bias in placement.biases:
        s_x = plan.activation_params(activations[bias.activation])
        values = np.asarray(_tensor(prepared, bias.tensor).numpy(), np.float64).reshape(-1)
        scaled = np.abs(values) / float(s_x.scale)
        if params[bias.weight].axis is None:
            scaled = scaled.max(initial=0.0, keepdims=True)
        needed[bias.weight] = np.maximum(scaled, needed.get(bias.weight, 0.0))
        found.append((bias.use, s_x, bias.weight))
    for weight, scaled in needed.items():
        params[weight] = _with_room(_tensor(prepared, weight), params[weight], scaled)
    # only now are the weights' scales final
    return {use: _bias_params(s_x, params[weight]) for use, s_x, weight in found}


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
