"""Conv and ConvTranspose of one to three dimensions; one dimension as two, the first being 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onnxq_paddle.worker.emit.op import Op

__all__ = ["RULES", "Window", "window_of"]


@dataclass(frozen=True)
class Window:
    """How a kernel moves over an input, in Paddle's terms.

    pads: begin and end of each dimension in turn. algorithm: EXPLICIT, SAME or VALID.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int]
    algorithm: str

    @property
    def paddings(self) -> list[int]:
        """One number a dimension where both ends agree, as oneDNN's kernels like it."""
        begins, ends = self.pads[::2], self.pads[1::2]
        return begins if begins == ends else self.pads

    def with_leading(self) -> Window:
        """The same with a first dimension of 1."""
        ones = [1, *self.kernel], [1, *self.strides], [1, *self.dilations]
        return Window(*ones, [0, 0, *self.pads], self.algorithm)


def window_of(op: Op, kernel: Sequence[int], spatial: Sequence[int]) -> Window:
    """kernel: its size. spatial: the input's dimensions, -1 where only a run gives them."""
    count = len(kernel)
    strides = op.integers("strides", [1] * count)
    dilations = op.integers("dilations", [1] * count)
    given = op.integers("pads", [0] * 2 * count)
    pads = [given[i + end * count] for i in range(count) for end in (0, 1)]
    auto = op.text("auto_pad", "NOTSET")
    algorithm = "EXPLICIT"
    if auto == "VALID":
        pads = [0] * 2 * count
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        if -1 not in spatial:
            pads = _same(kernel, strides, dilations, spatial, upper=auto == "SAME_UPPER")
        elif auto == "SAME_UPPER":
            algorithm, pads = "SAME", [0] * 2 * count
        else:
            raise op.refuse("auto_pad SAME_LOWER needs an input of fixed height and width")
    return Window(list(kernel), strides, dilations, pads, algorithm)


def _same(
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    spatial: Sequence[int],
    *,
    upper: bool,
) -> list[int]:
    """So much padding that there are ceil(size / stride) positions; the odd one at the end."""
    pads = []
    for k, stride, dilation, size in zip(kernel, strides, dilations, spatial, strict=True):
        covered = (math.ceil(size / stride) - 1) * stride + (k - 1) * dilation + 1
        total = max(covered - size, 0)
        less, more = total // 2, total - total // 2
        pads += [less, more] if upper else [more, less]
    return pads


def _conv(op: Op) -> None:
    x, w = op.x(0), op.emitter.weight(op.node, 1)
    shape = op.shape(w)
    flat = len(shape) == 3
    window = window_of(op, shape[2:], op.shape(x)[2:])
    groups = op.integer("group", 1)
    depthwise = len(shape) == 4 and groups > 1 and groups == op.shape(x)[1]
    kind = "depthwise_conv2d" if depthwise else "conv3d" if len(shape) == 5 else "conv2d"
    if flat:
        x, w, window = op.unsqueezed(x, [2]), op.unsqueezed(w, [2]), window.with_leading()
    attributes = {
        "strides": window.strides,
        "paddings": window.paddings,
        "dilations": window.dilations,
        "padding_algorithm": window.algorithm,
        "groups": groups,
        "data_format": "NCDHW" if len(shape) == 5 else "NCHW",
    }
    _biased(op, kind, {"Input": x, "Filter": w}, attributes, flat=flat)


def _conv_transpose(op: Op) -> None:
    x, w = op.x(0), op.x(1)
    shape, groups = op.shape(w), op.integer("group", 1)
    count = len(shape) - 2
    flat = count == 1
    spatial = op.shape(x)[2:]
    window = window_of(op, shape[2:], [1] * count)
    extra = op.integers("output_padding", [0] * count)
    given = op.integers("output_shape", [])[-count:]
    auto = op.text("auto_pad", "NOTSET")
    if given or auto.startswith("SAME"):
        window = _to_size(op, window, spatial, extra, given, upper=auto != "SAME_LOWER")
    if flat:
        x, w, window = op.unsqueezed(x, [2]), op.unsqueezed(w, [2]), window.with_leading()
        extra = [0, *extra]
    depthwise = count == 2 and groups > 1 and groups == op.shape(x)[1] and shape[1] == 1
    attributes = {
        "strides": window.strides,
        "paddings": window.paddings,
        "dilations": window.dilations,
        "padding_algorithm": "EXPLICIT",
        "output_padding": extra if any(extra) else [],
        "output_size": [],
        "groups": groups,
        "data_format": "NCDHW" if count == 3 else "NCHW",
    }
    plain = "depthwise_conv2d_transpose" if depthwise else "conv2d_transpose"
    kind = "conv3d_transpose" if count == 3 else plain
    _biased(op, kind, {"Input": x, "Filter": w}, attributes, flat=flat)


def _to_size(
    op: Op,
    window: Window,
    spatial: Sequence[int],
    extra: Sequence[int],
    given: Sequence[int],
    *,
    upper: bool,
) -> Window:
    """Pads such that the output has the size given, or stride times the input's."""
    pads = []
    for i, size in enumerate(spatial):
        if size < 0:
            raise op.refuse("its output_shape or auto_pad needs an input of fixed size")
        covered = (window.kernel[i] - 1) * window.dilations[i] + 1
        wanted = given[i] if given else size * window.strides[i]
        total = window.strides[i] * (size - 1) + extra[i] + covered - wanted
        less, more = total // 2, total - total // 2
        # as the operator's definition has it: the larger half at the end only for SAME_UPPER
        at_end = op.text("auto_pad", "NOTSET") == "SAME_UPPER" if given else upper
        pads += [less, more] if at_end else [more, less]
    if min(pads, default=0) < 0:
        raise op.refuse("it asks for an output larger than Paddle's kernel can give")
    return Window(window.kernel, window.strides, window.dilations, pads, "EXPLICIT")


def _biased(
    op: Op, kind: str, inputs: dict[str, str], attributes: dict[str, Any], *, flat: bool
) -> None:
    """The convolution, its bias, and for one dimension without the other; oneDNN fuses the bias."""
    end = None if op.has(2) or flat else op.y()
    result = op.run(kind, inputs, attributes, slot="Output", to=end)
    if op.has(2):
        bias = {"X": result, "Y": op.emitter.bias(op.node, 2)}
        result = op.run("elementwise_add", bias, {"axis": 1}, to=None if flat else op.y())
    if flat:
        op.squeezed(result, [2], op.y())


RULES: dict[str, Callable[[Op], None]] = {"Conv": _conv, "ConvTranspose": _conv_transpose}
