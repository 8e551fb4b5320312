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

from onnxq.improve.context import Context
from onnxq.improve.observed import observe
from onnxq.improve.offering import offer_links, quantized_links
from onnxq.improve.rescaling import Link
from onnxq.improve.strength import NO_STRENGTH, best_scales
from onnxq.plans import Plan

__all__ = ["NAME", "cost", "smooth"]

NAME = "smoothquant"
NOTHING = "no quantized MatMul or Gemm is alone in reading channels that can be rescaled"


def smooth(context: Context, plan: Plan) -> None:
    """Offer the network with each layer's best strength."""
    chosen = _chosen(context)
    if not context.untouched or not chosen:
        context.ledger.skip(NAME, NOTHING if context.untouched else "it has to come first")
        return
    scales, words = best_scales(context, plan, observe(context, chosen))
    if not scales:
        context.ledger.skip(NAME, NO_STRENGTH)
        return
    offer_links(context, NAME, scales, words)


def _chosen(context: Context) -> list[Link]:
    return [link for link in quantized_links(context) if link.axis == -1]


def cost(context: Context) -> float:
    """Runs of one sample, about: the fit, a second calibration, and what is judged."""
    if not _chosen(context):
        return 0.0
    return context.ledger.fit + len(context.samples) / 2 + 3 * context.ledger.judge
