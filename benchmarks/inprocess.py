"""Groups that are measured inside one process: the stages of a quantization beside inference.

The stages are those that a report of `quantize_static` without verification gives.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import onnxruntime as ort

import onnxq
from benchmarks.assets import NETWORKS, load_images
from benchmarks.common import Array
from benchmarks.models import MODELS
from benchmarks.rows import Bar, Row, at_most, median_of
from benchmarks.workshop import Workshop

__all__ = ["after", "calibration", "methods"]

Feed = Mapping[str, Array]
Stages = Mapping[str, float]

THREADS = 2
HISTOGRAM_METHODS = ("KL", "hist", "mse", "emd")
MIN_MAX, HISTOGRAM = at_most(1.6, "x"), at_most(2.5, "x")
SAMPLES, MANY, MANY_QUICK = 64, 512, 128
# Small networks take as many samples as make a run long beside opening a session
ASSET_SAMPLES = 256
BEFORE = ("load", "prepare", "calibrate", "verify")


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with samples. methods: method -> the bar of its calibration, or none."""

    name: str
    model: Path
    feeds: Sequence[Feed]
    methods: Mapping[str, Bar | None]


def plain(model: Path, feeds: Sequence[Feed]) -> float:
    """Seconds of plain inference of all samples one by one, with opening the session."""
    start = time.perf_counter()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = THREADS
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    for feed in feeds:
        session.run(None, dict(feed))
    return time.perf_counter() - start


def stages(model: Path, feeds: Sequence[Feed], method: str, output: Path) -> Stages:
    """Seconds by stage of a static quantization without verification."""
    report = onnxq.quantize_static(model, output, feeds, method=method, verify=False)
    return report.seconds


def calibration(shop: Workshop) -> Iterator[Row]:
    for subject in _subjects(shop):
        yield from _calibration_rows(shop, subject)


def _subjects(shop: Workshop) -> Iterator[Subject]:
    every: dict[str, Bar | None] = {"min_max": MIN_MAX}
    every |= dict.fromkeys(HISTOGRAM_METHODS, HISTOGRAM)
    # the histogram's bar is that of ResNet50; the others show one method beside it
    two: dict[str, Bar | None] = {"min_max": MIN_MAX, "KL": None}
    for count in (SAMPLES, MANY_QUICK if shop.settings.quick else MANY):
        feeds = shop.feeds("resnet50", count)
        yield Subject(f"resnet50, {count}", shop.model("resnet50"), feeds, every)
    for name in MODELS:
        if name != "resnet50":
            yield Subject(f"{name}, {SAMPLES}", shop.model(name), shop.feeds(name, SAMPLES), two)
    for network in NETWORKS.values():
        if not network.file.is_file():
            continue
        session = ort.InferenceSession(str(network.file), providers=["CPUExecutionProvider"])
        input_name = session.get_inputs()[0].name
        images = load_images(network, "calibration", ASSET_SAMPLES, input_name)
        found = [images[i] for i in range(len(images))]
        yield Subject(f"trained {network.name}, {len(found)}", network.file, found, two)


def _calibration_rows(shop: Workshop, subject: Subject) -> Iterator[Row]:
    output = shop.scratch / "calibrated.onnx"

    def floor() -> Stages:
        return {"calibrate": plain(subject.model, subject.feeds)}

    calls: dict[str, Callable[[], Stages]] = {f"plain {subject.name}": floor}
    for method in subject.methods:
        calls[f"{method} {subject.name}"] = functools.partial(
            stages, subject.model, subject.feeds, method, output
        )
    results = list(shop.interleaved(calls).values())
    base = _stage(results[0], "calibrate")
    for (method, bar), laps in zip(subject.methods.items(), results[1:], strict=True):
        ours, ranges = _stage(laps, "calibrate"), _stage(laps, "parametrize")
        yield Row(
            f"{subject.name}: calibrate, {method} / plain inference",
            f"{median_of(ours)} / {median_of(base)}; ranges and weights {median_of(ranges)} more",
            median(ours) / median(base),
            "x",
            bar,
            raw={"calibrate": ours, "plain": base, "parametrize": ranges},
        )


def _stage(laps: Sequence[Stages], name: str) -> list[float]:
    return [lap.get(name, 0.0) for lap in laps]


def methods(shop: Workshop) -> Iterator[Row]:
    """Statistics once, then the ranges of every method from their file.

    Of the quantizations only what makes the ranges counts (reading the statistics, ranges with the
    weights that go with them): they would load, prepare and write one model after the other.
    """
    model, feeds = shop.model("resnet50"), shop.feeds("resnet50", SAMPLES)
    file = shop.scratch / "statistics.npz"

    def one_round() -> dict[str, float]:
        start = time.perf_counter()
        onnxq.calibrate(model, feeds).save(file)
        taken = {"collect": time.perf_counter() - start}
        for method in HISTOGRAM_METHODS:
            report = onnxq.quantize_static(
                model, shop.scratch / "m.onnx", statistics=file, method=method, verify=False
            )
            taken[method] = report.seconds["calibrate"] + report.seconds["parametrize"]
        return taken

    rounds = shop.interleaved({"calibrate, then each method": one_round})
    taken = next(iter(rounds.values()))
    alone = [min(one[m] for m in HISTOGRAM_METHODS) + one["collect"] for one in taken]
    together = [sum(one.values()) for one in taken]
    yield Row(
        f"resnet50, {SAMPLES}: calibrate and {', '.join(HISTOGRAM_METHODS)} / one of them",
        f"{median_of(together)} / {median_of(alone)}",
        median(together) / median(alone),
        "x",
        at_most(1.1, "x"),
        raw={"rounds": taken},
    )


def after(shop: Workshop) -> Iterator[Row]:
    bars = {"resnet50": at_most(1.0, "s"), "mobilenet_v1": at_most(0.4, "s")}
    for name, bar in bars.items():
        for method in ("min_max", "KL"):
            call = functools.partial(
                stages, shop.model(name), shop.feeds(name, 8), method, shop.scratch / "a.onnx"
            )
            laps = next(iter(shop.interleaved({f"{name} {method}": call}).values()))
            sums = [sum(v for k, v in lap.items() if k not in BEFORE) for lap in laps]
            yield Row(
                f"{name}, {method}: everything after calibration",
                _parts(laps),
                median(sums),
                "s",
                bar,
                raw={"seconds": sums, "stages": [dict(lap) for lap in laps]},
            )


def _parts(laps: Sequence[Stages]) -> str:
    names = [name for name in laps[0] if name not in BEFORE]
    return ", ".join(f"{name} {median(_stage(laps, name)):.2f}" for name in names)
