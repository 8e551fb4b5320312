"""Which kernels oneDNN runs, from what it prints of them."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

__all__ = ["count_kernels", "listened"]

HEAVY = ("convolution", "deconvolution", "inner_product", "matmul")
SOURCE = re.compile(r"\bsrc(?:_0|0)?:(\w+)")


@contextlib.contextmanager
def listened() -> Iterator[list[str]]:
    """The lines that oneDNN prints meanwhile; they are there when the block has ended."""
    lines: list[str] = []
    sys.stdout.flush()
    kept = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            yield lines
        finally:
            os.dup2(kept, 1)
            os.close(kept)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()


def count_kernels(lines: list[str]) -> dict[str, int]:
    """How many convolutions and products ran on integers, and how many on floats."""
    counts = {"int8": 0, "float": 0}
    for line in lines:
        fields = line.split(",")
        if "exec" not in fields or not any(kind in fields for kind in HEAVY):
            continue
        source = SOURCE.search(line)
        if source is not None:
            counts["int8" if source.group(1) in ("s8", "u8") else "float"] += 1
    return counts
