"""Verify: what Paddle Inference makes of the emitted model, against onnxruntime.

A model with float activations has to give the same up to a tolerance. One with int8 activations
cannot: both runtimes round, in different places. There the noise counts, in dB of SQNR against
float: Paddle may be 1 dB below what onnxruntime has with the QDQ model.

Where no float model is given, the reference is the QDQ model without the Q and DQ of its
activations. That is the stricter test. With Nw the noise power that the weights' rounding makes,
and Na, Na' what the activations' makes in onnxruntime and in Paddle, the loss against float is
10 log10((Nw + Na') / (Nw + Na)), and for Na' > Na that is less than 10 log10(Na' / Na), which is
what is compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort

from onnxq.data.samples import DataLike, input_specs, open_samples
from onnxq.errors import ConversionError
from onnxq.measure.random_feeds import feeds_for
from onnxq.model import SourceModel, new_value
from onnxq.numerics.metrics import ErrorSums
from onnxq.prepare import prepare
from onnxq.qtypes import Array
from onnxq.runtime import RuntimeFailureError, run, session
from onnxq.save import save
from onnxq_paddle.arrays import read_arrays, write_arrays
from onnxq_paddle.verifying import OutputDifference, check, difference, sigmoids, worst
from onnxq_paddle.worker.emit.quantization import is_activation, source_of, stored_of

__all__ = ["Judgement", "OutputNoise", "Trial", "before_boxes", "described", "judge", "trial_of"]

SAMPLES = 4
# The SQNR of few values is a matter of chance: of 10 scores on 4 inputs it varies by 1 dB
VALUES, MOST_SAMPLES = 2000, 32
ALLOWED_LOSS = 1.0  # dB
# Above this the error is within the tolerance for float models
LOSSLESS = 80.0  # dB
MODES: dict[str, dict[str, bool]] = {
    "plain": {"onednn": False, "int8": False},
    "oneDNN": {"onednn": True, "int8": False},
    "oneDNN int8": {"onednn": True, "int8": True},
}

Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class OutputNoise:
    """SQNR in dB against float: of onnxruntime, and of Paddle Inference by mode."""

    output: str
    onnxruntime: float
    paddle: dict[str, float]


@dataclass(frozen=True)
class Judgement:
    """What was found: differences of a model with float activations, noise of a static int8 one.

    runs: on how many inputs. int8_kernels, float_kernels: how many convolutions and products oneDNN
        ran in int8 and in float, with int8 enabled; None for other models.
    """

    runs: int
    differences: tuple[OutputDifference, ...] = ()
    noise: tuple[OutputNoise, ...] = ()
    int8_kernels: int | None = None
    float_kernels: int | None = None


@dataclass(frozen=True)
class Trial:
    """Inputs, what onnxruntime makes of them, and where Paddle's results are to be written."""

    folder: Path
    feeds: list[Path]
    names: list[str]
    expected: list[list[Array]]
    floats: list[list[Array]] = field(default_factory=list)
    rounded: frozenset[str] = frozenset()

    @property
    def static(self) -> bool:
        return bool(self.floats)

    def modes(self) -> dict[str, dict[str, bool]]:
        return {name: mode for name, mode in MODES.items() if self.static or not mode["int8"]}

    def asked(self) -> dict[str, dict[str, object]]:
        """The runs of the child: mode -> its settings, and the files for the results."""
        return {
            name: {**mode, "outputs": [str(path) for path in self._files(name)]}
            for name, mode in self.modes().items()
        }

    def results(self, mode: str) -> Iterator[list[Array]]:
        for file in self._files(mode):
            arrays = read_arrays(file)
            yield [arrays[name] for name in self.names]

    def _files(self, mode: str) -> list[Path]:
        return [self.folder / f"{mode} {i}.npz" for i in range(len(self.feeds))]


