"""Load: a path, a ModelProto or an onnx-ir model becomes a `SourceModel`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import google.protobuf.message
import numpy as np
import onnx
import onnx.defs
import onnx_ir as ir

from onnxq.converters import Workspace, converter_for, listed, to_onnx
from onnxq.errors import ExternalDataError, ModelError
from onnxq.lean import collector_paused
from onnxq.qtypes import Array
from onnxq.wellformed import check_structure, graph_of_proto

__all__ = [
    "ModelLike",
    "SourceModel",
    "constant",
    "initializers",
    "load",
    "new_value",
    "onnx_file",
    "read",
    "shape_of",
]

T = TypeVar("T")

ModelLike = str | os.PathLike[str] | onnx.ModelProto | ir.Model


@dataclass(frozen=True)
class SourceModel:
    """A model as the user gave it. Stages that change it work on a clone.

    path: the ONNX file it came from, None if it was given in memory.
    origin: what was converted to that file, None if it was ONNX itself.
    workspace: where a converter wrote the file; gone when this is.
    data_files: the files beside it that hold weights, links followed.
    """

    ir: ir.Model
    path: Path | None
    origin: Path | None = None
    workspace: Workspace | None = None
    data_files: frozenset[Path] = frozenset()

    @property
    def label(self) -> str:
        """How messages name it."""
        if self.origin is not None:
            return str(self.origin)
        return str(self.path) if self.path else f"model {self.ir.graph.name or '(in memory)'}"


@collector_paused()
def load(model: ModelLike) -> SourceModel:
    """Read and check a model.

    Raises ModelError if it is not an ONNX model, is truncated or holds no node, and
    ExternalDataError if a file with its weights is missing, too short or outside its directory.
    """
    if isinstance(model, ir.Model):
        source = SourceModel(_clone(model), None)
    elif isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()  # onnx-ir's tensors refer to the message and rename its parts
        copy.CopyFrom(model)
        source = SourceModel(graph_of_proto(copy, "the ModelProto"), None)
    else:
        source = _load_file(Path(model))
    if len(source.ir.graph) == 0:
        raise ModelError(f"{source.label}: the graph has no node: is this an ONNX model?")
    _check_versions(source)
    check_structure(source.ir, source.label)
    return dataclasses.replace(source, data_files=_find_data(source))


def _clone(model: ir.Model) -> ir.Model:
    try:
        return model.clone()
    except RuntimeError:  # its nodes are out of order, or something is missing
        return graph_of_proto(ir.to_proto(model), f"model {model.graph.name or '(in memory)'}")


def _check_versions(source: SourceModel) -> None:
    """The model's opset and IR version are among those that the installed onnx knows."""
    label, opsets = source.label, source.ir.opset_imports
    if "ai.onnx" in opsets:  # the other spelling of the standard domain
        opsets.setdefault("", opsets.pop("ai.onnx"))
    if not opsets:
        raise ModelError(f"{label}: no opset is declared: is this an ONNX model?")
    newest, current = onnx.defs.onnx_opset_version(), opsets.get("")
    if current is None:
        nodes = ir.traversal.RecursiveGraphIterator(source.ir.graph)
        if any(node.domain == "" for node in nodes):
            raise ModelError(
                f"{label}: it has standard operators but declares no opset for them (only for "
                f"{', '.join(sorted(opsets))}); export it again"
            )
    elif current < 1:
        raise ModelError(f"{label}: opset {current} does not exist: export the model again")
    elif current > newest:
        raise ModelError(
            f"{label}: opset {current} is newer than what the installed onnx {onnx.__version__} "
            f"knows; export the model at opset {newest} or below, or install a newer onnx"
        )
    if (source.ir.ir_version or 0) > onnx.IR_VERSION:
        raise ModelError(
            f"{label}: IR version {source.ir.ir_version} is newer than what the installed onnx "
            f"{onnx.__version__} knows ({onnx.IR_VERSION}); install a newer onnx"
        )


def _load_file(path: Path) -> SourceModel:
    file, workspace = onnx_file(path)
    origin = None if workspace is None else path
    return SourceModel(_read_onnx(file), file, origin, workspace)


def onnx_file(path: Path) -> tuple[Path, Workspace | None]:
    """The path itself if it is an ONNX file, else what a converter made of it, and where.

    Raises ModelError if there is no such file, and ConversionError.
    """
    if not path.exists():
        raise ModelError(f"{path}: no such file")
    name = converter_for(path)
    if name is not None:
        workspace = Workspace()
        converted = workspace.path / "model.onnx"
        to_onnx(path, converted, name=name)
        return converted, workspace
    if path.is_dir():
        held = listed(path.iterdir())
        raise ModelError(
            f"{path}: a directory, not an ONNX file, and no converter takes it: it has {held}"
        )
    return path, None


