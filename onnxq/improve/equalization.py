"""Cross-layer equalization: the ranges of channels that two layers share are made alike.

    s_i = sqrt(r1_i * r2_i) / r2_i,   W1_i / s_i, b1_i / s_i,   W2_i * s_i

r1 and r2 are the largest magnitudes with which the first layer makes channel i and the second one
reads it. In a chain of one-to-one layers (a depthwise triple) all pairs in turn, until nothing
changes, come to the closed form s1 = r1 / (r1 r2 r3)^(1/3), s2 = (r1 r2 r3)^(1/3) / r3.

Where weights have one scale a tensor, r1 is that of the weights, as in the paper. And in any case
another candidate is offered, with r1 of the activations, as the tensor in between suffers as well,
and with a strength for each link in place of the square root (see strength.py).

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
from onnxq.improve.rescaling import Link, values_of
from onnxq.improve.strength import NO_STRENGTH, best_scales
from onnxq.plans import Plan
from onnxq.prepare import Prepared
from onnxq.qtypes import Float64Array, PerTensor

__all__ = ["NAME", "cost", "equalize", "equalizing_scales"]

NAME = "equalization"
NOTHING = "no two quantized layers share channels that can be rescaled"
OWN_SCALES = "not by the ranges of weights: each of their channels has a scale of its own"
# Rounds over all pairs; a chain of n one-to-one layers needs some n^2 to come to rest
MOST_ROUNDS = 40
CLOSE = 1e-3


def equalize(context: Context, plan: Plan) -> None:
    """Offer the network equalized by its weights, and by its activations."""
    chosen = _chosen(context)
    if not context.untouched or not chosen:
        context.ledger.skip(NAME, NOTHING if context.untouched else "it has to come first")
        return
    if _share_scales(plan, chosen):
        scales = equalizing_scales(context.prepared, chosen)
        offer_links(context, NAME, scales, "by the ranges of weights")
    else:
        context.ledger.skip(NAME, OWN_SCALES)
    scales, words = best_scales(context, plan, observe(context, chosen))
    if not scales:
        context.ledger.skip(NAME, NO_STRENGTH)
        return
    offer_links(context, NAME, scales, f"by the ranges of activations, {words}")


def cost(context: Context) -> float:
    """Runs of one sample, about: the fit, two more calibrations, and what is judged."""
    if not _chosen(context):
        return 0.0
    return context.ledger.fit + len(context.samples) + 10 * context.ledger.judge


def equalizing_scales(prepared: Prepared, chosen: Sequence[Link]) -> dict[Link, Float64Array]:
    """s of each link after as many rounds over all pairs as it takes; 1 for a channel of zeros."""
    names = {s.tensor for link in chosen for s in (*link.made, *link.multiplied)}
    sizes = {name: np.abs(values_of(prepared, name)) for name in sorted(names)}
    scales = {link: np.ones(link.channels) for link in chosen}
    for _ in range(MOST_ROUNDS):
        moved = 0.0
        for link in chosen:
            first = np.concatenate([m.maxima(sizes[m.tensor]) for m in link.made])
            second = np.max([m.maxima(sizes[m.tensor]) for m in link.multiplied], axis=0)
            alive = (first > 0) & (second > 0)
            s = np.ones(link.channels)
            s[alive] = np.sqrt(first[alive] / second[alive])
            scales[link] *= s
            for scaled, by in [(m, 1 / s) for m in link.made] + [(m, s) for m in link.multiplied]:
                size = sizes[scaled.tensor]
                size *= scaled.factors(by, size.ndim)
            moved = max(moved, float(np.abs(np.log(s)).max(initial=0.0)))
        if moved < CLOSE:
            break
    return scales


def _share_scales(plan: Plan, chosen: Sequence[Link]) -> bool:
    """Whether some weight has one scale for all channels."""
    specs = {w.tensor: w.spec for w in plan.placement.weights}
    changed = [specs[s.tensor] for link in chosen for s in (*link.made, *link.multiplied)]
    return any(isinstance(spec.granularity, PerTensor) for spec in changed)


def _chosen(context: Context) -> list[Link]:
    """Links between two weighted nodes."""
    weighted = {use.node for w in context.best.placement.weights for use in w.uses}
    return [link for link in quantized_links(context) if weighted.issuperset(link.sources)]
