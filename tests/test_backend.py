"""Every test model that comes with the `onnx` package, through both modes.

For each: an error is an OnnxqError of one line, never anything else. If there is a result,
onnxruntime loads and runs it wherever it ran the float model, and each floating-point output is
within a tolerance of the float model's, everything else (integers, booleans, strings, shapes,
types) the same:

    |quantized - float| <= 0.06 * max |float|   for each element of each output, in both modes;
    the median over all quantized models of the largest such error is at most 0.01

(A sum of few products may cancel, and then its error is a large share of what is left: hence 0.06.)
Outputs of random ops (RANDOM) are compared in shape and type only. What is not quantized may differ
by 1e-5, since constants are folded. A model that onnxruntime runs only as quantized (old operators
that were converted) is compared with the outputs that `onnx` expects.

The node tests take weights as inputs, which leaves nothing to quantize, so each is also run with
all inputs but the first as constants ("frozen"). The counts of all outcomes are printed at the end
of the test run.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import onnxq
from tests.backend import Case, Value, cases, frozen
from tests.conftest import SUMMARY
from tests.models import all_nodes

# largest error as a share of the largest magnitude of the output
TOLERANCE, TOLERANCE_FLOAT, TOLERANCE_MEDIAN = 0.06, 1e-5, 0.01

# Ops whose output is random: only shape and type are compared
RANDOM = frozenset(
    {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}
    | {"RandomUniformLike"}
)
ORT_ERRORS = (
    *(getattr(ort.capi.onnxruntime_pybind11_state, n) for n in ("Fail", "InvalidArgument")),
    *(getattr(ort.capi.onnxruntime_pybind11_state, n) for n in ("InvalidGraph", "NotImplemented")),
    ort.capi.onnxruntime_pybind11_state.RuntimeException,
    RuntimeError,
    TypeError,
    ValueError,
)

WITHIN = "quantized, within tolerance"
NOTHING = "nothing to quantize, outputs the same"
REFUSED = "refused"
NOT_RUN = "written, and onnxruntime runs neither it nor the float model"
CONVERTED = "runs only as converted, outputs as onnx expects"
# What the message of a refusal holds -> the reason, in the order in which they are tried
REASONS = {
    "is quantized already": "the model is quantized already",
    "is of type": "an input is no tensor",
    "NaN or Inf": "NaN or Inf in a sample, a weight or an activation",
    "the float model does not load either": "onnxruntime does not load the float model",
    "the float model gives NaN": "NaN or Inf in a sample, a weight or an activation",
    "onnxruntime cannot run it": "onnxruntime does not run the float model",
    "cannot load or run": "onnxruntime does not run the float model",
    "must be raised": "the opset cannot be raised",
    "the data source is empty": "a sample of no rows",
}


# By what the installed onnx offers: the fewest models there may be, and the fewest quantized
OFFERED = "opset 28" if onnx.defs.onnx_opset_version() >= 28 else "opset 22"
FEWEST = {
    ("opset 28", "as given"): (2000, 24),
    ("opset 28", "frozen"): (600, 24),
    ("opset 22", "as given"): (1390, 24),
    ("opset 22", "frozen"): (380, 12),
}

Results = list[list[Value]]


@dataclass
class Outcomes:
    """What became of all the models in one mode."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def lines(self) -> list[str]:
        lines = [f"{count:6d}  {what}" for what, count in sorted(self.counts.items())]
        if not self.errors:
            return lines
        worst, median = max(self.errors), float(np.median(self.errors))
        return [*lines, f"        errors of the quantized: median {median:.4f}, worst {worst:.4f}"]


class DiffersError(Exception):
    """Two results are not of one kind, or differ where no tolerance applies."""


def test_the_comparison_can_fail() -> None:
    a = np.ones((2, 3), np.float32)
    assert _error([[a]], [[a * 1.5]], random=False) == pytest.approx(0.5)
    assert _error([[[a, a]]], [[[a, -a]]], random=False) == pytest.approx(2)
    assert _error([[a]], [[a * 9]], random=True) == 0
    i = a.astype(np.int32)
    for other in ([a * np.nan], [a.astype(np.float64)], [a[:1]], [], [a, a], [None], [i]):
        with pytest.raises(DiffersError):
            _error([[a]], [other], random=False)
    for first, second in ((i, i + 1), (a * np.inf, -a * np.inf)):
        with pytest.raises(DiffersError):
            _error([[first]], [[second]], random=False)
    for other in ([a.astype(np.float64)], [a[:1]], []):
        with pytest.raises(DiffersError):
            _error([[a]], [other], random=True)


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("weights", ["as given", "frozen"])
def test_all_models(
    mode: str, weights: str, record_property: Callable[[str, object], None]
) -> None:
    found = Outcomes()
    for given in cases():
        case = given if weights == "as given" else frozen(given)
        if case is not None:
            _try(case, mode, found)
    total = sum(found.counts.values())
    record_property(SUMMARY, [f"{mode}, weights {weights}: {total} models", *found.lines()])
    assert found.failures == []
    fewest_models, fewest_quantized = FEWEST[OFFERED, weights]
    assert total >= fewest_models
    assert found.counts[WITHIN] >= fewest_quantized
    assert float(np.median(found.errors)) <= TOLERANCE_MEDIAN
    # a refusal may not become the way out
    refused = sum(n for what, n in found.counts.items() if what.startswith(REFUSED))
    assert refused <= total // 6


