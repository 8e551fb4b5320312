"""Saved Paddle models, made once for all tests of a run."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from benchmarks.assets import ROOT, Array

__all__ = ["layer", "legacy", "samples_of", "saved"]

_KEPT = tempfile.TemporaryDirectory(prefix="onnxq-tests-paddle-")


def samples_of(name: str, count: int, seed: int = 1) -> Array:
    from benchmarks.paddle_networks import PADDLE_NETWORKS

    return PADDLE_NETWORKS[name].samples(count, seed)


@functools.cache
def saved(name: str) -> Path:
    """The directory of a network of benchmarks.paddle_networks, as `paddle.jit.save` writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Paddle's own, at import and while it traces
        from benchmarks.paddle_networks import PADDLE_NETWORKS, save

        folder = Path(_KEPT.name) / name
        save(PADDLE_NETWORKS[name], folder / "inference")
    return folder


def layer(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from benchmarks.paddle_networks import PADDLE_NETWORKS, make

        return make(PADDLE_NETWORKS[name])


@functools.cache
def legacy() -> Path:
    """The directories two, one and many of tests.paddle.saved."""
    folder = Path(_KEPT.name) / "legacy"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "tests.paddle.saved", str(folder)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return folder