def _read_onnx(path: Path) -> ir.Model:
    # Absolute, so that onnx-ir knows the directory that external data must be in
    absolute = Path(os.path.abspath(path))
    if not os.access(absolute, os.R_OK):
        raise ModelError(f"{path}: cannot be read: permission denied")
    try:
        proto = onnx.load(str(absolute), format="protobuf", load_external_data=False)
    except google.protobuf.message.DecodeError as error:
        raise ModelError(
            f"{path}: not an ONNX file, or a truncated one ({error}); export or copy it again"
        ) from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    model = graph_of_proto(proto, str(path))
    ir.external_data.set_base_dir(model.graph, absolute.parent)
    return model


def _find_data(source: SourceModel) -> frozenset[Path]:
    """Check the files with weights beside the model, follow links, and return the files.

    Package caches link a model and its data from the place where both really are. onnx-ir refuses
    data behind a symbolic link that leaves the directory, or with a second hard link, so it is told
    the real place. A link to anywhere else stays refused: a model must not read a stranger's files.
    """
    files = set()
    for value in initializers(source.ir):
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.size:
            real = _check_external(tensor, source)
            files.add(real)
            if os.stat(real).st_nlink > 1:
                value.const_value = _mapped(tensor, real, source.label)
            elif Path(tensor.path) != real:
                value.const_value = ir.ExternalTensor(
                    real.name,
                    tensor.offset,
                    tensor.length,
                    tensor.dtype,
                    shape=shape_of(tensor),
                    name=tensor.name or "",
                    base_dir=real.parent,
                )
    return frozenset(files)


def _check_external(tensor: ir.ExternalTensor, source: SourceModel) -> Path:
    """The real file of the tensor. Raises ExternalDataError."""
    label = source.label
    base = os.path.abspath(tensor.base_dir or ".")
    path = os.path.normpath(os.path.join(base, tensor.location))
    homes = [os.path.realpath(base)]
    if source.path is not None and source.path.is_symlink():
        homes.append(os.path.dirname(os.path.realpath(source.path)))
    real = os.path.realpath(path)
    inside = any(os.path.commonpath([home, real]) == home for home in homes)
    if os.path.commonpath([base, path]) != base or not inside:
        raise ExternalDataError(
            f"{label}: weight {tensor.name!r} is stored in {tensor.location!r}, outside the "
            "model's directory; move the file beside the model and store its plain name"
        )
    if not os.path.isfile(path):
        raise ExternalDataError(
            f"{label}: weight {tensor.name!r} is stored in {tensor.location!r}, which is missing; "
            f"copy it into {base}"
        )
    needed = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
    if os.path.getsize(path) < needed:
        raise ExternalDataError(
            f"{label}: weight {tensor.name!r} needs {needed} bytes of {tensor.location!r}, which "
            f"has {os.path.getsize(path)}; copy it again"
        )
    return Path(real)


def _mapped(tensor: ir.ExternalTensor, file: Path, label: str) -> ir.TensorProtocol:
    """The values in the file, mapped into memory."""
    if tensor.dtype.bitwidth < 8:
        raise ExternalDataError(
            f"{label}: weight {tensor.name!r} is {tensor.dtype.name} in {file}, which has a second "
            "hard link; copy it to a file of its own"
        )
    array = np.memmap(file, np.uint8, "r", tensor.offset or 0, (tensor.nbytes,))
    values = array.view(tensor.dtype.numpy()).reshape(tensor.shape.numpy())
    return ir.Tensor(values, dtype=tensor.dtype, name=tensor.name)


def initializers(model: ir.Model) -> Iterator[ir.Value]:
    """All initializers, of the main graph and of the bodies of If, Loop and Scan."""
    for graph in model.graphs():
        yield from graph.initializers.values()


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer that no caller can override, else None."""
    if value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value


def read(tensor: ir.TensorProtocol, use: Callable[[Array], T]) -> T:
    """What `use` makes of the tensor's values (not a view of them).

    Values in a file are mapped into memory for that long only: mapped pages count as resident.
    """
    result = use(tensor.numpy())
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
    return result


def shape_of(tensor: ir.TensorProtocol) -> ir.Shape:
    """The tensor's shape as onnx-ir's constructors want it."""
    return ir.Shape(tensor.shape.numpy())


def new_value(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register an initializer with `tensor` in `graph`."""
    value = ir.Value(
        name=name,
        shape=shape_of(tensor),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value
