"""Labels: where they come from, which of a model's outputs each one means, and top-1 and top-5."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxq.data.feeds import why_unreadable
from onnxq.errors import DataError, OptionError
from onnxq.qtypes import Array, IntArray

__all__ = ["LabelComparison", "LabelCounts", "class_names", "load_labels", "translate"]

Z95 = 1.959964  # the 97.5 % quantile of the normal distribution
LABEL_ARRAYS = ("label", "labels")


def load_labels(path: Path) -> IntArray:
    """Labels of a CSV (column `label`), an .npy, or an .npz with an array `label` or `labels`."""
    try:
        if path.suffix.lower() == ".csv":
            with open(path, newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                if "label" not in (reader.fieldnames or ()):
                    columns = ", ".join(reader.fieldnames or ()) or "none"
                    raise DataError(f"{path}: has no column `label`; its columns are {columns}")
                return as_labels(np.array([int(row["label"]) for row in reader]), str(path))
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return as_labels(content, str(path))
        with content:
            for name in LABEL_ARRAYS:
                if name in content.files:
                    return as_labels(content[name], str(path))
            raise DataError(
                f"{path}: has no array {' or '.join(LABEL_ARRAYS)}; it has "
                f"{', '.join(content.files)}"
            )
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: labels cannot be read: {why_unreadable(error)}") from error


def as_labels(array: Array, label: str) -> IntArray:
    """Raises DataError unless the array is one integer a sample."""
    flat = array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or flat.dtype.kind not in "iu":
        raise DataError(
            f"{label}: labels are one integer a sample, not {array.dtype} of shape "
            f"{list(array.shape)}"
        )
    return flat.astype(np.int64)


def class_names(path: Path) -> list[str]:
    """The first word of each line of a text file: a class a line, in the order of its indices."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return [line.split()[0] for line in lines if line.strip()]


def translate(
    labels: IntArray, data_classes: Sequence[str], model_classes: Sequence[str]
) -> IntArray:
    """The model's index of each label, where data and model order the same classes differently."""
    index = {name: i for i, name in enumerate(model_classes)}
    if labels.size and not 0 <= labels.min() <= labels.max() < len(data_classes):
        raise OptionError(
            f"labels reach from {labels.min()} to {labels.max()}, and the data has "
            f"{len(data_classes)} classes"
        )
    missing = [name for name in data_classes if name not in index]
    if missing:
        raise OptionError(
            f"the model's classes lack {len(missing)} of the data's, for example {missing[0]!r}"
        )
    return np.array([index[data_classes[label]] for label in labels.tolist()], np.int64)


@dataclass(frozen=True)
class LabelComparison:
    """How often the right class is first, or among the first five, of both models.

    output: of which the scores are. top1, top5: shares, (float, quantized); top5 is None below six
        classes.
    difference: top-1 of the quantized model less that of the float one, on the same samples.
    interval: 95 % interval of the difference.
    """

    output: str
    samples: int
    top1: tuple[float, float]
    top5: tuple[float, float] | None
    difference: float
    interval: tuple[float, float]


class LabelCounts:
    """Adds up hits sample by sample.

    offset: index of the model's first class; scores before it (a background class) do not count.
    """

    def __init__(self, output: str, offset: int = 0) -> None:
        self.output, self._offset = output, offset
        self._hits: list[tuple[bool, bool, bool, bool]] = []
        self._five = True

    def add(self, label: int, reference: Array, quantized: Array) -> None:
        """Scores of one sample, [classes]."""
        reference, quantized = reference[self._offset :], quantized[self._offset :]
        if not 0 <= label < reference.size:
            raise DataError(
                f"label {label} is no class of output {self.output!r}, which has "
                f"{reference.size} classes"
                + (f" behind the offset of {self._offset}" if self._offset else "")
            )
        self._five = self._five and reference.size > 5
        ranks = [int((scores > scores[label]).sum()) for scores in (reference, quantized)]
        # a tie counts as a hit for the class that argmax names
        first = [int(scores.argmax()) == label for scores in (reference, quantized)]
        self._hits.append((first[0], first[1], ranks[0] < 5, ranks[1] < 5))

    def result(self) -> LabelComparison:
        hits = np.array(self._hits, bool).reshape(-1, 4)
        top = hits.mean(axis=0).tolist()
        lost = int((hits[:, 0] & ~hits[:, 1]).sum())
        gained = int((~hits[:, 0] & hits[:, 1]).sum())
        return LabelComparison(
            self.output,
            len(hits),
            (top[0], top[1]),
            (top[2], top[3]) if self._five else None,
            (gained - lost) / len(hits),
            paired_interval(gained, lost, len(hits)),
        )


def paired_interval(gained: int, lost: int, count: int) -> tuple[float, float]:
    """95 % interval of the difference of two paired proportions, (gained - lost) / count.

    The adjusted Wald interval: one is added to each of the discordant counts, so that it holds for
    few of them too. Source: D. G. Bonett and R. M. Price, "Adjusted Wald Confidence Interval for a
    Difference of Binomial Proportions Based on Paired Data" (2012), J. Educ. Behav. Stat. 37(4).
    """
    p, q = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    margin = Z95 * float(np.sqrt((p + q - (p - q) ** 2) / (count + 2)))
    return max(-1.0, p - q - margin), min(1.0, p - q + margin)
