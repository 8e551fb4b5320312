"""Statistics saved as they grow, so that a run that was killed goes on where it was saved.

The file holds the statistics of the first samples and says how many there are in all. It is written
whole, to a name of its own, and then takes the place of the one before: no sample is ever counted
twice, whenever the process dies.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from pathlib import Path

from onnxq.calibration import Calibration, Unfinished
from onnxq.collect.tapped import Request
from onnxq.data.samples import Samples
from onnxq.errors import CalibrationError

__all__ = ["Checkpoint", "digest_of"]

# Seconds between one save and the next
EVERY = 10.0


def digest_of(samples: Samples) -> str:
    """SHA-256 of the number of samples and of the first, the middle and the last of them."""
    digest = hashlib.sha256(str(len(samples)).encode())
    for index in sorted({0, len(samples) // 2, len(samples) - 1}):
        for name, array in sorted(samples[index].items()):
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


class Checkpoint:
    """The file of one run."""

    def __init__(self, path: Path, identity: str, request: Request, run: Unfinished) -> None:
        self._path, self._identity, self._request, self._run = path, identity, request, run
        self._last = time.monotonic()

    def load(self) -> Calibration | None:
        """What an earlier run of the same samples left; None if there is no file.

        Raises CalibrationError for statistics of another model, selection of tensors or samples.
        """
        if not self._path.exists():
            return None
        found = Calibration.load(self._path)
        remedy = "name another file, or remove this one to start again"
        if found.fingerprint != self._identity:
            raise CalibrationError(f"{self._path}: statistics of another model; {remedy}")
        if found.tensors.keys() != set(self._request.tensors):
            raise CalibrationError(f"{self._path}: statistics of other tensors; {remedy}")
        if found.run != self._run:
            raise CalibrationError(f"{self._path}: statistics of other samples; {remedy}")
        return found

    def is_due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._last >= EVERY

    def save(self, calibration: Calibration) -> None:
        """Write what there is so far."""
        dataclasses.replace(calibration, run=self._run).save(self._path)
        self._last = time.monotonic()

    def finish(self, calibration: Calibration) -> None:
        """Write the whole: the same file as without interruption."""
        self.save(calibration)
