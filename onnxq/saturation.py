"""Guard: weights of uint8 x int8 kernels that x86 without VNNI calculates exactly.

Which pairs of products are beyond int16 follows from the integers of the weights and, for each pair
of inputs, from the largest values that samples bring together. The scales of such channels are
raised as far as it takes, and the biases fitted to them. Without samples every input may be 255.
The fault itself, and the arithmetic: numerics/saturation.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from onnxq.data.prefetch import prefetched
from onnxq.data.samples import Samples
from onnxq.data.sources import NOTHING_WRITTEN
from onnxq.errors import ModelError
from onnxq.isa import SATURATING
from onnxq.model import read
from onnxq.numerics.quantize import with_zero_channels
from onnxq.numerics.saturation import (
    FULL,
    INT16_MAX,
    PAIR_LIMIT,
    UINT8_MAX,
    Fronts,
    Layout,
    Pairs,
    add_to_fronts,
    any_pair,
    empty_fronts,
    find_pairs,
    largest,
)
from onnxq.optable import gemm_output_axis
from onnxq.parametrize import refit_biases, tensor_of
from onnxq.plans import ActivationPlacement, Plan, Use
from onnxq.prepare import Prepared
from onnxq.qtypes import INT8, UINT8, Array, Float64Array, IntArray, QuantParams
from onnxq.rewrite import chosen_integers
from onnxq.runtime import RuntimeFailureError, run, session

__all__ = ["Layer", "Verdict", "guard", "verdict_of"]

# So many samples are looked at (each is one more run of the float model), and so much larger sums
# are expected of others
SAMPLES = 4
MARGIN = 1.1
NAMED = 4

T = TypeVar("T")


@dataclass(frozen=True)
class Layer:
    """A node with pairs of products beyond int16: in how many channels, and of how many."""

    node: str
    channels: int
    of: int


@dataclass(frozen=True, eq=False)
class Verdict:
    """On which processors a file is exact.

    isa: the instruction set that it was made for. raised: layers with channels whose scales were
    raised for it. possible: layers of the file that some input can make saturate without VNNI.
    seen: layers that did on the samples, None if none were looked at. layers: all that use such
    kernels. fronts: what was seen of the inputs (see numerics/saturation.py).
    """

    isa: str
    layers: int
    raised: tuple[Layer, ...]
    possible: tuple[str, ...]
    seen: tuple[Layer, ...] | None
    samples: int
    fronts: Mapping[str, Fronts] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        shown = dataclasses.fields(self)[:-1]
        found = {f.name: getattr(self, f.name) for f in shown}
        rows = {
            name: None if value is None else [dataclasses.asdict(layer) for layer in value]
            for name, value in found.items()
            if name in ("raised", "seen")
        }
        return {**found, **rows, "possible": list(self.possible)}

    @property
    def notes(self) -> list[str]:
        """In words."""
        if not self.layers:
            return []
        found = []
        if self.raised:
            found.append(
                f"for {self.isa} the scales of some channels of {_listed(self.raised)} were raised"
            )
        exact = "exact on x86 with VNNI or AMX, and on Arm"
        where = "on x86 with AVX2 or AVX512, but no VNNI,"
        if not self.possible:
            return [*found, f"{exact}; {where} too: no input makes int16 sums saturate"]
        if self.seen is None:
            remedy = "" if self.isa in SATURATING else ": for these choose --isa avx2"
            text = f"{exact}; {where} {_count(self.possible)} can saturate{remedy}"
        elif self.seen:
            text = f"{exact}; {where} {_listed(self.seen)} saturate"
        else:
            text = (
                f"{exact}; {where} nothing saturates on the {self.samples} samples looked at, "
                f"but other inputs may in {_count(self.possible)}"
            )
        return [*found, text]


def _listed(layers: Collection[Layer]) -> str:
    return _count([layer.node for layer in layers])


def _count(names: Sequence[str]) -> str:
    """How many, and the first names."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    count = f"{len(names)} layer{'s' if len(names) > 1 else ''}"
    return f"{count} ({', '.join(names[:NAMED])}{more})"


@dataclass(frozen=True)
class _Product:
    """A node that multiplies uint8 activations with int8 weights in a kernel that may saturate.

    padding: channels of zeros behind those of the activation and the weight: they are in the pairs.
    """

    node: str
    weight: str
    activation: ActivationPlacement
    layout: Layout
    channels: int
    padding: int = 0

    def layer(self, pairs: Pairs) -> Layer:
        return Layer(self.node, len(np.unique(pairs.channel)), self.channels)


