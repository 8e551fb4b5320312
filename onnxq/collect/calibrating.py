"""`calibrate`: the samples through the tapped model, here or in workers, from the start or on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

from onnxq.calibration import Calibration, Unfinished
from onnxq.collect.checkpoint import Checkpoint, digest_of
from onnxq.collect.runner import Job, Runner
from onnxq.collect.shares import LEAST, MOST, run_samples
from onnxq.collect.tapped import Request, tapped
from onnxq.data.samples import Samples, Subset, input_specs
from onnxq.errors import DataError
from onnxq.fingerprint import fingerprint
from onnxq.numerics.statistics import TensorStatistics
from onnxq.prepare import Prepared
from onnxq.runtime import detached, foreign_ops
from onnxq.spread import Share, Spread, shares_of

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
    job = _job(prepared, request, batch_size, cores)
    with ThreadPoolExecutor(1) as pool:  # hashing takes no time from what runs meanwhile
        identity = pool.submit(fingerprint, prepared)
        saved = None
        if checkpoint is not None:
            plan = Unfinished(len(samples), digest_of(samples))
            saved = Checkpoint(checkpoint, identity.result(), request, plan)
        run = _Run(samples, identity.result, saved, progress)
        if spread.elsewhere is None:
            run.here(job)
        else:
            run.elsewhere(job, spread.elsewhere)
        return run.result()


def _job(prepared: Prepared, request: Request, batch_size: int, cores: int | None) -> Job:
    specs = tuple(input_specs(prepared.ir))
    model, taps = tapped(prepared, request, {spec.name for spec in specs})
    content, weights = detached(model)
    hint = "".join(
        f"; {op} is none of its operators: dynamic mode need not run the model"
        for op in foreign_ops(prepared.ir)[:1]
    )
    return Job(
        prepared.label, content, weights, taps, specs, request.histograms, batch_size, cores, hint
    )


class _Run:
    """One calibration: what is known so far, and what is left to run."""

    def __init__(
        self,
        samples: Samples,
        identity: Callable[[], str],
        saved: Checkpoint | None,
        progress: Progress | None,
    ) -> None:
        self._samples, self._identity = samples, identity
        self._saved, self._progress = saved, progress
        self._total: Calibration | None = saved.load() if saved is not None else None
        self._done = self._total.samples if self._total is not None else 0
        self._shown = self._done

    def here(self, job: Job) -> None:
        """In this process, saving between one share and the next."""
        before = self._total
        with Runner(job) as runner:
            for share in self._shares(1):
                runner.run(Subset(self._samples, share), self._step)
                self._done = share.stop
                if self._saved is not None and self._saved.is_due():
                    self._saved.save(self._with(before, runner.statistics()))
        if self._done > (0 if before is None else before.samples):
            # only now, when the session's memory is free
            self._total = self._with(before, runner.statistics())

    def elsewhere(self, job: Job, executor: Executor | int) -> None:
        """In workers. What is saved are the shares up to the first that is not done."""
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

        run_samples(job, self._samples, self._shares(executor), executor, take)

    def result(self) -> Calibration:
        assert self._total is not None  # there is at least one sample
        if self._saved is not None:
            self._saved.finish(self._total)
        return self._total

    def _shares(self, executor: Executor | int) -> list[Share]:
        if executor == 1 and self._saved is None:
            return [range(self._done, len(self._samples))] if self._samples else []
        return shares_of(range(self._done, len(self._samples)), executor, LEAST, MOST)

    def _with(
        self, before: Calibration | None, found: Found, count: int | None = None
    ) -> Calibration:
        known = 0 if before is None else before.samples
        new = Calibration(self._identity(), self._done - known if count is None else count, found)
        return new if before is None else before.merge(new)

    def _step(self, count: int) -> None:
        self._shown += count
        if self._progress is not None:
            self._progress(self._shown, len(self._samples))
