"""What a quantization did: figures and reasons, for printing and as JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq.data.split import Split
from onnxq.model import SourceModel, initializers
from onnxq.placement.padding import padding_notes
from onnxq.plans import Placement, Plan, Skip
from onnxq.prepare import Prepared
from onnxq.qtypes import INT8
from onnxq.recipe import DynamicRecipe, Recipe, StaticRecipe
from onnxq.runtime import foreign_ops
from onnxq.session import integer_io_of, needed_options
from onnxq.verify import Verification

if TYPE_CHECKING:  # dynamic mode needs none of it
    from onnxq.improve.ledger import Ledger
    from onnxq.improve.mixed.stage import MixedReport
    from onnxq.measure.macs import IntegerShare, Sizes
    from onnxq.saturation import Verdict
    from onnxq.tune import Tuning

__all__ = [
    "Report",
    "WeightBytes",
    "macs_in_int8",
    "notes_on",
    "nothing_quantized",
    "operator_counts",
    "source_bytes",
    "weight_bytes",
]

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
    macs: the products that run on integers, and all (static mode).
    tuning: what was timed and chosen with `tune_latency`; None without it.
    saturation: on which processors the file is exact; None where that is no question.
    ledger: what the accuracy level tried, and what of it was kept; None in dynamic mode.
    mixed: what was left float for which target; None if there was neither need nor target.
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
    macs: IntegerShare | None = None
    tuning: Tuning | None = None
    saturation: Verdict | None = None
    ledger: Ledger | None = None
    mixed: MixedReport | None = None
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def skips(self) -> tuple[Skip, ...]:
        return self.placement.skips

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        from onnxq.measure.comparison import finite

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
            "macs": None if self.macs is None else self.macs.to_dict(),
            "tuning": None if self.tuning is None else self.tuning.to_dict(),
            "saturation": None if self.saturation is None else self.saturation.to_dict(),
            "improvement": None if self.ledger is None else self.ledger.to_dict(),
            "mixed_precision": None if self.mixed is None else self.mixed.to_dict(),
            "skipped": [dataclasses.asdict(skip) for skip in self.skips],
            "notes": list(self.notes),
            "seconds": {stage: round(s, 3) for stage, s in self.seconds.items()},
        }


def source_bytes(source: SourceModel) -> int | None:
    """Of the model's files, external data included; None for a model in memory."""
    if source.path is None:
        return None
    return sum(file.stat().st_size for file in {source.path, *source.data_files})


def weight_bytes(prepared: Prepared, plan: Plan) -> WeightBytes:
    """Of the weights that the plan makes integers."""
    tensors = {v.name: v.const_value for v in initializers(prepared.ir) if v.const_value}
    weights = plan.placement.weights
    return WeightBytes(
        count=len(weights),
        floats=sum(tensors[w.tensor].nbytes for w in weights),
        integers=sum(tensors[w.tensor].size * w.spec.qtype.bits // 8 for w in weights),
        scales=sum(4 * plan.params[w.tensor].scale.size for w in weights),
    )


def operator_counts(prepared: Prepared, placement: Placement) -> dict[str, int]:
    """How many nodes of each op type run on integers."""
    if placement.target is None:
        return {}
    quantized = {use.node for a in placement.activations for use in a.uses}
    return dict(
        sorted(Counter(n.op_type for n in prepared.ir.graph if n.name in quantized).items())
    )


def macs_in_int8(
    prepared: Prepared, placement: Placement, recipe: StaticRecipe, sizes: Sizes
) -> IntegerShare:
    """The share of the products that run on integers."""
    from onnxq.measure.macs import integer_share

    names = {use.node for a in placement.activations for use in a.uses}
    return integer_share(prepared.ir, names if recipe.bits <= INT8.bits else (), sizes)


def notes_on(
    source: SourceModel,
    prepared: Prepared,
    placement: Placement,
    recipe: Recipe,
    path: Path | None,
    metadata: Mapping[str, Any],
    verification: Verification | str | None,
    ledger: Ledger | None = None,
) -> list[str]:
    """What the caller should know of this result."""
    found = []
    if placement.is_empty:
        found.append(nothing_quantized(placement))
    if unknown := foreign_ops(source.ir):
        found.append(
            f"left as they are: {', '.join(unknown)}, which onnxruntime does not know; the result "
            "was checked as far as that allows: register their library and run it"
        )
    before, after = source.ir.opset_imports.get("", 0), prepared.ir.opset_imports.get("", 0)
    if after > before and not placement.is_empty:
        found.append(f"opset raised from {before} to {after}, which per-channel scales need")
    options = needed_options(metadata)
    if options and not placement.is_empty:
        entries = ", ".join(f"{key}={value}" for key, value in options.items())
        found.append(
            f'load with onnxq.load_session("{path}"), or any session with {entries}: without it '
            "onnxruntime dequantizes every weight on every run; --encoding fold needs no option, "
            "but only DequantizeLinear is understood as quantization by other tools"
        )
    if isinstance(recipe, DynamicRecipe) and metadata["encoding"] != recipe.encoding:
        found.append(
            "weights are stored as Cast and Mul (--encoding fold), as the model has "
            "QuantizeLinear or DequantizeLinear already: the option that qdq needs turns them off"
        )
    found += padding_notes(placement)
    for name, params in integer_io_of(metadata).items():
        found.append(
            f"{name!r} is {params.dtype}: real value = "
            f"(integer - {params.zero_point}) * {params.scale:.9g}"
        )
    if ledger is not None and ledger.not_run:
        found.append("not done: " + "; ".join(f"{e.step}: {e.why}" for e in ledger.not_run))
    if ledger is not None and ledger.interrupted:
        found.append(
            f"stopped before accuracy {ledger.level} was through: this is the best until then"
        )
    if isinstance(recipe, StaticRecipe) and verification is None:
        why = "--no-verify" if not recipe.verify else "statistics, but no samples, were given"
        found.append(f"not verified ({why}): compare it with `onnxq compare`")
    if isinstance(verification, str):
        found.append(f"not verified: {verification}")
    elif verification is not None:
        found += verification.notes
    return found
