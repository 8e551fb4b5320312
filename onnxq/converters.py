"""Converters: how models of other frameworks come in, and go back.

A package adds a framework without a change here: it names an object, usually a module, under the
entry-point group `onnxq.converters`, and that object has the functions of `Converter`:

    [project.entry-points."onnxq.converters"]
    toy = "onnxq_toy"

Every call and command that takes an ONNX model then takes what `matches` accepts.
"""

from __future__ import annotations

import functools
import inspect
import shutil
import tempfile
import typing
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from onnxq.errors import ConversionError, OnnxqError, OptionError
from onnxq.near import near

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "GROUP",
    "Conversion",
    "Converter",
    "Workspace",
    "converter_for",
    "from_onnx",
    "installed",
    "listed",
    "options_of",
    "to_onnx",
]

GROUP = "onnxq.converters"
# Names of files that a message lists
SHOWN = 8


class Converter(Protocol):
    """What a converter has. Beside these it may have `from_onnx`.

    matches(path) -> bool: whether the file or directory is a model of its framework. It has to
        answer fast, and without importing the framework.
    to_onnx(path, dest, *, ...): write the model as ONNX to the file `dest` (weights that do not
        fit into one file beside it), in a directory that exists.
    from_onnx(path, dest, *, ...): write an ONNX file in the framework's format to `dest`.

    The last two return None, or a sentence for the user.

    Further parameters are keyword-only, with a default and an annotation of bool, int, float, str
    or Path: these are the options that users may give. They raise `ConversionError` (or another
    OnnxqError), which says what cannot be converted and what to do.
    """

    @property
    def matches(self) -> Callable[[Path], bool]: ...

    @property
    def to_onnx(self) -> Callable[..., str | None]: ...


@dataclass(frozen=True)
class Conversion:
    """Which converter has converted a model, and what it has to say; "" for nothing."""

    converter: str
    note: str


class Workspace:
    """A temporary directory that lives as long as this object, for what a converter wrote."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="onnxq-converted-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def converter_for(path: Path) -> str | None:
    """The name of the converter that takes the file or directory; None for an ONNX file.

    Raises ConversionError if several take it, or one cannot be imported.
    """
    if path.suffix == ".onnx" and path.is_file():
        return None
    found = []
    for name, entry in sorted(_installed().items()):
        converter = _load(entry)
        if _guarded(name, functools.partial(converter.matches, path)):
            found.append(name)
    if len(found) > 1:
        raise ConversionError(
            f"{path}: the converters {', '.join(found)} all take it; call one of them with "
            "`onnxq export --converter NAME` and quantize what it writes"
        )
    return found[0] if found else None


def to_onnx(
    path: Path, dest: Path, *, name: str | None = None, options: Mapping[str, str] | None = None
) -> Conversion:
    """Convert a model to an ONNX file.

    name: of the converter; None for the one that takes `path`. options: its own, as text.

    Raises ConversionError, or OptionError for an option that the converter does not have.
    """
    name = name or converter_for(path)
    if name is None:
        known = ", ".join(sorted(_installed())) or "none"
        held = f"; it has {listed(path.iterdir())}" if path.is_dir() else ""
        raise ConversionError(
            f"{path}: no installed converter takes it (installed: {known}; `--converter NAME` says "
            f"which one to use){held}; ONNX files need none"
        )
    converter = _named(name)
    values = _typed(converter.to_onnx, options or {}, name)
    note = _guarded(name, functools.partial(converter.to_onnx, path, dest, **values))
    if not dest.is_file():
        raise ConversionError(f"converter {name!r} wrote no file {dest}: report it to its authors")
    return Conversion(name, note or "")


def from_onnx(
    path: Path, dest: Path, *, name: str, options: Mapping[str, str] | None = None
) -> Conversion:
    """Write an ONNX file in another framework's format. Raises as `to_onnx` does."""
    function = getattr(_named(name), "from_onnx", None)
    if function is None:
        raise ConversionError(f"converter {name!r} only reads: it has no way back from ONNX")
    values = _typed(function, options or {}, name)
    note = _guarded(name, functools.partial(function, path, dest, **values))
    return Conversion(name, note or "")


def listed(paths: Iterable[Path]) -> str:
    """Names of files, for a message; "nothing" if there are none."""
    names = sorted(path.name for path in paths)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else "nothing"


def installed() -> list[str]:
    """Names of the installed converters."""
    return sorted(_installed())


def options_of(name: str) -> dict[str, dict[str, Any]]:
    """The options of a converter's `to_onnx` and `from_onnx`, with their types.

    Of a converter that cannot be imported there are none: it says why when it is used.
    """
    try:
        converter = _named(name)
    except ConversionError:
        return {"to_onnx": {}, "from_onnx": {}}
    ways = {"to_onnx": converter.to_onnx, "from_onnx": getattr(converter, "from_onnx", None)}
    return {way: _options(function) if function else {} for way, function in ways.items()}


def _options(function: Callable[..., Any]) -> dict[str, Any]:
    """Name and type of the function's options."""
    hints = typing.get_type_hints(function)
    return {
        p.name: hints.get(p.name, str)
        for p in inspect.signature(function).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _installed() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _named(name: str) -> Converter:
    entries = _installed()
    if name not in entries:
        known = near(name, entries) if entries else "; none is installed"
        raise OptionError(f"there is no converter {name!r}{known}")
    return _load(entries[name])


def _load(entry: EntryPoint) -> Converter:
    try:
        found: Converter = entry.load()
    except ImportError as error:
        raise ConversionError(
            f"converter {entry.name!r} cannot be imported: {error}; install what it needs"
        ) from error
    missing = [name for name in ("matches", "to_onnx") if not callable(getattr(found, name, None))]
    if missing:
        raise ConversionError(f"converter {entry.name!r} ({entry.value}) has no {missing[0]}()")
    return found


T = typing.TypeVar("T")


def _guarded(name: str, call: Callable[[], T]) -> T:
    """What the call returns; whatever goes wrong in a plugin's code names the plugin."""
    try:
        return call()
    except OnnxqError:
        raise
    except Exception as error:  # another's code may raise anything: it is passed on, with its name
        raise ConversionError(
            f"converter {name!r} failed: {type(error).__name__}: {error}"
        ) from error


def _typed(function: Callable[..., Any], options: Mapping[str, str], name: str) -> dict[str, Any]:
    """Options as the types that the function's annotations name."""
    known = _options(function)
    values = {}
    for key, text in options.items():
        if key not in known:
            has = ", ".join(known) or "none"
            raise OptionError(f"converter {name!r} has no option {key!r}; it has {has}")
        values[key] = _value(text, known[key], f"converter {name!r}: option {key!r}")
    return values


def _value(text: str, hint: Any, label: str) -> Any:
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind is not type(None)]
    kind = kinds[0]
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        return words[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        raise OptionError(
            f"{label} takes {'an' if kind is int else 'a'} {kind.__name__}, got {text!r}"
        ) from error
