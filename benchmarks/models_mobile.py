"""Mobile networks that break others in int8: HardSwish or Swish, and squeeze-excite.

Made as those of models.py, from which they differ in their activations (with a negative part of
small values) and in the gates that multiply channels, which are spread widely.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from benchmarks.models import BRANCH, LINEAR, MODELS, RECTIFIED, Builder, Shape

__all__ = ["MOBILE", "efficientnet", "mobilenet_v3"]

Activation = Callable[[Builder, ir.Value, str], ir.Value]


def _relu(g: Builder, x: ir.Value, name: str) -> ir.Value:
    return g.op("Relu", [x], f"{name}.relu")


def _hard_swish(g: Builder, x: ir.Value, name: str) -> ir.Value:
    """x * clip(x / 6 + 1/2, 0, 1) in two nodes, as exporters write it below opset 14."""
    gate = g.op("HardSigmoid", [x], f"{name}.hardsigmoid", {"alpha": 1 / 6, "beta": 0.5})
    return g.op("Mul", [x, gate], f"{name}.hardswish")


def _swish(g: Builder, x: ir.Value, name: str) -> ir.Value:
    return g.op("Mul", [x, g.op("Sigmoid", [x], f"{name}.sigmoid")], f"{name}.swish")


def _hard_sigmoid(g: Builder, x: ir.Value, name: str) -> ir.Value:
    return g.op("HardSigmoid", [x], f"{name}.gate", {"alpha": 1 / 6, "beta": 0.5})


def _sigmoid(g: Builder, x: ir.Value, name: str) -> ir.Value:
    return g.op("Sigmoid", [x], f"{name}.gate")


def _conv(
    g: Builder, x: ir.Value, name: str, shape: Shape, act: Activation, stride: int = 1
) -> ir.Value:
    return act(g, g.conv_bn(x, name, shape, stride, RECTIFIED), name)


def _squeeze_excite(
    g: Builder, x: ir.Value, name: str, width: int, inner: Activation, gate: Activation
) -> ir.Value:
    channels = int(g.probe[x].shape[1])
    y = g.op("GlobalAveragePool", [x], f"{name}.pool")
    y = inner(g, g.conv_bn(y, f"{name}.reduce", (width, channels, 1, 1), bn=RECTIFIED), name)
    y = g.conv_bn(y, f"{name}.expand", (channels, width, 1, 1), bn=(1.5, 0.5))
    return g.op("Mul", [x, gate(g, y, name)], f"{name}.mul")


def mobilenet_v3(seed: int = 0) -> ir.Model:
    """MobileNet v3 small: inverted residuals with squeeze-excite, Relu and HardSwish."""
    g = Builder("mobilenet_v3", seed)
    x = _conv(g, g.image(), "stem", (16, 3, 3, 3), _hard_swish, 2)
    # kernel, hidden, width, squeeze-excite, activation, stride
    rows: list[tuple[int, int, int, bool, Activation, int]] = [
        (3, 16, 16, True, _relu, 2),
        (3, 72, 24, False, _relu, 2),
        (3, 88, 24, False, _relu, 1),
        (5, 96, 40, True, _hard_swish, 2),
        (5, 240, 40, True, _hard_swish, 1),
        (5, 240, 40, True, _hard_swish, 1),
        (5, 120, 48, True, _hard_swish, 1),
        (5, 144, 48, True, _hard_swish, 1),
        (5, 288, 96, True, _hard_swish, 2),
        (5, 576, 96, True, _hard_swish, 1),
        (5, 576, 96, True, _hard_swish, 1),
    ]
    channels = 16
    for block, (kernel, hidden, width, excite, act, stride) in enumerate(rows):
        name, y = f"block{block}", x
        if hidden != channels:
            y = _conv(g, y, f"{name}.expand", (hidden, channels, 1, 1), act)
        y = _conv(g, y, f"{name}.depthwise", (hidden, 1, kernel, kernel), act, stride)
        if excite:
            y = _squeeze_excite(g, y, f"{name}.se", max(8, hidden // 4), _relu, _hard_sigmoid)
        adds = stride == 1 and width == channels
        y = g.conv_bn(y, f"{name}.project", (width, hidden, 1, 1), bn=BRANCH if adds else LINEAR)
        x = g.op("Add", [x, y], f"{name}.add") if adds else y
        channels = width
    x = _conv(g, x, "last", (576, channels, 1, 1), _hard_swish)
    return g.classify(x)


def efficientnet(seed: int = 0) -> ir.Model:
    """EfficientNet B0: inverted residuals with squeeze-excite and Swish throughout."""
    g = Builder("efficientnet", seed)
    x = _conv(g, g.image(), "stem", (32, 3, 3, 3), _swish, 2)
    channels, block = 32, 0
    # expansion, width, repeats, stride, kernel
    rows = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)]
    rows += [(6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)]
    for expansion, width, repeats, first_stride, kernel in rows:
        for repeat in range(repeats):
            name, stride = f"block{block}", first_stride if repeat == 0 else 1
            hidden, y = channels * expansion, x
            if expansion > 1:
                y = _conv(g, y, f"{name}.expand", (hidden, channels, 1, 1), _swish)
            y = _conv(g, y, f"{name}.depthwise", (hidden, 1, kernel, kernel), _swish, stride)
            y = _squeeze_excite(g, y, f"{name}.se", max(1, channels // 4), _swish, _sigmoid)
            bn = BRANCH if repeat else LINEAR
            y = g.conv_bn(y, f"{name}.project", (width, hidden, 1, 1), bn=bn)
            x = g.op("Add", [x, y], f"{name}.add") if repeat else y
            channels, block = width, block + 1
    return g.classify(_conv(g, x, "last", (1280, channels, 1, 1), _swish))


MOBILE = {build.__name__: build for build in (mobilenet_v3, efficientnet)}
MODELS.update(MOBILE)
