"""Samples split among workers: processes of this machine, or of others through an Executor.

A share is a range of samples. Its samples are read here, and sent with the job; its statistics come
back and are added up, to the same bits as in one process. What a worker that dies had is run again:
in a new pool where the pool is ours, else, if the executor gave up, here. A share counts when its
statistics arrive, and they arrive once.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass, replace

from onnxq.collect.runner import Job, Runner, cores
from onnxq.data.prefetch import prefetched
from onnxq.data.samples import Feed, Samples, Subset
from onnxq.data.sources import NOTHING_WRITTEN, source_index
from onnxq.errors import CalibrationError, OptionError
from onnxq.numerics.statistics import TensorStatistics

__all__ = ["Share", "Spread", "run_shares", "shares_of"]

Share = range
Found = Mapping[str, TensorStatistics | None]
Take = Callable[[Share, Found], None]

# Samples of a share: enough to outweigh a new session, and few enough to spread
LEAST, MOST, EACH = 16, 64, 4
# Shares that wait in an executor, in which their samples are held in memory
WAITING = 8
# Pools that may die before it is not chance any more
MOST_DEATHS = 3


@dataclass(frozen=True)
class Spread:
    """Who runs the samples: this process, so many processes of this machine, or an executor."""

    workers: int | None = None
    executor: Executor | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.executor is not None:
            raise OptionError("give either workers or an executor: both say who runs the samples")
        if self.workers is not None and self.workers < 1:
            raise OptionError(f"workers must be at least 1, got {self.workers}")

    @property
    def elsewhere(self) -> Executor | int | None:
        """The executor, or the number of processes to start; None for this process alone."""
        return self.executor or (self.workers if self.workers and self.workers > 1 else None)


class _Sent(Subset):
    """Samples that were sent to a worker, which know their numbers in the source."""

    def __init__(self, feeds: Sequence[Feed], numbers: Sequence[int]) -> None:
        super().__init__(feeds, range(len(feeds)))
        self._numbers = numbers

    def index_in_source(self, index: int) -> int:
        return self._numbers[index]


def shares_of(samples: Share, workers: int | None) -> list[Share]:
    """The samples in ranges: several for each worker (None: it is not known how many there are)."""
    even = len(samples) // (EACH * workers) if workers else LEAST
    size = min(max(even, LEAST), MOST)
    return [samples[i : i + size] for i in range(0, len(samples), size)]


def run_shares(
    job: Job, samples: Samples, shares: Sequence[Share], executor: Executor | int, take: Take
) -> None:
    """Run all shares; `take` gets each with its statistics, in any order.

    executor: a number makes a pool of so many processes.
    """
    if isinstance(executor, Executor):
        left = _submit(executor, job, samples, shares, take)
        if left:
            warnings.warn(
                f"the executor broke: {len(left)} of {len(shares)} shares of the samples were run "
                "again in this process",
                RuntimeWarning,
                stacklevel=4,
            )
        for share in left:
            take(share, run_share(job, *_read(samples, share)))
        return
    job = replace(job, cores=max(1, (job.cores or cores()) // executor))
    context = multiprocessing.get_context("spawn")  # onnxruntime's threads do not survive a fork
    left = list(shares)
    for _ in range(MOST_DEATHS):
        with ProcessPoolExecutor(executor, context) as pool:
            left = _submit(pool, job, samples, left, take)
        if not left:
            return
    raise CalibrationError(
        f"{job.label}: worker processes died {MOST_DEATHS} times (killed, or out of memory?); "
        "use fewer workers"
    )


def _submit(
    executor: Executor, job: Job, samples: Samples, shares: Sequence[Share], take: Take
) -> list[Share]:
    """The shares that were lost with the executor."""
    waiting: deque[tuple[Share, Future[Found]]] = deque()
    lost: list[Share] = []
    todo = deque(shares)
    try:
        while todo or waiting:
            while todo and len(waiting) < WAITING and not lost:
                share = todo.popleft()
                sent = _read(samples, share)
                try:
                    waiting.append((share, executor.submit(run_share, job, *sent)))
                except BrokenExecutor:
                    lost.append(share)
            if not waiting:
                break
            share, future = waiting.popleft()
            try:
                found = future.result()
            except BrokenExecutor:
                lost.append(share)
            else:
                take(share, found)
    finally:
        for _, future in waiting:
            future.cancel()
    return [*lost, *todo]


def _read(samples: Samples, share: Share) -> tuple[list[Feed], list[int]]:
    feeds = list(prefetched(samples, share, note=NOTHING_WRITTEN))
    return [dict(feed) for feed in feeds], [source_index(samples, i) for i in share]


def run_share(job: Job, feeds: Sequence[Feed], numbers: Sequence[int]) -> Found:
    """In a worker: the statistics of some samples, whose numbers in the source are given."""
    with Runner(job) as runner:
        runner.run(_Sent(feeds, numbers))
        return runner.statistics()
