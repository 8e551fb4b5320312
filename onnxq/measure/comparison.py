"""Compare: a quantized model against its float original, on samples."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.data.images import ImageOptions
from onnxq.data.samples import DataLike, Samples, input_specs, labels_of, open_samples, prefetched
from onnxq.data.sources import source_index
from onnxq.errors import DataError, ModelError, OptionError
from onnxq.measure.labels import (
    LabelComparison,
    LabelCounts,
    as_labels,
    class_names,
    load_labels,
    translate,
)
from onnxq.measure.layers import LayerComparison, compare_layers
from onnxq.model import ModelLike, SourceModel, load
from onnxq.numerics.metrics import ErrorSums, agreement
from onnxq.qtypes import Array, IntArray
from onnxq.runner import Runner, open_runner
from onnxq.runtime import RuntimeFailureError

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
    samples: how many were compared. other_rows: in how many more the outputs had different numbers
        of rows (a detector found another number of boxes), which cannot be compared; without any
        that could, sqnr and cosine are not a number.
    """

    output: str
    sqnr: float
    centred: bool
    cosine: float
    max_error: float
    relative_max_error: float
    agreement: float | None
    samples: int
    other_rows: int = 0


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
    if labels is not None and counted is None:
        raise DataError("labels are given, but no output is class scores, [1, classes] a sample")
    if counted is None and (label_offset or label_classes is not None):
        raise OptionError("there are no labels that the classes or the offset would be of")
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
    note: str = "",
    progress: Progress | None = None,
) -> tuple[list[OutputComparison], LabelComparison | None]:
    """Run both on every sample, one at a time.

    labels: int64 [samples], or [samples, batch]; they are those of the first output that is scores.
    note: is added to the message of an error in reading; see `prefetched`.

    Raises DataError, which names the sample, if it cannot be read, or a model cannot run it.
    """
    sums: dict[str, _Output] = {}
    counts: LabelCounts | None = None
    names = reference.float_outputs
    if not names:
        return [], None
    with closing(prefetched(samples, note=note)) as feeds:
        for index, feed in enumerate(feeds):
            label = f"sample {source_index(samples, index)}"
            try:
                expected, found = reference(feed, names), quantized(feed, names)
            except RuntimeFailureError as error:
                raise DataError(f"{label}: onnxruntime cannot run it: {error}") from error
            for name, r in expected.items():
                _check_output(label, name, r, found[name])
                output = sums.setdefault(name, _Output(name, r))
                output.add(r, found[name])
                if labels is None or not output.scores or counts not in (None, output.counts):
                    continue
                counts = output.counts = counts or LabelCounts(name, offset)
                for row, wanted in enumerate(np.atleast_1d(labels[index]).tolist()):
                    counts.add(wanted, r[row], found[name][row])
            if progress is not None:
                progress(index + 1, len(samples))
    outputs = [output.result() for output in sums.values()]
    return outputs, None if counts is None else counts.result()


class _Output:
    """Adds up one output; `scores` says whether it is scores of classes, [rows, classes]."""

    def __init__(self, name: str, first: Array) -> None:
        self.name = name
        self.scores = first.ndim == 2 and first.shape[1] > 1
        self.counts: LabelCounts | None = None
        self._errors = ErrorSums(centred=self.scores)
        self._rows_at_first = len(first) if first.ndim else 1
        self._agreed = self._rows = self._samples = self._other_rows = 0

    def add(self, r: Array, q: Array) -> None:
        if r.shape != q.shape or (r.ndim and len(r) != self._rows_at_first):
            self.scores = False  # rows are findings, not samples
        if r.shape != q.shape:
            self._other_rows += 1
            return
        self._samples += 1
        self._errors.add(r, q)
        if self.scores:
            self._agreed += agreement(r, q)
            self._rows += len(r)

    def result(self) -> OutputComparison:
        errors = self._errors
        return OutputComparison(
            self.name,
            errors.sqnr if self._samples else math.nan,
            errors.centred,
            errors.cosine if self._samples else math.nan,
            errors.max_error,
            errors.relative_max_error,
            self._agreed / self._rows if self._rows and self.scores else None,
            self._samples,
            self._other_rows,
        )


def _check_output(label: str, name: str, r: Array, q: Array) -> None:
    if q.shape != r.shape and (q.ndim != r.ndim or not q.ndim or q.shape[1:] != r.shape[1:]):
        raise DataError(
            f"{label}: output {name!r} has shape {list(q.shape)} in the quantized model and "
            f"{list(r.shape)} in the float one"
        )
    if np.isnan(r).any():
        raise DataError(
            f"{label}: the float model gives NaN in output {name!r}; leave that sample out"
        )


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
