"""Does int8 pay? Latency of float, ours, ours with --tune-latency, and the best peer, in one run.

The peer is onnxruntime.quantization at its best for x86: U8S8, per channel, QDQ, after its own
pre-processing. Random inputs: latency does not depend on accuracy. Each session has two threads and
all optimizations; they take turns. `python -m benchmarks.latency [MODEL ...] [--no-tune]`.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from rich.console import Console
from rich.table import Table

import onnxq
from benchmarks.assets import ASSETS
from benchmarks.common import SHAPES, plain_session, random_feed
from benchmarks.models import MODELS, random_inputs
from onnxq.measure.timing import AWAKE, BURST, interleaved

__all__ = ["NAMES", "measure"]

Feed = Mapping[str, Any]
THREADS, SAMPLES, ROUNDS = 2, 4, 10
BAR = 1.0
# Paddle models have no sizes of their own: those of their usual inputs
PADDLE_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "ch_PP-OCRv3_det_infer": {"x": (1, 3, 320, 320)},
    "ch_ppocr_mobile_v2.0_cls_infer": {"x": (1, 3, 48, 192)},
    "mobilenet_v3_small_0.35_cls": {"x": (1, 3, 224, 224)},
    "ppyolo_tiny_650e_coco": {
        "image": (1, 3, 320, 320),
        "im_shape": (1, 2),
        "scale_factor": (1, 2),
    },
}
OTHER_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    **{name.removesuffix(".onnx"): shapes for name, shapes in SHAPES.items()},
    "stories260K": {"ids": (1, 64)},
}


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Samples for the peer."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Any:
        return next(self._feeds, None)


def _sources() -> dict[str, Path | str]:
    """Name -> file, directory of a Paddle model, or name of a generated model."""
    root = ASSETS / "models"
    files = {p.stem: p for p in sorted(root.glob("*/*.onnx"))}
    if "resnet50" in files:
        files["resnet50 (Tiny-ImageNet)"] = files.pop("resnet50")
    files |= {f"{p.parent.name} (ONNX)": p for p in sorted(root.glob("paddle/*/*.onnx"))}
    paddle = {p.name: p for p in sorted((root / "paddle").glob("*")) if p.is_dir()}
    return {**files, **paddle, **{f"{name} (generated)": name for name in MODELS}}


NAMES: Sequence[str] = tuple(_sources())


def measure(
    names: Sequence[str] = NAMES, *, seconds: float = 2.0, tune: bool = True
) -> dict[str, Any]:
    """Rows by model name: milliseconds, ratios and shares, or the reason why there is none.

    seconds: of timing for each model, at least. tune: also with `tune_latency`, which takes up to
    a minute for each model.
    """
    rows = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = _row(name, Path(folder), seconds, tune)
    return {"threads": THREADS, "bar": BAR, "rows": rows}


def _row(name: str, folder: Path, seconds: float, tune: bool) -> dict[str, Any]:
    path, feeds = _prepared(name, folder)
    files = {"fp32": path}
    row: dict[str, Any] = {"ms": {}, "macs_in_int8": {}, "failed": {}}
    for kind in ("ours", "tuned") if tune else ("ours",):
        files[kind] = folder / f"{kind}.onnx"
        report = onnxq.quantize_static(
            path,
            files[kind],
            feeds,
            accuracy="none",  # which changes numbers, and no node
            verify=False,
            tune_latency=kind == "tuned",
        )
        assert report.macs is not None
        row["macs_in_int8"][kind] = report.macs.share
        if report.tuning is not None:
            row["pays"] = report.tuning.pays
    files["onnxruntime"] = folder / "peer.onnx"
    sessions = {}
    for kind, file in files.items():
        try:
            if kind == "onnxruntime":
                _peer(path, file, feeds)
            sessions[kind] = _session(file)
            sessions[kind].run(None, dict(feeds[0]))
        except Exception as error:  # whatever a peer raises
            if kind != "onnxruntime":
                raise
            sessions.pop(kind, None)  # the peer's failure is its result, and is printed
            row["failed"][kind] = f"{type(error).__name__}: {error}".splitlines()[0]
    calls = [functools.partial(s.run, None, dict(feeds[0])) for s in sessions.values()]
    row["ms"] = dict(zip(sessions, _milliseconds(calls, seconds), strict=True))
    row["ratios"] = _ratios(row["ms"])
    return row


def _milliseconds(calls: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    times = interleaved(calls, rounds=ROUNDS, seconds=seconds, burst=BURST, settle_seconds=AWAKE)
    return [float(t) * 1e3 for t in np.median(times, axis=(0, 2))]


def _ratios(ms: Mapping[str, float]) -> dict[str, float]:
    """`ours/fp32` and the like, for all pairs that have a bar."""
    pairs = [(a, b) for a in ("ours", "tuned") for b in ("fp32", "onnxruntime")]
    return {f"{a}/{b}": ms[a] / ms[b] for a, b in pairs if a in ms and b in ms}


def _prepared(name: str, folder: Path) -> tuple[Path, list[Feed]]:
    """The float model as a file, and samples for it."""
    source = _sources()[name]
    if isinstance(source, str):
        path = folder / "model.onnx"
        ir.save(MODELS[source](), path)
        return path, list(random_inputs(source, SAMPLES, 0))
    path, shapes = source, OTHER_SHAPES.get(source.stem, {})
    if source.is_dir():
        path, shapes = folder / "model.onnx", PADDLE_SHAPES.get(source.name, {})
        onnxq.export(source, path)
    return path, list(_feeds(path, shapes))


def _feeds(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Feed]:
    active = plain_session(path)
    SHAPES[path.name] = dict(shapes)
    sizes = {"im_shape": 320.0, "scale_factor": 1.0}
    for seed in range(SAMPLES):
        feed = random_feed(active, path.name, seed)
        for key in sizes.keys() & feed.keys():
            feed[key] = np.full(feed[key].shape, sizes[key], np.float32)
        yield feed


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = THREADS
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _peer(source: Path, target: Path, feeds: Sequence[Feed]) -> None:
    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(target),
        _Reader(feeds),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def table_of(result: Mapping[str, Any]) -> Table:
    """The rows with each ratio beside its bar."""
    kinds = ("fp32", "ours", "tuned", "onnxruntime")
    pairs = ("ours/fp32", "ours/onnxruntime", "tuned/fp32", "tuned/onnxruntime")
    bar = result["bar"]
    table = Table("model", *(f"{kind} ms" for kind in kinds), *pairs, "MACs in int8", "notes")
    for name, row in result["rows"].items():
        shares = [f"{s:.0%}" for s in row["macs_in_int8"].values() if s is not None]
        notes = [f"{kind}: {why}" for kind, why in row["failed"].items()]
        if row.get("pays") is False:
            notes.append("does not pay here")
        table.add_row(
            name,
            *(f"{row['ms'][k]:.2f}" if k in row["ms"] else "" for k in kinds),
            *(_against(row["ratios"].get(pair), bar) for pair in pairs),
            ", ".join(shares),
            "; ".join(notes)[:60],
        )
    return table


def _against(ratio: float | None, bar: float) -> str:
    if ratio is None:
        return ""
    return f"{ratio:.2f} (<= {bar:.2f}){'' if round(ratio, 2) <= bar else ' MISSED'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(NAMES), metavar="MODEL")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--no-tune", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.models) - set(NAMES)):
        parser.error(f"no model {unknown[0]!r}; there are {', '.join(NAMES)}")
    result = measure(arguments.models, seconds=arguments.seconds, tune=not arguments.no_tune)
    Console(width=200).print(table_of(result))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
