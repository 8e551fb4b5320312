"""Deployment: an onnxruntime session with the options that a file of onnxq's needs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq.errors import ModelError

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = [
    "FOLD_WEIGHTS",
    "METADATA_KEY",
    "IntegerValue",
    "integer_io_of",
    "load_session",
    "metadata_of",
    "needed_options",
    "read_metadata",
]

METADATA_KEY = "onnxq"
# Without it a DequantizeLinear of a weight runs on every call; with it, once at load
FOLD_WEIGHTS = {"session.disable_quant_qdq": "1"}


def load_session(
    path: str | os.PathLike[str],
    *,
    options: ort.SessionOptions | None = None,
    threads: int | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> ort.InferenceSession:
    """An `onnxruntime.InferenceSession` for `path` with what the file needs to run fast.

    For a dynamic model in the `qdq` encoding that is one entry, `session.disable_quant_qdq` = 1,
    by which onnxruntime folds the weights to float at load; any other model needs nothing.

    options: yours, to which the entry is added. threads: within an operator, None for all cores.
    Raises ModelError if the file is missing or onnxruntime cannot load it.
    """
    import onnxruntime

    from onnxq.runtime import ORT_ERRORS, one_line

    if not Path(path).is_file():
        raise ModelError(f"{path}: no such file")
    options = options or onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    for key, value in needed_options(read_metadata(path)).items():
        options.add_session_config_entry(key, value)
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=list(providers))
    except ORT_ERRORS as error:
        raise ModelError(f"{path}: onnxruntime cannot load it: {one_line(error)}") from error


def needed_options(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The session entries that a file with this metadata needs."""
    qdq = metadata.get("mode") == "dynamic" and metadata.get("encoding") == "qdq"
    return dict(FOLD_WEIGHTS) if qdq else {}


@dataclass(frozen=True)
class IntegerValue:
    """An input or output that is integers: real value = (integer - zero_point) * scale."""

    dtype: str
    scale: float
    zero_point: int


def integer_io_of(metadata: Mapping[str, Any]) -> dict[str, IntegerValue]:
    """The inputs and outputs of a file with this metadata that are integers in place of float."""
    return {
        name: IntegerValue(v["dtype"], v["scale"], v["zero_point"])
        for name, v in metadata.get("integer_io", {}).items()
    }


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What onnxq noted in a file that it wrote; empty for any other file."""
    import google.protobuf.message

    from onnxq.mapped import message_of

    try:
        proto = message_of(Path(path))
    except (google.protobuf.message.DecodeError, OSError) as error:
        raise ModelError(f"{path}: not an ONNX file: {error}") from error
    return metadata_of({entry.key: entry.value for entry in proto.metadata_props})


def metadata_of(properties: Mapping[str, str]) -> dict[str, Any]:
    """The same from a model's metadata properties."""
    found = json.loads(properties.get(METADATA_KEY, "{}"))
    return found if isinstance(found, dict) else {}
