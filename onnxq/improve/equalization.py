"""Cross-layer equalization: the ranges of channels that two layers share are made alike.

    s_i = sqrt(r1_i * r2_i) / r2_i,   W1_i / s_i, b1_i / s_i,   W2_i * s_i

r1 and r2 are the largest magnitudes with which the first layer makes channel i and the second one
reads it. In a chain of one-to-one layers (a depthwise triple) all pairs in turn, until nothing
changes, come to the closed form s1 = r1 / (r1 r2 r3)^(1/3), s2 = (r1 r2 r3)^(1/3) / r3.

Two candidates: r1 of the weights, as in the paper, which is what weights with one scale a tensor
need; and r1 of the activations, where weights have a scale a channel and the tensor in between is
what suffers. Of a depthwise reader with a scale a channel r2 does not matter: s = r1.

Source: M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction"
(arXiv 1906.04721), section 4.1 and appendix A. Its high-bias absorption is left out.

Left out: whatever is not a link (see rescaling.py): Clip (Relu6) in between, residual branches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxq.improve.context import Context
from onnxq.improve.observed import observe
from onnxq.improve.offering import offer_links, quantized_links
from onnxq.improve.rescaling import Link, Scaled, values_of, weight_maxima
from onnxq.improve.smoothquant import strength_scales
from onnxq.plans import Plan, Use
from onnxq.prepare import Prepared
from onnxq.qtypes import Float32Array, Float64Array, PerChannel

__all__ = ["NAME", "cost", "equalize", "equalizing_scales"]

NAME = "equalization"
NOTHING = "no two quantized layers share channels that can be rescaled"
# Rounds over all pairs; a chain of n one-to-one layers needs some n^2 to come to rest
MOST_ROUNDS = 40
CLOSE = 1e-3


def equalize(context: Context, plan: Plan) -> None:
    """Offer the network equalized by its weights, and by its activations."""
    chosen = _chosen(context)
    if not context.untouched or not chosen:
        context.ledger.skip(NAME, NOTHING if context.untouched else "it has to come first")
        return
    scales = equalizing_scales(context.prepared, chosen)
    offer_links(context, NAME, scales, "by the ranges of weights")
    found = observe(context, chosen)
    scales = {
        link: strength_scales(
            found[link].maxima, weight_maxima(context.prepared, link), _strength(plan, link)
        )
        for link in chosen
    }
    offer_links(context, NAME, scales, "by the ranges of activations")


def cost(context: Context) -> float:
    """Runs of one sample, about: the fit, two more calibrations, and what is judged."""
    if not _chosen(context):
        return 0.0
    return context.ledger.fit + len(context.samples) + 10 * context.ledger.judge


def equalizing_scales(prepared: Prepared, chosen: Sequence[Link]) -> dict[Link, Float64Array]:
    """s of each link after as many rounds over all pairs as it takes; 1 for a channel of zeros."""
    names = {s.tensor for link in chosen for s in (link.divided[0], *link.multiplied)}
    sizes = {name: np.abs(values_of(prepared, name)) for name in sorted(names)}
    scales = {link: np.ones(link.channels) for link in chosen}
    for _ in range(MOST_ROUNDS):
        moved = 0.0
        for link in chosen:
            first = _maxima(sizes, link.divided[:1])
            second = _maxima(sizes, link.multiplied)
            alive = (first > 0) & (second > 0)
            s = np.ones(link.channels)
            s[alive] = np.sqrt(first[alive] / second[alive])
            scales[link] *= s
            for scaled, by in [(link.divided[0], 1 / s), *((m, s) for m in link.multiplied)]:
                size = sizes[scaled.tensor]
                size *= scaled.factors(by, size.ndim)
            moved = max(moved, float(np.abs(np.log(s)).max(initial=0.0)))
        if moved < CLOSE:
            break
    return scales


def _chosen(context: Context) -> list[Link]:
    """Links between two weighted nodes."""
    weighted = {use.node for w in context.best.placement.weights for use in w.uses}
    return [link for link in quantized_links(context) if link.source in weighted]


def _maxima(sizes: dict[str, Float32Array], constants: Sequence[Scaled]) -> Float64Array:
    """The largest magnitude of each channel over some constants."""
    found = []
    for scaled in constants:
        array = np.moveaxis(sizes[scaled.tensor], scaled.axis, 0)
        found.append(array.reshape(len(array) // scaled.repeat, -1).max(axis=1))
    return np.asarray(np.max(found, axis=0), np.float64)


def _strength(plan: Plan, link: Link) -> float:
    """All of it where the readers' weights have a scale for each channel that they read."""
    specs = {use: w.spec for w in plan.placement.weights for use in w.uses}
    free = all(
        scaled.axis == 0 and specs[Use(name, 1)].granularity == PerChannel(0)
        for scaled, name in zip(link.multiplied, link.readers, strict=True)
    )
    return 1.0 if free else 0.5
