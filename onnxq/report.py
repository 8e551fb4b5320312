"""What a quantization did: figures and reasons, for printing and as JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxq.data.split import Split
from onnxq.measure.comparison import finite
from onnxq.plans import Placement, Skip
from onnxq.verify import Verification

__all__ = ["Report", "WeightBytes", "nothing_quantized"]

# Reasons that a note lists; all of them are among the skips
REASONS = 3


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of the weights that became integers: as they were, and now with their scales."""

    count: int
    floats: int
    integers: int
    scales: int

    @property
    def ratio(self) -> float:
        return (self.integers + self.scales) / self.floats if self.floats else 0.0


def nothing_quantized(placement: Placement) -> str:
    """In words that, and why, a model stayed float as a whole."""
    start = "nothing was quantized, the result is the float model: "
    heavy = [skip for skip in placement.skips if skip.bytes] or placement.skips
    counts = Counter(skip.reason for skip in heavy)
    if not counts:
        what = (
            "Conv, Gemm, MatMul, ConvTranspose, LSTM, GRU or Gather"
            if placement.target is None
            else "Conv, Gemm or MatMul"
        )
        return f"{start}it has no {what} with a constant weight"
    listed = [
        f"{reason} ({count} {heavy[0].what}{'s' if count > 1 else ''})"
        for reason, count in counts.most_common(REASONS)
    ]
    if len(counts) > REASONS:
        listed.append(f"and {len(counts) - REASONS} more reasons")
    return start + "; ".join(listed)


@dataclass(frozen=True)
class Report:
    """The outcome of one call.

    bytes_before, bytes_after: of the model with its external data; before is None for a model that
        was given in memory.
    operators: how many nodes of each op type run on integers (static mode).
    recipe: the effective recipe, as plain values.
    split: which samples calibrated and which were held out; None without samples.
    verification: of the result on the samples held out; None if it was not verified.
    skips: everything that stayed float, with the reason.
    notes: what the caller should know: how to load the file, what was raised or chosen.
    seconds: by stage.
    """

    mode: str
    model: str
    output: str | None
    settings: Mapping[str, Any]
    recipe: Mapping[str, Any]
    bytes_before: int | None
    bytes_after: int | None
    weights: WeightBytes
    placement: Placement
    operators: Mapping[str, int] = field(default_factory=dict)
    split: Split | None = None
    verification: Verification | None = None
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def skips(self) -> tuple[Skip, ...]:
        return self.placement.skips

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "mode": self.mode,
            "model": self.model,
            "output": self.output,
            "settings": dict(self.settings),
            "recipe": dict(self.recipe),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "weights": {**dataclasses.asdict(self.weights), "ratio": self.weights.ratio},
            "activations": len(self.placement.activations),
            "operators": dict(self.operators),
            "split": None if self.split is None else self.split.to_dict(),
            "verification": finite(
                None if self.verification is None else dataclasses.asdict(self.verification)
            ),
            "skipped": [dataclasses.asdict(skip) for skip in self.skips],
            "notes": list(self.notes),
            "seconds": {stage: round(s, 3) for stage, s in self.seconds.items()},
        }
