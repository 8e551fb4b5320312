"""Which files of a directory are the Paddle model, and which hold its parameters.

inference.json + inference.pdiparams          PIR: Paddle 3.0 and later
inference.pdmodel + inference.pdiparams       a program, 2.x
__model__ + __params__ (or any one file)      a program, 1.x, parameters in one file
__model__ + a file for each parameter         a program, 1.x
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from onnxq.converters import listed
from onnxq.errors import ConversionError

__all__ = ["OLD_PROGRAM", "PaddleFiles", "find_files", "is_paddle"]

PIR, PROGRAM, PARAMS, OLD_PROGRAM = ".json", ".pdmodel", ".pdiparams", "__model__"
OLD_PARAMS = ("__params__", "params")
PIR_MARK = b'"magic":"pir"'
MAGIC_WITHIN = 4096


@dataclass(frozen=True)
class PaddleFiles:
    """A model file and that of its parameters; None if it has none, or one file for each."""

    model: Path
    params: Path | None

    @property
    def is_pir(self) -> bool:
        return _is_pir(self.model)


def is_paddle(path: Path) -> bool:
    """Whether the path looks like a Paddle model: a file of one, or a directory that holds one."""
    if path.is_dir():
        return bool(_models(path)) or any(path.glob(f"*{PARAMS}"))
    return _is_model(path) or path.suffix == PARAMS


def find_files(
    path: Path, *, model_filename: str | None = None, params_filename: str | None = None
) -> PaddleFiles:
    """The files of the model that `path` names: a directory, a file or Paddle's path prefix.

    model_filename, params_filename: their names in the directory; None to find them.
    Raises ConversionError, with what is there, if there is no model or there are several.
    """
    if not path.is_dir() and not path.exists():
        for suffix in (PIR, PROGRAM):  # `paddle.jit.save` and friends take such a prefix
            if path.with_name(path.name + suffix).is_file():
                path = path.with_name(path.name + suffix)
                break
        else:
            raise ConversionError(f"{path}: no such file or directory")
    folder = path if path.is_dir() else path.parent
    if model_filename is not None:
        model = _named(folder, model_filename, "model_filename")
    elif path.is_dir():
        model = _only_model(folder)
    elif path.suffix == PARAMS:
        model = _of_params(path)
        params_filename = params_filename or path.name
    else:
        model = path
    if not _is_model(model) and model_filename is None:
        raise ConversionError(
            f"{path}: not a Paddle model: that is a {PIR} file of Paddle's, a {PROGRAM} file or "
            f"{OLD_PROGRAM}"
        )
    return PaddleFiles(model, _params(model, params_filename))


def _models(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and _is_model(path))


def _is_model(path: Path) -> bool:
    return path.suffix == PROGRAM or path.name == OLD_PROGRAM or _is_pir(path)


def _is_pir(path: Path) -> bool:
    if path.suffix != PIR or not os.access(path, os.R_OK) or not path.is_file():
        return False
    with open(path, "rb") as file:
        return PIR_MARK in b"".join(file.read(MAGIC_WITHIN).split())


def _named(folder: Path, name: str, option: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise ConversionError(
            f"{path}: no such file ({option}); it holds {listed(folder.iterdir())}"
        )
    return path


def _only_model(folder: Path) -> Path:
    found = _models(folder)
    if not found:
        raise ConversionError(
            f"{folder}: no Paddle model in it; it holds {listed(folder.iterdir())}"
        )
    if len(found) > 1:
        raise ConversionError(
            f"{folder}: several models ({listed(found)}): name one with model_filename, or give "
            "the path of its file"
        )
    return found[0]


def _of_params(params: Path) -> Path:
    for suffix in (PIR, PROGRAM):
        model = params.with_suffix(suffix)
        if model.is_file():
            return model
    return _only_model(params.parent)


def _params(model: Path, name: str | None) -> Path | None:
    """The file with all parameters."""
    folder = model.parent
    if name is not None:
        return _named(folder, name, "params_filename")
    if model.name == OLD_PROGRAM:
        candidates = [folder / old for old in OLD_PARAMS if (folder / old).is_file()]
        others = [path for path in folder.iterdir() if path.is_file() and path != model]
        if not candidates and len(others) == 1:  # all parameters, under any name
            candidates = others
        return candidates[0] if candidates else None
    own = model.with_suffix(PARAMS)
    if own.is_file():
        return own
    found = sorted(folder.glob(f"*{PARAMS}"))
    if len(found) > 1:
        raise ConversionError(
            f"{model}: several files of parameters ({listed(found)}): name one with params_filename"
        )
    return found[0] if found else None
