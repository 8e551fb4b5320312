"""What the groups of the benchmark work with: models, samples and environments, made once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from benchmarks import models
from benchmarks.common import Array
from benchmarks.environments import Environment, environment
from benchmarks.models import MODELS, random_inputs
from benchmarks.wholeprocess import Child, interleaved

__all__ = ["Settings", "Workshop"]

ROOT = Path(__file__).resolve().parent.parent
Result = TypeVar("Result")
SEED = 0
# What takes longer than this runs in the first round only
ONCE_ABOVE = 45.0


@dataclass(frozen=True)
class Settings:
    """rounds: of everything that is measured in turn. quick: fewer samples, no slow peers."""

    rounds: int = 3
    quick: bool = False
    cache: Path = Path(os.environ.get("ONNXQ_BENCH", ROOT / ".bench"))


class Workshop:
    """Makes what it is asked for, and keeps it in the cache."""

    def __init__(self, settings: Settings, note: Callable[[str], None] = lambda text: None) -> None:
        self.settings, self.note = settings, note
        self.cache = settings.cache.resolve()
        self._peers: dict[str, Environment] = {}

    @cached_property
    def generated(self) -> Path:
        """Directory of what the generator makes: another one when the generator changes."""
        digest = hashlib.sha256(Path(models.__file__).read_bytes()).hexdigest()[:12]
        folder = self.cache / f"generated-{digest}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def scratch(self) -> Path:
        """For results that nobody keeps."""
        folder = self.cache / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def model(self, name: str) -> Path:
        """The file of a generated model."""
        path = self.generated / f"{name}.onnx"
        if not path.is_file():
            self.note(f"making {path.name}")
            partial = path.with_suffix(".partial")
            ir.save(MODELS[name](), partial)
            partial.replace(path)
        return path

    def samples(self, name: str, count: int) -> Path:
        """The file of `count` samples of a model with a single input, [count, ...]."""
        path = self.generated / f"{name}.{count}.npy"
        if not path.is_file():
            self.note(f"making {path.name}")
            rows = [array for feed in random_inputs(name, count, SEED) for array in feed.values()]
            np.save(path, np.concatenate(rows))
        return path

    def feeds(self, name: str, count: int) -> list[dict[str, Array]]:
        """`count` samples of a generated model, each of batch 1."""
        if name == "bert_small":
            return random_inputs(name, count, SEED)
        return [{"input": row[None]} for row in np.load(self.samples(name, count))]

    def peer(self, name: str) -> Environment:
        """The environment of a peer. Raises UnavailableError."""
        if name not in self._peers:
            self.note(f"environment of {name}")
            self._peers[name] = environment(name, self.cache)
        return self._peers[name]

    def paddle_model(self, python: Path) -> Path:
        """Directory of MobileNetV1 as Paddle saves it, made by a Python that has Paddle 2.6."""
        folder = self.cache / "paddle" / "mobilenet_v1"
        if not (folder / "inference.pdiparams").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            Child(python, "paddle_model.py", (str(folder),)).run()
        return folder

    def interleaved(self, calls: Mapping[str, Callable[[], Result]]) -> dict[str, list[Result]]:
        """The results of all calls, in the settings' rounds."""
        return interleaved(
            calls,
            self.settings.rounds,
            once_above=ONCE_ABOVE,
            note=lambda name, seconds: self.note(f"{name}: {seconds:.2f} s"),
        )
