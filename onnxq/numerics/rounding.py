"""Rounding of weights by what it does to a layer's output, not to the nearest.

The error of a layer is e = w - s q for each output channel; what it adds to the output is

    E[(e . x)^2] = e^T A e,    A = E[x x^T]

over the inputs x that the channel sees (patches, for a convolution). Nearest rounding minimizes
e^T e, which is the same only if the inputs have nothing to do with each other.

`descend` goes from integer to integer, one coordinate after the other; `adaround` learns for each
weight whether it is rounded up or down (M. Nagel et al., "Up or Down? Adaptive Rounding for
Post-Training Quantization", arXiv 2004.10568), on the same moments in place of samples.

Shapes: weights and integers [groups, channels, inputs], scale [groups, channels, 1], moments
[groups, inputs, inputs].
"""

from __future__ import annotations

import numpy as np

from onnxq.qtypes import Float64Array

__all__ = ["adaround", "descend", "layer_error", "with_scales"]

# Coordinates whose changes are brought to the rest of the gradient together
BLOCK = 32
SWEEPS = 4
# AdaRound: the stretched sigmoid, the regularizer and its schedule
ZETA, GAMMA = 1.1, -0.1
STEPS, RATE, LAMBDA = 300, 0.05, 0.01
BETA_START, BETA_END, WARM = 20.0, 2.0, 0.2


def layer_error(error: Float64Array, moments: Float64Array) -> Float64Array:
    """e^T A e of each channel: [groups, channels]."""
    return np.asarray(np.einsum("gok,gok->go", error @ moments, error))


def descend(
    weights: Float64Array,
    start: Float64Array,
    scale: Float64Array,
    moments: Float64Array,
    lowest: int,
    highest: int,
) -> Float64Array:
    """Integers with less e^T A e, none further from its weight than a step: a local optimum.

    For coordinate j alone the best change is that of q_j by round((e^T A)_j / (s A_jj)).
    """
    low = np.clip(np.ceil(weights / scale - 1), lowest, highest)
    high = np.clip(np.floor(weights / scale + 1), lowest, highest)
    q = np.clip(start, low, high)
    diagonal = np.einsum("gkk->gk", moments)
    inputs = weights.shape[2]
    for _ in range(SWEEPS):
        gradient = (weights - scale * q) @ moments
        moved = False
        for first in range(0, inputs, BLOCK):
            last = min(first + BLOCK, inputs)
            local = gradient[:, :, first:last].copy()
            steps = np.zeros_like(local)
            for j in range(first, last):
                k = j - first
                curve = scale[:, :, 0] * diagonal[:, j, None]
                wanted = np.divide(local[:, :, k], curve, out=np.zeros_like(curve), where=curve > 0)
                # less than half a step stays, so that rounding errors do not go on forever
                target = np.clip(
                    q[:, :, j] + np.rint(wanted * (1 - 1e-9)), low[:, :, j], high[:, :, j]
                )
                step = target - q[:, :, j]
                if not step.any():
                    continue
                q[:, :, j] = target
                steps[:, :, k] = scale[:, :, 0] * step
                local -= steps[:, :, k, None] * moments[:, None, j, first:last]
            if steps.any():
                moved = True
                gradient -= steps @ moments[:, first:last]
        if not moved:
            break
    return q


def with_scales(
    weights: Float64Array,
    start: Float64Array,
    scale: Float64Array,
    factors: Float64Array,
    moments: Float64Array,
    lowest: int,
    highest: int,
) -> tuple[Float64Array, Float64Array]:
    """The integers and scale of each channel with the least e^T A e among several scales.

    start: integers for `scale` itself, which is tried first; then scale * factor, float32 numbers,
    with integers that `descend` finds from the nearest ones. Below 1 a factor clips large weights.
    """
    groups, channels, _ = weights.shape
    count = len(factors)
    if not count:
        return start, scale
    first = np.broadcast_to(scale, (groups, channels, 1))
    others = (first * factors[:, None, None, None]).astype(np.float32).astype(np.float64)
    # all at once, as so many channels of each group
    tried = others.transpose(1, 0, 2, 3).reshape(groups, count * channels, 1)
    wanted = np.tile(weights, (1, count, 1))
    nearest = np.clip(np.rint(wanted / tried), lowest, highest)
    found = descend(wanted, nearest, tried, moments, lowest, highest)
    q = np.concatenate([start, found], axis=1)
    scales = np.concatenate([first, tried], axis=1)
    error = layer_error(np.tile(weights, (1, count + 1, 1)) - scales * q, moments)
    best = error.reshape(groups, count + 1, channels).argmin(axis=1)
    at = (best * channels + np.arange(channels))[:, :, None]
    return np.take_along_axis(q, at, axis=1), np.take_along_axis(scales, at, axis=1)


def adaround(
    weights: Float64Array,
    scale: Float64Array,
    moments: Float64Array,
    lowest: int,
    highest: int,
) -> Float64Array:
    """Integers next to w / s, of which Adam has learned which way each is rounded.

    loss = ||e^T A e|| / mean + lambda sum(1 - |2 h - 1|^beta), h = clip(1.2 sigmoid(v) - 0.1, 0, 1)

    beta falls from 20 to 2 after a fifth of the steps without the second term. Ends early when all
    h are 0 or 1.
    """
    base = np.floor(weights / scale)
    rest = weights / scale - base
    share = np.clip((rest - GAMMA) / (ZETA - GAMMA), 1e-4, 1 - 1e-4)
    v = np.log(share / (1 - share))
    # e / s is what h changes: one scale for the loss of every channel
    norm = np.einsum("gkk->g", moments)[:, None, None] / moments.shape[1]
    norm = np.where(norm > 0, norm, 1.0)
    first, second = np.zeros_like(v), np.zeros_like(v)
    for step in range(1, STEPS + 1):
        sigmoid = 1 / (1 + np.exp(-v))
        raw = sigmoid * (ZETA - GAMMA) + GAMMA
        h = np.clip(raw, 0.0, 1.0)
        inside = (raw > 0) & (raw < 1)
        if step > STEPS * WARM and not inside.any():
            break
        gradient = 2 * ((h - rest) @ moments) / norm
        if step > STEPS * WARM:
            done = (step / STEPS - WARM) / (1 - WARM)
            beta = BETA_END + (BETA_START - BETA_END) * (1 - done)
            centred = 2 * h - 1
            pull = np.abs(centred) ** (beta - 1) * np.sign(centred)
            gradient -= LAMBDA * 2 * beta * pull
        gradient *= inside * sigmoid * (1 - sigmoid) * (ZETA - GAMMA)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * np.square(gradient)
        v -= RATE * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    h = np.clip(1 / (1 + np.exp(-v)) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)
    return np.asarray(np.clip(base + (h >= 0.5), lowest, highest))
