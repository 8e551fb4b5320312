"""Recipes as files: TOML or JSON, closed and typed.

A key is the field of the dataclass (`StaticRecipe`, `DynamicRecipe`, `Rule`, `ImageOptions`);
`mode` says which recipe it is. A key that is not a field, or a value of another type, is an error
that lists what is valid.
"""

from __future__ import annotations

import dataclasses
import json
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from onnxq.errors import OptionError
from onnxq.near import near
from onnxq.recipe import DynamicRecipe, Recipe, StaticRecipe

__all__ = ["load_recipe", "recipe_from_dict", "recipe_to_dict", "recipe_to_toml"]

MODES: dict[str, type[DynamicRecipe] | type[StaticRecipe]] = {
    "dynamic": DynamicRecipe,
    "static": StaticRecipe,
}


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe in a .toml or .json file. Raises OptionError, which names file, key and remedy."""
    return recipe_from_dict(read_settings(path), str(path))


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The file's content as plain values."""
    import tomllib

    file = Path(path)
    readers = {".toml": tomllib.loads, ".json": json.loads}
    if file.suffix not in readers:
        raise OptionError(f"{path}: a recipe is a .toml or a .json file")
    try:
        content = readers[file.suffix](file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OptionError(f"{path}: no such recipe file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"{path}: not a recipe: {error}") from error
    if not isinstance(content, dict):
        raise OptionError(f"{path}: not a recipe: a table of settings is expected")
    return content


def recipe_from_dict(settings: Mapping[str, Any], label: str = "recipe") -> Recipe:
    """The recipe of plain values, of which `mode` is one."""
    mode = settings.get("mode")
    if not isinstance(mode, str) or mode not in MODES:
        got = "there is none" if mode is None else f"got {mode!r}"
        raise OptionError(f"{label}: mode must be one of {', '.join(MODES)}: {got}")
    rest = {key: value for key, value in settings.items() if key != "mode"}
    found = _build(MODES[mode], rest, label, f" in {mode} mode")
    assert isinstance(found, DynamicRecipe | StaticRecipe)
    return found


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain values, from which `recipe_from_dict` makes the same recipe."""
    return {"mode": recipe.mode, **_plain(recipe)}


def recipe_to_toml(recipe: Recipe) -> str:
    """The recipe as the text of a TOML file."""
    import tomli_w

    return tomli_w.dumps(recipe_to_dict(recipe))


def _plain(value: Any) -> Any:
    """TOML has no null, so fields that are None are left out: None is their default."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {name: _plain(v) for name, v in fields.items() if v is not None and v != ()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _build(kind: type, settings: Mapping[str, Any], label: str, where: str = "") -> Any:
    """An instance of the dataclass `kind`."""
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    for key in settings:
        if key not in names:
            close = near(key, names)
            close = close if "near" in close else ""
            other = [mode for mode, recipe in MODES.items() if recipe is not kind and where]
            if any(key in {f.name for f in dataclasses.fields(MODES[mode])} for mode in other):
                raise OptionError(f"{label}: {key!r} is for {other[0]} mode, and this is not")
            raise OptionError(
                f"{label}: unknown key {key!r}{where}{close}; valid are {', '.join(names)}"
            )
    values = {key: _convert(v, hints[key], f"{label}: {key}") for key, v in settings.items()}
    try:
        return kind(**values)
    except OptionError as error:
        raise OptionError(f"{label}: {error}") from error


def _convert(value: Any, hint: Any, label: str) -> Any:
    """`value` as the type that `hint` describes. Raises OptionError if it is of another."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        options = [a for a in arguments if a is not type(None)]
        for option in options[:-1]:
            try:
                return _convert(value, option, label)
            except OptionError:
                continue
        return _convert(value, options[-1], label)
    if origin is Literal:
        if value in arguments:
            return value
        raise OptionError(f"{label} must be one of {', '.join(arguments)}, got {value!r}")
    if origin is tuple:
        return _convert_list(value, arguments, label)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, Mapping):
            return _build(hint, value, label)
        raise OptionError(f"{label} must be a table, got {value!r}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise OptionError(f"{label} is too large") from error
    if isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    raise OptionError(f"{label} must be {_WORDS[hint]}, got {value!r}")


def _convert_list(value: Any, arguments: tuple[Any, ...], label: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise OptionError(f"{label} must be a list, got {value!r}")
    if arguments[-1] is Ellipsis:
        return tuple(_convert(v, arguments[0], f"{label}[{i}]") for i, v in enumerate(value))
    if len(value) != len(arguments):
        raise OptionError(f"{label} must be a list of {len(arguments)}, got {value!r}")
    return tuple(
        _convert(v, a, f"{label}[{i}]")
        for i, (v, a) in enumerate(zip(value, arguments, strict=True))
    )


_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
