"""The commands that convert: export, to, and `to-NAME` for each installed converter.

The options of a converter are those of its functions, and become options of the command.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from onnxq.cli.options import Output
from onnxq.cli.terminal import console
from onnxq.errors import OptionError

__all__ = ["add_commands"]

Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="An option of the converter's own."),
]
Directory = Annotated[
    Path, typer.Option("--output", "-o", help="What to write.", show_default=False)
]


def export(
    model: Annotated[
        Path, typer.Argument(help="A model of another framework.", show_default=False)
    ],
    output: Output,
    converter: Annotated[
        str | None, typer.Option(help="Its name; default: the one that takes the model.")
    ] = None,
    option: Options = None,
    **own: Any,
) -> None:
    """Convert a model of another framework to ONNX. The other commands do so by themselves."""
    from onnxq.api import export as convert

    done = convert(model, output, converter=converter, options=_texts(option, own))
    console.print(f"{escape(str(output))}: converted by {done.converter}")
    if done.note:
        console.print(escape(done.note))


def to(
    framework: Annotated[str, typer.Argument(help="Name of a converter.", show_default=False)],
    model: Annotated[Path, typer.Argument(help="An ONNX model.", show_default=False)],
    output: Directory,
    option: Options = None,
    **own: Any,
) -> None:
    """Write an ONNX model in another framework's format."""
    from onnxq.converters import from_onnx

    done = from_onnx(model, output, name=framework, options=_texts(option, own))
    console.print(f"{escape(str(output))}: written by {framework}")
    if done.note:
        console.print(escape(done.note))


def add_commands(app: typer.Typer, wanted: str | None) -> None:
    """Add the commands to `app`.

    wanted: the command that is about to run, whose options are then complete; None for a help text.
    Converters are looked for only where the command is one of these.
    """
    converts = wanted is not None and (wanted in ("export", "to") or wanted.startswith("to-"))
    if not converts and wanted is not None:
        app.command()(_with_options(export, {}))
        app.command()(_with_options(to, {}))
        return
    from onnxq.converters import installed, options_of

    names = installed()
    ways = {name: options_of(name) for name in names} if converts else {}
    app.command()(_with_options(export, {n: way["to_onnx"] for n, way in ways.items()}))
    app.command()(_with_options(to, {n: way["from_onnx"] for n, way in ways.items()}))
    for name in names:
        own = {name: ways[name]["from_onnx"]} if converts else {}
        app.command(f"to-{name}", help=f"Write an ONNX model as one of {name}'s.")(
            _with_options(to, own, framework=name)
        )


def _with_options(
    command: Callable[..., None], own: dict[str, dict[str, Any]], **fixed: str
) -> Callable[..., None]:
    """The command, some of its parameters given, with the options of converters added."""
    signature = inspect.signature(command, eval_str=True)
    kept = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD and parameter.name not in fixed
    ]
    taken = {parameter.name for parameter in kept}
    added: dict[str, inspect.Parameter] = {}
    for name, options in own.items():
        for option, kind in options.items():
            if option not in taken:
                added.setdefault(option, _parameter(option, kind, name))

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        command(**fixed, **arguments)

    run.__signature__ = signature.replace(parameters=[*kept, *added.values()])  # type: ignore[attr-defined]  # as functools.wraps leaves it
    run.__annotations__ = {p.name: p.annotation for p in (*kept, *added.values())}
    return run


def _parameter(option: str, kind: Any, converter: str) -> inspect.Parameter:
    flag = option.replace("_", "-")
    types = [part for part in typing.get_args(kind) or (kind,) if part is not type(None)]
    is_switch = types[0] is bool
    spelled = f"--{flag}/--no-{flag}" if is_switch else f"--{flag}"
    help_text = typer.Option(spelled, show_default=False, rich_help_panel=f"Options of {converter}")
    annotation: Any = Annotated[bool | None if is_switch else str | None, help_text]
    return inspect.Parameter(
        option, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _texts(options: list[str] | None, own: dict[str, Any]) -> dict[str, str]:
    found = {name: str(value) for name, value in own.items() if value is not None}
    for option in options or ():
        key, equals, value = option.partition("=")
        if not equals:
            raise OptionError(f"--option takes KEY=VALUE, got {option!r}")
        found[key] = value
    return found
