"""Groups that are measured from outside: whole processes, with imports, side by side with peers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.environments import UnavailableError
from benchmarks.rows import Bar, Row, at_least, at_most, median_of
from benchmarks.wholeprocess import (
    Child,
    ChildFailedError,
    Run,
    peak_of,
    seconds_of,
    timed,
    to_dict,
)
from benchmarks.workshop import Workshop

__all__ = ["dynamic", "imports", "memory", "whole"]

OURS = Path(sys.executable)
Outcome = Run | str
SLOW = "takes minutes: left out by --quick"


@dataclass(frozen=True)
class Contestant:
    """One peer in one setting.

    arguments: of its script, before model, samples and output. against: the method of ours that it
    is compared with. bars: model -> how many times faster than it ours has to be. paddle: it
    quantizes Paddle's MobileNetV1, and nothing else.
    """

    name: str
    environment: str
    script: str
    arguments: tuple[str, ...]
    against: str
    bars: Mapping[str, Bar] = field(default_factory=dict)
    paddle: bool = False
    slow: bool = False


def _onnxruntime(method: str, against: str, bars: Mapping[str, Bar] | None = None) -> Contestant:
    name = f"onnxruntime {method}"
    arguments = ("static", method)
    return Contestant(name, "onnxruntime", "run_onnxruntime.py", arguments, against, bars or {})


def _paddleslim(algo: str, bar: Bar | None = None, *, slow: bool = False) -> Contestant:
    bars = {} if bar is None else {"mobilenet_v1": bar}
    against = "min_max" if algo == "abs_max" else algo
    name = f"PaddleSlim {algo}"
    return Contestant(
        name, "paddleslim", "run_paddleslim.py", (algo,), against, bars, paddle=True, slow=slow
    )


STATIC = (
    _onnxruntime("MinMax", "min_max"),
    _onnxruntime("Percentile", "hist"),
    _onnxruntime("Entropy", "KL", {"mobilenet_v1": at_least(5, "x"), "resnet50": at_least(4, "x")}),
    Contestant("NNCF", "nncf", "run_nncf.py", ("static", "fast"), "min_max"),
    Contestant("NNCF, full correction", "nncf", "run_nncf.py", ("static", "full"), "min_max"),
    _paddleslim("abs_max"),
    _paddleslim("hist"),
    _paddleslim("mse", slow=True),
    _paddleslim("KL", at_least(60, "x"), slow=True),
)
WEIGHT_ONLY = (
    Contestant("onnxruntime dynamic", "onnxruntime", "run_onnxruntime.py", ("dynamic",), "dynamic"),
    Contestant("NNCF INT8_SYM", "nncf", "run_nncf.py", ("dynamic", "INT8_SYM"), "dynamic"),
    Contestant("NNCF INT8_ASYM", "nncf", "run_nncf.py", ("dynamic", "INT8_ASYM"), "dynamic"),
)
WHOLE_SAMPLES = {"mobilenet_v1": 32, "resnet50": 64}
METHODS = ("min_max", "KL", "hist", "mse")


def whole(shop: Workshop) -> Iterator[Row]:
    """Static mode from start to end of a process; nobody verifies."""
    for model, count in WHOLE_SAMPLES.items():
        given = (str(shop.model(model)), str(shop.samples(model, count)))
        floor = Child(OURS, "run_floor.py", given)
        ours = {
            method: Child(
                OURS, "run_onnxq.py", ("static", method, *given, _out(shop, "q.onnx")), own=True
            )
            for method in METHODS
        }
        contestants = [one for one in STATIC if model == "mobilenet_v1" or not one.paddle]
        peers = {one.name: partial(_static_child, shop, one, given) for one in contestants}
        results = _race(shop, {"floor": floor, **ours}, peers)
        yield from _race_rows(f"{model}, {count}", model, results, contestants)


def dynamic(shop: Workshop) -> Iterator[Row]:
    """Weights alone, from start to end of a process."""
    model = str(shop.model("resnet50"))
    ours = Child(OURS, "run_onnxq.py", ("dynamic", model, _out(shop, "d.onnx")), own=True)

    def child(one: Contestant) -> Child:
        arguments = (*one.arguments, model, _out(shop, "peer.onnx"))
        return Child(shop.peer(one.environment).python, one.script, arguments)

    peers = {one.name: partial(child, one) for one in WEIGHT_ONLY}
    results = _race(shop, {"dynamic": ours}, peers)
    mine = _runs(results["dynamic"])
    if isinstance(mine, str):
        yield Row("resnet50: onnxq", reason=mine, bar=at_most(2.5, "s"))
        return
    taken = seconds_of(mine)
    yield Row(
        "resnet50: onnxq", _text(mine), median(taken), "s", at_most(2.5, "s"), raw=to_dict(mine)
    )
    fastest: tuple[float, str] | None = None
    for one in WEIGHT_ONLY:
        runs = _runs(results[one.name])
        if not isinstance(runs, str):
            its = (median(seconds_of(runs)), one.name)
            fastest = its if fastest is None else min(fastest, its)
        yield _peer_row("resnet50", one, runs, mine, None)
    what, bar = "resnet50: nearest peer / onnxq", at_least(2, "x")
    if fastest is None:
        yield Row(what, reason="no peer could run", bar=bar)
    else:
        yield Row(what, fastest[1], fastest[0] / median(taken), "x", bar)


def memory(shop: Workshop) -> Iterator[Row]:
    """Peak of a process that makes its samples as they are read, so that they cost nothing."""
    few, many = (64, 256) if shop.settings.quick else (64, 1024)
    limit, same = at_most(900, "MB"), at_most(5, "%")
    for method in ("min_max", "KL"):
        for batch in (1, 8):
            peaks: dict[int, float] = {}
            for count in (few, many):
                what = f"resnet50, {method}, batch {batch}, {count} samples"
                out = _out(shop, "m.onnx")
                model = str(shop.model("resnet50"))
                arguments = ("made", method, model, str(count), str(batch), out)
                outcome = _tried(Child(OURS, "run_onnxq.py", arguments, own=True))
                runs = _runs([outcome])
                peak = None if isinstance(runs, str) else peak_of(runs)
                shop.note(f"{what}: {peak} MB")
                if isinstance(runs, str) or peak is None:
                    reason = runs if isinstance(runs, str) else "no peak memory on this system"
                    yield Row(what, reason=reason, bar=limit)
                    continue
                peaks[count] = peak
                yield Row(what, _text(runs), peak, "MB", limit, raw=to_dict(runs))
            what = f"resnet50, {method}, batch {batch}: growth from {few} to {many}"
            if len(peaks) == 2:
                growth = 100 * abs(peaks[many] / peaks[few] - 1)
                yield Row(what, figure=growth, unit="%", bar=same)
            else:
                yield Row(what, reason="one of both has no figure", bar=same)


def imports(shop: Workshop) -> Iterator[Row]:
    """Warm: one start before, so that byte code and files are there."""
    commands = {
        "import onnxq": (["-c", "import onnxq"], at_most(0.25, "s")),
        "onnxq --help": (["-m", "onnxq", "--help"], at_most(0.35, "s")),
    }
    calls = {
        what: partial(timed, [str(OURS), *arguments], own=True)
        for what, (arguments, _) in commands.items()
    }
    for call in calls.values():
        call()
    for what, taken in shop.interleaved(calls).items():
        yield Row(
            what, median_of(taken), median(taken), "s", commands[what][1], raw={"seconds": taken}
        )


def _static_child(shop: Workshop, one: Contestant, given: tuple[str, str]) -> Child:
    """Raises UnavailableError."""
    if one.slow and shop.settings.quick:
        raise UnavailableError(SLOW)
    model, samples = given
    python = shop.peer(one.environment).python
    if one.paddle:
        model = str(shop.paddle_model(python))
    out = _out(shop, "peer" if one.paddle else "peer.onnx")
    return Child(python, one.script, (*one.arguments, model, samples, out))


def _race(
    shop: Workshop,
    ours: Mapping[str, Child],
    peers: Mapping[str, Callable[[], Child]],
) -> dict[str, list[Outcome]]:
    """All in turn; in place of a peer that cannot run, why."""
    results: dict[str, list[Outcome]] = {}
    runners: dict[str, Callable[[], Outcome]] = {
        name: partial(_tried, child) for name, child in ours.items()
    }
    for name, make in peers.items():
        try:
            runners[name] = partial(_tried, make())
        except (UnavailableError, ChildFailedError) as error:
            results[name] = [str(error)]
    return results | shop.interleaved(runners)


def _tried(child: Child) -> Outcome:
    try:
        return child.run()
    except ChildFailedError as error:
        return str(error)


def _runs(outcomes: Sequence[Outcome]) -> list[Run] | str:
    """All runs, or the reason of the first that failed."""
    failed = [one for one in outcomes if isinstance(one, str)]
    return failed[0] if failed else [one for one in outcomes if isinstance(one, Run)]


def _race_rows(
    label: str, model: str, results: Mapping[str, list[Outcome]], peers: Sequence[Contestant]
) -> Iterator[Row]:
    floor = _runs(results["floor"])
    mine = {method: _runs(results[method]) for method in METHODS}
    for method, runs in mine.items():
        what = f"{label}: onnxq {method} / plain inference"
        if isinstance(runs, str) or isinstance(floor, str):
            yield Row(what, reason=runs if isinstance(runs, str) else str(floor))
            continue
        yield Row(
            what,
            f"{_text(runs)} / {_text(floor)}",
            median(seconds_of(runs)) / median(seconds_of(floor)),
            "x",
            raw={"onnxq": to_dict(runs), "plain": to_dict(floor)},
        )
    for one in peers:
        yield _peer_row(
            label, one, _runs(results[one.name]), mine[one.against], one.bars.get(model)
        )


def _peer_row(
    label: str, one: Contestant, theirs: list[Run] | str, mine: list[Run] | str, bar: Bar | None
) -> Row:
    """How many times longer a peer takes than ours by the same method."""
    what = f"{label}: {one.name} / onnxq {one.against}"
    if isinstance(theirs, str) or isinstance(mine, str):
        return Row(what, reason=theirs if isinstance(theirs, str) else str(mine), bar=bar)
    return Row(
        what,
        f"{_text(theirs)} / {_text(mine)}",
        median(seconds_of(theirs)) / median(seconds_of(mine)),
        "x",
        bar,
        raw={"peer": to_dict(theirs), "onnxq": to_dict(mine)},
    )


def _text(runs: Sequence[Run]) -> str:
    peak = peak_of(runs)
    return median_of(seconds_of(runs)) + ("" if peak is None else f" {peak:.0f} MB")


def _out(shop: Workshop, name: str) -> str:
    return str(shop.scratch / name)
