# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy", "onnx", "onnx-ir", "onnxruntime", "scikit-learn", "torch==2.13.0"]
# ///
"""Train the network that `onnxq demo` quantizes, on scikit-learn's handwritten digits.

Writes `onnxq/demo/digits.onnx` and `onnxq/demo/digits.npz`; the same bytes at every run on one
machine. The graph is written from the trained weights, with BatchNormalization unfolded, so that
it has the patterns of a larger network: regular, pointwise and depthwise Conv, residual Add.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional

Array = npt.NDArray[Any]
Weights = dict[str, torch.Tensor]

DEMO = Path(__file__).resolve().parents[1] / "onnxq" / "demo"
SEED = 0
HELDOUT, CALIBRATION, CLASSES = 600, 200, 10
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 40, 64, 4e-3, 2e-2
EPSILON, MOMENTUM = 1e-5, 0.1


@dataclass(frozen=True)
class Layer:
    """Conv and BatchNormalization, then an Add of an earlier layer's output, then Relu."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    groups: int = 1
    add: str | None = None


LAYERS = (
    Layer("stem", 1, 32, 3),
    Layer("block1.conv1", 32, 32, 3),
    Layer("block1.conv2", 32, 32, 3, add="stem"),
    Layer("expand", 32, 64, 1),
    Layer("block2.conv", 64, 64, 3, add="expand"),
    Layer("down.depthwise", 64, 64, 3, stride=2, groups=64),
    Layer("down.pointwise", 64, 128, 1),
    Layer("block3.depthwise", 128, 128, 3, groups=128),
    Layer("block3.pointwise", 128, 128, 1, add="down.pointwise"),
)


@dataclass(frozen=True)
class Split:
    """The images (uint8, 0..16) and labels of the training and of the held-out part."""

    images: Array
    labels: Array
    heldout_images: Array
    heldout_labels: Array


def split_digits() -> Split:
    digits = load_digits()
    parts = train_test_split(
        digits.images.astype(np.uint8),
        digits.target.astype(np.uint8),
        test_size=HELDOUT,
        stratify=digits.target,
        random_state=SEED,
    )
    return Split(images=parts[0], heldout_images=parts[1], labels=parts[2], heldout_labels=parts[3])


def to_input(images: Array) -> Array:
    """The network's input [N,1,8,8], between 0 and 1."""
    return (images[:, None] / 16).astype(np.float32)


def initial_weights() -> Weights:
    weights = {}
    for layer in LAYERS:
        shape = (layer.outputs, layer.inputs // layer.groups, layer.kernel, layer.kernel)
        weights[f"{layer.name}.weight"] = torch.nn.init.kaiming_normal_(torch.empty(shape))
        for key, number in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            weights[f"{layer.name}.bn.{key}"] = torch.full((layer.outputs,), float(number))
    features = LAYERS[-1].outputs
    weights["classifier.weight"] = torch.randn(CLASSES, features) / features**0.5
    weights["classifier.bias"] = torch.zeros(CLASSES)
    return weights


def forward(weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """The logits in training mode, updating the running statistics in `weights`."""
    outputs: Weights = {}
    for layer in LAYERS:
        weight, padding = weights[f"{layer.name}.weight"], layer.kernel // 2
        x = functional.conv2d(x, weight, None, layer.stride, padding, groups=layer.groups)
        keys = ("running_mean", "running_var", "weight", "bias")
        mean, variance, scale, bias = (weights[f"{layer.name}.bn.{key}"] for key in keys)
        x = functional.batch_norm(x, mean, variance, scale, bias, True, MOMENTUM, EPSILON)
        x = functional.relu(x if layer.add is None else x + outputs[layer.add])
        outputs[layer.name] = x
    return functional.linear(
        x.mean(dim=(2, 3)), weights["classifier.weight"], weights["classifier.bias"]
    )


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Each image moved by up to one pixel, in each direction."""
    padded = functional.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (len(images), 2)).tolist()
    moved = [image[:, i : i + 8, j : j + 8] for image, (i, j) in zip(padded, offsets, strict=True)]
    return torch.stack(moved)


def train(images: Array, labels: Array) -> Weights:
    # One thread and deterministic kernels, so that the files come out the same at every run.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    weights = initial_weights()
    trained = [w.requires_grad_() for name, w in weights.items() if "running" not in name]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    x, y = torch.from_numpy(to_input(images)), torch.from_numpy(labels.astype(np.int64))
    steps = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, EPOCHS * steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x))[: steps * BATCH].reshape(steps, BATCH):
            loss = functional.cross_entropy(forward(weights, shifted(x[batch])), y[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]  # by torch's version
            optimizer.step()
            schedule.step()
    return weights


def export(weights: Weights) -> ir.Model:
    tape = ir.tape.Tape()

    def parameter(name: str) -> ir.Value:
        return tape.initializer(ir.tensor(weights[name].detach().numpy(), name=name))

    def op(
        name: str, kind: str, inputs: list[ir.Value], **attributes: float | list[int]
    ) -> ir.Value:
        return tape.op(kind, inputs, attributes, name=name, output=ir.val(f"{name}.out"))

    image = x = ir.val("image", ir.DataType.FLOAT, ("N", 1, 8, 8))
    outputs: dict[str, ir.Value] = {}
    for layer in LAYERS:
        name = layer.name
        x = op(
            name,
            "Conv",
            [x, parameter(f"{name}.weight")],
            kernel_shape=[layer.kernel] * 2,
            strides=[layer.stride] * 2,
            pads=[layer.kernel // 2] * 4,
            group=layer.groups,
        )
        keys = ("weight", "bias", "running_mean", "running_var")
        statistics = [parameter(f"{name}.bn.{key}") for key in keys]
        x = op(f"{name}.bn", "BatchNormalization", [x, *statistics], epsilon=EPSILON)
        if layer.add is not None:
            x = op(f"{name}.add", "Add", [x, outputs[layer.add]])
        x = outputs[name] = op(f"{name}.relu", "Relu", [x])
    x = op("flatten", "Flatten", [op("pool", "GlobalAveragePool", [x])], axis=1)
    classifier = [parameter("classifier.weight"), parameter("classifier.bias")]
    x = op("classifier", "Gemm", [x, *classifier], transB=1)
    x.name, x.dtype, x.shape = "logits", ir.DataType.FLOAT, ir.Shape(("N", CLASSES))
    graph = ir.Graph(
        [image],
        [x],
        nodes=tape.nodes,
        initializers=tape.initializers,
        opset_imports={"": 17},
        name="digits",
    )
    return ir.Model(graph, ir_version=8, producer_name="onnxq.benchmarks.train_digits")


def accuracy(path: Path, images: Array, labels: Array) -> float:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": to_input(images)})
    return float((logits.argmax(axis=1) == labels).mean())


def main() -> None:
    split = split_digits()
    weights = train(split.images, split.labels)
    DEMO.mkdir(parents=True, exist_ok=True)
    ir.save(export(weights), DEMO / "digits.onnx")
    np.savez_compressed(
        DEMO / "digits.npz",
        calibration_images=split.images[:CALIBRATION],
        heldout_images=split.heldout_images,
        heldout_labels=split.heldout_labels,
    )
    top1 = accuracy(DEMO / "digits.onnx", split.heldout_images, split.heldout_labels)
    print(f"held-out top-1 of digits.onnx through onnxruntime: {top1:.2%} of {HELDOUT} images")


if __name__ == "__main__":
    main()
