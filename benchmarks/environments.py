"""Environments of the peers: made once from `requirements/NAME.txt`, kept in the cache.

Each peer has its own, since no two of them agree on what they need. A file in it has the text of
the requirements that it was made from; when they change it is made anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PEERS", "Environment", "UnavailableError", "environment", "made"]

REQUIREMENTS = Path(__file__).resolve().parent / "requirements"
# Peer -> the Python it needs; None: the one that runs the benchmarks
PEERS: dict[str, str | None] = {"onnxruntime": None, "nncf": None, "paddleslim": "3.10"}
LAST_LINES = 2
STAMP = "made_from.txt"


class UnavailableError(Exception):
    """A peer that cannot run here, and why."""


@dataclass(frozen=True)
class Environment:
    name: str
    python: Path

    def versions(self) -> dict[str, str]:
        """Package -> version, and Python's own."""
        listed = _run([str(self.python), "-m", "pip", "freeze", "--quiet"])
        packages = dict(line.split("==", 1) for line in listed.splitlines() if "==" in line)
        return {"python": _version(str(self.python)) or "", **packages}


def environment(name: str, cache: Path) -> Environment:
    """The environment of a peer, made if it is not there. Raises UnavailableError."""
    wanted = PEERS[name]
    base = sys.executable if wanted is None else find_python(wanted)
    if base is None:
        raise UnavailableError(
            f"{name} needs Python {wanted}, which is not here: put python{wanted} on the PATH"
        )
    folder = cache / "environments" / name
    requirements = REQUIREMENTS / f"{name}.txt"
    made_from = f"# {_version(base)}\n{requirements.read_text(encoding='utf-8')}"
    stamp = folder / STAMP
    found = Environment(name, folder / "bin" / "python")
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == made_from:
        return found
    shutil.rmtree(folder, ignore_errors=True)
    _run([base, "-m", "venv", str(folder)])
    pip = [str(found.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "-r", str(requirements)])
    stamp.write_text(made_from, encoding="utf-8")
    return found


def made(name: str, cache: Path) -> Environment | None:
    """The environment of a peer, if it is there."""
    folder = cache / "environments" / name
    return Environment(name, folder / "bin" / "python") if (folder / STAMP).is_file() else None


def find_python(version: str) -> str | None:
    """A Python of this version that runs: from the PATH, or one that pyenv has installed.

    A command on the PATH may be pyenv's, which fails where that version is not switched on.
    """
    return next((path for path in _candidates(version) if _version(path) == version), None)


def _candidates(version: str) -> Iterator[str]:
    on_path = shutil.which(f"python{version}")
    if on_path is not None:
        yield on_path
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from (str(path) for path in sorted(root.glob(f"versions/{version}.*/bin/python")))


def _version(python: str) -> str | None:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        return _run([python, "-c", code]).strip()
    except UnavailableError:
        return None


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UnavailableError(f"{command[0]} does not start: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = " / ".join(lines[-LAST_LINES:])
        raise UnavailableError(f"`{' '.join(command)}` ended with {done.returncode}: {said}")
    return done.stdout
