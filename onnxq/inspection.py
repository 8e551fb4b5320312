"""Inspect: what a model holds, whether it is quantized already, and what could be."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.model import ModelLike, SourceModel, initializers, load
from onnxq.pipeline import place, prepare_for
from onnxq.placement.existing import signs
from onnxq.plans import Placement
from onnxq.recipe import DynamicRecipe, Recipe, StaticRecipe
from onnxq.session import metadata_of

__all__ = ["Inspection", "Potential", "Tensor", "inspect"]


@dataclass(frozen=True)
class Tensor:
    """A weight, an input or an output. A dimension is a number, a name or None (unknown)."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None
    bytes: int | None = None
    used_by: str | None = None


@dataclass(frozen=True)
class Potential:
    """What one mode would do with its defaults.

    weights: how many become integers, float_bytes of them in all. nodes: by op type, that run in
        int8 (static mode). left: reason -> how many stay float for it.
    problem: why the mode cannot be applied; the rest is empty then.
    """

    weights: int = 0
    float_bytes: int = 0
    nodes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    left: Mapping[str, int] = dataclasses.field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    ops: nodes by op type, with the domain unless it is the standard one, bodies included.
    weights: the largest first. weight_bytes: of all initializers and constants, by element type.
    quantized: counts of ops that are quantization; empty for a float model.
    written_by_onnxq: what onnxq noted in the file, if it wrote it.
    """

    model: str
    ir_version: int
    opsets: Mapping[str, int]
    producer: str
    nodes: int
    ops: Mapping[str, int]
    functions: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    weight_bytes: Mapping[str, int]
    quantized: Mapping[str, int]
    written_by_onnxq: Mapping[str, Any]
    dynamic: Potential
    static: Potential

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def inspect(model: ModelLike) -> Inspection:
    """Look at a model without running it. Raises ModelError if it is none."""
    source = load(model)
    nodes = list(ir.traversal.RecursiveGraphIterator(source.ir.graph))
    ops = Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in nodes)
    weights = sorted(_weights(source, nodes), key=lambda w: (-(w.bytes or 0), w.name))
    by_type: Counter[str] = Counter()
    for weight in weights:
        by_type[weight.dtype] += weight.bytes or 0
    producer = " ".join(filter(None, (source.ir.producer_name, source.ir.producer_version)))
    return Inspection(
        model=source.label,
        ir_version=source.ir.ir_version or 0,
        opsets={domain or "ai.onnx": v for domain, v in source.ir.opset_imports.items()},
        producer=producer,
        nodes=len(nodes),
        ops=dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        functions=tuple(sorted(f"{d}::{n}" if d else n for d, n, _ in source.ir.functions)),
        inputs=tuple(_tensor(v) for v in source.ir.graph.inputs if not v.is_initializer()),
        outputs=tuple(map(_tensor, source.ir.graph.outputs)),
        weights=tuple(weights),
        weight_bytes=dict(sorted(by_type.items())),
        quantized=signs(nodes),
        written_by_onnxq=metadata_of(source.ir.metadata_props),
        dynamic=_potential(source, DynamicRecipe()),
        static=_potential(source, StaticRecipe()),
    )


def _tensor(value: ir.Value) -> Tensor:
    shape = None
    if value.shape is not None:
        shape = tuple(d if isinstance(d, int) else d.value for d in value.shape)
    dtype = value.dtype.name.lower() if value.dtype is not None else "unknown"
    return Tensor(value.name or "", dtype, shape)


def _weights(source: SourceModel, nodes: list[ir.Node]) -> list[Tensor]:
    found = []
    for value in initializers(source.ir):
        tensor = value.const_value
        if tensor is not None:
            user = next((node.op_type for node, _ in value.uses()), None)
            found.append(_weight(value.name or "", tensor, user))
    for node in nodes:
        attribute = node.attributes.get("value")
        if node.op_type == "Constant" and attribute is not None:
            tensor, output = attribute.value, node.outputs[0]
            if isinstance(tensor, ir.TensorProtocol):
                user = next((reader.op_type for reader, _ in output.uses()), None)
                found.append(_weight(output.name or "", tensor, user))
    return found


def _weight(name: str, tensor: ir.TensorProtocol, user: str | None) -> Tensor:
    shape = tuple(d for d in tensor.shape.numpy())
    size = tensor.nbytes if tensor.dtype != ir.DataType.STRING else None
    return Tensor(name, tensor.dtype.name.lower(), shape, size, user)


def _potential(source: SourceModel, recipe: Recipe) -> Potential:
    try:
        prepared = prepare_for(source, recipe.effective())
        placement: Placement = place(prepared, recipe.effective())
    except ModelError as error:
        return Potential(problem=str(error))
    sizes = {v.name: v.const_value.nbytes for v in initializers(prepared.ir) if v.const_value}
    quantized = {use.node for a in placement.activations for use in a.uses}
    nodes = Counter(n.op_type for n in prepared.ir.graph if n.name in quantized)
    left = Counter(skip.reason for skip in placement.skips)
    return Potential(
        weights=len(placement.weights),
        float_bytes=sum(sizes[w.tensor] for w in placement.weights),
        nodes=dict(sorted(nodes.items())),
        left=dict(sorted(left.items(), key=lambda item: (-item[1], item[0]))),
    )