def trial_of(
    file: Path,
    static: bool,
    folder: Path,
    samples: DataLike | None,
    shapes: Mapping[str, Sequence[int]] | None,
    reference: SourceModel | None,
) -> Trial:
    """Inputs for the prepared ONNX file, and its outputs.

    Raises ConversionError if onnxruntime cannot run it, DataError or OptionError for the inputs.
    """
    settings = ort.SessionOptions()
    # as the file says, with nothing quantized or merged by onnxruntime itself
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = ir.load(file)
    try:
        with session(file, settings) as active:
            feeds = _feeds(active, model, static, samples, shapes)
            names = [value.name for value in active.get_outputs()]
            expected = [[np.asarray(y) for y in run(active, feed)] for feed in feeds]
            # oneDNN divides by zero where a detector finds nothing
            found = [all(y.size for y in outputs) for outputs in expected]
            if any(found):
                feeds = [feed for feed, some in zip(feeds, found, strict=True) if some]
                expected = [outputs for outputs, some in zip(expected, found, strict=True) if some]
        floats: list[list[Array]] = []
        if static:
            twin = without_activations(model) if reference is None else _prepared(reference)
            home = folder / "float.onnx"
            save(twin, home, lambda _: None)
            with session(home, settings) as active:
                floats = [[np.asarray(y) for y in run(active, feed)] for feed in feeds]
    except RuntimeFailureError as error:
        raise ConversionError(f"onnxruntime cannot run the reference: {error}") from error
    files = [folder / f"feed{i}.npz" for i in range(len(feeds))]
    for path, feed in zip(files, feeds, strict=True):
        write_arrays(path, feed)
    return Trial(folder, files, names, expected, floats, frozenset(sigmoids(model)))


def before_boxes(model: ir.Model) -> ir.Model | None:
    """A detector up to its NonMaxSuppression: what that reads is what it gives; else None.

    Which boxes are left is no measure of a model's noise: the least rounding adds one or drops one.
    """
    part = model.clone()
    graph = part.graph
    suppressions = [node for node in graph if node.op_type == "NonMaxSuppression"]
    if not suppressions:
        return None
    read = [value for node in suppressions for value in node.inputs[:2]]
    graph.outputs[:] = list(dict.fromkeys(v for v in read if v is not None and v.producer()))
    common.RemoveUnusedNodesPass()(part)
    return part


def _prepared(source: SourceModel) -> ir.Model:
    return prepare(source, min_opset=13, static=False).ir


