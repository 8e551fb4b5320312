"""Deployment: an onnxruntime session with the options that a file of onnxq's needs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq.errors import ModelError

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["FOLD_WEIGHTS", "METADATA_KEY", "load_session", "needed_options", "read_metadata"]

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


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What onnxq noted in a file that it wrote; empty for any other file."""
    import google.protobuf.message
    import onnx

    try:
        proto = onnx.load(os.fspath(path), format="protobuf", load_external_data=False)
    except (google.protobuf.message.DecodeError, OSError) as error:
        raise ModelError(f"{path}: not an ONNX file: {error}") from error
    for entry in proto.metadata_props:
        if entry.key == METADATA_KEY:
            found = json.loads(entry.value)
            return found if isinstance(found, dict) else {}
    return {}
