"""Arrays by name, handed between this process and the child in .npz files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxq.qtypes import Array

__all__ = ["read_arrays", "write_arrays"]


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Under `array0`, ... and their names beside: a name may be one of numpy's own arguments."""
    values = {f"array{i}": array for i, array in enumerate(arrays.values())}
    np.savez(path, allow_pickle=False, names=np.array(list(arrays), np.str_), **values)


def read_arrays(path: Path) -> dict[str, Array]:
    with np.load(path) as content:
        return {str(name): content[f"array{i}"] for i, name in enumerate(content["names"])}
