"""The command that ranks nodes by what they cost in int8: analyze."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from onnxq.cli.options import (
    Json,
    Model,
    Settings,
    image_options,
    recipe_of,
    sample_options,
    static_options,
    takes,
)
from onnxq.cli.spreading import Dask, Workers, executor_of
from onnxq.cli.terminal import console, print_json, progress_bar

if TYPE_CHECKING:
    from onnxq.analysis import AnalysisReport

__all__ = ["analyze"]


@takes(sample_options, static_options, image_options)
def analyze(
    model: Model,
    settings: Settings,
    top: Annotated[int, typer.Option(min=1, help="How many nodes to list.")] = 20,
    workers: Workers = None,
    dask: Dask = None,
    json: Json = False,
) -> None:
    """Rank the nodes by what each costs in int8, and tell what leaving it float would bring."""
    recipe = recipe_of(settings, "static")
    from onnxq.analysis import analyze as run
    from onnxq.recipe import StaticRecipe

    assert isinstance(recipe, StaticRecipe)
    with progress_bar("measuring") as progress, executor_of(dask) as executor:
        found = run(model, recipe=recipe, progress=progress, workers=workers, executor=executor)
    if json:
        print_json(found.to_dict())
    else:
        _print(found, top)


def _print(found: AnalysisReport, top: int) -> None:
    from onnxq.cli.show_look import decibels

    console.print(
        f"[bold]{escape(found.model)}[/] for {found.target}: {decibels(found.sqnr)} with "
        f"{len(found.nodes)} nodes in int8, which have {found.mac_share:.1%} of the MACs; measured "
        f"on {found.samples} samples"
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("rank", "node", "op", "MACs", "alone in int8", "alone in float"):
        table.add_column(heading, justify="left" if heading in ("node", "op") else "right")
    for row in found.nodes[:top]:
        alone = "" if row.alone_quantized is None else decibels(row.alone_quantized)
        names = str(row.rank), escape(row.node), row.op_type
        table.add_row(*names, f"{row.mac_share:.1%}", alone, decibels(row.alone_float))
    console.print(table)
    if len(found.nodes) > top:
        console.print(f"and {len(found.nodes) - top} more: --top lists them")
