"""How strongly the channels of a link are rescaled: the strength a with the least error predicted.

    s_j = max|X_j|^a / max|W_j|^(1 - a)

or with a tensor on the way to X in its place: before a LeakyRelu channels may be far larger. X is
made by the link's sources, W are the weights of its readers. With X / s and W * s quantized, what
comes out of a reader is off by about

    sum_j  E[(X^_j - X_j)^2] |W^_j|^2  +  var(X_j) |W^_j - W_j|^2

with what is quantized on the way to X in the first term as well.

X^ and W^ being the quantized ones times and over s: rounding errors of different channels have
nothing to do with each other. The mean of X_j, which only adds a constant for each output, is what
bias correction is for; where there is no bias, E[X_j^2] stands in place of the variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxq.improve.context import Context
from onnxq.improve.observed import Observed
from onnxq.improve.own_bias import own_bias
from onnxq.improve.rescaling import Link, Scaled, values_of, weight_maxima
from onnxq.numerics.quantize import abs_max, dequantize, quantize, symmetric_params
from onnxq.numerics.statistics import StatisticsBuilder
from onnxq.parametrize import params_from_statistics
from onnxq.plans import ActivationPlacement, Plan, Use
from onnxq.qtypes import Array, Float32Array, Float64Array, PerChannel, QuantSpec
from onnxq.spread import Share, run_shares, shares_of

__all__ = ["NO_STRENGTH", "best_scales", "strength_scales"]

NO_STRENGTH = "no strength makes any layer better"
# First these, then the neighbours of the best
STRENGTHS = (0.3, 0.5, 0.7, 0.9)
STEP = 0.1
# Links of a share, where workers search
LEAST, MOST = 2, 16


def strength_scales(x: Float64Array, w: Float64Array, strength: float) -> Float64Array:
    """s of each channel from the largest magnitudes of X and W; 1 where either is nothing.

    Its geometric mean is 1: a factor for all channels changes nothing.
    """
    alive = (x > 0) & (w > 0)
    logs = np.zeros(len(x))
    logs[alive] = strength * np.log(x[alive]) - (1 - strength) * np.log(w[alive])
    if alive.any():
        logs[alive] -= logs[alive].mean()
    return np.asarray(np.exp(logs))


def best_scales(
    context: Context, plan: Plan, found: Mapping[Link, Observed]
) -> tuple[dict[Link, Float64Array], str]:
    """s of each link for which a strength helps, and in words which ones they are.

    No link waits for another, so that they can be shared out.
    """
    chosen, executor = list(found), context.spread.elsewhere
    best: dict[Link, _Best | None] = dict.fromkeys(chosen)

    def searches(share: Share) -> list[_Search]:
        return [_search(context, plan, chosen[i], found[chosen[i]]) for i in share]

    def take(share: Share, results: Sequence[_Best | None]) -> None:
        best.update(zip((chosen[i] for i in share), results, strict=True))

    if executor is None:
        for i in range(len(chosen)):
            take(range(i, i + 1), _best(searches(range(i, i + 1))))
    else:
        shares = shares_of(range(len(chosen)), executor, LEAST, MOST)
        label = context.prepared.label
        run_shares(lambda share: partial(_best, searches(share)), shares, executor, take, label)
    kept = {link: result for link, result in best.items() if result is not None}
    if not kept:
        return {}, ""
    strengths = [result.strength for result in kept.values()]
    words = f"strength {min(strengths):g}..{max(strengths):g}"
    return {link: result.scales for link, result in kept.items()}, words


@dataclass(frozen=True, eq=False)
class _Best:
    strength: float
    scales: Float64Array


@dataclass(frozen=True, eq=False)
class _Reader:
    """A node that reads X.

    weight: as it is stored. spec: how it is quantized. power: of X, by which its errors count.
    """

    weight: Float32Array
    scaled: Scaled
    spec: QuantSpec
    power: Float64Array

    def error(self, s: Float64Array, noise: Float64Array) -> float:
        """As a share of the signal; noise: of each channel of X."""
        factors = self.scaled.factors(s, self.weight.ndim)
        weight = (self.weight * factors).astype(np.float32)
        granularity = self.spec.granularity
        axis = granularity.axis if isinstance(granularity, PerChannel) else None
        params = symmetric_params(self.spec, abs_max(weight, axis))
        rounded = dequantize(quantize(weight, params), params) / factors
        signal = float(self.power @ self._squares(self.weight))
        lost = noise @ self._squares(rounded) + self.power @ self._squares(rounded - self.weight)
        return float(lost) / signal if signal else 0.0

    def _squares(self, weight: Array) -> Float64Array:
        """|W_j|^2 of each channel."""
        slices = np.moveaxis(weight, self.scaled.axis, 0)
        rows = np.square(slices.reshape(len(slices), -1), dtype=np.float64).sum(axis=1)
        return np.asarray(rows.reshape(-1, self.scaled.repeat).sum(axis=1))


@dataclass(frozen=True, eq=False)
class _Search:
    """All that a link's strength is chosen by; can be sent to another process.

    seen: what its readers read, placed as that is quantized. maxima: of their weights, a channel.
    """

    seen: Observed
    maxima: Float64Array
    placed: ActivationPlacement
    readers: Sequence[_Reader]

    def error(self, s: Float64Array) -> float:
        """Of all readers, predicted, each as a share of its signal."""
        noise = _noise(self.seen.read.rows, s, self.placed)
        for placed, seen in self.seen.before:
            noise = noise + _noise(seen.rows, s, placed)
        return sum(reader.error(s, noise) for reader in self.readers)

    def best(self) -> _Best | None:
        """What has the smallest error, None if nothing is better than no scales."""
        least, found = self.error(np.ones(len(self.maxima))), None
        for x in (self.seen.read.maxima, *(seen.maxima for _, seen in self.seen.before)):
            errors: dict[float, float] = {}
            for strength in STRENGTHS:
                errors[strength] = self.error(strength_scales(x, self.maxima, strength))
            middle = min(errors, key=lambda a: errors[a])
            for strength in (round(middle - STEP, 1), round(middle + STEP, 1)):
                errors[strength] = self.error(strength_scales(x, self.maxima, strength))
            strength = min(errors, key=lambda a: errors[a])
            if errors[strength] < least:
                least = errors[strength]
                found = _Best(strength, strength_scales(x, self.maxima, strength))
        return found


def _noise(rows: Float32Array, s: Float64Array, placed: ActivationPlacement) -> Float64Array:
    """E[(x^ - x)^2] of each channel of x, behind the function that it is read through."""
    scaled = (rows / s).astype(np.float32)
    builder = StatisticsBuilder(histogram=True)
    builder.add(scaled, 1)
    params = params_from_statistics(placed, builder.build())
    rounded = dequantize(quantize(scaled, params), params).astype(np.float64)
    curve = placed.curve
    off = rounded - scaled if curve is None else curve(rounded) - curve(scaled.astype(np.float64))
    return np.asarray(np.square(off * s).mean(axis=0))


def _search(context: Context, plan: Plan, link: Link, seen: Observed) -> _Search:
    activations = {use: a for a in plan.placement.activations for use in a.uses}
    specs = {w.tensor: w.spec for w in plan.placement.weights}
    nodes = {node.name: node for node in context.prepared.ir.graph}
    variances, squares = seen.read.variances, seen.read.squares
    readers = [
        _Reader(
            np.asarray(values_of(context.prepared, scaled.tensor)),
            scaled,
            specs[scaled.tensor],
            variances if _has_bias(nodes[name], plan) else squares,
        )
        for scaled, name in zip(link.multiplied, link.readers, strict=True)
    ]
    placed = activations[Use(link.readers[0], 0)]
    return _Search(seen, weight_maxima(context.prepared, link), placed, readers)


def _has_bias(node: ir.Node, plan: Plan) -> bool:
    """As an input. What an Add behind the node adds is corrected later than this is judged."""
    bias = own_bias(node, plan.placement)
    return bias is not None and bias in node.inputs


def _best(searches: Sequence[_Search]) -> list[_Best | None]:
    """The results of some searches, in a worker or here."""
    return [search.best() for search in searches]
