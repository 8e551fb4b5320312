"""Groups that have a script of their own: `benchmarks/NAME.py` with `measure() -> dict`.

Each key of what it returns that is a number becomes a row; a dictionary, rows under its key. BARS
has the unit of a key and its bar, where it has one. All the rest goes into the JSON as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.environments import UnavailableError
from benchmarks.rows import Bar, Row, at_most
from benchmarks.workshop import Workshop

__all__ = ["big", "growth", "latency"]

# Group -> key, without what it is under -> bar
BARS: Mapping[str, Mapping[str, Bar]] = {
    "big": {"peak_mb": at_most(1500, "MB"), "time_over_copy": at_most(3, "x")},
    "growth": {},
    "latency": {"over_float": at_most(1, "x"), "over_best_peer": at_most(1, "x")},
}


def big(shop: Workshop) -> Iterator[Row]:
    return _rows("big", _measured("big"))


def growth(shop: Workshop) -> Iterator[Row]:
    return _rows("growth", _measured("growth"))


def latency(shop: Workshop) -> Iterator[Row]:
    return _rows("latency", _measured("latency"))


def _measured(name: str) -> Mapping[str, Any]:
    """Raises UnavailableError if there is no such script."""
    if importlib.util.find_spec(f"benchmarks.{name}") is None:
        raise UnavailableError(f"benchmarks/{name}.py is not in this checkout")
    figures: Mapping[str, Any] = importlib.import_module(f"benchmarks.{name}").measure()
    return figures


def _rows(group: str, figures: Mapping[str, Any], under: str = "") -> Iterator[Row]:
    for key, value in figures.items():
        what = f"{under}: {key}" if under else key
        if isinstance(value, Mapping):
            yield from _rows(group, value, what)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            bar = BARS[group].get(key)
            yield Row(what, figure=float(value), unit="" if bar is None else bar.unit, bar=bar)
