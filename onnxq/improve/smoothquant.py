"""SmoothQuant: outlier channels of activations are made smaller, and their weights larger.

    s_j = max|X_j|^a / max|W_j|^(1 - a),   X_j / s_j,   W_j * s_j

A tensor has one scale for all channels, and a few channels of LayerNormalization's output are often
far larger than the rest. X / s is folded into what makes X (see rescaling.py); the strength a is
searched for each layer: the one with the smallest error of the layer's outputs, X and W quantized.

Source: G. Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models" (arXiv 2211.10438).

Left out: a tensor that others read too (the residual branch behind a LayerNormalization), as s
would have to be taken back there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxq.improve.context import Context
from onnxq.improve.observed import Observed, observe
from onnxq.improve.offering import offer_links, quantized_links
from onnxq.improve.rescaling import Link, Scaled, values_of, weight_maxima
from onnxq.numerics.quantize import abs_max, dequantize, quantize, symmetric_params
from onnxq.numerics.statistics import StatisticsBuilder
from onnxq.parametrize import params_from_statistics
from onnxq.plans import ActivationPlacement, Plan, Use
from onnxq.qtypes import Float32Array, Float64Array, PerChannel, PerTensor, QuantSpec
from onnxq.spread import Share, run_shares, shares_of

__all__ = ["NAME", "cost", "smooth", "strength_scales"]

NAME = "smoothquant"
# First these, then the neighbours of the best
STRENGTHS = (0.3, 0.5, 0.7, 0.9)
STEP = 0.1
# Links of a share, where workers search
LEAST, MOST = 2, 16
NOTHING = "no quantized MatMul or Gemm is alone in reading channels that can be rescaled"


def smooth(context: Context, plan: Plan) -> None:
    """Offer the network with each layer's best strength."""
    chosen = _chosen(context)
    if not context.untouched or not chosen:
        context.ledger.skip(NAME, NOTHING if context.untouched else "it has to come first")
        return
    found = observe(context, chosen)
    strengths = _strengths(context, plan, found)
    if not strengths:
        context.ledger.skip(NAME, "no strength makes any layer better")
        return
    scales = {
        link: strength_scales(found[link].maxima, weight_maxima(context.prepared, link), strength)
        for link, strength in strengths.items()
    }
    words = f"strength {min(strengths.values()):g}..{max(strengths.values()):g}"
    offer_links(context, NAME, scales, words)


def _chosen(context: Context) -> list[Link]:
    return [link for link in quantized_links(context) if link.axis == -1]


def cost(context: Context) -> float:
    """Runs of one sample, about: the fit, a second calibration, and what is judged."""
    if not _chosen(context):
        return 0.0
    return context.ledger.fit + len(context.samples) / 2 + 3 * context.ledger.judge


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


def _strengths(context: Context, plan: Plan, found: Mapping[Link, Observed]) -> dict[Link, float]:
    """The best strength of each link that has one. No link waits for another."""
    chosen, executor = list(found), context.spread.elsewhere
    best: dict[Link, float | None] = dict.fromkeys(chosen)

    def searches(share: Share) -> list[_Search]:
        return [_search(context, plan, chosen[i], found[chosen[i]]) for i in share]

    def take(share: Share, strengths: Sequence[float | None]) -> None:
        best.update(zip((chosen[i] for i in share), strengths, strict=True))

    if executor is None:
        for i in range(len(chosen)):
            take(range(i, i + 1), _best(searches(range(i, i + 1))))
    else:
        shares = shares_of(range(len(chosen)), executor, LEAST, MOST)
        label = context.prepared.label
        run_shares(lambda share: partial(_best, searches(share)), shares, executor, take, label)
    return {link: strength for link, strength in best.items() if strength is not None}


@dataclass(frozen=True, eq=False)
class _Search:
    """All that a link's strength is chosen by; can be sent to another process.

    seen: what its readers read, placed as that is quantized. maxima: of their weights, a channel.
    """

    seen: Observed
    maxima: Float64Array
    placed: ActivationPlacement
    layers: Sequence[_Layer]

    def error(self, strength: float) -> float:
        s = strength_scales(self.seen.maxima, self.maxima, strength)
        return _error(self.seen.rows, s, self.placed, self.layers)

    def best(self) -> float | None:
        """The strength with the smallest error of all readers together, None if none is better."""
        found = {strength: self.error(strength) for strength in STRENGTHS}
        middle = min(found, key=lambda a: found[a])
        for strength in (round(middle - STEP, 1), round(middle + STEP, 1)):
            found[strength] = self.error(strength)
        best = min(found, key=lambda a: found[a])
        nothing = _error(self.seen.rows, np.ones(len(self.maxima)), self.placed, self.layers)
        return best if found[best] < nothing else None


def _search(context: Context, plan: Plan, link: Link, seen: Observed) -> _Search:
    activations = {use: a for a in plan.placement.activations for use in a.uses}
    return _Search(
        seen,
        weight_maxima(context.prepared, link),
        activations[Use(link.readers[0], 0)],
        [_layer(context, plan, scaled) for scaled in link.multiplied],
    )


def _best(searches: Sequence[_Search]) -> list[float | None]:
    """The results of some searches, in a worker or here."""
    return [search.best() for search in searches]


@dataclass(frozen=True, eq=False)
class _Layer:
    """A reader of a link. weight: [channels, outputs]. spec: how that is quantized."""

    weight: Float32Array
    spec: QuantSpec

    def rounded(self, s: Float64Array) -> Float32Array:
        """weight * s, quantized."""
        weight = (self.weight * s[:, None]).astype(np.float32)
        axis = 1 if isinstance(self.spec.granularity, PerChannel) else None
        params = symmetric_params(self.spec, abs_max(weight, axis))
        return dequantize(quantize(weight, params), params)


def _layer(context: Context, plan: Plan, scaled: Scaled) -> _Layer:
    placed = next(w for w in plan.placement.weights if w.tensor == scaled.tensor)
    weight = np.moveaxis(values_of(context.prepared, scaled.tensor), scaled.axis, 0)
    along = isinstance(placed.spec.granularity, PerChannel)
    spec = dataclasses.replace(placed.spec, granularity=PerChannel(1) if along else PerTensor())
    return _Layer(np.ascontiguousarray(weight, np.float32), spec)


def _error(
    x: Float32Array, s: Float64Array, placed: ActivationPlacement, layers: Sequence[_Layer]
) -> float:
    """Squared error of the layers' outputs, each as a share of its signal."""
    scaled = (x / s).astype(np.float32)
    builder = StatisticsBuilder(histogram=True)
    builder.add(scaled, 1)
    params = params_from_statistics(placed, builder.build())
    rounded = dequantize(quantize(scaled, params), params)
    total = 0.0
    for layer in layers:
        exact = x @ layer.weight
        signal = float(np.square(exact).sum())
        if signal:
            total += float(np.square(rounded @ layer.rounded(s) - exact).sum()) / signal
    return total
