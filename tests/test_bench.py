"""The parts of the benchmark that need no peer: rows and bars, taking turns, the JSON."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import onnxruntime
import pytest
from rich.console import Console

from benchmarks.bench import Benchmark, document, run_group
from benchmarks.environments import UnavailableError, find_python, made
from benchmarks.machine import machine, versions
from benchmarks.processes import STATIC, WEIGHT_ONLY
from benchmarks.rows import Bar, Group, Row, Verdict, at_least, at_most, shown, table
from benchmarks.wholeprocess import Child, ChildFailedError, interleaved, peak_of, timed
from benchmarks.workshop import Settings, Workshop

FIVE = at_least(5, "x")


@pytest.mark.parametrize(
    ("figure", "bar", "verdict"),
    [
        (1.6, at_most(1.6, "x"), "met"),
        (1.61, at_most(1.6, "x"), "short"),
        (5.0, FIVE, "met"),
        (4.99, FIVE, "short"),
        (0.1, None, "-"),
    ],
)
def test_a_bar_judges_the_figure(figure: float, bar: Bar | None, verdict: Verdict) -> None:
    assert Row("a", "b", figure, "x", bar).verdict == verdict


def test_a_row_has_a_figure_or_the_reason_for_none() -> None:
    assert Row("a", reason="no such Python", bar=FIVE).verdict == "absent"
    for figure, reason in ((None, None), (1.0, "but why?")):
        with pytest.raises(ValueError, match="either a figure or the reason"):
            Row("a", figure=figure, reason=reason)


def test_seconds_are_not_judged_by_a_bar_in_megabytes() -> None:
    with pytest.raises(ValueError, match="'s' is judged by 'MB'"):
        Row("a", "b", 1.0, "s", at_most(900, "MB"))


@pytest.mark.parametrize(
    ("figure", "text"), [(1.234, "1.23 s"), (12.34, "12.3 s"), (731.6, "732 s"), (900.0, "900 s")]
)
def test_figures_have_three_digits(figure: float, text: str) -> None:
    assert shown(figure, "s") == text


def printed(*groups: Group) -> str:
    text = io.StringIO()
    Console(width=200, file=text).print(table(groups))
    return text.getvalue()


def test_the_table_shows_bars_verdicts_and_what_is_absent() -> None:
    rows = [
        Row("calibrate", "3 s / 2 s", 1.5, "x", at_most(1.6, "x")),
        Row("PaddleSlim", reason="needs Python 3.10 [not here]", bar=FIVE),
    ]
    groups = (
        Group("one", "about one", rows, 1.0),
        Group("two", "about two", [], 0.0, "benchmarks/big.py is not in this checkout"),
    )
    text = printed(*groups)
    assert [" ".join(line.split()) for line in text.splitlines() if "calibrate" in line] == [
        "│ calibrate │ 3 s / 2 s │ 1.50x │ <= 1.60x │ met │"
    ]
    assert "needs Python 3.10 [not here]" in text
    assert "not finished: benchmarks/big.py is not in this checkout" in text


# Taking turns


def test_calls_take_turns_and_every_second_round_goes_backwards() -> None:
    made_calls: list[str] = []

    def call(name: str) -> str:
        made_calls.append(name)
        return f"{name}{len(made_calls)}"

    results = interleaved({name: partial(call, name) for name in "abc"}, rounds=3)
    assert "".join(made_calls) == "abccbaabc"
    assert results == {"a": ["a1", "a6", "a7"], "b": ["b2", "b5", "b8"], "c": ["c3", "c4", "c9"]}


def test_what_takes_long_runs_once() -> None:
    made_calls: list[str] = []

    def quick() -> None:
        made_calls.append("quick")

    def slow() -> None:
        made_calls.append("slow")
        end = time.perf_counter() + 0.05
        while time.perf_counter() < end:
            pass

    interleaved({"quick": quick, "slow": slow}, rounds=3, once_above=0.04)
    assert made_calls == ["quick", "slow", "quick", "quick"]


# Processes


def script(tmp_path: Path, code: str) -> Child:
    path = tmp_path / "script.py"
    path.write_text(code)
    return Child(Path(sys.executable), str(path), ("argument",))


def test_a_process_is_measured_from_outside(tmp_path: Path) -> None:
    code = "import sys, time\nassert sys.argv[1:] == ['argument']\ntime.sleep(0.2)\nx = b'1' * {}"
    small = script(tmp_path, code.format(1)).run()
    large = script(tmp_path, code.format(200_000_000)).run()
    assert 0.2 < small.seconds < 5
    if small.peak is None or large.peak is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert 195e6 < large.peak - small.peak < 215e6
    assert peak_of([small, large, large]) == large.peak / 1e6


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(ChildFailedError, match=r"ended with 1: .*ValueError: no such model"):
        script(tmp_path, "raise ValueError('no such model')").run()


def test_peers_do_not_get_the_packages_of_this_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    code = "import os, sys; sys.exit(os.environ.get('PYTHONPATH', '') != {!r})"
    timed([sys.executable, "-c", code.format("")], own=False)
    with pytest.raises(ChildFailedError):
        timed([sys.executable, "-c", code.format("")], own=True)


# Groups


def test_a_group_that_ends_early_keeps_its_rows_and_says_why(tmp_path: Path) -> None:
    shop = Workshop(Settings(cache=tmp_path))

    def unavailable(shop: Workshop) -> Iterator[Row]:
        yield Row("first", "1 s", 1.0, "s")
        raise UnavailableError("no Python 3.10")

    def broken(shop: Workshop) -> Iterator[Row]:
        yield Row("first", "1 s", 1.0, "s")
        raise RuntimeError("oh")

    group, trace = run_group("a", Benchmark("about", unavailable), shop)
    assert (len(group.rows), group.reason, trace) == (1, "no Python 3.10", None)
    group, trace = run_group("a", Benchmark("about", broken), shop)
    assert (len(group.rows), group.reason) == (1, "RuntimeError: oh")
    assert trace is not None
    assert "in broken" in trace


def test_the_document_is_plain_json() -> None:
    rows = [Row("a", "1 s / 2 s", 2.0, "x", FIVE, raw={"seconds": [1.0]}), Row("b", reason="c")]
    about = {"machine": {"cpu": "x"}, "versions": {}, "date": "2026-01-01T00:00:00+00:00"}
    groups = [Group("one", "about one", rows, 1.0)]
    found = json.loads(json.dumps(document(groups, Settings(rounds=2), about), allow_nan=False))
    assert found["settings"] == {"rounds": 2, "quick": False}
    assert found["machine"] == {"cpu": "x"}
    first, second = found["groups"][0]["rows"]
    assert first == {
        "what": "a",
        "measured": "1 s / 2 s",
        "figure": 2.0,
        "unit": "x",
        "bar": ">= 5x",
        "verdict": "short",
        "reason": None,
        "raw": {"seconds": [1.0]},
    }
    assert (second["verdict"], second["reason"], second["figure"]) == ("absent", "c", None)


def test_the_machine_is_described_in_plain_values() -> None:
    found = json.loads(json.dumps({**machine(), "versions": versions()}))
    assert found["cpu"]
    assert 1 <= found["cores_used"] <= 2
    assert found["versions"]["onnxruntime"] == onnxruntime.__version__


# Peers


def test_every_peer_has_its_script_and_its_requirements(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent.parent / "benchmarks"
    for one in (*STATIC, *WEIGHT_ONLY):
        assert (root / "peers" / one.script).is_file()
        lines = (root / "requirements" / f"{one.environment}.txt").read_text().splitlines()
        assert any("==" in line for line in lines)
        assert made(one.environment, tmp_path) is None


def test_a_python_is_found_by_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = "{}.{}".format(*sys.version_info)
    broken = tmp_path / "bin" / f"python{version}"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    installed = tmp_path / "versions" / f"{version}.1" / "bin" / "python"
    installed.parent.mkdir(parents=True)
    monkeypatch.setenv("PATH", str(broken.parent))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert find_python(version) is None
    installed.symlink_to(sys.executable)
    assert find_python(version) == str(installed)
    assert find_python("2.0") is None
