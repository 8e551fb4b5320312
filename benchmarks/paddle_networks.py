"""Networks of Paddle's, for tests and benchmarks: paddle.vision's, and small ones written here.

Weights are random. The statistics of BatchNormalization are those of random images, so that signals
neither fade nor explode on their way, as in a trained network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from benchmarks.assets import Array

IMAGE = (3, 224, 224)
IDS = (32,)
SERIES = (20, 16)


@dataclass(frozen=True)
class PaddleNetwork:
    """How a network is made, and what it takes: one sample's shape, and "float32" or "int64"."""

    make: Callable[[], nn.Layer]
    shape: tuple[int, ...] = IMAGE
    dtype: str = "float32"

    def samples(self, count: int, seed: int = 1) -> Array:
        rng = np.random.default_rng(seed)
        if self.dtype == "int64":
            return rng.integers(0, 500, (count, *self.shape))
        return rng.standard_normal((count, *self.shape)).astype(np.float32)


class VisionTransformer(nn.Layer):
    """Patches of 16, class token, pre-norm encoder."""

    def __init__(self, size: int = 224, width: int = 192, depth: int = 4, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2D(3, width, 16, stride=16)
        count = (size // 16) ** 2
        self.token = self.create_parameter([1, 1, width])
        self.position = self.create_parameter([1, count + 1, width])
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", normalize_before=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width))
        self.head = nn.Linear(width, 100)

    def forward(self, image: Any) -> Any:
        x = self.patches(image).flatten(2).transpose([0, 2, 1])
        token = self.token.expand([x.shape[0], -1, -1])
        x = paddle.concat([token, x], axis=1) + self.position
        return self.head(self.encoder(x)[:, 0])


class TextEncoder(nn.Layer):
    """As BERT: embeddings of words and places, post-norm encoder with attention and GELU."""

    def __init__(self, words: int = 500, width: int = 128, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Embedding(IDS[0], width)
        self.norm = nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, depth)
        self.head = nn.Linear(width, 10)

    def forward(self, ids: Any) -> Any:
        places = paddle.arange(ids.shape[1], dtype="int64")
        x = self.norm(self.words(ids) + self.places(places))
        return self.head(self.encoder(x)[:, 0])


class Recurrent(nn.Layer):
    """A two-layer bidirectional LSTM over a series."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SERIES[1], 48, num_layers=2, direction="bidirect")
        self.head = nn.Linear(96, 8)

    def forward(self, series: Any) -> Any:
        out, _ = self.lstm(series)
        return self.head(out[:, -1])


class Decoder(nn.Layer):
    """A small encoder-decoder with transposed convolutions, as for segmentation."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2D(3, 16, 3, stride=2, padding=1),
            nn.BatchNorm2D(16),
            nn.ReLU(),
            nn.Conv2D(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2D(32),
            nn.LeakyReLU(0.1),
        )
        self.up = nn.Sequential(
            nn.Conv2DTranspose(32, 16, 2, stride=2),
            nn.BatchNorm2D(16),
            nn.ReLU(),
            nn.Conv2DTranspose(16, 2, 4, stride=2, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, image: Any) -> Any:
        return self.up(self.down(image))


def small_convnet(channels: int = 16) -> nn.Layer:
    """Convolutions, a depthwise one, pooling and a classifier, on 3x32x32."""
    return nn.Sequential(
        nn.Conv2D(3, channels, 3, padding=1, bias_attr=False),
        nn.BatchNorm2D(channels),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Conv2D(channels, channels, 3, padding=1, groups=channels),
        nn.ReLU6(),
        nn.Conv2D(channels, 2 * channels, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2D(1),
        nn.Flatten(),
        nn.Linear(2 * channels, 10),
    )


def _vision(name: str, **options: Any) -> Callable[[], nn.Layer]:
    def make() -> nn.Layer:
        return getattr(paddle.vision.models, name)(pretrained=False, **options)

    return make


class First(nn.Layer):
    """The first of several outputs: without GoogLeNet's auxiliary classifiers."""

    def __init__(self, network: nn.Layer) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Any) -> Any:
        return self.network(image)[0]


PADDLE_NETWORKS: dict[str, PaddleNetwork] = {
    **{
        name: PaddleNetwork(_vision(name))
        for name in (
            "mobilenet_v1",
            "mobilenet_v2",
            "mobilenet_v3_small",
            "mobilenet_v3_large",
            "resnet18",
            "resnet50",
            "vgg11",
            "squeezenet1_1",
            "shufflenet_v2_x1_0",
            "densenet121",
        )
    },
    "googlenet": PaddleNetwork(lambda: First(_vision("googlenet")())),
    "vit": PaddleNetwork(VisionTransformer),
    "bert": PaddleNetwork(TextEncoder, IDS, "int64"),
    "lstm": PaddleNetwork(Recurrent, SERIES),
    "conv_transpose": PaddleNetwork(Decoder, (3, 64, 64)),
    "small_convnet": PaddleNetwork(small_convnet, (3, 32, 32)),
}


def make(network: PaddleNetwork, passes: int = 12) -> nn.Layer:
    """The network with its own seed and names, in evaluation mode."""
    paddle.seed(0)
    with paddle.utils.unique_name.guard():  # else names count on from the networks made before
        layer = network.make()
    if any(isinstance(part, nn.BatchNorm2D) for part in layer.sublayers()):
        layer.train()
        side = min(network.shape[-1], 96)
        rng = np.random.default_rng(0)
        if network.shape == IMAGE and isinstance(layer, First):
            side = IMAGE[-1]
        with paddle.no_grad():
            for _ in range(passes):
                x = rng.standard_normal((4, network.shape[0], side, side)).astype(np.float32)
                layer(paddle.to_tensor(x))
    layer.eval()
    return layer


def save(network: PaddleNetwork, prefix: Path) -> Path:
    """Write the network as `paddle.jit.save` does, with a dynamic batch dimension."""
    spec = paddle.static.InputSpec([None, *network.shape], network.dtype, "x")
    layer = make(network)
    forward = layer.forward
    paddle.jit.save(layer, str(prefix), input_spec=[spec])
    assert forward is not None
    return prefix
