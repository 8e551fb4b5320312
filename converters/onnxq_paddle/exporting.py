"""Export: a Paddle model as an ONNX file, cleaned, and verified against Paddle."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from onnxq.converters import Workspace
from onnxq.data.samples import DataLike, input_specs, open_samples
from onnxq.errors import ConversionError, ModelError, OptionError, one_line
from onnxq.files import check_writable
from onnxq.model import load
from onnxq.qtypes import Array
from onnxq.save import save
from onnxq_paddle.arrays import read_arrays, write_arrays
from onnxq_paddle.child import call, check_installed
from onnxq_paddle.cleaning import clean
from onnxq_paddle.files import PaddleFiles, find_files
from onnxq_paddle.verifying import OutputDifference, check, difference, run_onnx, sigmoids, worst

__all__ = ["ExportReport", "export", "from_layer", "save_layer"]

PathLike = str | os.PathLike[str]

OPSETS = range(13, 22)
SAMPLES = 4


@dataclass(frozen=True)
class ExportReport:
    """What became of a Paddle model.

    outputs: how far onnxruntime is from Paddle, by output; empty if that was not verified.
    runs: on how many inputs that was measured.
    """

    output: Path
    origin: Path
    outputs: tuple[OutputDifference, ...]
    runs: int

    @property
    def relative_error(self) -> float:
        """The largest of any output."""
        return max((one.relative_error for one in self.outputs), default=0.0)


def export(
    model: PathLike,
    output: PathLike,
    *,
    model_filename: str | None = None,
    params_filename: str | None = None,
    opset: int = 17,
    verify: bool = True,
    tolerance: float = 1e-4,
    samples: DataLike | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> ExportReport:
    """Convert a Paddle inference model to ONNX.

    model: its directory, one of its files, or the path prefix that `paddle.jit.save` was given.
    model_filename, params_filename: names in the directory; None to find them.
    verify: run Paddle and onnxruntime on random input, and on up to 4 of `samples` if given.
    tolerance: the largest difference of an output that is accepted, as a share of its range.
    shapes: of inputs, by name, for the random input, where the model's own leave them open.

    Raises ConversionError if it cannot be converted or an output differs, OptionError, DataError or
    OutputError. Then nothing has been written.
    """
    if opset not in OPSETS:
        raise OptionError(f"opset {opset}: {OPSETS.start} to {OPSETS.stop - 1} can be written")
    if not verify and (samples is not None or shapes):
        raise OptionError("samples and shapes are for verification, which is off")
    path = Path(output)
    check_writable(path)
    files = find_files(Path(model), model_filename=model_filename, params_filename=params_filename)
    workspace = Workspace()
    raw, feed = workspace.path / "raw.onnx", workspace.path / "feed.npz"
    answer = call(
        "convert",
        {
            **_named(files),
            "dest": str(raw),
            "opset": opset,
            "feed": str(feed) if verify else None,
            "shapes": {name: list(shape) for name, shape in (shapes or {}).items()},
        },
    )
    try:
        cleaned = clean(raw, answer["names"])
    except ModelError as error:
        raise ConversionError(
            f"{files.model}: what paddle2onnx made is no model: {error}"
        ) from error
    found: list[list[OutputDifference]] = []

    def verified(written: Path) -> None:
        if not verify:
            return
        expected = [_read(feed)]
        if samples is not None:
            expected += _on_samples(files, written, samples, workspace.path)
        runs = run_onnx(written, [given for given, _ in expected])
        for (_, outputs), got in zip(expected, runs, strict=True):
            names = list(outputs)
            differences = difference(names, [outputs[name] for name in names], got)
            what = f"{files.model}: onnxruntime is not as Paddle"
            check(differences, tolerance, what, sigmoids(cleaned))
            found.append(differences)

    save(cleaned, path, verified)
    return ExportReport(path, Path(model), worst(found) if found else (), len(found))


def from_layer(
    layer: Any,
    input_spec: Sequence[Any],
    *,
    opset: int = 17,
    verify: bool = True,
    tolerance: float = 1e-4,
    samples: DataLike | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> onnx.ModelProto:
    """A `paddle.nn.Layer` as an ONNX model, which every function of onnxq takes.

    input_spec: `paddle.static.InputSpec` of each input, as for `paddle.jit.save`.
    Raises as `export` does.
    """
    workspace = Workspace()
    prefix = save_layer(layer, input_spec, workspace.path / "layer")
    output = workspace.path / "layer.onnx"
    export(
        prefix,
        output,
        opset=opset,
        verify=verify,
        tolerance=tolerance,
        samples=samples,
        shapes=shapes,
    )
    return onnx.load(str(output))


def save_layer(layer: Any, input_spec: Sequence[Any], prefix: Path) -> Path:
    """Write the layer as an inference model, for which it is put in evaluation mode and back."""
    check_installed()
    import paddle

    if not isinstance(layer, paddle.nn.Layer):
        raise OptionError(f"a paddle.nn.Layer is needed, got {type(layer).__name__}")
    if not isinstance(input_spec, list | tuple) or not input_spec:
        raise OptionError("input_spec is a list with a paddle.static.InputSpec for each input")
    parts = [layer, *layer.sublayers()]
    modes = [part.training for part in parts]
    layer.eval()
    try:
        paddle.jit.save(layer, str(prefix), input_spec=list(input_spec))
    except Exception as error:  # Paddle's tracing raises what the layer's code does
        raise ConversionError(f"Paddle cannot trace the layer: {one_line(error)}") from error
    finally:
        for part, training in zip(parts, modes, strict=True):
            part.training = training
    return prefix


def _named(files: PaddleFiles) -> dict[str, str | None]:
    params = None if files.params is None else os.path.abspath(files.params)
    return {"model": os.path.abspath(files.model), "params": params}


def _read(file: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    arrays = read_arrays(file)
    inputs = {k.removeprefix("in:"): x for k, x in arrays.items() if k.startswith("in:")}
    outputs = {k.removeprefix("out:"): x for k, x in arrays.items() if k.startswith("out:")}
    return inputs, outputs


def _on_samples(
    files: PaddleFiles, converted: Path, samples: DataLike, folder: Path
) -> list[tuple[dict[str, Array], dict[str, Array]]]:
    """The first samples, and what Paddle makes of them."""
    opened = open_samples(samples, input_specs(load(converted).ir), SAMPLES, None)
    feeds, inputs, outputs = [], [], []
    for i in range(min(SAMPLES, len(opened))):
        feeds.append(dict(opened[i]))
        inputs.append(folder / f"sample{i}.npz")
        outputs.append(folder / f"result{i}.npz")
        write_arrays(inputs[-1], feeds[-1])
    call("run", {**_named(files), "feeds": [*map(str, inputs)], "outputs": [*map(str, outputs)]})
    results = []
    for feed, file in zip(feeds, outputs, strict=True):
        results.append((feed, read_arrays(file)))
    return results
