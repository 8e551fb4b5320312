"""Compare: a quantized model against its float original, on samples."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.errors import DataError, ModelError, OptionError
from onnxq.images import ImageOptions
from onnxq.labels import (
    LabelComparison,
    LabelCounts,
    as_labels,
    class_names,
    load_labels,
    translate,
)
from onnxq.layers import LayerComparison, compare_layers
from onnxq.model import ModelLike, SourceModel, load
from onnxq.numerics.metrics import ErrorSums, agreement
from onnxq.qtypes import Array, IntArray
from onnxq.runner import Runner, open_runner
from onnxq.runtime import RuntimeFailureError
from onnxq.samples import DataLike, Samples, input_specs, labels_of, open_samples, prefetched

__all__ = ["ComparisonReport", "OutputComparison", "compare", "compare_outputs", "finite"]

Progress = Callable[[int, int], None]
LabelsLike = str | Path | Array | Sequence[int]


@dataclass(frozen=True)
class OutputComparison:
    """One output of the float and the quantized model over all samples together.

    sqnr: dB, infinite if they are equal. centred: it is that of class scores, each sample relative
        to its own mean (see `onnxq.numerics.metrics`).
    max_error: the largest difference; relative_max_error: as a share of the float output's range.
    agreement: share of samples with the same top class; None if the output is no class scores.
    """

    output: str
    sqnr: float
    centred: bool
    cosine: float
    max_error: float
    relative_max_error: float
    agreement: float | None
    samples: int


@dataclass(frozen=True)
class ComparisonReport:
    """What `compare` found."""

    reference: str
    quantized: str
    samples: int
    outputs: tuple[OutputComparison, ...]
    labels: LabelComparison | None = None
    layers: tuple[LayerComparison, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in which an infinite SQNR is null."""
        return finite(dataclasses.asdict(self))  # type: ignore[no-any-return]  # a dict stays one


def finite(value: Any) -> Any:
    """Plain values in which what JSON cannot say (infinite, not a number) is None."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def compare(
    reference: ModelLike,
    quantized: ModelLike,
    data: DataLike,
    *,
    samples: int | None = None,
    images: ImageOptions | None = None,
    labels: LabelsLike | None = None,
    label_offset: int = 0,
    label_classes: str | Path | None = None,
    model_classes: str | Path | None = None,
    layers: bool = False,
    progress: Progress | None = None,
) -> ComparisonReport:
    """Run both models on the samples and compare every floating-point output.

    data, samples, images: as in `quantize_static`.
    labels: one integer a sample, or a file of them; None for those that come with the data, if any.
    label_offset: index of the model's first class: 1 for a network with a background class.
    label_classes, model_classes: text files that name the classes (first word of each line) in the
        order of the labels and of the model's outputs, where the two differ.
    layers: also compare each quantized tensor with its float value.

    Raises ModelError, DataError or OptionError.
    """
    if (label_classes is None) != (model_classes is None):
        raise OptionError("label_classes and model_classes go together: give both or neither")
    one, other = load(reference), load(quantized)
    opened = open_samples(data, input_specs(one.ir), samples, images)
    found = _labels(labels, opened)
    if found is not None and label_classes is not None and model_classes is not None:
        names = class_names(Path(label_classes)), class_names(Path(model_classes))
        found = translate(found, *names)
    with contextlib.ExitStack() as stack:
        runners = [_open(stack, source) for source in (one, other)]
        _check_same(runners[0], runners[1], one.label, other.label)
        outputs, counted = compare_outputs(
            runners[0], runners[1], opened, found, offset=label_offset, progress=progress
        )
    return ComparisonReport(
        one.label,
        other.label,
        len(opened),
        tuple(outputs),
        counted,
        tuple(compare_layers(one, other, opened, progress=progress)) if layers else (),
    )


def compare_outputs(
    reference: Runner,
    quantized: Runner,
    samples: Samples,
    labels: IntArray | None = None,
    *,
    offset: int = 0,
    progress: Progress | None = None,
) -> tuple[list[OutputComparison], LabelComparison | None]:
    """Run both on every sample, one at a time.

    Raises DataError, which names the sample, if one of them cannot run it.
    """
    sums: dict[str, ErrorSums] = {}
    agreed: dict[str, int] = {}
    rows: dict[str, int] = {}
    counts: LabelCounts | None = None
    for index, feed in enumerate(prefetched(samples)):
        try:
            expected, found = reference(feed), quantized(feed)
        except RuntimeFailureError as error:
            raise DataError(f"sample {index}: onnxruntime cannot run it: {error}") from error
        for name, r in expected.items():
            if r.dtype.kind != "f":
                continue
            q = found[name]
            if q.shape != r.shape:
                raise DataError(
                    f"sample {index}: output {name!r} has shape {list(q.shape)} in the quantized "
                    f"model and {list(r.shape)} in the float one"
                )
            if np.isnan(r).any():
                raise DataError(
                    f"sample {index}: the float model gives NaN in output {name!r}; leave that "
                    "sample out"
                )
            scores = r.ndim == 2 and r.shape[1] > 1
            sums.setdefault(name, ErrorSums(centred=scores)).add(r, q)
            if scores:
                agreed[name] = agreed.get(name, 0) + agreement(r, q)
                rows[name] = rows.get(name, 0) + len(r)
                if labels is not None and len(r) == 1 and (counts is None or counts.output == name):
                    counts = counts or LabelCounts(name, offset)
                    counts.add(int(labels[index]), r[0], q[0])
        if progress is not None:
            progress(index + 1, len(samples))
    if labels is not None and counts is None:
        raise DataError(
            "labels are given, but no output is class scores [1, classes] for one sample"
        )
    outputs = [
        OutputComparison(
            name,
            total.sqnr,
            total.centred,
            total.cosine,
            total.max_error,
            total.relative_max_error,
            agreed[name] / rows[name] if rows.get(name) else None,
            len(samples),
        )
        for name, total in sums.items()
    ]
    return outputs, None if counts is None else counts.result()


def _labels(labels: LabelsLike | None, samples: Samples) -> IntArray | None:
    if labels is None:
        return labels_of(samples)
    if isinstance(labels, str | Path):
        found = load_labels(Path(labels))
    else:
        found = as_labels(np.asarray(labels), "labels")
    if len(found) < len(samples):
        raise DataError(f"there are {len(found)} labels for {len(samples)} samples")
    return found[: len(samples)]


def _open(stack: contextlib.ExitStack, source: SourceModel) -> Runner:
    try:
        return stack.enter_context(open_runner(source.path or source.ir))
    except RuntimeFailureError as error:
        raise ModelError(f"{source.label}: onnxruntime cannot load it: {error}") from error


def _check_same(one: Runner, other: Runner, label: str, other_label: str) -> None:
    for what, a, b in (
        ("inputs", one.inputs, other.inputs),
        ("outputs", one.outputs, other.outputs),
    ):
        if sorted(a) != sorted(b):
            raise ModelError(
                f"{other_label} has the {what} {', '.join(b)}, and {label} has {', '.join(a)}: "
                "these are not two versions of one model"
            )
