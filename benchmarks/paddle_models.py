"""Samples for the real Paddle models of the assets, prepared as their authors say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.assets import ASSETS, IMAGENET_MEAN, IMAGENET_STD, Array, imagenet

__all__ = ["SAMPLES"]

Feed = dict[str, Array]


def _files(folder: str, count: int) -> list[Path]:
    found = sorted((ASSETS / "data" / "ocr" / folder).glob("*.jpg"))
    return [found[i % len(found)] for i in range(count)]


def _resized(path: Path, width: int, height: int) -> Array:
    """RGB in 0..1, as [H, W, 3]."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((width, height)), np.float32) / 255


def _planes(pixels: Array, mean: Array, std: Array) -> Array:
    """As [1, 3, H, W]."""
    scaled = (pixels - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None]).astype(np.float32)


def _pages(count: int) -> list[Feed]:
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    return [{"x": _planes(_resized(p, 320, 320), mean, std)} for p in _files("pages", count)]


def _words(count: int) -> list[Feed]:
    half = np.full(3, 0.5)
    return [
        {"x": _planes(_resized(p, 192, 48)[..., ::-1], half, half)} for p in _files("words", count)
    ]


def _photos(count: int, size: int) -> list[Array]:
    from PIL import Image

    images, _ = imagenet("calibration", count, None)
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    found = []
    for pixels in images:
        resized = Image.fromarray(pixels).resize((size, size))
        found.append(_planes(np.asarray(resized, np.float32) / 255, mean, std))
    return found


def _classified(count: int) -> list[Feed]:
    return [{"x": image} for image in _photos(count, 224)]


def _detected(count: int) -> list[Feed]:
    size, scale = np.full((1, 2), 320, np.float32), np.ones((1, 2), np.float32)
    return [
        {"image": image, "im_shape": size, "scale_factor": scale} for image in _photos(count, 320)
    ]


SAMPLES: dict[str, Callable[[int], list[Feed]]] = {
    "ch_PP-OCRv3_det_infer": _pages,
    "ch_ppocr_mobile_v2.0_cls_infer": _words,
    "mobilenet_v3_small_0.35_cls": _classified,
    "ppyolo_tiny_650e_coco": _detected,
}
