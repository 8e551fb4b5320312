"""Save: the old file or the new one, never half; what is written has been loaded before.

A model above 2 GB has its weights in a file beside it. That file gets a name of its own, made from
its content, and is complete before the model is renamed into place; the data of the model that was
there before is removed last. A kill at any moment leaves the old pair or the new pair.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google.protobuf.message
import onnx
import onnx.checker
import onnx_ir as ir

from onnxq.errors import OutputError
from onnxq.files import locked, make_public
from onnxq.mapped import message_of
from onnxq.model import initializers, shape_of
from onnxq.runtime import PROTOBUF_LIMIT, model_size
from onnxq.streamed import contents, is_large, write_message

__all__ = ["save", "to_proto"]

# Bytes after which the disk is told to begin
FLUSHED = 1 << 28

THREADS = min(4, os.cpu_count() or 1)

Check = Callable[[Path], None]


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The whole model in one message. Raises OutputError above 2 GB."""
    if model_size(model) >= PROTOBUF_LIMIT:
        raise OutputError("the model is above 2 GB, which a ModelProto cannot hold: name an output")
    _drop_value_info(model)
    for value in initializers(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    pending = [(v, v.const_value) for v in initializers(model)]
    lazy = [(v, tensor) for v, tensor in pending if isinstance(tensor, ir.LazyTensor)]
    with ThreadPoolExecutor(THREADS) as pool:
        for (value, _), tensor in zip(lazy, pool.map(_evaluated, lazy), strict=True):
            value.const_value = tensor
    return ir.to_proto(model)


def _evaluated(lazy: tuple[ir.Value, ir.LazyTensor]) -> ir.TensorProtocol:
    value, tensor = lazy
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)


def save(model: ir.Model, path: Path, check: Check, *, limit: int = PROTOBUF_LIMIT) -> int:
    """Write the model; returns the bytes written, data file included.

    check: called with the complete new model under a temporary name, before it takes the place of
        the old one; what it raises is passed on, and the old file stays.
    limit: from this size of the weights on they go into a file beside the model.
    """
    large = model_size(model) >= limit
    # two runs with one output: neither may remove the data file that the other's model refers to
    if not (large or _data_files(path)):
        return _save(model, path, check, set(), large=False)
    with locked(path.parent):
        return _save(model, path, check, _data_files(path), large=large)


def _save(model: ir.Model, path: Path, check: Check, old_data: set[Path], *, large: bool) -> int:
    new_data: Path | None = None
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".onnx"
        )
        os.close(handle)
        _drop_value_info(model)
        if large:
            new_data = _write_data(model, path)
        with open(temporary, "wb") as file:
            if large:
                file.write(ir.to_proto(model).SerializeToString(deterministic=True))
            else:
                write_message(model, file)
            file.flush()
            os.fsync(file.fileno())
        check(Path(temporary))
        make_public(temporary)
        size = os.path.getsize(temporary) + (new_data.stat().st_size if new_data else 0)
        os.replace(temporary, path)
    except BaseException as error:
        if new_data is not None and new_data not in old_data:
            new_data.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(
                f"{path}: could not be written: {error.strerror or error}; what was there before "
                "is as it was"
            ) from error
        raise
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
    for stale in old_data - {new_data}:
        stale.unlink(missing_ok=True)
    return size


def _write_data(model: ir.Model, path: Path) -> Path:
    """Write the larger initializers to a file named after its content, and refer to it."""
    digest = hashlib.sha256()  # of the tensors' own, which are calculated side by side
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".data")
    places: list[tuple[ir.Value, ir.TensorProtocol, int, int]] = []
    try:
        with os.fdopen(handle, "wb") as file, ThreadPoolExecutor(1) as pool:
            flushed, flush = 0, pool.submit(os.fsync, handle)
            large = (value for value in initializers(model) if is_large(value.const_value))
            for content in contents(large, hashed=True):
                length = len(content.data)
                places.append((content.value, content.tensor, file.tell(), length))
                digest.update(content.digest)
                file.write(content.data)
                if file.tell() - flushed > FLUSHED and flush.done():
                    flushed, flush = file.tell(), pool.submit(os.fsync, handle)
            file.flush()
            flush.result()
            os.fsync(handle)
        final = path.parent / f"{path.stem}-{digest.hexdigest()[:12]}.data"
        make_public(temporary)
        os.replace(temporary, final)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    for value, tensor, offset, length in places:
        value.const_value = ir.ExternalTensor(
            final.name,
            offset,
            length,
            tensor.dtype,
            shape=shape_of(tensor),
            name=value.name or "",
            base_dir=path.parent,
        )
    return final


def _data_files(path: Path) -> set[Path]:
    """Data files of the model now at `path` that, by their names, `save` wrote."""
    if not path.is_file():
        return set()
    try:
        proto = message_of(path)
    except (google.protobuf.message.DecodeError, OSError):
        return set()
    ours = re.compile(re.escape(path.stem) + r"-[0-9a-f]{12}\.data")
    locations = {
        entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location" and ours.fullmatch(entry.value)
    }
    return {path.parent / location for location in locations}


def _drop_value_info(model: ir.Model) -> None:
    """Inferred types and shapes are not stored: the runtime infers them. Custom ops keep theirs."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain == "":
            for value in node.outputs:
                if not value.is_graph_output():
                    value.shape = value.type = None
    for value in initializers(model):  # their tensors say the same
        if not value.is_graph_output() and not value.is_graph_input():
            value.shape = value.type = None
