"""onnx and onnx-ir without what they hardly ever use, and without pauses to look for garbage.

onnx-ir imports sympy for arithmetic with symbolic dimensions: half a second of a process in which
nothing calculates with such. onnx imports what downloads models, and the text forms of protobuf.
While onnxq is being imported, these are put off until something uses them.
A module that has been imported before, or that an onnx-ir of another version does not have, is
left as it is.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

__all__ = ["collector_paused", "lean_imports"]

# (onnx_ir._symbolic_shapes uses sympy while it is loaded)
PUT_OFF = frozenset(
    (
        "google.protobuf.json_format",
        "google.protobuf.text_format",
        "onnx.gen_proto",
        "onnx.hub",
        "onnx_ir._symbolic_shapes",
        "sympy",
    )
)


class _Finder:
    """Finds the modules of PUT_OFF as usual, and has them run at the first use of an attribute."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in PUT_OFF:
            return None
        from importlib.util import LazyLoader

        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


@contextlib.contextmanager
def lean_imports() -> Iterator[None]:
    """What is imported here for the first time comes without sympy until it is used."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection here, for what makes many small objects that all stay.

    Each full collection looks at every node and value there is: seconds for 10,000 nodes.
    """
    if not gc.isenabled():  # whoever paused it, perhaps in another thread, lets it go on
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
