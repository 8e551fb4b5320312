"""Networks, samples and calls for the tests of PaddleSlim's calls."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

import onnxq
from onnxq.qtypes import Array

SHAPE = (3, 16, 16)
SAVE = """
    import sys

    import paddle
    from paddle.nn import BatchNorm2D, Conv2D, Conv2DTranspose, Linear
    from paddle.nn.functional import relu
    from paddle.static import InputSpec

    class Net(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = Conv2D(3, 16, 3, padding=1), BatchNorm2D(16)
            self.dw, self.up = Conv2D(16, 16, 3, groups=16), Conv2DTranspose(16, 8, 2)
            self.fc = Linear(8, 10)

        def forward(self, x):
            x = relu(self.dw(relu(self.bn(self.conv(x)))))
            return self.fc(paddle.mean(relu(self.up(x)), axis=[2, 3]))

    class Two(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.one, self.other = Linear(4, 8), Linear(6, 8)

        def forward(self, left, right):
            return self.one(left) + self.other(right)

    class Open(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.fc = Linear(3 * 13 * 13, 10)

        def forward(self, x):
            return self.fc(paddle.reshape(x, [-1, 3 * 13 * 13]))

    paddle.seed(1)
    for name, net, specs in (
        ("net", Net(), {"x": [None, 3, 16, 16]}),
        ("two", Two(), {"left": [None, 4], "right": [None, 6]}),
        ("four", Two(), {"left": [4, 4], "right": [4, 6]}),
        ("open", Open(), {"x": [None, 3, None, None]}),
    ):
        net.eval()
        spec = [InputSpec(shape, "float32", key) for key, shape in specs.items()]
        paddle.jit.save(net, f"{sys.argv[1]}/{name}/inference", input_spec=spec)
"""


def script(text: str, *arguments: object, pir: bool = True) -> str:
    """Run a script of a user's, in a process with Paddle's newer or older programs."""
    environment = {
        **os.environ,
        "FLAGS_enable_pir_api": "1" if pir else "0",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "script.py")  # paddle.jit reads the source
        file.write_text(textwrap.dedent(text))
        done = subprocess.run(
            [sys.executable, str(file), *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


def images(count: int = 24, seed: int = 0) -> Array:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, *SHAPE)).astype(np.float32)


def reader() -> Iterator[list[Array]]:
    """A generator of samples as in the tutorial, in double precision as numpy makes it."""
    return ([image.astype(np.float64)] for image in images())


def static(model: Path, output: Path, **arguments: Any) -> onnxq.Report:
    """A call that writes ONNX alone, from the samples of `reader` if no others are given."""
    sources = ("batch_generator", "sample_generator", "data_loader")
    if not any(name in arguments for name in sources):
        arguments["sample_generator"] = reader
    from onnxq_paddle.paddleslim import quant

    return quant.quant_post_static(None, model, output, paddle_model=False, **arguments)


def integers(path: Path) -> dict[str, Array]:
    """The integer weights of a quantized model, by the name of the float one."""
    arrays = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    ends = ("_quantized", "_q")
    return {
        name.removesuffix(end): array
        for name, array in arrays.items()
        for end in ends
        if name.endswith(end) and array.dtype in (np.int8, np.int16)
    }


def kept(path: Path) -> set[str]:
    """Of the weights conv, dw, up and fc, those that became integers."""
    known = {(16, 3, 3, 3): "conv", (16, 1, 3, 3): "dw", (16, 8, 2, 2): "up", (8, 10): "fc"}
    return {known[array.shape] for array in integers(path).values() if array.shape in known}