def _feeds(
    active: ort.InferenceSession,
    model: ir.Model,
    static: bool,
    samples: DataLike | None,
    shapes: Mapping[str, Sequence[int]] | None,
) -> list[dict[str, Array]]:
    opened = None
    if samples is not None:
        limit = MOST_SAMPLES if static else SAMPLES
        opened = open_samples(samples, input_specs(model), limit, None)
    if not static:
        given = [dict(opened[i]) for i in range(len(opened))] if opened is not None else []
        if given and any(node.op_type == "NonMaxSuppression" for node in model.graph):
            return given  # random numbers are no boxes: runtimes differ where these have no area
        return [dict(feeds_for(active, active, shapes=shapes)[0]), *given]
    first = dict(opened[0] if opened is not None else feeds_for(active, active, shapes=shapes)[0])
    sizes = [y.size for y in run(active, first) if y.dtype.kind == "f" and y.size]
    wanted = max(SAMPLES, min(MOST_SAMPLES, -(-VALUES // min(sizes, default=VALUES))))
    if opened is not None:  # random values are not what it was calibrated for
        return [dict(opened[i]) for i in range(min(wanted, len(opened)))]
    rng = np.random.default_rng(1)
    shuffled = (
        {name: rng.permuted(x.reshape(-1)).reshape(x.shape) for name, x in first.items()}
        for _ in range(wanted - 1)
    )
    return [first, *shuffled]


def without_activations(model: ir.Model) -> ir.Model:
    """The model with float activations and the weights that its integers stand for."""
    twin = model.clone()
    for graph in twin.graphs():
        for node in list(graph):
            if node.op_type != "DequantizeLinear":
                continue
            value = node.outputs[0]
            stored = stored_of(value)
            if stored is not None:
                name = value.name or ""
                value.name = f"{name}/dequantized"
                replacement = new_value(graph, name, ir.tensor(stored.floats(), name=name))
            elif is_activation(value):
                found = source_of(value)
                if found is None or found is value:
                    continue
                replacement = found
            else:
                continue
            value.replace_all_uses_with(replacement)
            if not value.is_graph_output():
                graph.remove(node, safe=True)
    return twin


def judge(
    trial: Trial, label: str, tolerance: float, kernels: Mapping[str, Mapping[str, int]]
) -> Judgement:
    """Compare. Raises ConversionError if Paddle is further off than may be."""
    count = len(trial.feeds)
    if not trial.static:
        found = []
        for mode in trial.modes():
            for expected, got in zip(trial.expected, trial.results(mode), strict=True):
                differences = difference(trial.names, expected, got)
                what = f"{label}: Paddle Inference ({mode}) is not as onnxruntime"
                check(differences, tolerance, what, trial.rounded)
                found.append(differences)
        return Judgement(count, worst(found))
    noise = tuple(_noise(trial, i) for i in _float_outputs(trial))
    for one in noise:
        for mode, sqnr in one.paddle.items():
            if sqnr < min(one.onnxruntime - ALLOWED_LOSS, LOSSLESS):
                raise ConversionError(
                    f"{label}: output {one.output!r} has {sqnr:.1f} dB SQNR in Paddle Inference "
                    f"({mode}) and {one.onnxruntime:.1f} dB in onnxruntime; up to {ALLOWED_LOSS:g} "
                    "dB less is accepted; leave the last quantized layers float, or quantize "
                    "with target paddle if another tool quantized the model"
                )
    used = kernels.get("oneDNN int8", {})
    return Judgement(count, (), noise, used.get("int8"), used.get("float"))


def _float_outputs(trial: Trial) -> list[int]:
    return [i for i, y in enumerate(trial.expected[0]) if y.dtype.kind == "f"]


def _noise(trial: Trial, i: int) -> OutputNoise:
    """Of output `i`, over all inputs."""
    return OutputNoise(
        trial.names[i],
        _sqnr(trial, i, iter(trial.expected)),
        {mode: _sqnr(trial, i, trial.results(mode)) for mode in trial.modes()},
    )


def _sqnr(trial: Trial, i: int, results: Iterator[list[Array]]) -> float:
    sums = ErrorSums(centred=False)
    for reference, got in zip(trial.floats, results, strict=True):
        if reference[i].shape != got[i].shape:
            raise ConversionError(
                f"output {trial.names[i]!r} has shape {reference[i].shape} in float and "
                f"{got[i].shape} quantized: this cannot be compared"
            )
        sums.add(reference[i], got[i])
    return sums.sqnr


def described(found: Judgement | None) -> str:
    """What was found, in a sentence."""
    if found is None:
        return "not verified"
    inputs = "an input" if found.runs == 1 else f"{found.runs} inputs"
    if not found.noise:
        off = max((one.relative_error for one in found.differences), default=0.0)
        return f"Paddle Inference is within {off:.1e} of onnxruntime's range on {inputs}"
    worst_one = min(found.noise, key=lambda one: one.paddle["oneDNN int8"] - one.onnxruntime)
    return (
        f"output {worst_one.output!r} has {worst_one.paddle['oneDNN int8']:.1f} dB SQNR in Paddle "
        f"Inference, {worst_one.onnxruntime:.1f} dB in onnxruntime, on {inputs}; oneDNN runs "
        f"{found.int8_kernels} convolutions and products in int8, {found.float_kernels} in float"
    )
