"""The runtimes that static models are made for. A new one is a new value here."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace

from onnxq.errors import OptionError
from onnxq.qtypes import INT8, INT16, UINT8, PerTensor, QType, QuantSpec

__all__ = ["TARGETS", "Costs", "Padding", "Target", "default_target", "target_of"]

_ORT_OPS = frozenset(
    {"Conv", "Gemm", "MatMul", "Relu", "Clip"}
    | {"Add", "Mul", "Concat", "Where", "AveragePool", "GlobalAveragePool"}
    | {"LeakyRelu", "Sigmoid", "Softmax"}
    | {"MaxPool", "Resize", "Expand", "Flatten", "Gather", "Reshape", "Slice", "Split"}
    | {"Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
# What oneDNN runs in int8 in Paddle Inference. Every other operator is float there, whatever stands
# around it, and would only lose accuracy
_PADDLE_OPS = frozenset(
    {"Conv", "Gemm", "MatMul", "Relu", "Clip", "Add", "Concat", "AveragePool", "GlobalAveragePool"}
    | {"MaxPool", "Resize", "Flatten", "Reshape", "Slice", "Split", "Transpose"}
)


@dataclass(frozen=True)
class Costs:
    """What int8 saves and costs in a runtime, in ns on two cores; see placement/paying.py.

    product: that one product of a Conv is faster. element: that one element of a Conv's output is
    slower, whatever its products. grouped: that one of a grouped Conv's is. conversion: of one
    element from float to integers or back, its change of layout included.
    """

    product: float
    element: float
    grouped: float
    conversion: float


@dataclass(frozen=True)
class Padding:
    """Convs that are the faster with `to` input channels in place of `channels`.

    outputs: how many output channels they have at least. positions: of the kernel, at most.
    """

    channels: int
    to: int
    outputs: int
    positions: int


@dataclass(frozen=True)
class Target:
    """What a runtime runs fast.

    activation: how activations are quantized (per tensor).
    weight: the integers of weights; symmetric.
    ops: op types with an int8 kernel, or that pass int8 through.
    integer_bias: biases are int32 with scale s_x * s_w; else they stay float.
    quantized_outputs: a Conv fuses only if its output is quantized too. If False, tensors are
        quantized only where a quantized op reads them.
    skip_input_only: of a residual Add, quantize the branch that does not come straight from a
        weighted op, which the runtime fuses with the Add.
    costs: by which islands that would lose time are left float; None where nobody measured them.
    paddings: the Convs of few input channels that are the faster for more of them, of zeros (see
        placement/padding.py); none where nobody measured it.
    """

    name: str
    activation: QuantSpec
    ops: frozenset[str]
    integer_bias: bool = True
    quantized_outputs: bool = True
    skip_input_only: bool = False
    weight: QType = INT8
    costs: Costs | None = None
    paddings: tuple[Padding, ...] = ()

    def at(self, bits: int) -> Target:
        """The same for weights and activations of 8 or 16 bits; both are symmetric at 16."""
        if bits == self.weight.bits:
            return self
        activation = QuantSpec(INT16, PerTensor(), symmetric=True)
        return replace(
            self,
            activation=activation,
            weight=INT16,
            integer_bias=True,
            costs=None,
            paddings=(),
        )


_PLAIN = Target("onnxruntime-x86", QuantSpec(UINT8, PerTensor(), symmetric=False), _ORT_OPS)
# measured with AVX512-VNNI
_X86 = replace(
    _PLAIN,
    costs=Costs(product=1 / 145, element=0.1, grouped=0.4, conversion=0.4),
    paddings=(
        Padding(3, to=4, outputs=16, positions=25),
        Padding(3, to=4, outputs=32, positions=49),
        Padding(2, to=4, outputs=16, positions=9),
        Padding(1, to=4, outputs=24, positions=9),
    ),
)
_SYMMETRIC = QuantSpec(INT8, PerTensor(), symmetric=True)

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        _X86,
        # Not symmetric: only with a zero point of -128 is the Relu before a Q absorbed
        replace(
            _PLAIN,
            name="onnxruntime-arm",
            activation=QuantSpec(INT8, PerTensor(), symmetric=False),
        ),
        replace(_PLAIN, name="openvino"),
        replace(_PLAIN, name="paddle", activation=_SYMMETRIC, ops=_PADDLE_OPS),
        Target(
            "tensorrt",
            _SYMMETRIC,
            frozenset({"Conv", "Gemm", "MatMul", "Add", "Relu", "Clip"}),
            integer_bias=False,
            quantized_outputs=False,
            skip_input_only=True,
        ),
    )
}


def default_target() -> Target:
    """U8S8 for onnxruntime on x86, S8S8 on Arm, by the processor that this runs on."""
    arm = platform.machine().lower() in ("arm64", "aarch64")
    return TARGETS["onnxruntime-arm" if arm else "onnxruntime-x86"]


def target_of(name: str | None) -> Target:
    """The target of that name; the default one for None. Raises OptionError for an unknown one."""
    if name is None:
        return default_target()
    if name not in TARGETS:
        raise OptionError(f"unknown target {name!r}; there are {', '.join(TARGETS)}")
    return TARGETS[name]
