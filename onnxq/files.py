"""Writing files so that whatever happens, the old content or the new one is there, never half."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from onnxq.errors import OutputError

try:
    import fcntl
except ImportError:  # not on Windows, where two runs must not write one file
    fcntl = None  # type: ignore[assignment]  # stands for the module that is not there

__all__ = ["check_apart", "check_writable", "locked", "write_atomically"]


def check_writable(path: Path) -> None:
    """Raises OutputError, before any work is done, if a file cannot be written at `path`."""
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"{path}: the directory {folder} does not exist")
    if path.is_dir():
        raise OutputError(f"{path}: is a directory; name a file")
    try:
        handle, probe = tempfile.mkstemp(dir=folder, prefix=".onnxq-")
    except OSError as error:
        raise OutputError(
            f"{path}: the directory {folder} cannot be written to ({error.strerror})"
        ) from error
    os.close(handle)
    os.unlink(probe)


def check_apart(outputs: Mapping[str, Path | None], inputs: Iterable[Path]) -> None:
    """Raises OutputError if two outputs, or an output and an input, are one file.

    outputs: by what they are called in the message; None for one that is not asked for.
    """
    named = {what: path for what, path in outputs.items() if path is not None}
    known = list(inputs)
    seen: dict[Path, str] = {}
    for what, path in named.items():
        real = Path(os.path.realpath(path))
        if real in seen:
            raise OutputError(f"{path}: is given for both {seen[real]} and {what}; name two files")
        seen[real] = what
        for source in known:
            if real == Path(os.path.realpath(source)) or _is_same(path, source):
                raise OutputError(f"{path}: is an input itself; choose another name for {what}")


def _is_same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and os.path.samefile(a, b)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a temporary file beside `path`, then rename. Raises OutputError."""
    check_writable(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        make_public(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path}: could not be written: {error.strerror or error}") from error
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs that write models with data files into `folder` waiting."""
    handle = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    try:
        if handle is not None:
            with contextlib.suppress(OSError):  # a file system without locks: as without this
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def make_public(path: str) -> None:
    """Give a temporary file (made readable for its owner alone) the permissions of a plain one."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)
