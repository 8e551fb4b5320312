"""Samples split among workers.

A share is a range of samples. Its samples are read here, and sent with the job; its statistics come
back and are added up, to the same bits as in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial

from onnxq.collect.runner import Job, Runner, cores
from onnxq.data.prefetch import prefetched
from onnxq.data.samples import Feed, Samples, Subset
from onnxq.data.sources import NOTHING_WRITTEN, source_index
from onnxq.numerics.statistics import TensorStatistics
from onnxq.spread import Share, run_shares

__all__ = ["LEAST", "MOST", "run_samples"]

Found = Mapping[str, TensorStatistics | None]
Take = Callable[[Share, Found], None]

# Samples of a share: enough to outweigh a new session, and few enough to spread
LEAST, MOST = 16, 64


class _Sent(Subset):
    """Samples that were sent to a worker, which know their numbers in the source."""

    def __init__(self, feeds: Sequence[Feed], numbers: Sequence[int]) -> None:
        super().__init__(feeds, range(len(feeds)))
        self._numbers = numbers

    def index_in_source(self, index: int) -> int:
        return self._numbers[index]


def run_samples(
    job: Job, samples: Samples, shares: Sequence[Share], executor: Executor | int, take: Take
) -> None:
    """Run all shares; `take` gets each with its statistics, in any order.

    executor: a number makes a pool of so many processes, which share the cores.
    """
    if isinstance(executor, int):
        job = replace(job, cores=max(1, (job.cores or cores()) // executor))

    def call_for(share: Share) -> Callable[[], Found]:
        feeds = [dict(feed) for feed in prefetched(samples, share, note=NOTHING_WRITTEN)]
        return partial(run_share, job, feeds, [source_index(samples, i) for i in share])

    run_shares(call_for, shares, executor, take, job.label)


def run_share(job: Job, feeds: Sequence[Feed], numbers: Sequence[int]) -> Found:
    """In a worker: the statistics of some samples, whose numbers in the source are given."""
    with Runner(job) as runner:
        runner.run(_Sent(feeds, numbers))
        return runner.statistics()
