"""Real models and images for benchmarks and tests, if there are any on this machine.

They are no part of the project. `ONNXQ_ASSETS` names their directory; without it `../shared` beside
the checkout is tried. The layout is `models/<family>/<name>.onnx` and `data/...` as read below.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("ONNXQ_ASSETS", ROOT.parent / "shared"))
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True)
class Network:
    """A classifier: where it is, what it eats, and the bars that its int8 model is held to.

    mean, std: of the image as 0..255 RGB. crop: centre crop. bgr: channels reversed.
    least_sqnr: dB that static mode with defaults has to reach.
    """

    name: str
    path: str
    data: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    least_sqnr: float
    crop: int | None = None
    bgr: bool = False
    background: bool = False

    @property
    def file(self) -> Path:
        return ASSETS / "models" / self.path

    def scores(self, logits: Array) -> Array:
        """The scores of the labels: without a background class."""
        return logits[:, 1:] if self.background else logits


def _times(values: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    a, b, c = values
    return a * factor, b * factor, c * factor


_HALF, _ONE = (127.5, 127.5, 127.5), (1.0, 1.0, 1.0)
IMAGENET_SCALED = _times(IMAGENET_MEAN, 255), _times(IMAGENET_STD, 255)
_CIFAR = _times(CIFAR_MEAN, 255), _times(CIFAR_STD, 255)

NETWORKS = {
    n.name: n
    for n in (
        Network(
            "mobilenet_v2_1.0",
            "imagenet/mobilenet_v2_1.0.onnx",
            "imagenet",
            _HALF,
            _HALF,
            12.6,
            crop=224,
            background=True,
        ),
        Network(
            "mobilenet_v1_0.25",
            "imagenet/mobilenet_v1_0.25.onnx",
            "imagenet",
            _HALF,
            _HALF,
            13.6,
            crop=224,
        ),
        Network(
            "squeezenet_v1.1",
            "imagenet/squeezenet_v1.1.onnx",
            "imagenet",
            (104.0, 117.0, 123.0),
            _ONE,
            26.0,
            bgr=True,
        ),
        Network(
            "tinydarknet",
            "imagenet/tinydarknet.onnx",
            "imagenet",
            (0.0, 0.0, 0.0),
            _times(_ONE, 255),
            17.5,
            crop=224,
        ),
        Network("resnet20", "cifar10/resnet20.onnx", "cifar10.npz", *IMAGENET_SCALED, 27.0),
        Network("resnet56", "cifar10/resnet56.onnx", "cifar10.npz", *IMAGENET_SCALED, 27.0),
        Network(
            "resnet50", "tiny_imagenet/resnet50.onnx", "tiny_imagenet.npz", *IMAGENET_SCALED, 31.0
        ),
        Network("vit", "cifar10/vit.onnx", "cifar10.npz", *_CIFAR, 28.5),
    )
}


class Images:
    """Images as feeds, converted when they are asked for."""

    def __init__(self, network: Network, images: Array, labels: Array, input_name: str) -> None:
        self._network, self._images, self._name = network, images, input_name
        self.labels = labels

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int, /) -> Mapping[str, Array]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {self._name: self.batch(index, index + 1)}

    def batch(self, first: int, last: int) -> Array:
        """float32 [last - first, 3, height, width]."""
        pixels = self._images[first:last]
        if self._network.bgr:
            pixels = pixels[..., ::-1]
        mean = np.asarray(self._network.mean, np.float32)
        std = np.asarray(self._network.std, np.float32)
        scaled = (pixels.astype(np.float32) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def load_images(network: Network, part: str, limit: int | None, input_name: str) -> Images:
    """The first `limit` images of "calibration" or "validation"."""
    if network.data.endswith(".npz"):
        content = _archive(network.data)
        images = content[f"{part}_images"][:limit]
        labels = content[f"{part}_labels"][:limit]
    else:
        images, labels = imagenet(part, limit, network.crop)
        if network.name == "tinydarknet":
            labels = _darknet_order()[labels]
    return Images(network, images, labels, input_name)


@cache
def _archive(name: str) -> Mapping[str, Array]:
    with np.load(ASSETS / "data" / name) as content:
        return {key: content[key] for key in content.files}


@cache
def imagenet(part: str, limit: int | None, crop: int | None) -> tuple[Array, Array]:
    from PIL import Image

    folder = ASSETS / "data" / "imagenet"
    with open(folder / f"{part}.csv", newline="") as file:
        rows = list(csv.DictReader(file))[:limit]
    images = []
    for row in rows:
        with Image.open(folder / row["file"]) as image:
            pixels = np.asarray(image.convert("RGB"))
        if crop is not None:
            top, left = (pixels.shape[0] - crop) // 2, (pixels.shape[1] - crop) // 2
            pixels = pixels[top : top + crop, left : left + crop]
        images.append(pixels)
    return np.stack(images), np.array([int(row["label"]) for row in rows])


@cache
def _darknet_order() -> Array:
    """ImageNet label -> index in Tiny Darknet's own class order."""
    wnids = [
        line.split()[0]
        for line in (ASSETS / "data" / "imagenet" / "classes.txt").read_text().splitlines()
    ]
    path = ASSETS / "models" / "imagenet" / "tinydarknet_class_order.txt"
    theirs = {line.strip(): i for i, line in enumerate(path.read_text().splitlines())}
    return np.array([theirs[wnid] for wnid in wnids])
