from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ImageOptions:
    size: tuple[int, int] | None = None
    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    layout: Literal["NCHW", "NHWC"] | None = None
    channels: Literal["RGB", "BGR"] = "RGB"
