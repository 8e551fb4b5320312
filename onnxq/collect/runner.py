"""Run samples, several at once, and count what comes out.

Each thread takes the next batch, runs it in onnxruntime on a share of the cores, and counts while
the others run. So counting costs no waiting, and a run on one core loses nothing to
synchronization. Results are counted where onnxruntime left them, without a copy. Builders are
shared: a lock for each keeps memory independent of the number of threads, and a thread that finds
one taken goes on with the next.

Measured and left out, on ResNet50 (plain inference is 1): one thread that runs and counts in turn,
4.2 in place of 1.5 to 2.3; ReduceMin and ReduceMax in the graph for ranges, 1.55; numpy.bincount
for numpy.add.at, slower by its pass over all bins; a float16 grid, as the conversion alone takes
9 ns a value where all of the counting takes 3; counting a part of the values, which moves ranges
by more than a bin; one thread after the other at counting, no faster; larger pieces, which gain on
networks of small tensors what they lose on ResNet50.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from onnxq.collect.tapped import Tap
from onnxq.data.prefetch import prefetched
from onnxq.data.samples import InputSpec, Samples
from onnxq.data.sources import NOTHING_WRITTEN, source_index
from onnxq.errors import CalibrationError, ModelError
from onnxq.numerics.statistics import StatisticsBuilder, TensorStatistics
from onnxq.qtypes import Array
from onnxq.runtime import Feed, RuntimeFailureError, attach, run_in_place, session, view

__all__ = ["Job", "Runner", "cores"]

Step = Callable[[int], None]

# Bytes of results that may be waiting to be counted, in all threads together
IN_FLIGHT = 192 << 20
# More threads than this only make waiting results
MOST_THREADS = 8


def cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity is not None else (os.cpu_count() or 1)


@dataclass(frozen=True, eq=False)
class Job:
    """All that a run needs but the samples; can be sent to another process.

    model: the tapped model without its weights; weights: those, by name.
    cores: how many to use; None for all that this process may.
    """

    label: str
    model: bytes
    weights: Mapping[str, Array]
    taps: tuple[Tap, ...]
    specs: tuple[InputSpec, ...]
    histograms: bool
    batch_size: int = 1
    cores: int | None = None
    hint: str = ""

    @property
    def fetches(self) -> list[str]:
        return [tap.fetch for tap in self.taps if tap.fetch is not None]


@dataclass(frozen=True, eq=False)
class _Batch:
    """first: index of its first sample among the samples of the run."""

    first: int
    feed: Feed
    count: int


class Runner:
    """One job at work: a session, and a builder for each tensor. A context manager."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._builders = {
            tap.tensor: StatisticsBuilder(histogram=job.histograms) for tap in job.taps
        }
        self._locks = {tap.tensor: threading.Lock() for tap in job.taps}
        self._stack = ExitStack()
        self._session: ort.InferenceSession | None = None
        self._cores = job.cores or cores()
        self._threads = min(self._cores, MOST_THREADS)
        self._batch_size = 0

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def statistics(self) -> dict[str, TensorStatistics | None]:
        """Of all samples so far."""
        return {name: builder.build() for name, builder in self._builders.items()}

    def run(self, samples: Samples, step: Step | None = None) -> None:
        """Add the statistics of all samples. step: called with the number of samples just done.

        Raises ModelError if onnxruntime cannot load or run the model, CalibrationError for NaN or
        Inf, DataError for a sample that cannot be read: of the first sample that fails.
        """
        if self._batch_size == 0:
            self._prepare(samples)
        with closing(_batches(samples, self._job.specs, self._batch_size)) as batches:
            work = _Work(iter(batches), lambda batch: self._run_batch(batch, samples), step)
            if self._threads == 1:
                work.loop()
            else:
                with ThreadPoolExecutor(self._threads, "onnxq-calibrate") as pool:
                    try:
                        wait([pool.submit(work.loop) for _ in range(self._threads)])
                    except BaseException:  # Ctrl-C, above all: the threads would go on to the end
                        work.stop()
                        raise
        work.check()

    def _prepare(self, samples: Samples) -> None:
        """Open the session; find how many samples and batches fit in memory at once."""
        self._batch_size = 1
        if not self._job.fetches:
            return
        first = next(prefetched(samples, range(1), note=NOTHING_WRITTEN))
        with self._failures(0, samples, loading=True):
            active = self._open()
            size = sum(v.tensor_size_in_bytes() for v in self._results(active, first))
        size += sum(4 * tap.unseen for tap in self._job.taps)
        fitting = max(1, IN_FLIGHT // max(size, 1))
        if fitting < self._threads:  # few large samples: one after the other, on all cores
            self._threads = 1
            self._stack.close()
            with self._failures(0, samples, loading=True):
                active = self._open()
        self._session = active
        batch = min(self._job.batch_size, fitting // self._threads)
        if batch > 1 and self._can_batch(active, samples):
            self._batch_size = batch
        _give_back()

    def _open(self) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = max(1, self._cores // self._threads)
        # Threads of onnxruntime sleep between runs, where decoding and counting need the processor
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Weights beside the arena, which doubles when it grows
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        held = attach(options, self._job.weights)
        self._stack.callback(lambda _held: None, held)  # keeps it as long as the session
        return self._stack.enter_context(session(self._job.model, options))

    def _results(self, active: ort.InferenceSession, feed: Feed) -> list[ort.OrtValue]:
        return run_in_place(active, feed, self._job.fetches)

    def _run_batch(self, batch: _Batch, samples: Samples) -> None:
        found: dict[str, Array] = {}
        results: list[ort.OrtValue] = []
        if self._session is not None:
            with self._failures(batch.first, samples):
                results = self._results(self._session, batch.feed)
            found = {name: view(v) for name, v in zip(self._job.fetches, results, strict=True)}
        self._count_all(batch, found, samples)

    def _count_all(self, batch: _Batch, found: Mapping[str, Array], samples: Samples) -> None:
        pending = list(self._job.taps)
        while pending:
            free = next((t for t in pending if self._locks[t.tensor].acquire(False)), None)
            tap = free or pending[0]
            if free is None:
                self._locks[tap.tensor].acquire()
            try:
                array = batch.feed[tap.tensor] if tap.fetch is None else found[tap.fetch]
                self._count(tap, array, batch, samples)
            finally:
                self._locks[tap.tensor].release()
            pending.remove(tap)

    def _count(self, tap: Tap, array: Array, batch: _Batch, samples: Samples) -> None:
        if array.dtype != np.float32:
            raise CalibrationError(
                f"{self._job.label}: tensor {tap.tensor!r} is {array.dtype}, not float32"
            )
        builder = self._builders[tap.tensor]
        if tap.maxima and array.size:
            finite = builder.add_maxima(array.reshape(batch.count, -1).max(axis=1))
        else:
            finite = builder.add(array, batch.count)
        if not finite:
            ends = {source_index(samples, i) for i in (batch.first, batch.first + batch.count - 1)}
            which = " to ".join(map(str, sorted(ends)))
            raise CalibrationError(
                f"{self._job.label}: tensor {tap.tensor!r} holds NaN or Inf for sample {which}; "
                "look at that sample, or leave the node out with --exclude"
            )

    def _failures(self, first: int, samples: Samples, *, loading: bool = False) -> _Failures:
        where = f"cannot run sample {source_index(samples, first)}"
        what = "cannot load or run the model" if loading else where
        return _Failures(f"{self._job.label}: onnxruntime {what}", self._job.hint)

    def _can_batch(self, active: ort.InferenceSession, samples: Samples) -> bool:
        """Whether two samples at once give the two results of one after the other."""
        specs = self._job.specs
        if len(samples) < 2 or not all(spec.batched for spec in specs):
            return False
        pair = list(prefetched(samples, range(2), note=NOTHING_WRITTEN))
        if _shapes(pair[0]) != _shapes(pair[1]) or any(a.shape[0] != 1 for a in pair[0].values()):
            return False
        try:
            alone = [self._results(active, feed) for feed in pair]
            both = self._results(active, _joined(pair, specs))
        except RuntimeFailureError:
            return False  # a Reshape to a fixed batch, for example; one by one works or says why
        return all(
            view(a).ndim > 0 and np.array_equal(np.concatenate([view(a), view(b)]), view(c))
            for a, b, c in zip(*alone, both, strict=True)
        )


def _give_back() -> None:
    """Memory that was freed goes back to the system, where the C library has a call for that.

    onnxruntime frees as much as the weights when a session is made. glibc keeps it for the thread
    that made the session, and the threads that run it would take new memory: 80 MB for ResNet50.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


class _Failures:
    """Around a run: what onnxruntime says becomes a ModelError that names the sample."""

    def __init__(self, what: str, hint: str) -> None:
        self._what, self._hint = what, hint

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeFailureError):
            raise ModelError(f"{self._what}: {error}{self._hint}") from error


class _Work:
    """Batches that several threads take, each the next one, until there are none or one fails."""

    def __init__(
        self, batches: Iterator[_Batch], task: Callable[[_Batch], None], step: Step | None
    ) -> None:
        self._batches, self._task, self._step = batches, task, step
        self._lock = threading.Lock()
        self._taken = 0
        self._stopped = False
        self._errors: list[tuple[int, BaseException]] = []

    def stop(self) -> None:
        """No more batches are taken; those that are being worked on end."""
        self._stopped = True

    def loop(self) -> None:
        while self._one():
            pass

    def _one(self) -> bool:
        """Work on one batch. Whether there may be more to do."""
        with self._lock:
            number = self._taken
            if self._errors or self._stopped:
                return False
            try:
                batch = next(self._batches, None)
            except BaseException as error:
                # of the source; whoever waits for the threads raises it
                self._errors.append((number, error))
                return False
            self._taken += 1
        if batch is None:
            return False
        try:
            self._task(batch)
        except BaseException as error:
            with self._lock:
                self._errors.append((number, error))
            return False
        if self._step is not None:
            with self._lock:
                self._step(batch.count)
        return True

    def check(self) -> None:
        """Raises what the first batch that failed raised: those before it were all taken."""
        if self._errors:
            raise min(self._errors, key=lambda pair: pair[0])[1]


def _batches(samples: Samples, specs: Sequence[InputSpec], size: int) -> Generator[_Batch]:
    """Samples of one shape, at most `size` of them."""
    pending: list[Feed] = []
    first = 0
    with closing(prefetched(samples, note=NOTHING_WRITTEN)) as feeds:
        for index, feed in enumerate(feeds):
            if pending and (len(pending) == size or _shapes(feed) != _shapes(pending[0])):
                yield _Batch(first, _joined(pending, specs), len(pending))
                pending, first = [], index
            pending.append(feed)
    if pending:
        yield _Batch(first, _joined(pending, specs), len(pending))


def _shapes(feed: Feed) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feed.items()}


def _joined(feeds: list[Feed], specs: Sequence[InputSpec]) -> Feed:
    if len(feeds) == 1:
        return feeds[0]
    return {s.name: np.concatenate([feed[s.name] for feed in feeds]) for s in specs}
