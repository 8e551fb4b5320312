"""Instruction sets: which of them adds products of uint8 and int8 exactly, and what runs here."""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["ISAS", "SATURATING", "host_isa", "probe"]

ISAS = ("avx2", "avx512", "vnni", "arm")
# Those whose kernels cut pairs of products off at int16 (see numerics/saturation.py)
SATURATING = ("avx2", "avx512")


@functools.cache
def host_isa() -> str:
    """The one that onnxruntime uses here: by what it calculates, not by what the processor says.

    "vnni" stands for any x86 that is exact, AMX included.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm"
    if not _saturates():
        return "vnni"
    flags = Path("/proc/cpuinfo")
    found = flags.read_text(encoding="utf-8", errors="replace") if flags.is_file() else ""
    return "avx512" if "avx512bw" in found else "avx2"


def _saturates() -> bool:
    """Whether 255 * 127 + 255 * 127 comes out wrong."""
    import numpy as np

    from onnxq.runtime import run, session

    with session(probe()) as active:
        (y,) = run(active, {"x": np.full((1, 4), 255, np.uint8)})
    return bool((y != 4 * 255 * 127).any())


def probe() -> ir.Model:
    """A product of four uint8 with weights of 127."""
    import numpy as np
    import onnx_ir as ir

    from onnxq.model import new_value

    size = 16  # as many outputs as a kernel gives at once
    x = ir.Value(name="x", shape=ir.Shape([1, 4]), type=ir.TensorType(ir.DataType.UINT8))
    node = ir.Node("", "MatMulInteger", [x, None])
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 13}, name="probe")
    weights = ir.tensor(np.full((4, size), 127, np.int8), name="w")
    node.replace_input_with(1, new_value(graph, "w", weights))
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.INT32)
    return ir.Model(graph, ir_version=8)
