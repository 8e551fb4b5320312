"""What accuracy is measured on: networks with calibration samples, and others to compare on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

import onnxq
from benchmarks.assets import IMAGENET_SCALED, NETWORKS, Network, load_images
from benchmarks.common import Array, plain_session
from benchmarks.models import MODELS, random_inputs
from benchmarks.models_mobile import MOBILE
from benchmarks.workshop import SEED, Workshop
from onnxq.data.samples import Samples

__all__ = ["SUBJECTS", "Subject", "Validation"]

Kind = Literal["imagenet", "trained", "unlabelled", "generated"]
# Of the generated models: their samples are made, and have no labels
GENERATED = ("vit_tiny", "bert_small", "mobilenet_v3", "efficientnet")
GENERATED_VALIDATION, UNLABELLED_VALIDATION = 200, 300
TRANSFORMERS = ("vit", "vit_tiny", "bert_small")
# Trained on other images, to three classes
MOBILENET_V3 = Network(
    "mobilenet_v3_small_0.35",
    "paddle/mobilenet_v3_small_0.35_cls/inference.pdmodel",
    "imagenet",
    *IMAGENET_SCALED,
    least_sqnr=0.0,
    crop=224,
)


@dataclass(frozen=True, eq=False)
class Validation:
    """feeds: of one sample each. labels: None where there are none.

    scores: of an output of class scores, those of the labels' classes.
    """

    feeds: Samples
    labels: Array | None
    scores: Callable[[Array], Array]


@dataclass(frozen=True)
class Subject:
    """A network. kind: "imagenet" and "trained" have labels; generated weights are random.

    paddle: it is a Paddle model, `inference.pdmodel`; others get what onnxq exports of it.

    convolutional: all its multiplications can be in int8.
    """

    name: str
    kind: Kind
    convolutional: bool = True
    network: Network | None = field(default=None, repr=False)
    paddle: bool = False

    def reason(self) -> str | None:
        """Why it cannot be measured here, if it cannot."""
        if self.network is not None and not self.network.file.is_file():
            return f"{self.network.file} is not there"
        if self.network is None and self.name not in {*MODELS, *MOBILE}:
            return f"benchmarks/models.py makes no {self.name}"
        return None

    def model(self, shop: Workshop) -> Path:
        if self.network is None:
            return shop.model(self.name)
        if not self.paddle:
            return self.network.file
        path = shop.cache / f"{self.name}.exported.onnx"
        if not path.is_file():
            shop.note(f"exporting {self.name}")
            onnxq.export(self.network.file.parent, path, converter="paddle")
        return path

    def samples(self, shop: Workshop, count: int) -> Path:
        """The file of the first `count` calibration samples: .npy, .npz for several inputs."""
        folder = shop.cache / "calibration"
        folder.mkdir(parents=True, exist_ok=True)
        digest = shop.generated.name.removeprefix("generated-")
        stem = f"{self.name}.{count}" if self.network else f"{self.name}-{digest}.{count}"
        for path in (folder / f"{stem}.npy", folder / f"{stem}.npz"):
            if path.is_file():
                return path
        shop.note(f"making the samples {stem}")
        if self.network is not None:
            images = load_images(self.network, "calibration", count, self._input(shop))
            arrays: dict[str, Any] = {"": images.batch(0, len(images))}
        else:
            feeds = random_inputs(self.name, count, SEED)
            arrays = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        if len(arrays) == 1:
            partial = folder / f"{stem}.partial-{os.getpid()}.npy"
            np.save(partial, next(iter(arrays.values())))
        else:
            partial = folder / f"{stem}.partial-{os.getpid()}.npz"
            np.savez(partial, **arrays)
        return partial.rename(folder / f"{stem}{partial.suffix}")

    def validation(self, shop: Workshop, limit: int | None) -> Validation:
        """The first `limit` samples that nothing is fitted to."""
        if self.network is None:
            count = min(limit or GENERATED_VALIDATION, GENERATED_VALIDATION)
            feeds = random_inputs(self.name, count, SEED + 1000)
            return Validation(feeds, None, _as_it_is)
        if self.kind == "unlabelled":
            limit = min(limit or UNLABELLED_VALIDATION, UNLABELLED_VALIDATION)
        images = load_images(self.network, "validation", limit, self._input(shop))
        labels = None if self.kind == "unlabelled" else images.labels
        return Validation(images, labels, self.network.scores)

    def _input(self, shop: Workshop) -> str:
        name: str = plain_session(self.model(shop)).get_inputs()[0].name
        return name


def _as_it_is(scores: Array) -> Array:
    return scores


def _subject(network: Network) -> Subject:
    kind: Kind = "imagenet" if network.data == "imagenet" else "trained"
    return Subject(network.name, kind, network.name not in TRANSFORMERS, network)


SUBJECTS: Mapping[str, Subject] = {
    **{network.name: _subject(network) for network in NETWORKS.values()},
    MOBILENET_V3.name: Subject(MOBILENET_V3.name, "unlabelled", True, MOBILENET_V3, paddle=True),
    **{name: Subject(name, "generated", name not in TRANSFORMERS) for name in GENERATED},
}
