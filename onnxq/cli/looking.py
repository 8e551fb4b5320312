"""The commands that look: inspect, plan, compare, benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxq.cli.options import (
    Json,
    Model,
    ModeOption,
    Settings,
    dynamic_options,
    image_options,
    images_of,
    recipe_of,
    sample_options,
    shapes_of,
    static_options,
    takes,
)
from onnxq.cli.terminal import console, print_json, progress_bar

__all__ = ["benchmark", "compare", "inspect", "plan"]

Reference = Annotated[Path, typer.Argument(help="The float model.", show_default=False)]
Quantized = Annotated[Path, typer.Argument(help="The quantized model.", show_default=False)]


def inspect(
    model: Model,
    top: Annotated[int, typer.Option(min=0, help="How many of the largest weights to list.")] = 10,
    json: Json = False,
) -> None:
    """Tell what a model holds, whether it is quantized already, and what could be."""
    from onnxq.cli.show_look import print_inspection
    from onnxq.inspection import inspect as look

    found = look(model)
    if json:
        print_json(found.to_dict())
    else:
        print_inspection(found, top)


@takes(sample_options, static_options, dynamic_options, image_options)
def plan(
    model: Model,
    settings: Settings,
    mode: ModeOption = None,
    json: Json = False,
) -> None:
    """Tell what would be quantized, where, with which parameters, and why the rest would not."""
    recipe = recipe_of(settings, mode and mode.value)
    from onnxq.planning import plan as make

    made = make(model, recipe)
    if json:
        print_json(made.to_dict())
    else:
        typer.echo(str(made), nl=False)


@takes(image_options, recipe=False)
def compare(
    reference: Reference,
    quantized: Quantized,
    settings: Settings,
    data: Annotated[
        str, typer.Option("--data", help="Samples, as for `static`.", show_default=False)
    ],
    labels: Annotated[
        Path | None,
        typer.Option(help="A .csv with a column `label`, an .npy or an .npz; default: the data's."),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Use so many samples.")] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Also compare each quantized tensor.")
    ] = False,
    label_offset: Annotated[
        int, typer.Option(min=0, help="Index of the model's first class (1 behind a background).")
    ] = 0,
    label_classes: Annotated[
        Path | None, typer.Option(help="Names of the labels' classes, one a line.")
    ] = None,
    model_classes: Annotated[
        Path | None, typer.Option(help="The same names in the order of the model's outputs.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare a quantized model with its float original, on samples."""
    from onnxq.cli.show_look import print_comparison
    from onnxq.measure.comparison import compare as run

    images = images_of(settings)
    with progress_bar("comparing") as progress:
        found = run(
            reference,
            quantized,
            data,
            samples=samples,
            images=images,
            labels=labels,
            label_offset=label_offset,
            label_classes=label_classes,
            model_classes=model_classes,
            layers=layers,
            progress=progress,
        )
    if json:
        print_json(found.to_dict())
    else:
        print_comparison(found)


@takes(image_options, recipe=False)
def benchmark(
    reference: Reference,
    quantized: Quantized,
    settings: Settings,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Within an operator; default: all cores.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Where the leading dimension is dynamic.")] = 1,
    seconds: Annotated[float, typer.Option(min=0, help="To time runs for, at least.")] = 5.0,
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", metavar="INPUT=1x3x224x224", help="Of an input; may be repeated."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Run on the first of these samples.")
    ] = None,
    json: Json = False,
) -> None:
    """Time both models side by side, and tell what did not fuse, why, and what it costs."""
    from onnxq.cli.show_benchmark import print_benchmark
    from onnxq.measure.benchmarking import benchmark as run
    from onnxq.measure.benchmarking import first_sample

    images = images_of(settings)
    feed = None if data is None else first_sample(reference, data, images)
    report = run(
        reference,
        quantized,
        threads=threads,
        batch=batch,
        seconds=seconds,
        shapes=shapes_of(shape),
        data=feed,
    )
    if json:
        print_json(report.to_dict())
    else:
        print_benchmark(report, console)
