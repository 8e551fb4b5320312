"""MobileNetV1 as Paddle 2.6 saves it, with its random weights: `paddle_model.py DIRECTORY`.

The architecture and the input of the ONNX model that the others quantize.
"""

from __future__ import annotations

import sys
from pathlib import Path

import paddle


def main() -> None:
    paddle.seed(0)
    network = paddle.vision.models.mobilenet_v1()
    network.eval()
    x = paddle.static.InputSpec([None, 3, 224, 224], "float32", "x")
    paddle.jit.save(network, str(Path(sys.argv[1]) / "inference"), input_spec=[x])


if __name__ == "__main__":
    main()
