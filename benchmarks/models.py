"""The standard architectures with seeded random weights: models to measure on without a download.

Each node is also run on a small probe batch as it is added, so that BatchNormalization and the
classifier get the statistics of their own inputs, as training gives them. Without that a random
network of this depth saturates, or answers the same to every input, and says nothing about int8.

The same seed gives the same bytes on one machine; between machines the measured statistics can
differ in the last bits.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

__all__ = ["MODELS", "random_inputs"]

Array = npt.NDArray[Any]
Feed = dict[str, Array]
Shape = Sequence[int]
Attributes = Mapping[str, int | float | Shape]

OPSET, IR_VERSION = 17, 8
IMAGE_SIZE, CLASSES = 224, 1000
VOCABULARY, SEQUENCE, POSITIONS = 30522, 128, 512
PROBE_COUNT = 8

# Deviation and mean that a BatchNormalization typically gives its channels. With most units on,
# and branches smaller than the stream they join, a deep network does not amplify small errors.
Moments = tuple[float, float]
LINEAR, RECTIFIED, BRANCH = (1.0, 0.0), (1.0, 1.0), (0.5, 0.0)


def random_inputs(name: str, count: int, seed: int) -> list[Feed]:
    """`count` feeds of batch 1 for the model `name`, with the coarse statistics of real inputs."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    rng = np.random.default_rng(seed)
    return [_sentence(rng) if name == "bert_small" else _image(rng) for _ in range(count)]


