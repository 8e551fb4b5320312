"""`Calibration`: the statistics of a model's tensors over a set of samples."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.errors import CalibrationError
from onnxq.files import write_atomically
from onnxq.numerics.exact import ExactSum
from onnxq.numerics.histogram import HALF, Histogram
from onnxq.numerics.statistics import TensorStatistics
from onnxq.qtypes import IntArray

__all__ = ["Calibration", "Unfinished"]

FORMAT = 2


@dataclass(frozen=True)
class Unfinished:
    """The run that statistics were saved in as they grew.

    planned: number of samples in all. source: a digest of them.
    """

    planned: int
    source: str


@dataclass(frozen=True, eq=False)
class Calibration:
    """Statistics, not scales: one serves every method and, by default, every built-in target.

    fingerprint: of the prepared float model that ran.
    samples: how many ran.
    tensors: by name; None for a tensor that had no element in any sample.
    run: of statistics that were saved as they grew; complete when `samples` are all it planned.
    """

    fingerprint: str
    samples: int
    tensors: Mapping[str, TensorStatistics | None]
    run: Unfinished | None = None

    def of(self, tensor: str) -> TensorStatistics | None:
        """Raises CalibrationError, with the remedy, for a tensor that was not collected."""
        if tensor not in self.tensors:
            raise CalibrationError(
                f"the statistics hold nothing of tensor {tensor!r}: they were collected for "
                "another selection of nodes; calibrate again with the options of this call"
            )
        return self.tensors[tensor]

    def check(self, fingerprint: str, label: str) -> None:
        """Raises CalibrationError if the statistics are of another model, or not complete."""
        if self.run is not None and self.samples < self.run.planned:
            raise CalibrationError(
                f"{label}: the statistics hold {self.samples} of {self.run.planned} samples: their "
                "run was interrupted; run `onnxq calibrate` again with the same --statistics"
            )
        if fingerprint != self.fingerprint:
            raise CalibrationError(
                f"{label}: the statistics were collected on another model "
                f"({self.fingerprint[:12]}, not {fingerprint[:12]}); calibrate this one"
            )

    def merge(self, other: Calibration) -> Calibration:
        """Of both sets of samples together: the same bits in whatever order sets are merged."""
        other.check(self.fingerprint, "merge")
        if self.tensors.keys() != other.tensors.keys():
            raise CalibrationError("merge: the statistics are of different tensors")
        return Calibration(
            self.fingerprint,
            self.samples + other.samples,
            {name: _either(s, other.tensors[name]) for name, s in self.tensors.items()},
        )

    def save(self, path: str | Path) -> None:
        """Write to a file (an .npz inside, whatever its name): same statistics, same bytes."""
        arrays: dict[str, Any] = {}
        tensors = [_describe(name, s, arrays) for name, s in sorted(self.tensors.items())]
        header = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "samples": self.samples,
            "tensors": tensors,
        }
        if self.run is not None:
            header["run"] = dataclasses.asdict(self.run)
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_atomically(Path(path), buffer.getvalue())

    @staticmethod
    def load(path: str | Path) -> Calibration:
        """Raises CalibrationError if the file is not one that `save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                header = json.loads(arrays["header"].tobytes())
                if header["format"] != FORMAT:
                    raise CalibrationError(f"{path}: written by another version; calibrate again")
                tensors = {
                    t["name"]: _restore(i, t, arrays) for i, t in enumerate(header["tensors"])
                }
                run = Unfinished(**header["run"]) if "run" in header else None
        except FileNotFoundError as error:
            raise CalibrationError(f"{path}: no such statistics file") from error
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise CalibrationError(
                f"{path}: not a statistics file, or a damaged one; `onnxq calibrate` writes them"
            ) from error
        return Calibration(header["fingerprint"], header["samples"], tensors, run)


def _either(a: TensorStatistics | None, b: TensorStatistics | None) -> TensorStatistics | None:
    return b if a is None else a if b is None else a + b


def _describe(name: str, stats: TensorStatistics | None, arrays: dict[str, Any]) -> dict[str, Any]:
    i = sum(key.startswith("extremes/") for key in arrays)
    if stats is None:
        arrays[f"extremes/{i}"] = np.zeros((0,), np.int64)
        return {"name": name, "empty": True}
    arrays[f"extremes/{i}"] = stats.extremes.limbs
    row: dict[str, Any] = {
        "name": name,
        "samples": stats.samples,
        "minimum": stats.minimum,
        "maximum": stats.maximum,
    }
    if stats.histogram is not None:
        row["exponent"] = stats.histogram.exponent
        arrays[f"negative/{i}"] = np.trim_zeros(stats.histogram.negative, "b")
        arrays[f"positive/{i}"] = np.trim_zeros(stats.histogram.positive, "b")
    return row


def _restore(i: int, row: dict[str, Any], arrays: Mapping[str, Any]) -> TensorStatistics | None:
    if row.get("empty"):
        return None
    histogram = None
    if "exponent" in row:
        negative = _padded(arrays[f"negative/{i}"]) if arrays[f"negative/{i}"].size else None
        histogram = Histogram(
            row["exponent"],
            np.zeros(1, np.int64) if negative is None else negative,
            _padded(arrays[f"positive/{i}"]),
        )
    return TensorStatistics(
        row["samples"],
        row["minimum"],
        row["maximum"],
        ExactSum(arrays[f"extremes/{i}"]),
        histogram,
    )


def _padded(counts: IntArray) -> IntArray:
    return np.pad(counts, (0, HALF - counts.size))
