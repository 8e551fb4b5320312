"""`paddleslim.quant`: post-training quantization under PaddleSlim's names.

Both calls export the Paddle model to ONNX, quantize that, and write `model.onnx` and a Paddle model
beside it. They return onnxq's report. What PaddleSlim's arguments mean here, and the differences:
docs/paddleslim.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

import onnxq
from onnxq.converters import Workspace
from onnxq.data.samples import Samples, input_specs
from onnxq.errors import DataError, OnnxqError, OptionError, OutputError
from onnxq.model import load
from onnxq.recipe import Granularity, check_choice
from onnxq_paddle.emitting import to_paddle
from onnxq_paddle.exporting import export
from onnxq_paddle.paddleslim.data import Source, source_of
from onnxq_paddle.paddleslim.ops import check_ops, left_float, skipped

__all__ = ["quant_post", "quant_post_dynamic", "quant_post_only_weight", "quant_post_static"]

PathLike = str | os.PathLike[str]
Shapes = Mapping[str, Sequence[int]]

ONNX_FILE = "model.onnx"
GRANULARITIES: Mapping[str, Granularity] = {"channel_wise_abs_max": "channel", "abs_max": "tensor"}
ALGORITHMS = ("KL", "hist", "mse", "emd", "avg", "abs_max", "min_max", "ptf")
ACTIVATION_TYPES = ("range_abs_max", "moving_average_abs_max", "abs_max")
# Paddle's runtimes take symmetric activations; what TensorRT fuses differs
BACKENDS = {None: "paddle", "mkldnn": "paddle", "arm": "paddle", "tensorrt": "tensorrt"}


@dataclass(frozen=True)
class _Place:
    """Where a model is written, and under which names. paddle: whether the Paddle model is, too."""

    directory: Path
    model_filename: str
    params_filename: str
    paddle: bool

    @property
    def onnx(self) -> Path:
        return self.directory / ONNX_FILE

    def make(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.directory}: cannot be made: {error.strerror}") from error

    def beside(
        self,
        *,
        verify: bool,
        shapes: Shapes | None,
        reference: Path | None = None,
        samples: Samples | None = None,
    ) -> None:
        """Write the Paddle model of the ONNX model, which is complete; see `to_paddle`."""
        if not self.paddle:
            return
        try:
            to_paddle(
                self.onnx,
                self.directory,
                model_filename=self.model_filename,
                params_filename=self.params_filename,
                verify=verify,
                shapes=shapes,
                reference=reference,
                samples=samples,
            )
        except OnnxqError as error:
            raise type(error)(
                f"{error}; the ONNX model is complete, in {self.onnx}: paddle_model=False writes "
                "that alone, verify=False the Paddle model as it is"
            ) from error


def quant_post_dynamic(
    model_dir: PathLike,
    save_model_dir: PathLike,
    model_filename: str | None = None,
    params_filename: str | None = None,
    save_model_filename: str | None = "model.pdmodel",
    save_params_filename: str | None = "model.pdiparams",
    quantizable_op_type: Sequence[str] = ("conv2d", "mul"),
    weight_bits: int = 8,
    generate_test_model: bool = False,
    weight_quantize_type: str = "channel_wise_abs_max",
    *,
    shapes: Shapes | None = None,
    verify: bool = True,
    paddle_model: bool = True,
) -> onnxq.Report:
    """Store weights as INT8 or INT16; activations stay float. Needs no data.

    model_dir: of the float Paddle model. save_model_dir: gets the directory `quantized_model`.
    model_filename, params_filename: in model_dir; found when left out.
    save_model_filename, save_params_filename: of the Paddle model; `model.onnx` lies beside it.
    quantizable_op_type: Paddle's names; `mul` means all Linear layers.
    weight_bits: 8 or 16.
    generate_test_model: also write `test_model`, float with the rounded weights.
    weight_quantize_type: channel_wise_abs_max or abs_max.

    Not PaddleSlim's:
    shapes: of inputs, by name, for verification, where the model's own leave them open.
    verify: compare what was converted with the original, on random input.
    paddle_model: write the Paddle models; False for ONNX alone.

    Raises what `onnxq_paddle.export`, `onnxq.quantize` and `onnxq_paddle.to_paddle` raise.
    """
    check_choice("weight_bits", weight_bits, (8, 16))
    check_choice("weight_quantize_type", weight_quantize_type, GRANULARITIES)
    wanted = check_ops(quantizable_op_type, static=False)
    place, test = (
        _place(save_model_dir, name, save_model_filename, save_params_filename, paddle_model)
        for name in ("quantized_model", "test_model")
    )
    workspace = Workspace()
    source = workspace.path / "float.onnx"
    try:
        export(
            model_dir,
            source,
            model_filename=model_filename,
            params_filename=params_filename,
            verify=verify,
            shapes=shapes,
        )
    except DataError as error:
        raise DataError(f"{error} (of this call: shapes and verify)") from error
    recipe = onnxq.DynamicRecipe(
        bits=weight_bits,
        granularity=GRANULARITIES[weight_quantize_type],
        exclude=left_float(_graph(source), wanted),
    )
    place.make()
    if generate_test_model:
        test.make()
    test_model = test.onnx if generate_test_model else None
    report = onnxq.quantize(source, place.onnx, recipe, test_model=test_model)
    for written in (place, test)[: 1 + generate_test_model]:
        written.beside(verify=verify, shapes=shapes)
    return report


def quant_post_static(
    executor: object,
    model_dir: PathLike,
    quantize_model_path: PathLike,
    batch_generator: Any = None,
    sample_generator: Any = None,
    data_loader: Any = None,
    model_filename: str | None = None,
    params_filename: str | None = None,
    save_model_filename: str | None = "model.pdmodel",
    save_params_filename: str | None = "model.pdiparams",
    batch_size: int = 1,
    batch_nums: int | None = None,
    scope: object = None,
    algo: str = "hist",
    round_type: str = "round",
    hist_percent: float = 0.9999,
    bias_correction: bool = False,
    quantizable_op_type: Sequence[str] = (
        "conv2d",
        "depthwise_conv2d",
        "conv2d_transpose",
        "mul",
        "matmul",
        "matmul_v2",
    ),
    is_full_quantize: bool = False,
    weight_bits: int = 8,
    activation_bits: int = 8,
    activation_quantize_type: str = "range_abs_max",
    weight_quantize_type: str = "channel_wise_abs_max",
    optimize_model: bool = False,
    onnx_format: bool = True,
    skip_tensor_list: Sequence[str] | None = None,
    deploy_backend: str | None = None,
    *,
    shapes: Shapes | None = None,
    verify: bool = True,
    paddle_model: bool = True,
) -> onnxq.Report:
    """Quantize weights and activations, with ranges from calibration data.

    executor, scope: accepted and not needed: nothing runs in the caller's Paddle.
    model_dir: of the float Paddle model. quantize_model_path: the directory to write.
    batch_generator, sample_generator, data_loader: one of them; see `onnxq_paddle.paddleslim.data`.
    model_filename, params_filename: in model_dir; found when left out.
    save_model_filename, save_params_filename: of the Paddle model; `model.onnx` lies beside it.
    batch_size, batch_nums: so many samples together, so many batches; None for all.
    algo: KL, hist (hist_percent), mse, emd, avg, abs_max, min_max or ptf.
    round_type: round, or adaround (onnxq's pass of that name, which also corrects biases).
    bias_correction: of each layer's bias (onnxq's pass of that name).
    quantizable_op_type: Paddle's names. is_full_quantize: all operators, whatever is named.
    weight_bits, activation_bits: both 8, or both 16 (ONNX alone).
    activation_quantize_type: makes no difference, as in PaddleSlim with onnx_format.
    weight_quantize_type: channel_wise_abs_max or abs_max.
    optimize_model: BatchNormalization is folded into convolutions in any case.
    onnx_format: True: quantize_linear and dequantize_linear.
    skip_tensor_list: operators that read one of these tensors stay float.
    deploy_backend: None, tensorrt, mkldnn or arm.

    Not PaddleSlim's:
    shapes, verify, paddle_model: as in `quant_post_dynamic`.

    Raises what `onnxq_paddle.export`, `onnxq.quantize` and `onnxq_paddle.to_paddle` raise.
    """
    del executor, scope, optimize_model
    _check_bits(weight_bits, activation_bits, algo, paddle_model)
    _check_static(round_type, onnx_format, hist_percent)
    check_choice("algo", algo, ALGORITHMS)
    check_choice("activation_quantize_type", activation_quantize_type, ACTIVATION_TYPES)
    check_choice("weight_quantize_type", weight_quantize_type, GRANULARITIES)
    backend = deploy_backend.lower() if isinstance(deploy_backend, str) else deploy_backend
    check_choice("deploy_backend", backend or None, BACKENDS)
    wanted = check_ops(None if is_full_quantize else quantizable_op_type, static=True)
    given = {
        "sample_generator": sample_generator,
        "batch_generator": batch_generator,
        "data_loader": data_loader,
    }
    data = source_of(given, batch_size=batch_size, batch_nums=batch_nums)
    place = _place(quantize_model_path, "", save_model_filename, save_params_filename, paddle_model)
    workspace = Workspace()
    source = workspace.path / "float.onnx"
    names = {"model_filename": model_filename, "params_filename": params_filename}
    samples = _export_and_open(model_dir, source, data, names, shapes, verify)
    graph = _graph(source)
    recipe = onnxq.StaticRecipe(
        bits=activation_bits,
        target=BACKENDS[backend or None],
        method=algo,
        percentile=hist_percent,
        granularity=GRANULARITIES[weight_quantize_type],
        accuracy="none",  # what is asked for here, and nothing else
        passes=(
            *(("bias_correction",) if bias_correction else ()),
            *(("adaround",) if round_type == "adaround" else ()),
        ),
        batch_size=batch_size,
        exclude=tuple(
            dict.fromkeys((*left_float(graph, wanted), *skipped(graph, skip_tensor_list or ())))
        ),
        verify=False,  # all samples calibrate, as in PaddleSlim: the same ranges
    )
    place.make()
    report = onnxq.quantize(source, place.onnx, recipe, samples)
    place.beside(verify=verify, shapes=shapes, reference=source, samples=samples)
    return report


quant_post_only_weight = quant_post_dynamic
quant_post = quant_post_static


def _export_and_open(
    model_dir: PathLike,
    source: Path,
    data: Source,
    names: Mapping[str, str | None],
    shapes: Shapes | None,
    verify: bool,
) -> Samples:
    """Export the model to the file `source`, and open the data as samples of it.

    Where the model's inputs have open dimensions, random input may not run: then the samples say
    which sizes do, and the export is verified on them.
    """
    try:
        export(model_dir, source, **names, verify=verify, shapes=shapes)  # type: ignore[arg-type]  # two names
    except DataError:
        if not verify or shapes is not None:
            raise
    else:
        return data.open(input_specs(_graph(source)))
    export(model_dir, source, **names, verify=False)  # type: ignore[arg-type]  # two names
    samples = data.open(input_specs(_graph(source)))
    seen = {name: list(array.shape) for name, array in samples[0].items()}
    export(model_dir, source, **names, shapes=seen, samples=samples)  # type: ignore[arg-type]  # two names
    return samples


def _graph(path: Path) -> ir.Model:
    return load(path).ir


def _place(
    directory: PathLike, below: str, model: str | None, params: str | None, paddle: bool
) -> _Place:
    name = "model.pdmodel" if model is None else model
    if name != "__model__" and not name.endswith(".pdmodel"):
        name = f"{name}.pdmodel"  # as PaddleSlim does
    if params is None:
        raise OptionError(
            "save_params_filename=None: parameters in separate files are not written; name a file"
        )
    for file in (name, params):
        if Path(file).name != file:
            raise OptionError(f"{file!r} is no file name: name the directory on its own")
    if len({name, params, ONNX_FILE}) < 3:
        raise OptionError(f"{name!r}, {params!r} and {ONNX_FILE!r} must be three files")
    return _Place(Path(directory, below), name, params, paddle)


def _check_bits(weight_bits: int, activation_bits: int, algo: str, paddle_model: bool) -> None:
    check_choice("weight_bits", weight_bits, (8, 16))
    check_choice("activation_bits", activation_bits, (8, 16))
    if weight_bits != activation_bits:
        raise OptionError(
            f"weight_bits {weight_bits} and activation_bits {activation_bits} must be equal; "
            "16-bit weights with float activations are quant_post_dynamic's"
        )
    if activation_bits > 8 and algo == "KL":
        raise OptionError("algo 'KL' degenerates above 8 bits: choose another one")
    if activation_bits > 8 and paddle_model:
        raise OptionError(
            "Paddle has no 16-bit quantize_linear: pass paddle_model=False to write the ONNX model "
            "alone, or take 8 bits"
        )


def _check_static(round_type: str, onnx_format: bool, hist_percent: float) -> None:
    check_choice("round_type", round_type, ("round", "adaround"))
    if not onnx_format:
        raise OptionError(
            "onnx_format=False: models with fake-quantize operators are not written; "
            "onnx_format=True (the default) writes quantize_linear and dequantize_linear"
        )
    if not 0.5 < hist_percent <= 1:
        raise OptionError(
            f"hist_percent {hist_percent:g} is out of range: give a share above 0.5 and up to 1"
        )
