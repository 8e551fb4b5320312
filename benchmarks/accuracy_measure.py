"""Measures one row of the accuracy table: quantizes in a process of its own, then compares here."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.accuracy_rows import Result, paired_drop, sqnr_of
from benchmarks.accuracy_tools import Setting, notes
from benchmarks.common import Array
from benchmarks.environments import UnavailableError
from benchmarks.macs import all_macs, integer_macs
from benchmarks.subjects import Subject, Validation
from benchmarks.wholeprocess import Child, ChildFailedError
from benchmarks.workshop import Workshop
from onnxq.measure.timing import interleaved
from onnxq.runtime import ORT_ERRORS, one_line

__all__ = ["Bench"]

THREADS = 2
# Threads of one session go on spinning for some milliseconds after a run, and hold up the next one:
# with one run that does not count and three that do, both sessions took twice as long as alone
SETTLE, BURST, ROUNDS, LATENCY_SECONDS = 10, 10, 2, 2.0
FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)")
Outputs = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Bench:
    """A network with its float outputs, which are made once. limit: of the validation samples."""

    shop: Workshop
    subject: Subject
    limit: int | None

    @cached_property
    def validation(self) -> Validation:
        return self.subject.validation(self.shop, self.limit)

    @cached_property
    def float_model(self) -> Path:
        return self.subject.model(self.shop)

    @cached_property
    def reference(self) -> Outputs:
        return outputs_of(opened(self.float_model, 1), self.validation)

    @cached_property
    def macs(self) -> int:
        return all_macs(self.float_model, self.validation.feeds[0])

    def measure(self, setting: Setting, commit: str | None) -> Result:
        """The row of a setting; what could not run has none of the figures, but the reason."""
        name, out = self.subject.name, self.kept(setting.tool, setting.level)
        row: dict[str, Any] = {"network": name, "tool": setting.tool, "level": setting.level}
        reason = self.subject.reason()
        if reason is not None:
            return Result(**row, reason=reason, started=False)
        try:
            child = setting.child(self.shop, self.subject, out)
            shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
            load = Load()
            run = child.run()
            row |= {"seconds": run.seconds, "others": load.others()}
            row |= {"peak_mb": None if run.peak is None else run.peak / 1e6}
            row |= self._paddle_figures(setting, out) if setting.paddle else self._figures(out)
            row["notes"] = notes(out)
        except UnavailableError as error:
            return Result(**row, reason=str(error), started=False)
        except ChildFailedError as error:
            return Result(**row, reason=str(error))
        except ORT_ERRORS as error:
            return Result(**row, reason=f"onnxruntime cannot run the result: {one_line(error)}")
        return Result(**row, samples=setting.samples, commit=commit)

    def _figures(self, quantized: Path) -> dict[str, Any]:
        found = outputs_of(opened(quantized, 1), self.validation)
        share = integer_macs(quantized, self.validation.feeds[0]) / self.macs
        return {
            "validation": len(self.validation.feeds),
            **compared(self.reference, found, self.validation),
            "macs": 100 * share,
            **self._latencies(quantized),
        }

    def _paddle_figures(self, setting: Setting, quantized: Path) -> dict[str, Any]:
        """By Paddle Inference in the tool's environment, whose latencies are not onnxruntime's."""
        count = len(self.validation.feeds)
        with tempfile.TemporaryDirectory(prefix="onnxq-paddle-") as folder:
            samples, found = Path(folder) / "samples.npy", Path(folder) / "outputs.npz"
            rows = [next(iter(self.validation.feeds[i].values())) for i in range(count)]
            np.save(samples, np.concatenate(rows))
            arguments = (str(quantized), str(samples), str(found))
            python = self.shop.peer(setting.environment or "").python
            Child(python, "run_paddle_outputs.py", arguments).run()
            with np.load(found) as content:
                outputs = {name: content[name] for name in content.files}
        return {"validation": count, **compared(self.reference, outputs, self.validation)}

    def timed(self, row: Result) -> Result | None:
        """The row with latencies that are measured anew; None if its model is not there."""
        quantized = self.kept(row.tool, row.level)
        if row.reason is not None or not quantized.is_file():
            return None
        return dataclasses.replace(row, **self._latencies(quantized))

    def kept(self, tool: str, level: str) -> Path:
        """Where the quantized model of a row is."""
        folder = self.shop.cache / "quantized"
        folder.mkdir(parents=True, exist_ok=True)
        words = "".join(c if c.isalnum() or c in "._" else "-" for c in f"{tool}-{level}")
        return folder / f"{self.subject.name}.{words}.onnx"

    def _latencies(self, quantized: Path) -> dict[str, Any]:
        """Milliseconds of a run, float and int8 in turn, and what others took of the machine."""
        feed = dict(self.validation.feeds[0])
        sessions = [opened(path, THREADS) for path in (self.float_model, quantized)]
        runs = [partial(active.run, None, feed) for active in sessions]
        load = Load()
        taken = interleaved(
            runs, rounds=ROUNDS, seconds=LATENCY_SECONDS, settle=SETTLE, burst=BURST
        )
        fp32, int8 = 1e3 * np.median(taken, axis=(0, 2))
        return {"fp32_ms": float(fp32), "int8_ms": float(int8), "latency_others": load.others()}


def opened(model: Path, threads: int) -> ort.InferenceSession:
    """All optimizations, which is onnxruntime's default."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def outputs_of(active: ort.InferenceSession, validation: Validation) -> Outputs:
    """Of all samples, one by one: output -> [samples, ...], floats only."""
    names = [value.name for value in active.get_outputs() if value.type in FLOATS]
    count = len(validation.feeds)
    rows = [active.run(names, dict(validation.feeds[i])) for i in range(count)]
    return {name: np.stack([row[i] for row in rows]) for i, name in enumerate(names)}


