"""Reading: ahead and in order, labels, and sources that fail half-way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxq
from onnxq.data.feeds import Feed
from onnxq.data.prefetch import AHEAD, WORKERS, prefetched
from onnxq.data.samples import InputSpec, Samples, Subset, labels_of, open_samples
from onnxq.errors import DataError, ModelError, OnnxqError
from tests.models import build, normal

SPECS = [InputSpec("x", np.dtype(np.float32), (None, 8))]


def row(value: float) -> Feed:
    return {"x": np.full((1, 8), value, np.float32)}


class Slow:
    """Reading takes the longer the earlier the sample is asked for; knows who read it."""

    def __init__(
        self, count: int, *, concurrent: bool = True, bad: int | None = None, slowness: int = 1
    ) -> None:
        self.reads_concurrently = concurrent
        self._count, self._bad, self._slowness = count, bad, slowness
        self.read: list[int] = []
        self.readers: set[int] = set()
        self.active = self.most = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int, /) -> Feed:
        with self._lock:
            self.read.append(index)
            self.readers.add(threading.get_ident())
            self.active += 1
            self.most = max(self.most, self.active)
        time.sleep(self._slowness * (0.02 if index % 2 == 0 else 0.001))
        with self._lock:
            self.active -= 1
        if index == self._bad:
            raise KeyError("broken\nrow")
        return row(index)


def labels(samples: Samples) -> list[Any] | None:
    found = labels_of(samples)
    assert found is None or found.dtype == np.int64
    return None if found is None else found.tolist()


def workers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("onnxq-read")]


def values(feeds: Iterator[Feed]) -> list[float]:
    return [float(feed["x"][0, 0]) for feed in feeds]


def test_prefetch_keeps_the_order_and_uses_threads() -> None:
    slow = Slow(30)
    assert values(prefetched(slow)) == list(range(30))
    assert threading.get_ident() not in slow.readers
    assert slow.most == WORKERS
    order = [5, 3, 3, 20, 0]
    assert values(prefetched(Slow(30), order)) == order
    assert values(prefetched(Subset(Slow(30), order))) == order
    assert values(prefetched(slow, [])) == []
    assert not workers()


def test_prefetch_looks_ahead_so_far_and_no_further() -> None:
    slow = Slow(100)
    feeds = prefetched(slow)
    for _ in range(3):
        next(feeds)
    time.sleep(0.4)
    assert sorted(slow.read) == list(range(2 + AHEAD))
    feeds.close()


def test_prefetch_ends_its_threads_when_stopped() -> None:
    slow = Slow(100, slowness=10)
    feeds = prefetched(slow)
    next(feeds)
    assert workers()
    feeds.close()
    assert not workers()
    read = len(slow.read)
    assert read < AHEAD  # what was not begun is not read any more
    time.sleep(0.1)
    assert len(slow.read) == read
    with pytest.raises(StopIteration):
        next(feeds)


@pytest.mark.parametrize("concurrent", [True, False])
def test_exception_comes_in_place_of_its_sample(concurrent: bool) -> None:
    slow = Slow(40, concurrent=concurrent, bad=13)
    feeds = prefetched(slow, note=" and that is all")
    assert values(next(feeds) for _ in range(13)) == list(range(13))
    with pytest.raises(DataError) as caught:
        next(feeds)
    assert str(caught.value) == (
        "sample 13: the source failed (KeyError: 'broken\\nrow'); "
        "the 13 samples before it were read and that is all"
    )
    assert isinstance(caught.value.__cause__, KeyError)
    assert not workers()


def test_exception_of_a_subset_names_the_sample_of_the_source() -> None:
    feeds = prefetched(Subset(Slow(40, bad=13), [2, 13]))
    next(feeds)
    with pytest.raises(DataError, match=r"^sample 13: .*; the one before was read$"):
        next(feeds)


def test_a_source_that_does_not_say_so_is_read_here_when_asked() -> None:
    slow = Slow(5, concurrent=False)
    feeds = prefetched(open_samples(slow, SPECS))
    slow.read.clear()
    next(feeds)
    assert slow.read == [0]
    assert values(feeds) == [1, 2, 3, 4]
    assert slow.readers == {threading.get_ident()}


def test_files_and_their_subsets_are_read_ahead(tmp_path: Path) -> None:
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", row(i)["x"])
    seen: list[str] = []
    for samples in (open_samples(tmp_path, SPECS), open_samples(tmp_path, SPECS, limit=3)):
        feeds = prefetched(samples)
        next(feeds)
        seen += [t.name for t in workers()]
        feeds.close()
    assert len(seen) >= 2


class Sequence:
    """Fails at one index, in the way given."""

    def __init__(self, fail: Callable[[], Feed], at: int) -> None:
        self._fail, self._at = fail, at

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int, /) -> Feed:
        return self._fail() if index == self._at else row(index)


def raising(error: BaseException) -> Callable[[], Feed]:
    def fail() -> Feed:
        raise error

    return fail


class OneShot:
    """The same as a reader of onnxruntime."""

    def __init__(self, items: Samples) -> None:
        self._items, self._next = items, 0

    def get_next(self) -> Feed | None:
        self._next += 1
        return self._items[self._next - 1] if self._next <= len(self._items) else None


SHAPES: dict[str, Callable[[Sequence], Any]] = {
    "sequence": lambda items: items,
    "generator": lambda items: (items[i] for i in range(6)),
    "reader": OneShot,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (raising(ValueError("no such\ncolumn")), "the source failed (ValueError: no such column)"),
        (raising(ZeroDivisionError()), "the source failed (ZeroDivisionError)"),
        (raising(IndexError("17")), "the source failed (IndexError: 17)"),
        (raising(OSError(5, "I/O error")), "the source failed (OSError: [Errno 5] I/O error)"),
        (raising(ModelError("of another tool")), "of another tool"),
        (lambda: row(np.nan), "input 'x' holds NaN or Inf"),
        (lambda: {"x": [[1.0], [1.0, 2.0]]}, "input 'x' cannot be made an array (ValueError: "),
        (lambda: {"z": row(0)["x"]}, "'x'; unknown: 'z'"),
    ],
)
@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_source_that_fails_half_way(
    tmp_path: Path, shape: str, fail: Callable[[], Feed], words: str, at: int
) -> None:
    model = build("(float[N,8] x) => (float[N,4] y) { y = MatMul(x, w) }", {"w": normal(8, 4)})
    out = tmp_path / "q.onnx"
    with pytest.raises(OnnxqError) as caught:
        onnxq.quantize_static(model, out, SHAPES[shape](Sequence(fail, at)))
    text = str(caught.value)
    done = ["it is the first", "the one before was read", f"the {at} samples before it were read"]
    assert type(caught.value) is DataError
    assert text.startswith(f"sample {at}: ")
    assert words in text
    assert text.endswith(f"; {done[min(at, 2)]} and nothing has been written")
    assert text.count("sample ") == 1
    assert "\n" not in text
    assert not list(tmp_path.iterdir())


def test_the_cause_is_chained_and_no_temporary_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cause = ValueError("why")
    for shape in SHAPES.values():
        with pytest.raises(DataError) as caught:
            list(prefetched(open_samples(shape(Sequence(raising(cause), 4)), SPECS)))
        assert caught.value.__cause__ is cause
        assert not list(tmp_path.iterdir())


def test_an_interrupt_is_not_an_error_of_the_source() -> None:
    for shape in SHAPES.values():
        with pytest.raises(KeyboardInterrupt):
            list(prefetched(open_samples(shape(Sequence(raising(KeyboardInterrupt()), 4)), SPECS)))


def test_nan_in_a_batch_and_in_a_file_names_the_sample(tmp_path: Path) -> None:
    batches = [np.zeros((4, 8), np.float32), np.zeros((4, 8), np.float32)]
    batches[1][2] = np.nan
    with pytest.raises(DataError, match=r"^sample 6: .*the 6 samples before it were read"):
        open_samples(iter(batches), SPECS)
    for i in range(8):
        np.save(tmp_path / f"{i}.npy", batches[i // 4][i % 4])
    with pytest.raises(DataError, match=r"^sample 6: .*6\.npy: input 'x' holds NaN"):
        list(prefetched(open_samples(tmp_path, SPECS)))


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 8), np.float32))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-30])
    with pytest.raises(DataError, match=r"a\.npz: cannot be read"):
        open_samples(tmp_path / "a.npz", SPECS)


def test_a_source_that_does_not_know_its_length() -> None:
    class Endless(Sequence):
        def __len__(self) -> int:
            raise TypeError("streamed")

    with pytest.raises(DataError, match="TypeError: streamed"):
        open_samples(Endless(raising(KeyError()), 1), SPECS)


def test_reader_of_bare_arrays() -> None:
    class Bare:
        left = 3

        def get_next(self) -> Any:
            self.left -= 1
            return np.zeros((1, 8), np.float32) if self.left >= 0 else None

    assert len(open_samples(Bare(), SPECS)) == 3


X = np.zeros((6, 8), np.float32)
LABELS = np.array([3, 1, 2, 0, 5, 4], np.uint8)


@pytest.mark.parametrize("name", ["label", "labels"])
def test_labels_of_arrays(tmp_path: Path, name: str) -> None:
    named: dict[str, Any] = {name: LABELS}
    np.savez(tmp_path / "a.npz", x=X, **named)
    np.savez(tmp_path / "b.npz", X, **named)
    sources: list[Any] = [tmp_path / "a.npz", tmp_path / "b.npz", {"x": X, name: LABELS}]
    for source in sources:
        assert labels(open_samples(source, SPECS)) == LABELS.tolist()
        assert labels(open_samples(source, SPECS, limit=2)) == LABELS[:2].tolist()
    with pytest.raises(DataError, match=rf"'{name}' holds 5 labels for 6 samples"):
        open_samples({"x": X, name: LABELS[:5]}, SPECS)


def test_labels_of_a_fixed_batch() -> None:
    fixed = [InputSpec("x", np.dtype(np.float32), (2, 8))]
    assert labels(open_samples({"x": X, "labels": LABELS}, fixed)) == LABELS.reshape(3, 2).tolist()


def test_what_is_no_label() -> None:
    for other in (np.eye(6), np.eye(6, dtype=np.int64), np.array(list("abcdef"))):
        assert labels_of(open_samples({"x": X, "labels": other}, SPECS)) is None
    assert labels_of(open_samples(X, SPECS)) is None
    named = [InputSpec("label", np.dtype(np.float32), (None, 8))]
    assert labels_of(open_samples({"label": X}, named)) is None


def test_labels_of_a_sequence() -> None:
    sequence: Any = Sequence(raising(KeyError()), 9)
    sequence.labels = [1, 2, 3, 4, 5, 6]
    assert labels(open_samples(sequence, SPECS)) == sequence.labels
    for other in (["cat", "dog"], [[1], [2, 3]], [1, 2], None, sequence.__len__):
        sequence.labels = other
        assert labels_of(open_samples(sequence, SPECS)) is None
