"""What accuracy is held to: rows of ours with their bars, some of which the peers' rows set.

No bar is judged by rows that are not there: it stands as absent, with what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from benchmarks.accuracy_rows import Result, Rows
from benchmarks.accuracy_tools import LEVELS, OURS, PEERS
from benchmarks.rows import Bar, Group, Row, at_least, at_most
from benchmarks.subjects import SUBJECTS, Subject

__all__ = ["judged", "mean_drop"]

# dB of an output without any error, which has no SQNR
EXACT = 300.0


@dataclass(frozen=True)
class Goal:
    """Of a network at `balanced`: dB, percent with the same class. `best` is BEST_GAIN dB more."""

    sqnr: float
    agreement: float | None = None


GOALS: Mapping[str, Goal] = {
    "mobilenet_v2_1.0": Goal(20.0, 97.5),
    "mobilenet_v1_0.25": Goal(22.5, 92.5),
    "squeezenet_v1.1": Goal(28.0, 97.3),
    "tinydarknet": Goal(21.0, 93.0),
    "resnet50": Goal(33.0),
}
BEST_GAIN = 1.5
# Networks that break other tools: no collapse, and little left in float
OTHERS = ("unlabelled", "generated")
SOUND, INTEGER, ALL_INTEGER = at_least(20, "dB"), at_least(90, "%"), at_least(100, "%")
# Seconds of a whole process, by network and level
SECONDS: Mapping[tuple[str, str], Bar] = {
    ("mobilenet_v2_1.0", "balanced"): at_most(60, "s"),
    ("resnet50", "balanced"): at_most(240, "s"),
    ("mobilenet_v2_1.0", "best"): at_most(600, "s"),
}
FAST_COST, PEAK = at_most(1.3, "x"), at_most(1500, "MB")
# Latency over that of the plain model, which is the level none; what a timing may be off
SAME_LATENCY = at_most(1.05, "x")
MEAN_DROP: Mapping[str, Bar] = {
    "balanced": at_most(0.3, "points"),
    "best": at_most(0.15, "points"),
}
LARGEST_DROP = at_most(0.6, "points")


def judged(rows: Rows) -> list[Group]:
    """One group a network that ours ran on, and one of the drops on ImageNet."""
    groups = []
    for subject in SUBJECTS.values():
        found = [row for level in LEVELS for row in _rows_of(rows, subject, level)]
        if found:
            groups.append(Group(subject.name, "", found, 0.0))
    drops = list(_drops(rows))
    return [*groups, Group("ImageNet", "top-1 lost", drops, 0.0)] if drops else groups


def mean_drop(rows: Rows, tool: str, level: str) -> tuple[float, float] | str:
    """Mean and largest drop over the ImageNet networks, or which of them lack it."""
    names = [name for name, subject in SUBJECTS.items() if subject.kind == "imagenet"]
    found = {name: rows.get(name, tool, level) for name in names}
    drops = [row.drop for row in found.values() if row is not None and row.drop is not None]
    missing = [name for name, row in found.items() if row is None or row.drop is None]
    return f"no figure of {', '.join(missing)}" if missing else (mean(drops), max(drops))


def _rows_of(rows: Rows, subject: Subject, level: str) -> Iterator[Row]:
    row = rows.get(subject.name, OURS, level)
    if row is None:
        return
    if row.reason is not None:
        yield Row(level, reason=row.reason)
        return
    yield from _beside_peers(rows, row)
    yield from _goals(row, subject)
    yield from _coverage(rows, row, subject)
    yield from _cost(rows, row)


def _sqnr(row: Result) -> float:
    return EXACT if row.sqnr is None else row.sqnr


def _beside_peers(rows: Rows, row: Result) -> Iterator[Row]:
    """`fast`: at least each peer with its defaults; `balanced`: each with its best settings."""
    if row.level not in ("fast", "balanced"):
        return
    what = "every peer's default" if row.level == "fast" else "every peer's best"
    settings = [peer for peer in PEERS if peer.default or row.level == "balanced"]
    found = [rows.get(row.network, peer.tool, peer.level) for peer in settings]
    theirs = [peer for peer in found if peer is not None and peer.validation == row.validation]
    best = [_sqnr(peer) for peer in theirs if peer.reason is None]
    if not best:
        why = "no peer has figures on the same validation samples"
        yield Row(f"{row.level}: beside {what}", reason=why)
        return
    bar = at_least(max(best), "dB")
    yield Row(f"{row.level}: SQNR beside {what}", figure=_sqnr(row), unit="dB", bar=bar)
    agreements = [peer.agreement for peer in theirs if peer.agreement is not None]
    if agreements and row.agreement is not None:
        bar = at_least(max(agreements), "%")
        yield Row(f"{row.level}: agreement beside {what}", figure=row.agreement, unit="%", bar=bar)


def _goals(row: Result, subject: Subject) -> Iterator[Row]:
    goal, more = GOALS.get(row.network), BEST_GAIN if row.level == "best" else 0.0
    if row.level not in ("balanced", "best"):
        return
    if goal is not None:
        bar = at_least(goal.sqnr + more, "dB")
        yield Row(f"{row.level}: SQNR", figure=_sqnr(row), unit="dB", bar=bar)
    elif subject.kind in OTHERS:
        yield Row(f"{row.level}: SQNR", figure=_sqnr(row), unit="dB", bar=SOUND)
    if goal is not None and goal.agreement is not None and row.agreement is not None:
        bar = at_least(goal.agreement, "%")
        yield Row(f"{row.level}: agreement", figure=row.agreement, unit="%", bar=bar)


def _coverage(rows: Rows, row: Result, subject: Subject) -> Iterator[Row]:
    """Trained convolutional networks are wholly in int8, and as fast as the plain model."""
    if row.macs is None:
        return
    whole = subject.convolutional and subject.kind not in OTHERS
    bar = ALL_INTEGER if whole else INTEGER if subject.kind in OTHERS else None
    # what the classifier alone takes is more than this rounding
    yield Row(f"{row.level}: MACs in int8", figure=round(row.macs, 2), unit="%", bar=bar)
    plain = rows.get(row.network, OURS, "none")
    if whole and row.level != "none" and plain is not None and plain.ratio and row.ratio:
        text = f"{row.ratio:.2f}x and {plain.ratio:.2f}x fp32"
        if row.latency_disturbed or plain.latency_disturbed:
            text += " (others ran meanwhile)"
        figure = row.ratio / plain.ratio
        yield Row(f"{row.level}: latency / none", text, figure, "x", SAME_LATENCY)


def _cost(rows: Rows, row: Result) -> Iterator[Row]:
    if row.seconds is not None:
        text = f"{row.seconds:.1f} s"
        plain = rows.get(row.network, OURS, "none")
        if row.level == "fast" and plain is not None and plain.seconds is not None:
            text += f" / {plain.seconds:.1f} s{_disturbed([row, plain])}"
            figure = row.seconds / plain.seconds
            yield Row("fast: seconds / none", text, figure, "x", FAST_COST)
        bar = SECONDS.get((row.network, row.level))
        if bar is not None:
            said = _disturbed([row]).strip()
            yield Row(f"{row.level}: seconds", said, row.seconds, "s", bar)
    if row.peak_mb is not None:
        yield Row(f"{row.level}: peak memory", figure=row.peak_mb, unit="MB", bar=PEAK)


def _disturbed(found: Sequence[Result]) -> str:
    """That the seconds are longer than they are alone."""
    if not any(row.disturbed for row in found):
        return ""
    most = max(row.others or 0.0 for row in found)
    return f" (others took {most:.0%} of the machine)"


def _drops(rows: Rows) -> Iterator[Row]:
    settings = [(OURS, level) for level in LEVELS] + [(p.tool, p.level) for p in PEERS]
    present = {(row.tool, row.level) for row in rows if SUBJECTS[row.network].kind == "imagenet"}
    for tool, level in settings:
        if (tool, level) not in present:
            continue
        what, bar = f"{tool} {level}: mean drop", MEAN_DROP.get(level) if tool == OURS else None
        largest = LARGEST_DROP if bar is not None else None
        found = mean_drop(rows, tool, level)
        if isinstance(found, str):
            yield Row(what, reason=found, bar=bar)
            continue
        yield Row(what, figure=found[0], unit="points", bar=bar)
        yield Row(f"{tool} {level}: largest drop", figure=found[1], unit="points", bar=largest)
