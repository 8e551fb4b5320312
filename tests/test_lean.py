"""What a process imports, and that work grows with the model and no faster."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from benchmarks import growth
from onnxq.numerics.quantize import PIECE, abs_max, quantize, symmetric_params
from onnxq.qtypes import INT8, Granularity, PerChannel, PerTensor, QuantSpec

HEAVY = "{'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'sympy', 'pydantic', 'asyncio', 'ssl'}"
LISTED = f"import sys; print(sorted({HEAVY} & set(sys.modules)))"


def _heavy_after(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{LISTED}"], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "code",
    [
        "import onnxq",
        "import sys\nsys.argv = ['onnxq', '--help']\nimport onnxq.cli\n"
        "try:\n    onnxq.cli.main()\nexcept SystemExit:\n    pass",
    ],
    ids=["import", "help"],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert _heavy_after(code) == "[]"


def test_dynamic_mode_loads_neither_downloads_nor_measurements() -> None:
    code = (
        "import onnxq\nonnxq.quantize_dynamic\nimport sys\n"
        "left_out = {'http.client', 'ssl', 'multiprocessing'}\n"
        "print(sorted(left_out & set(sys.modules)))\n"
        "print([name for name in sys.modules if name.startswith('onnxq.measure')])\n"
        "import onnx\nassert not hasattr(onnx, 'hub') or callable(onnx.hub.load)\n"
        "onnx.serialization.registry.get('json').serialize_proto(onnx.ModelProto())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]


def test_sympy_waits_until_it_is_used() -> None:
    code = (
        "import onnxq\nonnxq.quantize_dynamic\nimport sys\n"
        "assert 'onnx_ir' in sys.modules and 'sympy.core' not in sys.modules\n"
        "import onnx_ir as ir\nassert str(ir.SymbolicDim('N') + 1) == 'N + 1'\n"
        "assert 'sympy.core' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_stages_are_about_linear(mode: str) -> None:
    """Quadratic work in any stage would show as 2; what is fixed makes it less than 1."""
    small, large = 400, 1600
    found = growth.measure((small, large))[mode]["all"]
    assert growth.exponent((small, large), found["seconds"]) < 1.6


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerChannel(1)], ids=str)
def test_large_weights_are_quantized_in_pieces(granularity: Granularity) -> None:
    x = np.random.default_rng(0).standard_normal((70, PIECE // 64, 1), dtype=np.float32)
    axis = granularity.axis if isinstance(granularity, PerChannel) else None
    others = None if axis is None else tuple(i for i in range(x.ndim) if i != axis)
    assert np.array_equal(abs_max(x, axis), np.abs(x).max(axis=others))
    params = symmetric_params(QuantSpec(INT8, granularity, symmetric=True), abs_max(x, axis))
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    expected = np.clip(np.rint(x / params.scale.reshape(shape)), -127, 127)
    assert np.array_equal(quantize(x, params), expected)
