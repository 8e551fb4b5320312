"""The values that stages hand on: `Placement` (what is quantized where) and `Plan` (how)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from onnxq.numerics.curve import Curve
from onnxq.qtypes import Float32Array, IntArray, QuantParams, QuantSpec
from onnxq.recipe import MethodOptions

__all__ = [
    "ActivationPlacement",
    "BiasPlacement",
    "Form",
    "Placement",
    "Plan",
    "Skip",
    "Use",
    "WeightPlacement",
    "WeightUpdate",
]


Form = Literal["kernel", "qdq", "fold"]


@dataclass(frozen=True, order=True)
class Use:
    """Input `index` of the node called `node` in the prepared model."""

    node: str
    index: int


@dataclass(frozen=True)
class WeightPlacement:
    """A constant that becomes integers.

    tensor: its name. uses: the node inputs that read the integers.
    others: whether something else goes on reading the float tensor.
    kind: "weight", "recurrence weight", "embedding", or "constant" (the operand of an Add or Mul).
    corrected: its mean and spread a channel are kept (see numerics/correction.py).
    form: how they are read. `kernel`: through a DequantizeLinear a reader, which fuses with it into
        an int8 kernel. `qdq`, `fold`: the weight is only stored as integers, and one
        DequantizeLinear, or Cast and Mul, gives the float tensor to all that read it.
    padding: input channels of zeros that it gets at its end, and with it the integers that its
        Convs read (see placement/padding.py).
    """

    tensor: str
    spec: QuantSpec
    uses: tuple[Use, ...]
    form: Form
    kind: str = "weight"
    others: bool = False
    corrected: bool = False
    padding: int = 0


@dataclass(frozen=True)
class BiasPlacement:
    """A bias that becomes int32: input `use` of a weighted node.

    Its scale is s_x * s_w, or one of its own where activations have more than 8 bits.
    """

    tensor: str
    use: Use
    activation: str
    weight: str


@dataclass(frozen=True)
class ActivationPlacement:
    """A tensor that gets QuantizeLinear.

    owner: the tensor whose statistics give its range (another one if a view shares parameters).
    unit_range: the range is 0..1 by definition.
    joins: the quantized tensors of which it is a Concat; its range is the union of theirs.
    tied: it has the parameters of the Concat that it is a part of.
    uses: the inputs of quantized nodes, each of which reads a DequantizeLinear of its own.
    method: how its range is chosen. ruled: a rule says so.
    requantized: its producer fuses with the QuantizeLinear, so that float readers must read a
        DequantizeLinear as well.
    curve: the function through which all that reads its owner reads it.
    """

    tensor: str
    spec: QuantSpec
    owner: str
    uses: tuple[Use, ...]
    method: MethodOptions
    requantized: bool
    unit_range: bool = False
    joins: tuple[str, ...] = ()
    tied: bool = False
    ruled: bool = False
    curve: Curve | None = None


@dataclass(frozen=True)
class Skip:
    """Something that stays float. `what` is "node" or "tensor", `bytes` that of its weights."""

    what: str
    name: str
    op_type: str
    reason: str
    bytes: int = 0


@dataclass(frozen=True)
class Placement:
    """What is quantized where, and why the rest is not. Needs no data.

    target: name of the runtime it is made for, None in dynamic mode.
    guarded: float nodes that the runtime would quantize on its own (see rewrite.py).
    labels: node name -> the name to print, that of the user's model.
    borders: float inputs and outputs of the graph that become integers.
    """

    weights: tuple[WeightPlacement, ...]
    activations: tuple[ActivationPlacement, ...] = ()
    biases: tuple[BiasPlacement, ...] = ()
    skips: tuple[Skip, ...] = ()
    target: str | None = None
    guarded: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    borders: frozenset[str] = frozenset()

    @property
    def is_empty(self) -> bool:
        """Nothing is quantized."""
        return not self.weights and not self.activations

    @property
    def owners(self) -> tuple[str, ...]:
        """The tensors whose statistics are needed, sorted."""
        return tuple(sorted({a.owner for a in self.activations if not (a.unit_range or a.joins)}))


@dataclass(frozen=True, eq=False)
class WeightUpdate:
    """What differs from the nearest integers of a weight's or a bias's own values.

    values: float32 values that take the place of the tensor's own before quantization.
    integers: the chosen integers, of the tensor's shape, in place of rounding to the nearest.
    to_mean: the parameters at which it is rounded so that each channel keeps its mean; the scale in
        `Plan.params` is another one if the spread of the channels is kept too.
    """

    values: Float32Array | None = None
    integers: IntArray | None = None
    to_mean: QuantParams | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """All that the rewriter reads.

    params: tensor name -> parameters, for each weight and bias and for the owner of each activation
        (`activation_params` finds them).
    """

    placement: Placement
    params: Mapping[str, QuantParams]
    biases: Mapping[Use, QuantParams] = field(default_factory=dict)
    updates: Mapping[str, WeightUpdate] = field(default_factory=dict)

    def activation_params(self, activation: ActivationPlacement) -> QuantParams:
        return self.params[activation.owner]
