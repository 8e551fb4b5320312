"""Offering rescaled networks: all links at once; where that loses, halves and quarters of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from onnxq.calibration import Calibration
from onnxq.collect import Request, calibrate
from onnxq.improve.context import Context
from onnxq.improve.rescaling import Link, links, rescaled
from onnxq.plans import Use
from onnxq.qtypes import Float64Array

__all__ = ["offer_links", "quantized_links"]

# How often all links are halved where they do not help together
HALVINGS = 2

Scales = Mapping[Link, Float64Array]


def quantized_links(context: Context) -> list[Link]:
    """The links of which every reader reads integers."""
    placed = {use for a in context.best.placement.activations for use in a.uses}
    weights = {use.node for w in context.best.placement.weights for use in w.uses}
    return [
        link
        for link in links(context.prepared)
        if all(Use(name, 0) in placed and name in weights for name in link.readers)
    ]


def offer_links(context: Context, step: str, scales: Scales, words: str) -> None:
    """Keep those links' scales that make the network better; words: what the change is."""
    if not scales:
        return
    measured = _calibrated(context, scales)
    _offer(context, step, scales, measured, words, HALVINGS)


def _offer(
    context: Context, step: str, scales: Scales, measured: Calibration, words: str, halvings: int
) -> None:
    kept = _is_kept(context, step, scales, measured, words)
    if kept or len(scales) == 1 or halvings == 0:
        return
    order = list(scales)
    for part in (order[: len(order) // 2], order[len(order) // 2 :]):
        _offer(context, step, {k: scales[k] for k in part}, measured, words, halvings - 1)


def _is_kept(
    context: Context, step: str, scales: Scales, measured: Calibration, words: str
) -> bool:
    changed = {name for link in scales for name in link.tensors}
    calibration = dataclasses.replace(
        context.calibration,
        tensors={
            name: measured.tensors[name] if name in changed else known
            for name, known in context.calibration.tensors.items()
        },
    )
    why = f"{words} behind {_named(context, scales)}"
    network = rescaled(context.prepared, scales)
    node = next(iter(scales)).sources[0] if len(scales) == 1 else None
    return context.offer_network(step, node, network, calibration, why)


def _calibrated(context: Context, scales: Scales) -> Calibration:
    """Statistics of what the links change, all of them rescaled.

    A tensor is in one link only, so that they serve any choice of links.
    """
    changed = {name for link in scales for name in link.tensors}
    known = context.calibration.tensors
    request = Request(
        tuple(sorted(changed & known.keys())),
        histograms=any(s is not None and s.histogram is not None for s in known.values()),
    )
    network = rescaled(context.prepared, scales)
    return calibrate(network, context.samples, request, spread=context.spread)


def _named(context: Context, scales: Scales) -> str:
    labels = context.best.placement.labels
    names = [labels.get(link.sources[0], link.sources[0]) for link in scales]
    return names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} ({len(names)} nodes)"
