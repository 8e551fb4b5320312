"""The commands that quantize: dynamic, static, calibrate, recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from onnxq.cli.options import (
    RANGES,
    Json,
    Model,
    ModeOption,
    Output,
    Settings,
    dynamic_options,
    image_options,
    recipe_of,
    sample_options,
    static_options,
    takes,
)
from onnxq.cli.show_report import print_report
from onnxq.cli.spreading import Dask, Workers, executor_of
from onnxq.cli.terminal import console, print_json, progress_bar, tell
from onnxq.errors import OptionError

__all__ = ["calibrate", "dynamic", "recipe", "static"]

ReportFile = Annotated[
    Path | None, typer.Option("--report", help="Also write what was done to this file, as JSON.")
]


def check_recipe_file(settings: Settings, *outputs: Path | None) -> None:
    """Raises OutputError if the recipe file would be written over."""
    from onnxq.files import check_apart

    for path in outputs:
        check_apart({"the output": path}, [settings["recipe"]] if settings["recipe"] else [])


@takes(dynamic_options)
def dynamic(
    model: Model,
    output: Output,
    settings: Settings,
    test_model: Annotated[
        Path | None, typer.Option(help="Also write a float model with the rounded weights.")
    ] = None,
    report: ReportFile = None,
    json: Json = False,
) -> None:
    """Store weights as INT8 or INT16: 1/4 or 1/2 of the size. Needs no data."""
    recipe = recipe_of(settings, "dynamic")
    from onnxq.api import quantize

    check_recipe_file(settings, output, test_model, report)
    done = quantize(model, output, recipe, test_model=test_model, report=report)
    print_report(done, as_json=json)


@takes(sample_options, static_options, image_options)
def static(
    model: Model,
    output: Output,
    settings: Settings,
    report: ReportFile = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Print what each accuracy pass tried, and what was kept."),
    ] = False,
    workers: Workers = None,
    dask: Dask = None,
    json: Json = False,
) -> None:
    """Quantize weights and activations to INT8, with ranges from samples."""
    recipe = recipe_of(settings, "static")
    from onnxq.api import quantize

    check_recipe_file(settings, output, report)
    with progress_bar("calibrating") as progress, executor_of(dask) as executor:
        done = quantize(
            model,
            output,
            recipe,
            report=report,
            progress=progress,
            workers=workers,
            executor=executor,
            tell=tell,
        )
    print_report(done, as_json=json, explain=explain)


@takes(sample_options, image_options)
def calibrate(
    model: Model,
    settings: Settings,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write.", show_default=False),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(
            help="In place of -o: a file that is saved as the run goes on. After a kill the same "
            "command continues from there.",
            rich_help_panel=RANGES,
        ),
    ] = None,
    workers: Workers = None,
    dask: Dask = None,
    json: Json = False,
) -> None:
    """Collect statistics once, for any method and any target of `static --statistics`."""
    recipe = recipe_of(settings, "static")
    from onnxq.api import calibrate as collect
    from onnxq.files import check_apart, check_writable
    from onnxq.recipe import StaticRecipe

    assert isinstance(recipe, StaticRecipe)
    target = output or statistics
    if target is None or (output is not None and statistics is not None):
        raise OptionError(
            "calibrate needs one file to write: -o, or --statistics for one that is saved as the "
            "run goes on"
        )
    inputs = (model, recipe.data, settings["recipe"])
    check_apart({"the output": target}, [Path(path) for path in inputs if path])
    check_writable(target)
    with progress_bar("calibrating") as progress, executor_of(dask) as executor:
        calibration = collect(
            model,
            recipe=recipe,
            checkpoint=statistics,
            progress=progress,
            workers=workers,
            executor=executor,
        )
    if output is not None:
        calibration.save(output)
    figures = {
        "output": str(target),
        "samples": calibration.samples,
        "tensors": len(calibration.tensors),
    }
    if json:
        print_json(figures)
    else:
        console.print(
            f"{escape(str(target))}: statistics of {len(calibration.tensors)} tensors over "
            f"{calibration.samples} samples"
        )


@takes(sample_options, static_options, dynamic_options, image_options)
def recipe(
    settings: Settings,
    model: Annotated[
        Path | None,
        typer.Argument(help="Check the patterns against this model.", show_default=False),
    ] = None,
    mode: ModeOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON in place of TOML.")] = False,
) -> None:
    """Print the recipe that a call with these options follows, to be saved and run again."""
    effective = recipe_of(settings, mode and mode.value).effective()
    from onnxq.recipe_file import recipe_to_dict, recipe_to_toml

    if model is not None:
        from onnxq.planning import check_patterns

        check_patterns(model, effective)
    if json:
        print_json(recipe_to_dict(effective))
    else:
        typer.echo(recipe_to_toml(effective), nl=False)
