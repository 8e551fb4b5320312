"""All operators that can be written for Paddle, with the rule of each. Imports no Paddle."""

from __future__ import annotations

from collections.abc import Callable

from onnxq_paddle.worker.emit import (
    control,
    conv,
    detection,
    elementwise,
    indexing,
    matmul,
    movement,
    normalization,
    pooling,
    quantization,
    recurrent,
    reductions,
    resize,
)
from onnxq_paddle.worker.emit.op import Op

__all__ = ["FOREIGN", "RULES"]

RULES: dict[str, Callable[[Op], None]] = {
    **control.RULES,
    **conv.RULES,
    **detection.RULES,
    **elementwise.RULES,
    **indexing.RULES,
    **matmul.RULES,
    **movement.RULES,
    **normalization.RULES,
    **pooling.RULES,
    **quantization.RULES,
    **recurrent.RULES,
    **reductions.RULES,
    **resize.RULES,
}
# Operators of com.microsoft that mean what the standard ones of that name do
FOREIGN = frozenset({"DequantizeLinear", "Gelu", "QuantizeLinear"})
