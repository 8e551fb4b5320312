"""`calibrate`: the samples through the tapped model, here or in workers, from the start or on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack
from pathlib import Path

import onnx_ir as ir

from onnxq.calibration import Calibration, Unfinished
from onnxq.collect.checkpoint import Checkpoint, digest_of
from onnxq.collect.runner import Job, Runner
from onnxq.collect.shares import Share, Spread, run_shares, shares_of
from onnxq.collect.tapped import Request, tapped
from onnxq.data.samples import Samples, Subset, input_specs
from onnxq.errors import DataError
from onnxq.fingerprint import fingerprint
from onnxq.numerics.statistics import TensorStatistics
from onnxq.prepare import Prepared
from onnxq.runtime import (
    INLINE,
    PROTOBUF_LIMIT,
    foreign_ops,
    model_size,
    serialized,
)

__all__ = ["Progress", "calibrate"]

Progress = Callable[[int, int], None]
Found = Mapping[str, TensorStatistics | None]


def calibrate(
    prepared: Prepared,
    samples: Samples,
    request: Request,
    *,
    batch_size: int = 1,
    cores: int | None = None,
    spread: Spread = Spread(),  # noqa: B008  # frozen
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Statistics of the requested tensors over all samples.

    batch_size: how many samples run at once, at most, where the model's inputs allow it and memory
        does; the result is the same. Samples of different shapes never share a batch.
    spread: who runs them. cores: of each process, to be used; None for all.
    checkpoint: the file to save statistics in as they grow, and to go on from.

    Raises ModelError if onnxruntime cannot load or run the model, CalibrationError for NaN or Inf
    in an activation and for a checkpoint that does not fit, DataError for a sample that cannot be
    read.
    """
    if batch_size < 1:
        raise DataError(f"batch size must be at least 1, got {batch_size}")
    identity = fingerprint(prepared)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="onnxq-"))
        job = _job(prepared, request, batch_size, cores, Path(folder))
        saved = None
        if checkpoint is not None:
            source = digest_of(samples)
            saved = Checkpoint(checkpoint, identity, request, Unfinished(len(samples), source))
        run = _Run(job, samples, identity, saved, progress)
        if spread.elsewhere is None:
            run.here()
        else:
            run.elsewhere(spread.elsewhere)
        return run.result()


def _job(
    prepared: Prepared, request: Request, batch_size: int, cores: int | None, folder: Path
) -> Job:
    specs = tuple(input_specs(prepared.ir))
    model, taps = tapped(prepared, request, {spec.name for spec in specs})
    content: bytes | Path
    if model_size(model) < PROTOBUF_LIMIT:
        content = serialized(model)
    else:
        content = folder / "model.onnx"
        ir.save(model, content, external_data="weights.data", size_threshold_bytes=INLINE)
    hint = "".join(
        f"; {op} is none of its operators: dynamic mode need not run the model"
        for op in foreign_ops(prepared.ir)[:1]
    )
    return Job(prepared.label, content, taps, specs, request.histograms, batch_size, cores, hint)


class _Run:
    """One calibration: what is known so far, and what is left to run."""

    def __init__(
        self,
        job: Job,
        samples: Samples,
        identity: str,
        saved: Checkpoint | None,
        progress: Progress | None,
    ) -> None:
        self._job, self._samples, self._identity = job, samples, identity
        self._saved, self._progress = saved, progress
        self._total: Calibration | None = saved.load() if saved is not None else None
        self._done = self._total.samples if self._total is not None else 0
        self._shown = self._done

    def here(self) -> None:
        """In this process, saving between one share and the next."""
        with Runner(self._job) as runner:
            before = self._total
            for share in self._shares(1):
                runner.run(Subset(self._samples, share), self._step)
                self._done = share.stop
                if self._saved is not None and self._saved.is_due():
                    self._saved.save(self._with(before, runner.statistics()))
            if self._done > (0 if before is None else before.samples):
                self._total = self._with(before, runner.statistics())

    def elsewhere(self, executor: Executor | int) -> None:
        """In workers. What is saved are the shares up to the first that is not done."""
        workers = executor if isinstance(executor, int) else None
        waiting: dict[int, tuple[Share, Found]] = {}

        def take(share: Share, found: Found) -> None:
            self._step(len(share))
            waiting[share.start] = (share, found)
            while self._done in waiting:
                following, statistics = waiting.pop(self._done)
                self._done = following.stop
                self._total = self._with(self._total, statistics, len(following))
                if self._saved is not None and self._saved.is_due():
                    self._saved.save(self._total)

        run_shares(self._job, self._samples, self._shares(workers), executor, take)

    def result(self) -> Calibration:
        assert self._total is not None  # there is at least one sample
        if self._saved is not None:
            self._saved.finish(self._total)
        return self._total

    def _shares(self, workers: int | None) -> list[Share]:
        if workers == 1 and self._saved is None:
            return [range(self._done, len(self._samples))] if self._samples else []
        return shares_of(range(self._done, len(self._samples)), workers)

    def _with(
        self, before: Calibration | None, found: Found, count: int | None = None
    ) -> Calibration:
        known = 0 if before is None else before.samples
        new = Calibration(self._identity, self._done - known if count is None else count, found)
        return new if before is None else before.merge(new)

    def _step(self, count: int) -> None:
        self._shown += count
        if self._progress is not None:
            self._progress(self._shown, len(self._samples))
