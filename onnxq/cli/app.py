"""The command line: its commands, and how it ends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from onnxq import __version__
from onnxq.cli import analyzing, looking, quantizing
from onnxq.cli.converting import add_commands
from onnxq.cli.options import Json
from onnxq.cli.terminal import console, print_json
from onnxq.errors import OnnxqError
from onnxq.lean import lean_imports

__all__ = ["run"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Post-training quantization of ONNX models for onnxruntime.",
)

for command in (
    looking.inspect,
    looking.plan,
    quantizing.dynamic,
    quantizing.static,
    quantizing.calibrate,
    quantizing.recipe,
    analyzing.analyze,
    looking.compare,
    looking.benchmark,
):
    app.command()(command)


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
        add_commands(app, next((word for word in sys.argv[1:] if not word.startswith("-")), None))
        with lean_imports():
            app()
    except OnnxqError as error:
        from rich.console import Console

        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(1)
