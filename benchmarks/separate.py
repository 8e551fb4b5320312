"""Groups that have a script of their own: `benchmarks/NAME.py` with `measure() -> dict`.

Each key of what it returns that is a number becomes a row; a dictionary, rows under its key. BARS
has the unit of a key and its bar, where it has one. All the rest goes into the JSON as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.environments import UnavailableError
from benchmarks.rows import Bar, Row, Unit, at_most
from benchmarks.workshop import Workshop

__all__ = ["big", "growth", "latency"]

# Group -> the last keys of a row that is shown -> its bar, if it has one, and its unit
Shown = tuple[Bar | None, Unit]
BARS: Mapping[str, Mapping[str, Shown]] = {
    "big": {
        "gigabytes": (None, ""),
        "cp": (None, "s"),
        "cp_and_sync": (None, "s"),
        "seconds": (None, "s"),
        "peak_mb": (at_most(1500, "MB"), "MB"),
        "time_over_copy": (at_most(3, "x"), "x"),
        "time_over_copy_in_cache": (None, "x"),
    },
    "growth": {
        # plan: place and parametrize. Linear is 1; what a fit over three sizes strays is the rest
        "plan: exponent": (at_most(1.15, ""), ""),
        "rewrite: exponent": (at_most(1.15, ""), ""),
        "exponent": (None, ""),
    },
}
# A network in which what is fixed no longer counts, and is measured in half a minute
QUICK_SIZES = (316, 1000, 3162)


def big(shop: Workshop) -> Iterator[Row]:
    script = _script("big")
    with tempfile.TemporaryDirectory(dir=shop.cache) as folder:
        rounds = shop.settings.rounds
        yield from _rows("big", script.measure(Path(folder), rounds))


def growth(shop: Workshop) -> Iterator[Row]:
    script = _script("growth")
    sizes = QUICK_SIZES if shop.settings.quick else script.SIZES
    yield from _rows("growth", script.measure(sizes))


def latency(shop: Workshop) -> Iterator[Row]:
    """Of each model, int8 over float and over the peer; no bar where it was left float."""
    script = _script("latency")
    for name in script.NAMES:
        found = script.measure([name], seconds=1.0 if shop.settings.quick else 4.0, tune=False)
        row = found["rows"][name]
        share = row["macs_in_int8"]["ours"]
        ms = ", ".join(f"{kind} {t:.2f} ms" for kind, t in row["ms"].items())
        left = not share
        note = "does not pay, left float" if left else f"{share:.0%} of the products in int8"
        for pair, ratio in row["ratios"].items():
            what = f"{name}: {pair}"
            bar = None if left else at_most(1, "x")
            yield Row(what, f"{ms}; {note}", ratio, "x", bar, raw=row)
        for kind, reason in row["failed"].items():
            yield Row(f"{name}: {kind}", reason=reason)


def _script(name: str) -> Any:
    """Raises UnavailableError if there is no such script."""
    if importlib.util.find_spec(f"benchmarks.{name}") is None:
        raise UnavailableError(f"benchmarks/{name}.py is not in this checkout")
    return importlib.import_module(f"benchmarks.{name}")


def _rows(group: str, figures: Mapping[str, Any], under: str = "") -> Iterator[Row]:
    for key, value in figures.items():
        what = f"{under}: {key}" if under else key
        if isinstance(value, Mapping):
            yield from _rows(group, value, what)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            bar, unit = _shown(group, what)
            yield Row(what, figure=float(value), unit=unit, bar=bar)


def _shown(group: str, what: str) -> Shown:
    """Of the longest key that the row ends with."""
    for key in sorted(BARS[group], key=len, reverse=True):
        if what == key or what.endswith(f": {key}"):
            return BARS[group][key]
    return None, ""
