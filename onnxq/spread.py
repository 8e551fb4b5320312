"""Work split among workers: processes of this machine, or of others through an Executor.

A share is a range of what there is to do. It is sent with all that it needs, and its result comes
back. What a worker that dies had is run again: in a new pool where the pool is ours, else, if the
executor gave up, here. A share counts when its result arrives, and it arrives once.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass
from typing import TypeVar

from onnxq.errors import CalibrationError, OptionError

__all__ = ["Share", "Spread", "run_shares", "shares_of"]

T = TypeVar("T")
Share = range

# Shares of each worker, so that none waits long for the last one
EACH = 4
# Shares that wait in an executor, in which what they were sent is held in memory
WAITING = 8
# Pools that may die before it is not chance any more
MOST_DEATHS = 3


@dataclass(frozen=True)
class Spread:
    """Who does the work: this process, so many processes of this machine, or an executor."""

    workers: int | None = None
    executor: Executor | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.executor is not None:
            raise OptionError("give either workers or an executor: both say who does the work")
        if self.workers is not None and self.workers < 1:
            raise OptionError(f"workers must be at least 1, got {self.workers}")

    @property
    def elsewhere(self) -> Executor | int | None:
        """The executor, or the number of processes to start; None for this process alone."""
        return self.executor or (self.workers if self.workers and self.workers > 1 else None)


def shares_of(whole: Share, executor: Executor | int, least: int, most: int) -> list[Share]:
    """The whole in ranges of `least` to `most`: several for each worker, where that is known."""
    even = len(whole) // (EACH * executor) if isinstance(executor, int) else least
    size = min(max(even, least), most)
    return [whole[i : i + size] for i in range(0, len(whole), size)]


def run_shares(
    call_for: Callable[[Share], Callable[[], T]],
    shares: Sequence[Share],
    executor: Executor | int,
    take: Callable[[Share, T], None],
    label: str,
) -> None:
    """Run all shares; `take` gets each with its result, in any order.

    call_for: what is sent for a share: a call that can be pickled. Asked for only when its turn
        comes. executor: a number makes a pool of so many processes. label: of what, in messages.
    """
    if isinstance(executor, Executor):
        left = _submit(executor, call_for, shares, take)
        if left:
            warnings.warn(
                f"{label}: the executor broke: {len(left)} of {len(shares)} shares were run again "
                "in this process",
                RuntimeWarning,
                stacklevel=4,
            )
        for share in left:
            take(share, call_for(share)())
        return
    import multiprocessing  # only now: most runs are in one process
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("spawn")  # onnxruntime's threads do not survive a fork
    left = list(shares)
    for _ in range(MOST_DEATHS):
        with ProcessPoolExecutor(executor, context) as pool:
            left = _submit(pool, call_for, left, take)
        if not left:
            return
    raise CalibrationError(
        f"{label}: worker processes died {MOST_DEATHS} times (killed, or out of memory?); "
        "use fewer workers"
    )


def _submit(
    executor: Executor,
    call_for: Callable[[Share], Callable[[], T]],
    shares: Sequence[Share],
    take: Callable[[Share, T], None],
) -> list[Share]:
    """The shares that were lost with the executor."""
    waiting: deque[tuple[Share, Future[T]]] = deque()
    lost: list[Share] = []
    todo = deque(shares)
    try:
        while todo or waiting:
            while todo and len(waiting) < WAITING and not lost:
                share = todo.popleft()
                call = call_for(share)
                try:
                    waiting.append((share, executor.submit(call)))
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