def _image(rng: np.random.Generator) -> Feed:
    """Mostly grey and mostly low frequencies, as photographs are: noise would pool to nothing."""
    image = np.zeros((3, IMAGE_SIZE, IMAGE_SIZE))
    for grid in (1, 2, 4, 8, 16, 32, 56, 112, 224):
        grey, colour = rng.normal(size=(1, grid, grid)), rng.normal(size=(3, grid, grid))
        octave = 0.8 ** math.log2(grid) * (0.8 * grey + 0.6 * colour)
        image += octave.repeat(IMAGE_SIZE // grid, axis=1).repeat(IMAGE_SIZE // grid, axis=2)
    return {"input": (0.6 * image).astype(np.float32)[None]}


def _sentence(rng: np.random.Generator) -> Feed:
    """Tokens of Zipf frequency between BERT's [CLS] and [SEP], padded to a fixed length."""
    ids = 999 + np.floor((VOCABULARY - 1000) ** rng.random(size=(1, SEQUENCE)))
    length = int(rng.integers(SEQUENCE // 4, SEQUENCE + 1))
    ids[:, 0], ids[:, length - 1], ids[:, length:] = 101, 102, 0
    mask = np.arange(SEQUENCE)[None] < length
    return {"input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64)}


def _run(node: ir.Node, arrays: Sequence[Array]) -> Array:
    """Run one node alone; one thread, so that the bytes do not depend on the machine's cores."""
    feeds = {f"in{i}": array for i, array in enumerate(arrays)}
    inputs = [ir.val(k, ir.DataType.from_numpy(v.dtype), v.shape) for k, v in feeds.items()]
    copy = ir.node(node.op_type, inputs, node.attributes)
    copy.outputs[0].name = "out"
    graph = ir.Graph(inputs, copy.outputs, nodes=[copy], opset_imports={"": OPSET}, name="probe")
    model = ir.serde.serialize_model(ir.Model(graph, ir_version=IR_VERSION))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    output: Array = session.run(None, feeds)[0]
    return output


class Builder:
    """Adds named nodes to a graph and keeps what each gives for the probe batch."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.rng = np.random.default_rng(seed)
        self.inputs: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self.probe: dict[ir.Value, Array] = {}
        self.constants: dict[str, ir.Value] = {}
        self.feeds = random_inputs(name, PROBE_COUNT, seed + 1)

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        value = ir.val(name, dtype, shape)
        self.inputs.append(value)
        self.probe[value] = np.concatenate([feed[name] for feed in self.feeds])
        return value

    def image(self) -> ir.Value:
        return self.input("input", ir.DataType.FLOAT, ("N", 3, IMAGE_SIZE, IMAGE_SIZE))

    def initializer(self, name: str, array: Array) -> ir.Value:
        """An initializer; real numbers are stored as float32."""
        array = np.asarray(array, np.float32 if array.dtype.kind == "f" else array.dtype)
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self.initializers.append(value)
        self.probe[value] = array
        return value

    def parameters(self, name: str, arrays: Mapping[str, Array]) -> list[ir.Value]:
        return [self.initializer(f"{name}.{key}", array) for key, array in arrays.items()]

    def constant(self, name: str, number: float | Shape) -> ir.Value:
        """An initializer that several nodes may share."""
        if name not in self.constants:
            self.constants[name] = self.initializer(name, np.asarray(number))
        return self.constants[name]

    def op(
        self, op: str, inputs: Sequence[ir.Value], name: str, attributes: Attributes | None = None
    ) -> ir.Value:
        node = ir.node(op, inputs, attributes, outputs=[ir.val(f"{name}.out")], name=name)
        self.nodes.append(node)
        self.probe[node.outputs[0]] = _run(node, [self.probe[value] for value in inputs])
        return node.outputs[0]

    def gains(self, count: int) -> Array:
        """Log-normal channel gains: trained weights differ in range from channel to channel."""
        return self.rng.lognormal(0.0, 0.3, size=count)

    def conv_bn(
        self, x: ir.Value, name: str, shape: Shape, stride: int = 1, bn: Moments = LINEAR
    ) -> ir.Value:
        """Conv with a weight of this shape, and BatchNormalization with its output's statistics.

        Filters are half smooth, as trained ones are: on images, white ones mostly amplify noise.
        """
        (gain, shift), norm = bn, f"{name}.bn"
        filters = self.rng.normal(size=(*shape[:2], 1, 1)) + self.rng.normal(size=shape)
        filters *= self.gains(shape[0])[:, None, None, None] / math.sqrt(math.prod(shape[1:]))
        attributes: Attributes = {
            "kernel_shape": shape[2:],
            "strides": [stride] * 2,
            "pads": [shape[2] // 2] * 4,
            "group": self.probe[x].shape[1] // shape[1],
        }
        y = self.op("Conv", [x, self.initializer(f"{name}.weight", filters)], name, attributes)
        scale = gain * self.gains(shape[0])
        arrays = {
            "weight": scale,
            "bias": scale * self.rng.normal(shift, 0.3, size=shape[0]),
            "running_mean": self.probe[y].mean(axis=(0, 2, 3), dtype=np.float64),
            "running_var": self.probe[y].var(axis=(0, 2, 3), dtype=np.float64),
        }
        output = self.op("BatchNormalization", [y, *self.parameters(norm, arrays)], norm)
        del self.probe[y]  # nothing else reads it, and these are most of the memory
        return output

    def conv_relu(self, x: ir.Value, name: str, shape: Shape, stride: int = 1) -> ir.Value:
        y = self.conv_bn(x, name, shape, stride, RECTIFIED)
        return self.op("Relu", [y], f"{name}.relu")

    def conv_relu6(self, x: ir.Value, name: str, shape: Shape, stride: int = 1) -> ir.Value:
        bounds = [self.constant("relu6.min", 0.0), self.constant("relu6.max", 6.0)]
        y = self.conv_bn(x, name, shape, stride, RECTIFIED)
        return self.op("Clip", [y, *bounds], f"{name}.relu6")

    def gemm(self, x: ir.Value, name: str, channels: int) -> ir.Value:
        """Gemm with centred outputs of unit deviation: what varies with the input decides."""
        data = self.probe[x].astype(np.float64)
        weight = self.rng.normal(size=(channels, data.shape[1])) * self.gains(channels)[:, None]
        weight /= (data @ weight.T).std(axis=0).mean()
        bias = self.rng.normal(0.0, 0.3, size=channels) - (data @ weight.T).mean(axis=0)
        parameters = self.parameters(name, {"weight": weight, "bias": bias})
        return self.op("Gemm", [x, *parameters], name, {"transB": 1})

    def linear(self, x: ir.Value, name: str, channels: int, gain: float = 1.0) -> ir.Value:
        """MatMul and Add, as exporters write a linear layer on [batch, token, channel]."""
        width = int(self.probe[x].shape[-1])
        array = self.rng.normal(0.0, gain / math.sqrt(width), size=(width, channels))
        weight = self.initializer(f"{name}.weight", array * self.gains(channels))
        bias = self.initializer(f"{name}.bias", self.rng.normal(0.0, 0.1, size=channels))
        product = self.op("MatMul", [x, weight], f"{name}.matmul")
        return self.op("Add", [product, bias], f"{name}.add")

    def layer_norm(self, x: ir.Value, name: str) -> ir.Value:
        width = int(self.probe[x].shape[-1])
        scale = self.initializer(f"{name}.weight", self.gains(width))
        bias = self.initializer(f"{name}.bias", self.rng.normal(0.0, 0.1, size=width))
        return self.op("LayerNormalization", [x, scale, bias], name, {"epsilon": 1e-6})

    def gelu(self, x: ir.Value, name: str) -> ir.Value:
        """x * (1 + erf(x / sqrt(2))) * 0.5, in the nodes that exporters write."""
        scaled = self.op("Div", [x, self.constant("gelu.sqrt2", math.sqrt(2.0))], f"{name}.div")
        erf = self.op("Erf", [scaled], f"{name}.erf")
        gate = self.op("Add", [erf, self.constant("gelu.one", 1.0)], f"{name}.add")
        product = self.op("Mul", [x, gate], f"{name}.mul")
        return self.op("Mul", [product, self.constant("gelu.half", 0.5)], f"{name}.half")

    def attention(
        self, x: ir.Value, name: str, heads: int, gain: float, mask: ir.Value | None = None
    ) -> ir.Value:
        width = int(self.probe[x].shape[-1])
        split = self.constant("attention.split", [0, 0, heads, width // heads])
        merge = self.constant("attention.merge", [0, 0, width])

        def project(role: str, spread: float, perm: list[int]) -> ir.Value:
            linear = self.linear(x, f"{name}.{role}", width, spread)
            reshaped = self.op("Reshape", [linear, split], f"{name}.{role}.reshape")
            return self.op("Transpose", [reshaped], f"{name}.{role}.transpose", {"perm": perm})

        query = project("query", 1.5, [0, 2, 1, 3])
        key = project("key", 1.5, [0, 2, 3, 1])
        scores = self.op("MatMul", [query, key], f"{name}.scores")
        scale = self.constant("attention.scale", math.sqrt(width // heads))
        scores = self.op("Div", [scores, scale], f"{name}.scale")
        if mask is not None:
            scores = self.op("Add", [scores, mask], f"{name}.mask")
        weights = self.op("Softmax", [scores], f"{name}.softmax", {"axis": -1})
        value = project("value", 1.0, [0, 2, 1, 3])
        context = self.op("MatMul", [weights, value], f"{name}.context")
        perm = {"perm": [0, 2, 1, 3]}
        context = self.op("Transpose", [context], f"{name}.context.transpose", perm)
        context = self.op("Reshape", [context, merge], f"{name}.context.reshape")
        return self.linear(context, f"{name}.output", width, gain)

    def mlp(self, x: ir.Value, name: str, width: int, gain: float) -> ir.Value:
        hidden = self.gelu(self.linear(x, f"{name}.fc1", 4 * width, 1.2), f"{name}.gelu")
        return self.linear(hidden, f"{name}.fc2", width, gain)

    def classify(self, x: ir.Value) -> ir.Model:
        """Add the head of the convolutional networks and finish the model."""
        x = self.op("GlobalAveragePool", [x], "pool")
        x = self.op("Flatten", [x], "flatten", {"axis": 1})
        return self.finish({"logits": (self.gemm(x, "fc", CLASSES), ("N", CLASSES))})

    def finish(self, outputs: Mapping[str, tuple[ir.Value, Sequence[int | str]]]) -> ir.Model:
        for name, (value, shape) in outputs.items():
            value.name, value.shape, value.dtype = name, ir.Shape(shape), ir.DataType.FLOAT
        graph = ir.Graph(
            self.inputs,
            [value for value, _ in outputs.values()],
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports={"": OPSET},
            name=self.name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="onnxq.benchmarks")


def resnet50(seed: int = 0) -> ir.Model:
    """ResNet-50 v1.5: the stride is in the 3x3 convolution."""
    g = Builder("resnet50", seed)
    x = g.conv_relu(g.image(), "conv1", (64, 3, 7, 7), 2)
    pooling = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    x = g.op("MaxPool", [x], "maxpool", pooling)
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        width = 32 * 2**stage
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = g.conv_relu(x, f"{name}.conv1", (width, channels, 1, 1))
            y = g.conv_relu(y, f"{name}.conv2", (width, width, 3, 3), stride)
            y = g.conv_bn(y, f"{name}.conv3", (4 * width, width, 1, 1), bn=BRANCH)
            if block == 0:
                x = g.conv_bn(x, f"{name}.downsample", (4 * width, channels, 1, 1), stride)
            x = g.op("Relu", [g.op("Add", [y, x], f"{name}.add")], f"{name}.relu")
            channels = 4 * width
    return g.classify(x)


def mobilenet_v1(seed: int = 0) -> ir.Model:
    """MobileNet v1: 13 depthwise separable convolutions without residuals."""
    g = Builder("mobilenet_v1", seed)
    x = g.conv_relu(g.image(), "stem", (32, 3, 3, 3), 2)
    channels = 32
    rows = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
    rows += [(512, 1)] * 5 + [(1024, 2), (1024, 1)]
    for block, (width, stride) in enumerate(rows, start=1):
        x = g.conv_relu(x, f"block{block}.depthwise", (channels, 1, 3, 3), stride)
        x = g.conv_relu(x, f"block{block}.pointwise", (width, channels, 1, 1))
        channels = width
    return g.classify(x)


def mobilenet_v2(seed: int = 0) -> ir.Model:
    """MobileNet v2: inverted residuals with linear bottlenecks and Relu6."""
    g = Builder("mobilenet_v2", seed)
    x = g.conv_relu6(g.image(), "stem", (32, 3, 3, 3), 2)
    channels, block = 32, 0
    rows = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)]
    rows += [(6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, width, repeats, first_stride in rows:
        for repeat in range(repeats):
            name, stride = f"block{block}", first_stride if repeat == 0 else 1
            hidden, y = channels * expansion, x
            if expansion > 1:
                y = g.conv_relu6(y, f"{name}.expand", (hidden, channels, 1, 1))
            y = g.conv_relu6(y, f"{name}.depthwise", (hidden, 1, 3, 3), stride)
            bn = BRANCH if repeat else LINEAR
            y = g.conv_bn(y, f"{name}.project", (width, hidden, 1, 1), bn=bn)
            x = g.op("Add", [x, y], f"{name}.add") if repeat else y
            channels, block = width, block + 1
    return g.classify(g.conv_relu6(x, "last", (1280, channels, 1, 1)))


def vit_tiny(seed: int = 0) -> ir.Model:
    """ViT-Ti/16 (DeiT-tiny): pre-norm, with a class token."""
    g = Builder("vit_tiny", seed)
    width, heads, layers, patch = 192, 3, 12, 16
    filters = g.rng.normal(0.0, 1 / math.sqrt(3 * patch**2), size=(width, 3, patch, patch))
    weight = g.initializer("patch_embed.weight", filters * g.gains(width).reshape(-1, 1, 1, 1))
    bias = g.initializer("patch_embed.bias", g.rng.normal(0.0, 0.1, size=width))
    strides = {"kernel_shape": [patch] * 2, "strides": [patch] * 2}
    x = g.op("Conv", [g.image(), weight, bias], "patch_embed", strides)
    tokens = (IMAGE_SIZE // patch) ** 2
    x = g.op("Reshape", [x, g.constant("patch_embed.shape", [0, width, tokens])], "patch_flatten")
    x = g.op("Transpose", [x], "patch_transpose", {"perm": [0, 2, 1]})
    batch = g.op("Shape", [x], "batch", {"start": 0, "end": 1})
    shape = [batch, g.constant("cls_token.shape", [1, width])]
    token = g.initializer("cls_token", g.rng.normal(size=(1, 1, width)))
    token = g.op("Expand", [token, g.op("Concat", shape, "cls_shape", {"axis": 0})], "cls_expand")
    x = g.op("Concat", [token, x], "tokens", {"axis": 1})
    position = g.initializer("pos_embed", g.rng.normal(0.0, 0.5, size=(1, tokens + 1, width)))
    x = g.op("Add", [x, position], "pos_add")
    for index in range(layers):
        name = f"blocks.{index}"
        y = g.attention(g.layer_norm(x, f"{name}.norm1"), f"{name}.attn", heads, gain=0.5)
        x = g.op("Add", [x, y], f"{name}.add1")
        y = g.mlp(g.layer_norm(x, f"{name}.norm2"), f"{name}.mlp", width, gain=0.5)
        x = g.op("Add", [x, y], f"{name}.add2")
    x = g.layer_norm(x, "norm")
    x = g.op("Gather", [x, g.constant("first", 0)], "cls", {"axis": 1})
    return g.finish({"logits": (g.gemm(x, "head", CLASSES), ("N", CLASSES))})


def bert_small(seed: int = 0) -> ir.Model:
    """BERT-small: post-norm, an additive attention mask, and a two-class head on [CLS]."""
    g = Builder("bert_small", seed)
    width, heads, layers = 512, 8, 4
    ids = g.input("input_ids", ir.DataType.INT64, ("B", "S"))
    mask = g.input("attention_mask", ir.DataType.INT64, ("B", "S"))

    def embedding(role: str, rows: int, indices: ir.Value) -> ir.Value:
        table = g.initializer(f"embeddings.{role}.weight", g.rng.normal(size=(rows, width)))
        return g.op("Gather", [table, indices], f"embeddings.{role}", {"axis": 0})

    def buffer(role: str, numbers: Array) -> ir.Value:
        """The first S of a stored row of indices, as exporters write `buffer[:, :S]`."""
        ranges = [g.constant("slice.start", [0]), length, g.constant("slice.axis", [1])]
        row = g.initializer(f"embeddings.{role}", numbers[None])
        return g.op("Slice", [row, *ranges], f"embeddings.{role}.slice")

    length = g.op("Shape", [ids], "length", {"start": 1, "end": 2})
    words = embedding("word", VOCABULARY, ids)
    types = embedding("type", 2, buffer("type_ids", np.zeros(POSITIONS, np.int64)))
    places = embedding("position", POSITIONS, buffer("position_ids", np.arange(POSITIONS)))
    x = g.op("Add", [words, types], "embeddings.add1")
    x = g.layer_norm(g.op("Add", [x, places], "embeddings.add2"), "embeddings.norm")

    mask = g.op("Unsqueeze", [mask, g.constant("mask.axes", [1, 2])], "mask.unsqueeze")
    mask = g.op("Cast", [mask], "mask.cast", {"to": int(ir.DataType.FLOAT)})
    mask = g.op("Sub", [g.constant("mask.one", 1.0), mask], "mask.invert")
    lowest = g.constant("mask.lowest", float(np.finfo(np.float32).min))
    mask = g.op("Mul", [mask, lowest], "mask.additive")
    for index in range(layers):
        name = f"encoder.{index}"
        y = g.attention(x, f"{name}.attention", heads, 1.5, mask)
        x = g.layer_norm(g.op("Add", [y, x], f"{name}.add1"), f"{name}.norm1")
        y = g.mlp(x, f"{name}.mlp", width, 0.7)
        x = g.layer_norm(g.op("Add", [y, x], f"{name}.add2"), f"{name}.norm2")
    first = g.op("Gather", [x, g.constant("first", 0)], "pooler.first", {"axis": 1})
    pooled = g.op("Tanh", [g.gemm(first, "pooler", width)], "pooler.tanh")
    logits = g.gemm(pooled, "classifier", 2)
    return g.finish({"logits": (logits, ("B", 2)), "last_hidden_state": (x, ("B", "S", width))})


MODELS: dict[str, Callable[[], ir.Model]] = {
    build.__name__: build for build in (resnet50, mobilenet_v1, mobilenet_v2, vit_tiny, bert_small)
}


def main() -> None:
    from benchmarks.models_mobile import MOBILE  # it is made of what is above

    MODELS.update(MOBILE)
    parser = argparse.ArgumentParser(description="Build the benchmark models.")
    parser.add_argument("name", nargs="?", choices=MODELS, help="the model to build")
    parser.add_argument("-o", "--output", type=Path, help="where to write it (NAME.onnx)")
    parser.add_argument("--all", type=Path, metavar="DIR", help="write every model into DIR")
    arguments = parser.parse_args()
    if (arguments.name is None) == (arguments.all is None) or (arguments.all and arguments.output):
        parser.error("give either NAME [-o OUTPUT] or --all DIR")
    if arguments.all is not None:
        arguments.all.mkdir(parents=True, exist_ok=True)
        targets = {name: arguments.all / f"{name}.onnx" for name in MODELS}
    else:
        targets = {arguments.name: arguments.output or Path(f"{arguments.name}.onnx")}
    for name, path in targets.items():
        ir.save(MODELS[name](), path)
        print(f"{name:<14} {path.stat().st_size / 1e6:7.1f} MB  {path}")


if __name__ == "__main__":
    main()
