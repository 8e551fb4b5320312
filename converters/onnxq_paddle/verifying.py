"""Verify: Paddle and onnxruntime give the same on the same input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.errors import ConversionError
from onnxq.qtypes import Array
from onnxq.runtime import RuntimeFailureError, run, session

__all__ = ["OutputDifference", "check", "difference", "run_onnx", "sigmoids", "worst"]

SIGMOID_ERROR = 2 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class OutputDifference:
    """How far one output is from the other runtime's.

    error: the largest difference. relative_error: as a share of the range of the reference's values
        (of their size, if they are all the same). Of integers both are how many differ.
    """

    output: str
    error: float
    relative_error: float


def run_onnx(file: Path, feeds: Sequence[Mapping[str, Array]]) -> list[list[Array]]:
    """The outputs of an ONNX file on each feed. Raises ConversionError if it does not run."""
    try:
        with session(file) as active:
            names = {value.name for value in active.get_inputs()}
            return [run(active, {k: v for k, v in feed.items() if k in names}) for feed in feeds]
    except RuntimeFailureError as error:
        raise ConversionError(f"onnxruntime cannot run what was converted: {error}") from error


def difference(
    names: Sequence[str], reference: Sequence[Array], other: Sequence[Array]
) -> list[OutputDifference]:
    """Compare the outputs of one run.

    Raises ConversionError if their number or shapes differ.
    """
    if len(reference) != len(other):
        raise ConversionError(f"{len(reference)} outputs became {len(other)}")
    found = []
    for name, one, two in zip(names, reference, other, strict=True):
        # before Paddle 3.0 what has one value had the shape [1]
        if one.shape != two.shape and {one.shape, two.shape} != {(), (1,)}:
            raise ConversionError(f"output {name!r} has shape {one.shape} and became {two.shape}")
        if one.dtype.kind in "iub" or two.dtype.kind in "iub":
            off = int(np.count_nonzero(one.ravel() != two.ravel()))
            found.append(OutputDifference(name, float(off), float(off)))
            continue
        a, b = (np.asarray(x).astype(np.float64).ravel() for x in (one, two))
        same = (a == b) | (np.isnan(a) & np.isnan(b))  # infinite values have no difference
        error = float(np.max(np.where(same, 0.0, np.abs(a - b)), initial=0.0))
        finite = a[np.isfinite(a)]
        if a.size and not finite.size:
            raise ConversionError(
                f"output {name!r} has no finite value on this input, so it says nothing: give "
                "samples on which the model works"
            )
        span = float(np.ptp(finite)) if finite.size else 0.0
        size = span or float(np.max(np.abs(finite), initial=0.0)) or 1.0
        found.append(OutputDifference(name, error, error / size))
    return found


def sigmoids(model: ir.Model) -> set[str]:
    """The outputs that a Sigmoid makes."""
    found = set()
    for value in model.graph.outputs:
        producer = value.producer()
        if producer is not None and producer.op_type == "Sigmoid":
            found.add(value.name or "")
    return found


def check(
    found: Sequence[OutputDifference], tolerance: float, what: str, rounded: Set[str] = frozenset()
) -> None:
    """Raises ConversionError if an output is further off than the tolerance allows.

    rounded: outputs of a Sigmoid, which may in any case be off by the rounding of numbers near 1:
        the runtimes calculate values near 0 to that absolute precision only.
    """
    for one in found:
        if one.output in rounded and one.error <= SIGMOID_ERROR:
            continue
        if not one.relative_error <= tolerance:
            raise ConversionError(
                f"{what}: output {one.output!r} differs by {one.error:.3g}, "
                f"{one.relative_error:.2g} of its range; allowed is {tolerance:g}"
            )


def worst(found: Sequence[Sequence[OutputDifference]]) -> tuple[OutputDifference, ...]:
    """For each output the largest difference over all runs."""
    return tuple(max(runs, key=lambda one: one.relative_error) for runs in zip(*found, strict=True))
