"""The calls that quantize. A recipe says how; keyword arguments make one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, overload

import onnx

from onnxq.converters import Conversion, Workspace, to_onnx
from onnxq.data.images import ImageOptions
from onnxq.errors import ModelError, OptionError
from onnxq.files import check_writable
from onnxq.model import ModelLike, load
from onnxq.pipeline import Call, PathLike, Tell, run
from onnxq.recipe import (
    DEFAULT_METHOD,
    Accuracy,
    DynamicRecipe,
    Encoding,
    Granularity,
    Recipe,
    Rule,
    StaticRecipe,
    names,
)
from onnxq.recipe_file import load_recipe
from onnxq.report import Report
from onnxq.save import save
from onnxq.spread import Spread

if TYPE_CHECKING:
    from onnxq.calibration import Calibration
    from onnxq.collect import Progress
    from onnxq.data.samples import DataLike
    from onnxq.improve.mixed.goals import Evaluate

__all__ = ["calibrate", "export", "quantize", "quantize_dynamic", "quantize_static"]


@overload
def quantize(
    model: ModelLike,
    output: None = None,
    recipe: Recipe | PathLike = ...,
    data: DataLike | None = ...,
    *,
    statistics: Calibration | PathLike | None = ...,
    test_model: PathLike | None = ...,
    report: PathLike | None = ...,
    progress: Progress | None = ...,
    workers: int | None = ...,
    executor: Executor | None = ...,
    tell: Tell | None = ...,
    evaluate: Evaluate | None = ...,
) -> onnx.ModelProto: ...


@overload
def quantize(
    model: ModelLike,
    output: PathLike,
    recipe: Recipe | PathLike = ...,
    data: DataLike | None = ...,
    *,
    statistics: Calibration | PathLike | None = ...,
    test_model: PathLike | None = ...,
    report: PathLike | None = ...,
    progress: Progress | None = ...,
    workers: int | None = ...,
    executor: Executor | None = ...,
    tell: Tell | None = ...,
    evaluate: Evaluate | None = ...,
) -> Report: ...


def quantize(
    model: ModelLike,
    output: PathLike | None = None,
    recipe: Recipe | PathLike = DynamicRecipe(),  # noqa: B008  # frozen
    data: DataLike | None = None,
    *,
    statistics: Calibration | PathLike | None = None,
    test_model: PathLike | None = None,
    report: PathLike | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    tell: Tell | None = None,
    evaluate: Evaluate | None = None,
) -> Report | onnx.ModelProto:
    """Quantize by a recipe, or by the file of one.

    model: a path, an onnx.ModelProto or an onnx_ir.Model; it is not changed.
    output: the file to write; None returns the model instead of a report.
    data: samples for static mode; None for what the recipe names.
    statistics: a Calibration or the file of one, in place of data.
    test_model: also write a float model with the rounded weights here (dynamic mode).
    report: also write the report here, as JSON.
    progress: called with the number of samples done and of all.
    workers: run the samples, and the searches that measure node by node, in so many processes; the
        same bits. executor: any `concurrent.futures.Executor`, such as dask's
        `Client.get_executor()`, in their place.
    tell: called with a line of text: what the accuracy level will cost, and what it cost.
    evaluate: for a recipe with `max_drop`: takes the path of a model, returns how good it is.

    Raises OptionError, ModelError, DataError, CalibrationError or OutputError; then nothing has
    been written.
    """
    recipe_file = None
    if isinstance(recipe, str | os.PathLike):
        recipe_file = Path(recipe)
        recipe = load_recipe(recipe)
    return run(
        Call(
            model,
            None if output is None else Path(output),
            recipe,
            data,
            statistics,
            None if test_model is None else Path(test_model),
            None if report is None else Path(report),
            recipe_file,
            progress,
            Spread(workers, executor),
            tell,
            evaluate,
        )
    )


@overload
def quantize_dynamic(
    model: ModelLike,
    output: None = None,
    *,
    bits: int = ...,
    granularity: Granularity = ...,
    weight_correction: bool = ...,
    symmetric: bool = ...,
    encoding: Encoding = ...,
    include: Sequence[str] = ...,
    exclude: Sequence[str] = ...,
    include_ops: Sequence[str] = ...,
    exclude_ops: Sequence[str] = ...,
    rules: Sequence[Rule] = ...,
    test_model: PathLike | None = ...,
    report: PathLike | None = ...,
) -> onnx.ModelProto: ...


@overload
def quantize_dynamic(
    model: ModelLike,
    output: PathLike,
    *,
    bits: int = ...,
    granularity: Granularity = ...,
    weight_correction: bool = ...,
    symmetric: bool = ...,
    encoding: Encoding = ...,
    include: Sequence[str] = ...,
    exclude: Sequence[str] = ...,
    include_ops: Sequence[str] = ...,
    exclude_ops: Sequence[str] = ...,
    rules: Sequence[Rule] = ...,
    test_model: PathLike | None = ...,
    report: PathLike | None = ...,
) -> Report: ...


def quantize_dynamic(
    model: ModelLike,
    output: PathLike | None = None,
    *,
    bits: int = 8,
    granularity: Granularity = "channel",
    weight_correction: bool = False,
    symmetric: bool = True,
    encoding: Encoding = "qdq",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    include_ops: Sequence[str] = (),
    exclude_ops: Sequence[str] = (),
    rules: Sequence[Rule] = (),
    test_model: PathLike | None = None,
    report: PathLike | None = None,
) -> Report | onnx.ModelProto:
    """Store the weights as integers; activations stay float. Needs no data.

    bits: 8 or 16. granularity: one scale a channel or a tensor. symmetric: zero points are 0.
    weight_correction: each channel keeps its mean and its spread, at the cost of a few values that
        are not rounded to the nearest integer.
    encoding: `qdq`, the standard DequantizeLinear (load it with `onnxq.load_session`); or `fold`,
        Cast and Mul, which any onnxruntime session folds to float at load.
    include, exclude, include_ops, exclude_ops: which nodes, by glob pattern (of names of nodes, of
        the tensors they give or of the weights they read) and by op type.
    rules: settings of single nodes; see `Rule`.
    The rest as in `quantize`, errors too.

    At 8 bits in `qdq` a model below opset 13 is raised to 13. At 16 bits the opset stays: from 21
    on the standard operator takes int16, below it the one of com.microsoft is written.
    """
    recipe = DynamicRecipe(
        bits=bits,
        granularity=granularity,
        weight_correction=weight_correction,
        symmetric=symmetric,
        encoding=encoding,
        include=names("include", include),
        exclude=names("exclude", exclude),
        include_ops=names("include_ops", include_ops),
        exclude_ops=names("exclude_ops", exclude_ops),
        rules=tuple(rules),
    )
    if output is None:
        return quantize(model, None, recipe, test_model=test_model, report=report)
    return quantize(model, output, recipe, test_model=test_model, report=report)


@overload
def quantize_static(
    model: ModelLike,
    output: None = None,
    data: DataLike | None = ...,
    *,
    bits: int = ...,
    method: str = ...,
    percentile: float = ...,
    accuracy: Accuracy = ...,
    mixed_precision: bool = ...,
    target_sqnr: float | None = ...,
    target_agreement: float | None = ...,
    evaluate: Evaluate | str | None = ...,
    max_drop: float | None = ...,
    passes: Sequence[str] = ...,
    target: str | None = ...,
    isa: str | None = ...,
    granularity: Granularity = ...,
    weight_correction: bool = ...,
    symmetric: bool | None = ...,
    integer_io: bool = ...,
    samples: int | None = ...,
    batch_size: int = ...,
    images: ImageOptions | None = ...,
    statistics: Calibration | PathLike | None = ...,
    verify: bool = ...,
    tune_latency: bool = ...,
    include: Sequence[str] = ...,
    exclude: Sequence[str] = ...,
    include_ops: Sequence[str] = ...,
    exclude_ops: Sequence[str] = ...,
    rules: Sequence[Rule] = ...,
    report: PathLike | None = ...,
    progress: Progress | None = ...,
    workers: int | None = ...,
    executor: Executor | None = ...,
) -> onnx.ModelProto: ...


@overload
def quantize_static(
    model: ModelLike,
    output: PathLike,
    data: DataLike | None = ...,
    *,
    bits: int = ...,
    method: str = ...,
    percentile: float = ...,
    accuracy: Accuracy = ...,
    mixed_precision: bool = ...,
    target_sqnr: float | None = ...,
    target_agreement: float | None = ...,
    evaluate: Evaluate | str | None = ...,
    max_drop: float | None = ...,
    passes: Sequence[str] = ...,
    target: str | None = ...,
    isa: str | None = ...,
    granularity: Granularity = ...,
    weight_correction: bool = ...,
    symmetric: bool | None = ...,
    integer_io: bool = ...,
    samples: int | None = ...,
    batch_size: int = ...,
    images: ImageOptions | None = ...,
    statistics: Calibration | PathLike | None = ...,
    verify: bool = ...,
    tune_latency: bool = ...,
    include: Sequence[str] = ...,
    exclude: Sequence[str] = ...,
    include_ops: Sequence[str] = ...,
    exclude_ops: Sequence[str] = ...,
    rules: Sequence[Rule] = ...,
    report: PathLike | None = ...,
    progress: Progress | None = ...,
    workers: int | None = ...,
    executor: Executor | None = ...,
) -> Report: ...


def quantize_static(
    model: ModelLike,
    output: PathLike | None = None,
    data: DataLike | None = None,
    *,
    bits: int = 8,
    method: str = DEFAULT_METHOD,
    percentile: float = 0.9999,
    accuracy: Accuracy = "fast",
    mixed_precision: bool = True,
    target_sqnr: float | None = None,
    target_agreement: float | None = None,
    evaluate: Evaluate | str | None = None,
    max_drop: float | None = None,
    passes: Sequence[str] = (),
    target: str | None = None,
    isa: str | None = None,
    granularity: Granularity = "channel",
    weight_correction: bool = False,
    symmetric: bool | None = None,
    integer_io: bool = False,
    samples: int | None = None,
    batch_size: int = 1,
    images: ImageOptions | None = None,
    statistics: Calibration | PathLike | None = None,
    verify: bool = True,
    tune_latency: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    include_ops: Sequence[str] = (),
    exclude_ops: Sequence[str] = (),
    rules: Sequence[Rule] = (),
    report: PathLike | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
) -> Report | onnx.ModelProto:
    """Weights and activations become integers where the target runs them in int8.

    bits: 8, or 16, for which onnxruntime has no kernels: it calculates in float.
    data: samples for the ranges of activations (see `onnxq.data.samples.open_samples`); unlabelled.
    samples: how many to calibrate with, None for all. batch_size: how many run at once.
    images: how image files become arrays.
    method: KL, hist (percentile), mse, emd, ptf, avg, abs_max or min_max; or auto, which chooses
        for each tensor by the error of the outputs.
    percentile: for `hist`, the share to cover (0.9999, or 99.99 percent).
    accuracy: what is done beyond ranges: `none`; `fast`, about as long as calibration; `balanced`;
        or `best`, minutes. Whatever makes the outputs worse is taken back; see `Report.ledger`.
    mixed_precision: at `balanced` and `best`, leave a few nodes float where int8 costs most.
    target_sqnr (dB), target_agreement (percent): leave as few nodes float as it takes for this, on
        samples that nothing was fitted to; the report says which (`Report.mixed`).
    evaluate, max_drop: the same for a number of your own: a function (or `module:function`) that
        takes the path of a model, higher being better, and how far below float's it may be.
    passes: names of passes besides those of the level: smoothquant, equalization, range_choice,
        bias_correction, rounding, adaround.
    target: one of onnxruntime-x86, onnxruntime-arm, openvino, tensorrt, paddle; None for
        onnxruntime on this machine's kind of processor.
    isa: avx2, avx512, vnni or arm: of the processor that will run a file for onnxruntime-x86; None
        for that of this machine. Weights are made to fit sums that saturate without VNNI.
    granularity, weight_correction: of weights.
    symmetric: of activations; None for the target's choice.
    integer_io: float inputs and outputs become integers; the report says with which parameters.
    verify: hold some samples back (see `onnxq.data.split`) and compare both models on them.
    tune_latency: time the model in onnxruntime on this machine, and leave float what loses time;
        the report says what, and the rules that repeat the choice without timing.
    include, exclude, include_ops, exclude_ops, rules: as in `quantize_dynamic`.
    The rest as in `quantize`, errors too.
    """
    recipe = StaticRecipe(
        bits=bits,
        method=method,
        percentile=percentile,
        accuracy=accuracy,
        mixed_precision=mixed_precision,
        target_sqnr=target_sqnr,
        target_agreement=target_agreement,
        evaluate=evaluate if isinstance(evaluate, str) else None,
        max_drop=max_drop,
        passes=names("passes", passes),
        target=target,
        isa=isa,
        granularity=granularity,
        weight_correction=weight_correction,
        symmetric=symmetric,
        integer_io=integer_io,
        samples=samples,
        batch_size=batch_size,
        images=images,
        verify=verify,
        tune_latency=tune_latency,
        include=names("include", include),
        exclude=names("exclude", exclude),
        include_ops=names("include_ops", include_ops),
        exclude_ops=names("exclude_ops", exclude_ops),
        rules=tuple(rules),
    )
    function = None if isinstance(evaluate, str) else evaluate
    path = None if output is None else Path(output)
    saved = None if report is None else Path(report)
    return run(
        Call(
            model,
            path,
            recipe,
            data,
            statistics,
            report=saved,
            progress=progress,
            spread=Spread(workers, executor),
            evaluate=function,
        )
    )


def calibrate(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    recipe: StaticRecipe | PathLike | None = None,
    samples: int | None = None,
    batch_size: int | None = None,
    images: ImageOptions | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    include_ops: Sequence[str] | None = None,
    exclude_ops: Sequence[str] | None = None,
    checkpoint: PathLike | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
) -> Calibration:
    """Statistics from which `quantize_static` can take the ranges for any method and any target.

    recipe: of which data, samples, batch_size, images and what chooses nodes count; the arguments
        given beside it go before what it says. The others as in `quantize_static`.
    checkpoint: a file in which the statistics are saved as they grow. If the process dies, the same
        call goes on from there; at the end the file is what `Calibration.save` would write.
    workers, executor: as in `quantize`.

    `Calibration.save` writes the statistics, `Calibration.merge` adds those of other samples.
    """
    base = load_recipe(recipe) if isinstance(recipe, str | os.PathLike) else recipe
    if not isinstance(base, StaticRecipe | None):
        raise OptionError("calibrate needs a recipe of static mode: dynamic mode needs no samples")
    given = {
        "samples": samples,
        "batch_size": batch_size,
        "images": images,
        "include": None if include is None else names("include", include),
        "exclude": None if exclude is None else names("exclude", exclude),
        "include_ops": None if include_ops is None else names("include_ops", include_ops),
        "exclude_ops": None if exclude_ops is None else names("exclude_ops", exclude_ops),
    }
    changes = {name: value for name, value in given.items() if value is not None}
    merged = dataclasses.replace(base or StaticRecipe(), **changes)  # type: ignore[arg-type]  # each has its field's type
    from onnxq.static_mode import collect_statistics  # dynamic mode needs none of it

    return collect_statistics(
        load(model),
        data,
        merged,
        progress,
        Spread(workers, executor),
        None if checkpoint is None else Path(checkpoint),
    )


def export(
    model: PathLike,
    output: PathLike,
    *,
    converter: str | None = None,
    options: Mapping[str, str] | None = None,
) -> Conversion:
    """Convert a model of another framework to an ONNX file; returns what the converter said.

    converter: its name; None for the installed one that takes the model. options: its own, as text.

    Raises ConversionError, ModelError, OptionError or OutputError; then nothing has been written.
    """
    source = Path(model)
    if not source.exists():
        raise ModelError(f"{model}: no such file or directory")
    path = Path(output)
    check_writable(path)
    workspace = Workspace()
    converted = workspace.path / "model.onnx"
    done = to_onnx(source, converted, name=converter, options=options)
    save(load(converted).ir, path, lambda _: None)
    return done
