"""A weighted node as a linear map: its weight as a matrix, and the patches that it multiplies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.optable import gemm_output_axis
from onnxq.qtypes import Array, Float32Array, Float64Array, QuantParams

__all__ = ["Layer", "layer_of"]


@dataclass(frozen=True, eq=False)
class Layer:
    """weights: float64 [groups, channels, inputs]: what each output channel multiplies patches by.

    node, name: the node, and the name of its weight. shape: of the stored weight.
    """

    node: ir.Node
    name: str
    shape: tuple[int, ...]
    weights: Float64Array

    @property
    def groups(self) -> int:
        return int(self.weights.shape[0])

    @property
    def inputs(self) -> int:
        return int(self.weights.shape[2])

    def matrix(self, stored: Array) -> Float64Array:
        """An array of the stored weight's shape as [groups, channels, inputs]."""
        values = np.asarray(stored, np.float64)
        if self.node.op_type != "Conv" and _output_axis(self.node) == 1:
            values = values.T
        return values.reshape(self.weights.shape)

    def stored(self, matrix: Float64Array) -> Float64Array:
        """The inverse of `matrix`."""
        if self.node.op_type != "Conv" and _output_axis(self.node) == 1:
            return np.ascontiguousarray(matrix.reshape(self.shape[::-1]).T)
        return matrix.reshape(self.shape)

    def scale(self, scale: Array) -> Float64Array:
        """One scale, or one a channel, as [groups, channels, 1]."""
        values = np.asarray(scale, np.float64).reshape(-1)
        channels = self.weights.shape[0] * self.weights.shape[1]
        return np.broadcast_to(values, (channels,)).reshape(*self.weights.shape[:2], 1)

    def patches(self, x: Array, params: QuantParams | None, most: int) -> Float32Array:
        """What the node multiplies its weight by: [groups, rows, inputs].

        x: a batch of inputs. params: of integers. most: how many positions of a row of the batch
        are taken at most, evenly spread.
        """
        zero = 0 if params is None else int(params.zero_point)
        taken = self._patches(x, zero, most).astype(np.float32)
        return taken if params is None else (taken - np.float32(zero)) * params.scale

    def _patches(self, x: Array, zero: int, most: int) -> Array:
        if self.node.op_type != "Conv":
            rows = x.reshape(-1, x.shape[-1])
            every = max(1, len(rows) // max(most * x.shape[0], 1))
            return rows[::every][None]
        return _conv_patches(self.node, x, zero, self.shape, self.groups, most)


def layer_of(node: ir.Node) -> Layer | str:
    """The layer of a weighted node, or why it is left out."""
    value = node.inputs[1]
    tensor = value.const_value if value is not None else None
    if value is None or tensor is None or len(value.uses()) > 1:
        return "its weight is read by others as well"
    stored = np.asarray(tensor.numpy())
    if node.op_type == "Conv":
        if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return "its padding depends on the size of the input"
        groups = node.attributes.get_int("group", 1)
        matrix = stored.reshape(groups, stored.shape[0] // groups, -1)
    else:
        matrix = (stored if _output_axis(node) == 0 else stored.T)[None]
    return Layer(node, value.name or "", stored.shape, np.asarray(matrix, np.float64))


def _output_axis(node: ir.Node) -> int:
    return gemm_output_axis(node) if node.op_type == "Gemm" else 1


def _conv_patches(
    node: ir.Node, x: Array, zero: int, shape: tuple[int, ...], groups: int, most: int
) -> Array:
    dims = len(shape) - 2
    pads = list(node.attributes.get_ints("pads", [0] * 2 * dims))
    strides = list(node.attributes.get_ints("strides", [1] * dims))
    dilations = list(node.attributes.get_ints("dilations", [1] * dims))
    width = [(0, 0), (0, 0), *zip(pads[:dims], pads[dims:], strict=True)]
    padded = np.pad(x, width, constant_values=zero) if any(pads) else x
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, shape[2:], strict=True)]
    axes = tuple(range(2, 2 + dims))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
    every_of = [1, 1, *strides, *dilations]
    windows = windows[tuple(slice(None, None, n) for n in every_of)]
    count = int(np.prod(windows.shape[2 : 2 + dims]))
    every = max(1, -(-count // most))
    where = np.unravel_index(np.arange(every // 2, count, every), windows.shape[2 : 2 + dims])
    index: tuple[Any, ...] = (slice(None), slice(None), *where)
    taken = windows[index]  # [batch, channels, positions, *kernel]
    batch, channels, positions = taken.shape[:3]
    split = taken.reshape(batch, groups, channels // groups, positions, -1)
    return np.ascontiguousarray(split.transpose(1, 0, 3, 2, 4)).reshape(
        groups, batch * positions, -1
    )
