"""Reading ahead: samples are decoded while the model runs on those before."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from onnxq.data.feeds import Feed, Samples, before, reading, reads_concurrently

__all__ = ["AHEAD", "WORKERS", "prefetched"]

# Decoding takes less than a run of the model, so that two threads keep ahead of it; what they hold
# is AHEAD samples, whatever the number of all
WORKERS = 2
AHEAD = 8


def prefetched(
    samples: Samples, indices: Sequence[int] | None = None, *, note: str = ""
) -> Generator[Feed]:
    """The samples in the order of `indices` (None for all), read ahead where the source allows it.

    A source that does not say `reads_concurrently` is read in the calling thread, each sample when
    it is asked for. Threads end with the generator: close it when stopping early.
    note: is added to the message of an error, after the number of samples that were read.

    Raises DataError in place of the first sample that cannot be read; its cause is what the source
    raised.
    """
    order = range(len(samples)) if indices is None else indices
    if not reads_concurrently(samples) or len(order) < 2:
        for position, index in enumerate(order):
            with reading(index, f"; {before(position)}{note}"):
                feed = samples[index]
            yield feed
        return
    pending: deque[Future[Feed]] = deque()
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="onnxq-read")
    try:
        for position, index in enumerate(order):
            while len(pending) < AHEAD and position + len(pending) < len(order):
                pending.append(pool.submit(samples.__getitem__, order[position + len(pending)]))
            with reading(index, f"; {before(position)}{note}"):
                feed = pending.popleft().result()
            yield feed
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
