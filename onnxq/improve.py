"""Improve: passes that may change a plan before it is written. There is none yet.

A pass takes the prepared model, the statistics, the samples and a plan, and returns a plan: other
parameters, or `WeightUpdate`s (corrected biases, chosen integers). It alone among the stages may
rewrite and run a candidate, and keeps one only where the measured error falls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxq.calibration import Calibration
from onnxq.data.samples import Samples
from onnxq.plans import Plan
from onnxq.prepare import Prepared

__all__ = ["PASSES", "Pass", "improve"]

Pass = Callable[[Prepared, Calibration, Samples | None, Plan], Plan]

PASSES: Sequence[Pass] = ()


def improve(
    prepared: Prepared,
    calibration: Calibration,
    samples: Samples | None,
    plan: Plan,
    passes: Sequence[Pass] = PASSES,
) -> Plan:
    """The plan after all passes, in order. samples: None if only statistics were given."""
    for step in passes:
        plan = step(prepared, calibration, samples, plan)
    return plan
