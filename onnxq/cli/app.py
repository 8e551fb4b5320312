"""The commands, their options and help texts."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from onnxq import __version__
from onnxq.cli.show import console, print_json, print_report, progress_bar
from onnxq.errors import OnnxqError

__all__ = ["run"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Post-training quantization of ONNX models for onnxruntime.",
)


class Bits(StrEnum):
    EIGHT, SIXTEEN = "8", "16"


class Granularity(StrEnum):
    CHANNEL, TENSOR = "channel", "tensor"


class Encoding(StrEnum):
    QDQ, FOLD = "qdq", "fold"


# Spelled out, so that --help needs no import of the numerics; a test compares them with the tables
class Method(StrEnum):
    KL, HIST, PERCENTILE, MSE, EMD = "KL", "hist", "percentile", "mse", "emd"
    AVG, ABS_MAX, MIN_MAX = "avg", "abs_max", "min_max"


class TargetName(StrEnum):
    X86, ARM = "onnxruntime-x86", "onnxruntime-arm"
    OPENVINO, TENSORRT, PADDLE = "openvino", "tensorrt", "paddle"


Model = Annotated[Path, typer.Argument(help="The float ONNX model.", show_default=False)]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="The file to write.", show_default=False)
]
Data = typer.Option(
    "--data",
    help="Samples: an .npy or .npz file (samples along axis 0), or a directory of such files, one "
    "sample each.",
    show_default=False,
)
Count = Annotated[int | None, typer.Option("--samples", min=1, help="Use so many samples.")]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="Samples run at once.")]
Channels = Annotated[Granularity, typer.Option(help="One scale a channel or a tensor.")]
Include = Annotated[
    list[str] | None,
    typer.Option("--include", metavar="PATTERN", help="Only nodes whose name matches."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="PATTERN", help="Leave nodes float whose name matches."),
]
IncludeOp = Annotated[
    list[str] | None, typer.Option("--include-op", metavar="TYPE", help="Only this op type.")
]
ExcludeOp = Annotated[
    list[str] | None, typer.Option("--exclude-op", metavar="TYPE", help="Not this op type.")
]
Json = Annotated[bool, typer.Option("--json", help="Print figures as JSON.")]


@app.command()
def dynamic(
    model: Model,
    output: Output,
    bits: Annotated[Bits, typer.Option(help="Of the stored weights.")] = Bits.EIGHT,
    granularity: Channels = Granularity.CHANNEL,
    encoding: Annotated[
        Encoding,
        typer.Option(
            help="qdq: DequantizeLinear, the standard. fold: Cast and Mul, which any onnxruntime "
            "session folds at load."
        ),
    ] = Encoding.QDQ,
    test_model: Annotated[
        Path | None, typer.Option(help="Also write a float model with the rounded weights.")
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    include_op: IncludeOp = None,
    exclude_op: ExcludeOp = None,
    json: Json = False,
) -> None:
    """Store weights as INT8 or INT16: 1/4 or 1/2 of the size. Needs no data."""
    from onnxq.api import quantize_dynamic

    report = quantize_dynamic(
        model,
        output,
        bits=int(bits.value),
        granularity=granularity.value,
        encoding=encoding.value,
        include=include or (),
        exclude=exclude or (),
        include_ops=include_op or (),
        exclude_ops=exclude_op or (),
        test_model=test_model,
    )
    print_report(report, as_json=json)


@app.command()
def static(
    model: Model,
    output: Output,
    data: Annotated[str | None, Data] = None,
    samples: Count = None,
    batch_size: Batch = 1,
    method: Annotated[Method, typer.Option(help="How ranges are chosen.")] = Method.MSE,
    percentile: Annotated[
        float, typer.Option(help="For hist and percentile: the share to cover.")
    ] = 0.9999,
    target: Annotated[
        TargetName | None,
        typer.Option(help="The runtime; default: onnxruntime on this kind of processor."),
    ] = None,
    granularity: Channels = Granularity.CHANNEL,
    statistics: Annotated[
        Path | None, typer.Option(help="From `onnxq calibrate`, in place of --data.")
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    include_op: IncludeOp = None,
    exclude_op: ExcludeOp = None,
    json: Json = False,
) -> None:
    """Quantize weights and activations to INT8, with ranges from samples."""
    from onnxq.api import quantize_static

    with progress_bar("calibrating") as progress:
        report = quantize_static(
            model,
            output,
            data,
            method=method.value,
            percentile=percentile,
            target=target.value if target else None,
            granularity=granularity.value,
            samples=samples,
            batch_size=batch_size,
            statistics=statistics,
            include=include or (),
            exclude=exclude or (),
            include_ops=include_op or (),
            exclude_ops=exclude_op or (),
            progress=progress,
        )
    print_report(report, as_json=json)


@app.command()
def calibrate(
    model: Model,
    data: Annotated[str, Data],
    output: Output,
    samples: Count = None,
    batch_size: Batch = 1,
    include: Include = None,
    exclude: Exclude = None,
    include_op: IncludeOp = None,
    exclude_op: ExcludeOp = None,
    json: Json = False,
) -> None:
    """Collect statistics once, for any method and any target of `static --statistics`."""
    from onnxq.api import calibrate as collect
    from onnxq.files import check_writable

    check_writable(output)
    with progress_bar("calibrating") as progress:
        calibration = collect(
            model,
            data,
            samples=samples,
            batch_size=batch_size,
            include=include or (),
            exclude=exclude or (),
            include_ops=include_op or (),
            exclude_ops=exclude_op or (),
            progress=progress,
        )
    calibration.save(output)
    figures = {
        "output": str(output),
        "samples": calibration.samples,
        "tensors": len(calibration.tensors),
    }
    if json:
        print_json(figures)
    else:
        console.print(
            f"{escape(str(output))}: statistics of {len(calibration.tensors)} tensors over "
            f"{calibration.samples} samples"
        )


@app.command()
def demo(
    directory: Annotated[
        Path | None, typer.Option(help="Keep the models here; default: a temporary directory.")
    ] = None,
    json: Json = False,
) -> None:
    """Quantize the embedded network (handwritten digits) in three ways and compare."""
    from onnxq.demo import run_demo
    from onnxq.demo.table import print_demo

    rows = run_demo(directory)
    if json:
        print_json([row.to_dict() for row in rows])
    else:
        print_demo(rows)


def _version(show: bool) -> None:
    if show:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and exit.")
    ] = False,
) -> None:
    """Post-training quantization of ONNX models for onnxruntime."""


def run() -> None:
    """Run the command line; an error of onnxq's is one line on stderr and exit code 1."""
    try:
        app()
    except OnnxqError as error:
        from rich.console import Console

        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