def guard(
    prepared: Prepared, samples: Samples | None, plan: Plan, isa: str
) -> tuple[Plan, Verdict]:
    """The plan with which nothing saturates on that instruction set, and the verdict on it.

    For one that is exact the plan stays as it is, and no sample is looked at. This comes before any
    pass that chooses integers.
    """
    start = Verdict(isa, 0, (), (), None, 0)
    if isa not in SATURATING:
        return plan, _with_possible(prepared, plan, start)
    found = [(p, _pairs(prepared, plan, p)) for p in _products(prepared, plan)]
    found = [(product, pairs) for product, pairs in found if len(pairs.beyond)]
    if samples is not None and found:
        observed, count = _observe(prepared, samples, plan, [product for product, _ in found])
        start = dataclasses.replace(start, fronts=observed, seen=(), samples=count)
    raised: list[Layer] = []
    factors: dict[str, Float64Array] = {}
    for product, pairs in found:
        fronts = start.fronts.get(product.activation.tensor, FULL)
        beyond = pairs.beyond.where(_reach(pairs.beyond, fronts) > INT16_MAX)
        if len(beyond):
            factor = pairs.factor(fronts, beyond.channel)
            factors[product.weight] = np.maximum(factors.get(product.weight, 1.0), factor)
            raised.append(product.layer(beyond))
    if factors:
        plan = refit_biases(prepared, _raised(plan, factors))
    return plan, _with_possible(prepared, plan, dataclasses.replace(start, raised=tuple(raised)))


def verdict_of(prepared: Prepared, plan: Plan, known: Verdict) -> Verdict:
    """The verdict on a plan that was changed since, with what is known of its inputs."""
    seen = []
    for product in _products(prepared, plan) if known.seen is not None else ():
        beyond = _pairs(prepared, plan, product).beyond
        fronts = known.fronts.get(product.activation.tensor, FULL)
        beyond = beyond.where(largest(beyond, fronts) > INT16_MAX)
        if len(beyond):
            seen.append(product.layer(beyond))
    found = known if known.seen is None else dataclasses.replace(known, seen=tuple(seen))
    return _with_possible(prepared, plan, found)


def _with_possible(prepared: Prepared, plan: Plan, verdict: Verdict) -> Verdict:
    products = list(_products(prepared, plan))
    nodes = {p.node for p in products}  # one that is float by now is not among them
    raised = tuple(layer for layer in verdict.raised if layer.node in nodes)
    possible = tuple(p.node for p in products if _can_saturate(prepared, plan, p))
    return dataclasses.replace(verdict, layers=len(products), raised=raised, possible=possible)


def _products(prepared: Prepared, plan: Plan) -> Iterator[_Product]:
    nodes = {node.name: node for node in ir.traversal.RecursiveGraphIterator(prepared.ir.graph)}
    activations = {use: a for a in plan.placement.activations for use in a.uses}
    for weight in plan.placement.weights:
        params = plan.params[weight.tensor]
        if weight.form != "kernel" or params.spec.qtype != INT8:
            continue
        shape = tensor_of(prepared, weight.tensor).shape.numpy()
        for use in weight.uses:
            activation = activations.get(Use(use.node, 0))
            layout = _layout(nodes[use.node], shape, params.axis)
            # (a product with the weight on the left is not fused, and so calculated in float)
            if use.index != 1 or activation is None or layout is None:
                continue
            if plan.activation_params(activation).spec.qtype == UINT8:
                label = plan.placement.labels.get(use.node, use.node)
                channels = params.scale.size
                padding = weight.padding
                yield _Product(label, weight.tensor, activation, layout, channels, padding)


def _layout(node: ir.Node, shape: Sequence[int], channel_axis: int | None) -> Layout | None:
    """How the node sums its weight; None for kernels that are exact."""
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        if groups > 1 and shape[1] == 1 and shape[0] == groups:
            return None  # depthwise
        return Layout(1, channel_axis, groups)
    if node.op_type == "Gemm":
        return Layout(1 - gemm_output_axis(node), channel_axis)
    return Layout(max(len(shape) - 2, 0), channel_axis) if node.op_type == "MatMul" else None


@dataclass(frozen=True, eq=False)
class _Found:
    """Of a weight the pairs that may be beyond int16.

    real: before rounding, in steps of the scale. error: of an integer, in steps, at most. beyond:
    the integers that some inputs take beyond int16. shape: of the scale.
    """

    real: Pairs
    error: float
    beyond: Pairs
    shape: tuple[int, ...]

    def factor(self, fronts: Fronts, channels: IntArray) -> Float64Array:
        """By how much the scale of each channel is to grow, 1 for all but these channels."""
        room = INT16_MAX - 2 * self.error * UINT8_MAX
        pairs = self.real.where(np.isin(self.real.channel, channels))
        peak = np.full(self.shape, room).reshape(-1)
        np.maximum.at(peak, pairs.channel, _reach(pairs, fronts))
        return np.where(peak > room, peak / room * (1 + 1e-6), 1.0).reshape(self.shape)


