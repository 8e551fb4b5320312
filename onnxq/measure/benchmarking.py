"""Benchmark: a float model against its quantized one, in one run on this machine.

Latency and load time are taken in turn, so that drift hits both alike. Peak memory is that of a
process of its own. The profile says where the quantized model's time goes, and which
QuantizeLinear and DequantizeLinear did not fuse, and why.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.external_data_helper
import onnxruntime as ort

from onnxq.data.images import ImageOptions
from onnxq.data.samples import DataLike, input_specs, open_samples
from onnxq.errors import ModelError, OptionError
from onnxq.measure.fusion import Fusion, fusion
from onnxq.measure.random_feeds import dimensions, feeds_for
from onnxq.measure.timing import AWAKE, BURST, Spread, interleaved
from onnxq.model import load, onnx_file
from onnxq.runtime import Feed
from onnxq.session import load_session, needed_options, read_metadata

__all__ = ["BenchmarkReport", "Memory", "ModelFigures", "benchmark", "disk_size", "first_sample"]

ROUNDS = 10
LOADS = 5
LOAD_SHARE = 0.3
FATAL = 4


@dataclass(frozen=True)
class Memory:
    """Bytes resident at most, in a fresh process. None, with a reason, where it is not known.

    baseline: of the process when it has imported onnxruntime, and not loaded the model.
    """

    peak: int | None
    baseline: int | None
    reason: str | None = None

    @property
    def model(self) -> int | None:
        """What loading and running the model takes beyond the baseline."""
        known = self.peak is not None and self.baseline is not None
        return self.peak - self.baseline if known else None  # type: ignore[operator]


@dataclass(frozen=True)
class ModelFigures:
    """One of the two models.

    bytes: on disk, with external data. latency: seconds of a run. load: seconds to make a session.
    options: entries that its session needs, and has here.
    """

    path: str
    bytes: int
    latency: Spread
    load: Spread
    memory: Memory
    options: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        figures = dataclasses.asdict(self)
        figures["memory"]["model"] = self.memory.model
        return figures


@dataclass(frozen=True)
class BenchmarkReport:
    """The outcome of `benchmark`.

    speedup: float latency / quantized latency, of the rounds one by one.
    threads: within an operator, None for onnxruntime's choice.
    rounds: turns that each model had, of a few timed runs each.
    inputs: name -> type and shape of what the float model was run on.
    fusion: of the quantized model.
    """

    float_model: ModelFigures
    quantized: ModelFigures
    speedup: Spread
    threads: int | None
    batch: int
    rounds: int
    inputs: Mapping[str, str]
    fusion: Fusion

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "float": self.float_model.to_dict(),
            "quantized": self.quantized.to_dict(),
            "speedup": dataclasses.asdict(self.speedup),
            "threads": self.threads,
            "batch": self.batch,
            "rounds": self.rounds,
            "inputs": dict(self.inputs),
            "fusion": self.fusion.to_dict(),
        }


def first_sample(
    float_model: str | os.PathLike[str], data: DataLike, images: ImageOptions | None = None
) -> Feed:
    """The first sample of any source, to run the models on. Raises DataError."""
    specs = input_specs(load(float_model).ir)
    return open_samples(data, specs, 1, images)[0]


def benchmark(
    float_model: str | os.PathLike[str],
    quantized: str | os.PathLike[str],
    *,
    threads: int | None = None,
    batch: int = 1,
    seconds: float = 5.0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    data: Feed | None = None,
) -> BenchmarkReport:
    """Compare two files of one network.

    threads: within an operator, None for onnxruntime's choice. seconds: to time runs for, at least.
    batch: the leading dimension of inputs where that is dynamic. shapes: of inputs by name.
    data: values of inputs by name; the others are random.
    Raises ModelError if a model does not load, DataError if it does not run on such inputs, and
    OptionError for an option that does not fit.
    """
    if batch < 1 or seconds < 0 or (threads is not None and threads < 1):
        raise OptionError("batch and threads have to be at least 1, and seconds not negative")
    if data is not None and batch != 1:
        raise OptionError("batch is for random inputs: with data, give the batch there")
    both = sorted(set(data or ()) & set(shapes or ()))
    if both:
        raise OptionError(f"input {both[0]!r} has its shape from the data: leave out its shape")
    # what a converter wrote stays until this returns
    found = [onnx_file(Path(path)) for path in (float_model, quantized)]
    paths = [path for path, _ in found]
    sessions = [load_session(path, options=_silent(), threads=threads) for path in paths]
    feeds = feeds_for(*sessions, batch=batch, shapes=shapes, data=data)
    runs = [
        functools.partial(active.run, None, dict(feed))
        for active, feed in zip(sessions, feeds, strict=True)
    ]
    times = interleaved(runs, rounds=ROUNDS, seconds=seconds, burst=BURST, settle_seconds=AWAKE)
    turns = np.median(times, axis=2)
    del runs, sessions
    options = [needed_options(read_metadata(path)) for path in paths]
    opened = [functools.partial(_open, p, o, threads) for p, o in zip(paths, options, strict=True)]
    loads = interleaved(opened, rounds=LOADS, seconds=seconds * LOAD_SHARE, settle=0, burst=1)
    memory = [
        _memory(path, entries, threads, feed)
        for path, entries, feed in zip(paths, options, feeds, strict=True)
    ]
    figures = [
        ModelFigures(
            str(path),
            disk_size(path),
            Spread.of(times[:, i]),
            Spread.of(loads[:, i]),
            memory[i],
            options[i],
        )
        for i, path in enumerate(paths)
    ]
    return BenchmarkReport(
        float_model=figures[0],
        quantized=figures[1],
        speedup=Spread.of(turns[:, 0] / turns[:, 1]),
        threads=threads,
        batch=batch,
        rounds=len(times),
        inputs={n: f"{x.dtype} {dimensions(x)}" for n, x in feeds[0].items()},
        fusion=fusion(paths[1], feeds[1], options[1], threads=threads),
    )


def _silent() -> ort.SessionOptions:
    """Options under which a guess of the inputs' shapes may fail without a word on stderr."""
    settings = ort.SessionOptions()
    settings.log_severity_level = FATAL
    return settings


