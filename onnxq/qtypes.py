"""What a quantized tensor is made of: integer type, granularity, scale and zero point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "INT8",
    "INT16",
    "INT32",
    "UINT8",
    "Array",
    "Float32Array",
    "Float64Array",
    "Granularity",
    "IntArray",
    "PerChannel",
    "PerTensor",
    "QType",
    "QuantParams",
    "QuantSpec",
]

Array = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class QType:
    """An integer type of ONNX.

    opset: the first opset whose DequantizeLinear takes it.
    """

    name: str
    bits: int
    signed: bool
    opset: int

    @property
    def qmin(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.name)


UINT8 = QType("uint8", 8, signed=False, opset=10)
INT8 = QType("int8", 8, signed=True, opset=10)
INT16 = QType("int16", 16, signed=True, opset=21)
INT32 = QType("int32", 32, signed=True, opset=10)


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""

    def __str__(self) -> str:
        return "per-tensor"


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index along `axis` (never negative)."""

    axis: int

    def __str__(self) -> str:
        return f"per-channel (axis {self.axis})"


Granularity = PerTensor | PerChannel


@dataclass(frozen=True)
class QuantSpec:
    """How a tensor is to be quantized.

    symmetric: the zero point is in the middle (0, or 128 of uint8), and the lowest integer is not
        used, so that as many lie below the middle as above.
    """

    qtype: QType
    granularity: Granularity
    symmetric: bool

    @property
    def middle(self) -> int:
        """The zero point of a symmetric range."""
        return 0 if self.qtype.signed else 1 << (self.qtype.bits - 1)

    @property
    def lowest(self) -> int:
        """The smallest integer that is used."""
        return self.qtype.qmin + self.symmetric

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else "asymmetric"
        return f"{kind} {self.qtype.name} {self.granularity}"


@dataclass(frozen=True, eq=False)
class QuantParams:
    """x = (q - zero_point) * scale.

    scale: float32, of shape [] (per tensor) or [channels] along `axis`.
    zero_point: an integer of `spec.qtype`, of the same shape.
    """

    spec: QuantSpec
    scale: Float32Array
    zero_point: Array

    @property
    def axis(self) -> int | None:
        granularity = self.spec.granularity
        return granularity.axis if isinstance(granularity, PerChannel) else None
