"""Plan: what a recipe would quantize, where, with which parameters, and why not the rest."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxq.calibration import Calibration
from onnxq.model import ModelLike, load
from onnxq.numerics.ranges import AUTO
from onnxq.parametrize import check_finite, parametrize
from onnxq.pipeline import PathLike, place, prepare_for
from onnxq.plans import ActivationPlacement, Placement, Plan, Use
from onnxq.prepare import Prepared
from onnxq.recipe import DynamicRecipe, Recipe, StaticRecipe
from onnxq.recipe_file import load_recipe, recipe_to_dict
from onnxq.saturation import guard
from onnxq.selection import Choices
from onnxq.static_mode import statistics_of

__all__ = ["PlanReport", "check_patterns", "plan"]


@dataclass(frozen=True, eq=False)
class PlanReport:
    """A plan to read, to print and to compare with another: same input, same text.

    plan: without the parameters of activations and biases where no statistics were given.
    order: names of the nodes, in the order of the graph.
    """

    model: str
    recipe: Recipe
    placement: Placement
    plan: Plan
    order: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; scales and zero points in full."""
        return {
            "model": self.model,
            "recipe": recipe_to_dict(self.recipe),
            "weights": [
                {
                    "tensor": w.tensor,
                    "kind": w.kind,
                    "type": str(w.spec),
                    "form": w.form,
                    "corrected": w.corrected,
                    "padding": w.padding,
                    "used_by": self._users(w.uses),
                    **self._params(w.tensor),
                }
                for w in sorted(self.placement.weights, key=lambda w: self._rank(w.uses))
            ],
            "activations": [
                {
                    "tensor": a.tensor,
                    "type": str(a.spec),
                    "range": self._range(a),
                    "used_by": self._users(a.uses),
                    **self._params(a.owner),
                }
                for a in self.placement.activations
            ],
            "biases": [
                {
                    "tensor": b.tensor,
                    "used_by": self._users((b.use,)),
                    "scale_of": [b.activation, b.weight],
                }
                for b in self.placement.biases
            ],
            "left_float": [
                {"what": s.what, "name": s.name, "op_type": s.op_type, "reason": s.reason}
                for s in self.placement.skips
            ],
        }

    def lines(self) -> Iterator[str]:
        """The plan as text, a line a tensor: two plans can be compared with `diff`."""
        found = self.to_dict()
        yield f"model {self.model}"
        for key, value in found["recipe"].items():
            yield f"recipe {key} = {value}"
        for row in found["weights"]:
            yield (
                f"weight {row['tensor']}: {row['type']}, {_FORMS[row['form']]}, "
                f"{'corrected, ' if row['corrected'] else ''}{_padding(row['padding'])}"
                f"{_numbers(row)}; for {', '.join(row['used_by'])}"
            )
        for row in found["activations"]:
            users = ", ".join(row["used_by"]) or "float readers only"
            yield (
                f"activation {row['tensor']}: {row['type']}, {row['range']}, {_numbers(row)}; "
                f"for {users}"
            )
        for row in found["biases"]:
            yield (
                f"bias {row['tensor']}: int32, scale of {' times '.join(row['scale_of'])}; "
                f"for {', '.join(row['used_by'])}"
            )
        for row in found["left_float"]:
            yield f"float {row['op_type']} {row['name']}: {row['reason']}"

    def __str__(self) -> str:
        return "\n".join(self.lines()) + "\n"

    def _users(self, uses: tuple[Use, ...]) -> list[str]:
        labels = self.placement.labels
        return [labels.get(use.node, use.node) for use in sorted(uses, key=self._position)]

    def _rank(self, uses: tuple[Use, ...]) -> int:
        return min(map(self._position, uses), default=len(self.order))

    def _position(self, use: Use) -> int:
        return self._positions.get(use.node, len(self.order))

    @functools.cached_property
    def _positions(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.order)}

    def _range(self, activation: ActivationPlacement) -> str:
        if activation.unit_range:
            return "range 0..1 by definition"
        if activation.joins:
            return f"union of {', '.join(activation.joins)}"
        if activation.owner != activation.tensor:
            return f"range of {activation.owner}"
        method = activation.method
        start = ", which auto goes on from" if method.method == AUTO else ""
        return f"by {method.words}{start}"

    def _params(self, key: str) -> dict[str, Any]:
        params = self.plan.params.get(key)
        if params is None:
            return {"scale": None, "zero_point": None}
        return {"scale": _short(params.scale), "zero_point": params.zero_point.tolist()}


def _short(scale: Any) -> Any:
    """float32 values with the digits that tell them apart, and no more."""
    if scale.ndim == 0:
        return float(str(scale))
    return [float(str(s)) for s in scale]


_FORMS = {
    "kernel": "in an int8 kernel",
    "qdq": "stored, read through DequantizeLinear",
    "fold": "stored, read through Cast and Mul",
}


def _padding(channels: int) -> str:
    if not channels:
        return ""
    return f"with {channels} more input channel{'s' if channels > 1 else ''} of zeros, "


def _numbers(row: dict[str, Any]) -> str:
    scale, zero = row["scale"], row["zero_point"]
    if scale is None:
        return "scale from samples"
    if not isinstance(scale, list):
        return f"scale {scale:.9g}, zero point {zero}"
    zeros = sorted(set(zero))
    at = f"{zeros[0]}" if len(zeros) == 1 else f"{zeros[0]}..{zeros[-1]}"
    return f"{len(scale)} scales {min(scale):.9g}..{max(scale):.9g}, zero point {at}"


def plan(
    model: ModelLike,
    recipe: Recipe | PathLike = StaticRecipe(),  # noqa: B008  # frozen
    *,
    statistics: Calibration | PathLike | None = None,
) -> PlanReport:
    """What `quantize` would do with this recipe. Writes nothing, and runs no sample.

    statistics: from `calibrate`; without them the parameters of activations in static mode stay
        open (and a weight's scale is shown as it is before room is made for a large bias).

    Raises OptionError, ModelError or CalibrationError.
    """
    if isinstance(recipe, str | os.PathLike):
        recipe = load_recipe(recipe)
    recipe = recipe.effective()
    if isinstance(recipe, StaticRecipe) and statistics is None:
        statistics = recipe.statistics
    source = load(model)
    prepared = prepare_for(source, recipe)
    placement = place(prepared, recipe)
    check_finite(prepared, placement)
    if isinstance(recipe, DynamicRecipe):
        made = parametrize(prepared, placement)
    elif statistics is not None:
        made = parametrize(prepared, placement, statistics_of(statistics, prepared))
        if recipe.isa is not None:
            made, _ = guard(prepared, None, made, recipe.isa)
    else:  # the scales that weights have by themselves
        weights = dataclasses.replace(placement, activations=(), biases=())
        made = parametrize(prepared, weights)
    return PlanReport(source.label, recipe, placement, made, _order(prepared))


def check_patterns(model: ModelLike, recipe: Recipe) -> None:
    """Raises OptionError for a pattern or op type of the recipe that the model does not have."""
    Choices(prepare_for(load(model), recipe), recipe)


def _order(prepared: Prepared) -> tuple[str, ...]:
    nodes = ir.traversal.RecursiveGraphIterator(prepared.ir.graph)
    return tuple(node.name or "" for node in nodes)