def _open(path: Path, entries: Mapping[str, str], threads: int | None) -> ort.InferenceSession:
    """As `load_session` makes it, without reading the file's metadata first."""
    settings = _silent()
    if threads is not None:
        settings.intra_op_num_threads = threads
    for key, value in entries.items():
        settings.add_session_config_entry(key, value)
    return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def disk_size(path: Path) -> int:
    """Bytes of a model file and of the files with its external data."""
    proto = onnx.load(str(path), format="protobuf", load_external_data=False)
    locations = {
        onnx.external_data_helper.ExternalDataInfo(tensor).location
        for tensor in _tensors(proto.graph)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in locations)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(body)


def _memory(path: Path, entries: Mapping[str, str], threads: int | None, feed: Feed) -> Memory:
    """Run `python -m onnxq.measure._memory`. Raises ModelError if the model does not run there."""
    root = str(Path(__file__).resolve().parent.parent)
    known = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *([known] if known else [])])}
    with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
        values = Path(folder) / "feed.npz"
        arrays: dict[str, Any] = dict(feed)
        np.savez(values, **arrays)
        job = {
            "path": os.path.abspath(path),
            "entries": dict(entries),
            "threads": threads,
            "feed": str(values),
        }
        done = subprocess.run(
            [sys.executable, "-m", "onnxq.measure._memory"],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
        raise ModelError(f"{path}: a process of its own could not run it: {last[0]}")
    figures = json.loads(done.stdout)
    return Memory(figures.get("peak"), figures.get("baseline"), figures.get("reason"))
