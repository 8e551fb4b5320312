"""What has to hold for mixed precision to stop, and what a plan gives of it."""

from __future__ import annotations

import importlib
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.errors import OptionError
from onnxq.improve.judge import Errors, Judge
from onnxq.improve.mixed.variants import Variant
from onnxq.improve.reference import Reference
from onnxq.near import near
from onnxq.plans import Plan
from onnxq.qtypes import Array

__all__ = ["Evaluate", "Goal", "Meter", "Score", "evaluation_function"]

# Path of a model -> how good it is; more is better
Evaluate = Callable[[str], float]
# Writes a plan's model, or the float model for None
Write = Callable[[Plan | None, Path], object]


@dataclass(frozen=True)
class Score:
    """What a plan gives on the judge's samples.

    errors: over all outputs. sqnr: of the worst output in dB.
    agreement: percent of rows with the same top class; None without class scores.
    value: of the evaluation function; None without one.
    """

    errors: Errors
    sqnr: float
    agreement: float | None = None
    value: float | None = None

    def __str__(self) -> str:
        words = [f"{self.sqnr:.1f} dB"]
        if self.agreement is not None:
            words.append(f"{self.agreement:.1f} % agreement")
        if self.value is not None:
            words.append(f"evaluation {self.value:.6g}")
        return ", ".join(words)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an SQNR without any error is null."""
        return {
            "sqnr": self.sqnr if math.isfinite(self.sqnr) else None,
            "agreement": self.agreement,
            "value": self.value,
        }


@dataclass(frozen=True)
class Goal:
    """All that is given has to hold.

    sqnr: of each output in dB, at least. agreement: percent of samples with the same top class, at
        least. least_value: of the evaluation function.
    budget: share of the MACs that may be left float for it.
    optional: if it cannot be had within the budget, nothing is left float.
    """

    sqnr: float | None = None
    agreement: float | None = None
    least_value: float | None = None
    budget: float = 1.0
    optional: bool = False

    def holds(self, score: Score) -> bool:
        return all(found >= wanted for found, wanted in self._pairs(score))

    @property
    def by_sqnr(self) -> bool:
        """Nothing but the SQNR is asked for."""
        return self.agreement is None and self.least_value is None

    def rank(self, score: Score) -> tuple[float, ...]:
        """To compare two plans of which neither holds it: the higher the better."""
        short = sum(min(0.0, (f - w) / max(abs(w), 1e-9)) for f, w in self._pairs(score))
        return short, score.sqnr

    def _pairs(self, score: Score) -> list[tuple[float, float]]:
        wanted = (self.sqnr, self.agreement, self.least_value)
        found = (score.sqnr, score.agreement, score.value)
        return [
            (-math.inf if f is None else f, w)
            for f, w in zip(found, wanted, strict=True)
            if w is not None
        ]

    def __str__(self) -> str:
        words = []
        if self.sqnr is not None:
            words.append(f"{self.sqnr:.4g} dB")
        if self.agreement is not None:
            words.append(f"{self.agreement:.4g} % agreement")
        if self.least_value is not None:
            words.append(f"evaluation of at least {self.least_value:.6g}")
        found = " and ".join(words)
        return found if self.budget == 1 else f"{found} with {self.budget:.0%} of the MACs in float"


class Meter:
    """Measures variants on the judge's samples, and by the evaluation function if there is one."""

    def __init__(
        self,
        judge: Judge,
        reference: Reference,
        evaluate: Evaluate | None = None,
        write: Write | None = None,
    ) -> None:
        self._judge, self._reference = judge, reference
        self._evaluate, self._write = evaluate, write
        self._alone = [
            Judge(
                judge.start.emulated,
                Reference(reference.batches, [{name: o[name]} for o in reference.outputs], {}),
            )
            for name in (reference.outputs[0] if reference.outputs else {})
        ]

    @property
    def samples(self) -> int:
        return self._judge.samples

    def __call__(self, variant: Variant) -> Score:
        found = variant.start(self._reference.batches).outputs(variant.plan)
        errors = self._judge.errors_of(found)
        worst = min(judge.errors_of(found).sqnr for judge in self._alone)
        same = _agreement(self._reference.outputs, found)
        return Score(errors, worst, same, self._value(variant.plan))

    def float_value(self) -> float:
        """What the evaluation function says of the float model."""
        found = self._value(None)
        assert found is not None
        return found

    def _value(self, plan: Plan | None) -> float | None:
        if self._evaluate is None or self._write is None:
            return None
        with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
            path = Path(folder) / "model.onnx"
            self._write(plan, path)
            found = self._evaluate(str(path))
        try:
            value = float(found)
        except (TypeError, ValueError):
            value = math.nan
        if math.isnan(value):
            raise OptionError(
                f"the evaluation function gave {found!r}: it has to return a number, the higher "
                "the better"
            )
        return value


def _agreement(
    expected: Sequence[Mapping[str, Array]], found: Sequence[Mapping[str, Array]]
) -> float | None:
    """Percent of rows with the same top class, of the first output that is class scores."""
    for name in expected[0] if expected else ():
        pairs = [(e[name], f[name]) for e, f in zip(expected, found, strict=True)]
        if all(e.ndim == 2 and e.shape[1] > 1 and e.shape == f.shape for e, f in pairs):
            same = [e.argmax(axis=1) == f.argmax(axis=1) for e, f in pairs]
            return float(100 * np.concatenate(same).mean())
    return None


def evaluation_function(text: str) -> Evaluate:
    """The function that `module:function` names.

    Raises OptionError, with the remedy, if there is none.
    """
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise OptionError(
            f"evaluate takes MODULE:FUNCTION, got {text!r}: for a function `score` in score.py, "
            "write score:score"
        )
    folder = str(Path.cwd())
    if folder not in sys.path:  # as with python -m
        sys.path.insert(0, folder)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise OptionError(
            f"evaluate {text!r}: there is no module {error.name!r}: run the command in the "
            "directory of its file, or add that to PYTHONPATH"
        ) from error
    function = getattr(found, name, None)
    if not callable(function):
        known = [key for key, value in vars(found).items() if callable(value)]
        raise OptionError(
            f"evaluate {text!r}: {module} has no function {name!r}{near(name, known)}"
        )
    return function  # type: ignore[no-any-return]  # what it returns is checked when it has