def _try(case: Case, mode: str, found: Outcomes) -> None:
    def count(what: str, failure: str = "") -> None:
        found.counts[what] += 1
        if failure:
            found.failures.append(f"{case.name}: {what}: {failure}")

    try:
        result = _quantize(case, mode)
    except onnxq.OnnxqError as error:
        return count(*_refusal(case, error))
    except Exception as error:  # whatever it is, it is what this test looks for
        return count("traceback", repr(error))
    reference, actual = _run(case.model, case.feeds), _run(result, case.feeds)
    if isinstance(actual, str):
        if isinstance(reference, str):
            return count(NOT_RUN)
        return count("result does not load or run", actual)
    random = any(node.op_type in RANDOM for node in all_nodes(case.model.graph))
    quantized = _integers(result) > _integers(case.model)
    what = WITHIN if quantized else NOTHING
    if isinstance(reference, str):
        reference, what = list(map(list, case.expected)), CONVERTED
    try:
        share = _error(reference, actual, random=random)
    except DiffersError as difference:
        return count("another result", str(difference))
    if quantized:
        found.errors.append(share)
    if share > (TOLERANCE if quantized or what == CONVERTED else TOLERANCE_FLOAT):
        return count("out of tolerance", f"error {share:.3g}")
    return count(what)


def _quantize(case: Case, mode: str) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if mode == "dynamic":
            return onnxq.quantize_dynamic(case.model)
        return onnxq.quantize_static(case.model, None, list(case.feeds))


def _refusal(case: Case, error: onnxq.OnnxqError) -> tuple[str, str]:
    """The reason in a few words, and what is wrong with it, if anything."""
    message = str(error)
    reason = next((why for words, why in REASONS.items() if words in message), None)
    if reason is None:
        return "refused for no known reason", message
    wrong = ""
    if "\n" in message or "defect of onnxq" in message:
        wrong = message
    elif "onnxruntime does not" in reason and not isinstance(_run(case.model, case.feeds), str):
        wrong = f"the float model does run: {message}"
    return f"{REFUSED}: {reason}", wrong


def _integers(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "DequantizeLinear" for node in all_nodes(model.graph))


def _run(model: onnx.ModelProto, feeds: Sequence[Mapping[str, Value]]) -> Results | str:
    """The outputs for each feed, or why there are none."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return [_run_once(session, feed) for feed in feeds]
    except ORT_ERRORS as error:
        return str(error)


def _run_once(session: ort.InferenceSession, feed: Mapping[str, Value]) -> list[Value]:
    if not any(getattr(value, "dtype", np.dtype(int)).kind == "V" for value in feed.values()):
        return list(session.run(None, dict(feed)))
    # bfloat16 and the like: onnxruntime has to be told the type
    values = {
        name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            value, int(ir.DataType.from_numpy(value.dtype))
        )
        for name, value in feed.items()
    }
    return [value.numpy() for value in session.run_with_ort_values(None, values)]


def _error(expected: Sequence[Value], actual: Sequence[Value], *, random: bool) -> float:
    """The largest error of an element, as a share of the largest magnitude in its array."""
    return max((_share(x, y, random) for x, y in _pairs(expected, actual)), default=0.0)


def _pairs(expected: Value, actual: Value) -> Iterator[tuple[Value, Value]]:
    """The leaves of two nested lists of the same form."""
    if not isinstance(expected, list):
        yield expected, actual
        return
    if not isinstance(actual, list) or len(expected) != len(actual):
        raise DiffersError(f"{actual!r}, not {len(expected)} values")
    for x, y in zip(expected, actual, strict=True):
        yield from _pairs(x, y)


def _share(a: Value, b: Value, random: bool) -> float:
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        if type(a) is not type(b) or a != b:
            raise DiffersError(f"{b!r}, not {a!r}")
        return 0.0
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        raise DiffersError(f"{b.dtype} {b.shape}, not {a.dtype} {a.shape}")
    if random or a.size == 0:
        return 0.0
    if a.dtype.kind not in "fc":
        if not np.array_equal(a, b):
            raise DiffersError(f"other values of {a.dtype}")
        return 0.0
    finite = np.isfinite(a)
    same = np.array_equal(finite, np.isfinite(b))
    if not same or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        raise DiffersError("other values where the float model's are not finite")
    if not finite.any():
        return 0.0
    x, y = a[finite].astype(np.complex128), b[finite].astype(np.complex128)
    largest, error = float(np.abs(x).max()), float(np.abs(x - y).max())
    return error / largest if largest else float(error > 0)
