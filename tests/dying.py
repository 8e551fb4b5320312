"""Workers that die: a pool's, and a cluster's."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

__all__ = ["KillsOnce", "SlowPool", "dask_cluster"]

# Seconds that a task waits: longer than what calls back takes to kill its worker
WAIT = 0.5


def kill_one_child() -> None:
    child = min(multiprocessing.active_children(), key=lambda c: c.pid or 0)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()


def _late(function: Callable[..., Any], *arguments: object) -> Any:
    time.sleep(WAIT)
    return function(*arguments)


class SlowPool(ProcessPoolExecutor):
    """A caller's own pool of two, which has something left to do when the first share is done."""

    def __init__(self) -> None:
        super().__init__(2, multiprocessing.get_context("spawn"))

    def submit(
        self, function: Callable[..., Any], /, *arguments: Any, **options: Any
    ) -> Future[Any]:
        return super().submit(_late, function, *arguments, **options)


class KillsOnce:
    """A progress callback that kills a worker when the first share is done.

    whole: what all shares are.
    """

    def __init__(self, whole: int, kill: Callable[[], None] = kill_one_child) -> None:
        self.whole, self.kill = whole, kill
        self.seen: list[int] = []

    def __call__(self, done: int, of: int) -> None:
        if not self.seen:
            self.kill()
        self.seen.append(done)
        assert of == self.whole

    def check(self) -> None:
        assert self.seen == sorted(set(self.seen))  # no share is counted twice
        assert self.seen[-1] == self.whole


@contextmanager
def dask_cluster() -> Iterator[tuple[Executor, Callable[[], None]]]:
    """The executor of a cluster of two processes, and a call that kills one of them."""
    distributed = pytest.importorskip("distributed")
    with (
        warnings.catch_warnings(action="ignore"),  # of dask's own, about a worker that is gone
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = list(client.run(os.getpid).values())
        assert len(set(pids) - {os.getpid()}) == 2
        yield client.get_executor(), lambda: os.kill(pids[0], signal.SIGKILL)