def _pairs(prepared: Prepared, plan: Plan, product: _Product) -> _Found:
    params, update = plan.params[product.weight], plan.updates.get(product.weight)
    to_mean = None if update is None else update.to_mean
    scale, error = (params.scale, 0.5) if to_mean is None else (to_mean.scale, 1.0)
    least = INT16_MAX / UINT8_MAX - 2 * error

    def find(values: Array) -> _Found:
        padded = with_zero_channels(values, product.padding)
        real = find_pairs(padded, scale, product.layout, least=least)
        whole = real.rounded()
        if update is not None and (to_mean is not None or update.integers is not None):
            q = _integers(values, plan, product)
            whole = find_pairs(q, np.ones_like(scale), product.layout, least=least)
        beyond = whole.where(np.abs(whole.first + whole.second) > PAIR_LIMIT)
        return _Found(real, error, beyond, scale.shape)

    return _values(prepared, plan, product.weight, find)


def _reach(pairs: Pairs, fronts: Fronts) -> Float64Array:
    """The largest sum to be expected of each pair: what was seen and a margin, if possible."""
    return np.minimum(largest(pairs, fronts) * MARGIN, largest(pairs, FULL))


def _can_saturate(prepared: Prepared, plan: Plan, product: _Product) -> bool:
    params, update = plan.params[product.weight], plan.updates.get(product.weight)

    chosen = update is not None and (update.to_mean is not None or update.integers is not None)

    def find(values: Array) -> bool:
        if not chosen:
            padded = with_zero_channels(values, product.padding)
            return any_pair(padded, params.scale, product.layout)
        q = _integers(values, plan, product)
        return any_pair(q, np.ones_like(params.scale), product.layout)

    return _values(prepared, plan, product.weight, find)


def _integers(values: Array, plan: Plan, product: _Product) -> Array:
    q = chosen_integers(values, plan, product.weight).astype(np.float32)
    return with_zero_channels(q, product.padding)


def _raised(plan: Plan, factors: Mapping[str, Float64Array]) -> Plan:
    params, updates = dict(plan.params), dict(plan.updates)
    for name, factor in factors.items():
        params[name] = _times(params[name], factor)
        update = updates.get(name)
        if update is not None and update.to_mean is not None:
            to_mean = _times(update.to_mean, factor)
            updates[name] = dataclasses.replace(update, to_mean=to_mean)
    return Plan(plan.placement, params, plan.biases, updates)


def _times(params: QuantParams, factor: Float64Array) -> QuantParams:
    scale = (params.scale * factor).astype(np.float32)
    return QuantParams(params.spec, scale, params.zero_point)


def _values(prepared: Prepared, plan: Plan, name: str, use: Callable[[Array], T]) -> T:
    update = plan.updates.get(name)
    if update is not None and update.values is not None:
        return use(update.values)
    return read(tensor_of(prepared, name), use)


def _observe(
    prepared: Prepared, samples: Samples, plan: Plan, products: Sequence[_Product]
) -> tuple[dict[str, Fronts], int]:
    """What some samples, spread over all, bring together at the inputs of these nodes."""
    wanted = {p.activation.tensor: p for p in products}
    count = min(SAMPLES, len(samples))
    indices = [i * len(samples) // count for i in range(count)]
    model = prepared.ir.clone()
    values = {v.name: v for node in model.graph for v in node.outputs}
    outputs = [values[name] for name in wanted if name in values]
    for value in outputs:
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.clear()
    model.graph.outputs.extend(outputs)
    names = [value.name or "" for value in outputs]
    fronts: dict[str, Fronts] = {}
    try:
        with (
            session(model) if names else contextlib.nullcontext() as active,
            closing(prefetched(samples, indices, note=NOTHING_WRITTEN)) as feeds,
        ):
            for feed in feeds:
                found = dict(feed)
                if active is not None:
                    found |= zip(names, run(active, feed, names), strict=True)
                for name, product in wanted.items():
                    _take(fronts, found[name], plan, product)
    except RuntimeFailureError as error:
        raise ModelError(f"{prepared.label}: onnxruntime cannot run it: {error}") from error
    return fronts, count


def _take(fronts: dict[str, Fronts], x: Array, plan: Plan, product: _Product) -> None:
    name = product.activation.tensor
    params = plan.activation_params(product.activation)
    axis = 1 if product.layout.groups is not None else x.ndim - 1
    x = with_zero_channels(x, product.padding)
    if name not in fronts:
        fronts[name] = empty_fronts(x.shape[axis] // 2)
    if x.size:
        add_to_fronts(fronts[name], x, axis, float(params.scale), int(params.zero_point))