def compared(reference: Outputs, found: Outputs, validation: Validation) -> dict[str, Any]:
    """Fields of a result: SQNR of each output; of the first that is class scores, the decisions."""
    sqnrs: dict[str, float | None] = {}
    fields: dict[str, Any] = {}
    # a tool may rename outputs, but it keeps their order
    for (name, r), q in zip(reference.items(), found.values(), strict=True):
        scores = r.ndim == 3 and r.shape[1] == 1 and r.shape[2] > 1
        sqnrs[name] = sqnr_of(r, q, centred=scores)
        if scores and "agreement" not in fields:
            before, after = (validation.scores(v[:, 0]).argmax(axis=1) for v in (r, q))
            fields["agreement"] = 100 * float((before == after).mean())
            if validation.labels is not None:
                fields |= _top1(before == validation.labels, after == validation.labels)
    lowest = [value for value in sqnrs.values() if value is not None]
    return {**fields, "sqnr": min(lowest, default=None), "sqnrs": sqnrs}


def _top1(before: Array, after: Array) -> dict[str, float]:
    drop, interval = paired_drop(before, after)
    return {
        "fp32_top1": 100 * float(before.mean()),
        "top1": 100 * float(after.mean()),
        "drop": drop,
        "interval": interval,
    }


class Load:
    """What other processes take of the machine, from when this is made; on Linux."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), _busy(), _own()

    def others(self) -> float | None:
        """Share of all cores; None where the system does not tell."""
        start, busy, own = self._start
        now = _busy()
        if busy is None or now is None:
            return None
        elapsed = (time.perf_counter() - start) * (os.cpu_count() or 1)
        return max(0.0, (now - busy - (_own() - own)) / elapsed)


def _busy() -> float | None:
    """Seconds of processor time that the whole machine has spent."""
    path = Path("/proc/stat")
    if not path.is_file():
        return None
    user, nice, system, _, _, irq, soft, *_ = map(int, path.read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    """Of this process and those that it has waited for."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)
