"""Pages of the documentation: their blocks of code, and a session that runs them in order.

What a block is:

sh             run by bash, which stops at the first command that fails
python         executed; all blocks of a page share their names
output         what the block before it printed: numbers may differ a little, `...` stands for more
toml, json     a recipe, which has to load
cpp, csharp    checked, not run
text           a formula or a listing, for readers alone
title="FILE"   the block is written to that file in place of anything else (recipes load as well)
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import onnxq

ROOT = Path(__file__).resolve().parent.parent
README, README_ZH = ROOT / "README.md", ROOT / "README.zh.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, README_ZH, *DOCS]

# Blocks that need Paddle are left out where it is not installed: `make test` installs it
HAS_PADDLE = importlib.util.find_spec("paddle") is not None
ABOUT_PADDLE = ("paddle.md", "to-paddle.md", "paddleslim.md")

LANGUAGES = ("sh", "python", "output", "toml", "json", "cpp", "csharp", "text")
COMMENT = {"sh": "#", "python": "#", "toml": "#", "cpp": "//", "csharp": "//"}
FENCE = re.compile(r"^```(\S*)[ ]*(.*)$")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?")

TAKES_LONG = (
    "measures for most of an hour, beside peers that it installs; tests/test_bench.py has its parts"
)
# Not run here: the whole block, without comments -> why
ELSEWHERE = {
    "make demo\nmake test": ".ci/run runs both from nothing",
    ". .venv/bin/activate": "the PATH of these tests begins with the environment's commands",
    "pip install .": "make demo installs the package, in .ci/run",
    "make bench": TAKES_LONG,
    "make bench BENCH='--quick'\nmake bench BENCH='--group calibration whole --rounds 5"
    " --json figures.json'": TAKES_LONG,
    "pip install '.[paddle]'": "make test installs the package with Paddle, in .ci/run",
}
# Files of recipes that are to be refused -> why
INVALID = {"typo.toml": "shows the message for a key that does not exist"}


@dataclass(frozen=True)
class Block:
    """One fenced block. line: of its first line of code; section: the heading that it is under."""

    page: Path
    line: int
    language: str
    title: str | None
    code: str
    section: str = ""

    @property
    def needs_paddle(self) -> bool:
        return self.section == "Paddle" or self.page.name in ABOUT_PADDLE

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def bare(self) -> str:
        """Without comments and the blanks around them."""
        mark = COMMENT.get(self.language)
        lines = self.code.splitlines()
        if mark is not None:
            lines = [re.sub(rf"(^|\s){mark}.*$", "", line) for line in lines]
        return "\n".join(line.rstrip() for line in lines if line.strip())


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found: list[Block] = []
    opened: tuple[int, str, str | None] | None = None
    lines: list[str] = []
    section = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        match = FENCE.match(line)
        if match is None:
            lines.append(line)
            if opened is None and line.startswith("## "):
                section = line.removeprefix("## ")
        elif opened is None:
            title = re.fullmatch(r'title="(.+)"', match[2])
            assert title or not match[2], f"{page.name}:{number}: what is {match[2]!r}?"
            opened, lines = (number + 1, match[1], title[1] if title else None), []
        else:
            found.append(Block(page, *opened, "\n".join(lines) + "\n", section))
            opened = None
    assert opened is None, f"{page.name}: a block is not closed"
    return found


def prose_of(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))


class Session:
    """A directory in which the blocks of one page run, one after the other."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.site = folder / "work", folder / "site"
        self.folder.mkdir()
        self.site.mkdir()
        monkeypatch.chdir(self.folder)
        monkeypatch.syspath_prepend(str(self.site))
        self._names: dict[str, Any] = {"__name__": "page"}
        self._printed = ""
        self._substitutes: Mapping[str, Callable[[], None]] = {
            "pip install ./onnxq-toy": lambda: self._install("onnxq-toy")
        }

    def run(self, block: Block) -> None:
        """Raises AssertionError, which names page and line, if the block does not do as it says."""
        if block.needs_paddle and not HAS_PADDLE:
            return
        if block.title is not None:
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code, encoding="utf-8")
        if block.language in ("toml", "json"):
            self._recipe(block)
        elif block.title is not None:
            compile(block.code, block.where, "exec")
        elif block.language == "sh" and block.bare in self._substitutes:
            self._substitutes[block.bare]()
        elif block.language == "sh" and block.bare not in ELSEWHERE:
            self._printed = self._shell(block)
        elif block.language == "python":
            self._printed = self._python(block)
        elif block.language == "output":
            check_output(block, self._printed)

    def _shell(self, block: Block) -> str:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        modules = os.pathsep.join([str(self.site), str(ROOT)])
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.code],
            cwd=self.folder,
            env={**os.environ, "PATH": path, "PYTHONPATH": modules},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block.where}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def _python(self, block: Block) -> str:
        # in its place, so that a traceback shows the line of the page
        code = compile("\n" * (block.line - 1) + block.code, str(block.page), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, self._names)
        return printed.getvalue()

    def _recipe(self, block: Block) -> None:
        if block.title is not None and Path(block.title).name == "pyproject.toml":
            tomllib.loads(block.code)
            return
        path = self.folder / (block.title or f"recipe.{block.language}")
        path.write_text(block.code, encoding="utf-8")
        if block.title in INVALID:
            with pytest.raises(onnxq.OptionError):
                onnxq.load_recipe(path)
        else:
            onnxq.load_recipe(path)

    def _install(self, name: str) -> None:
        """What pip would leave behind of the package in the directory `name`."""
        project = tomllib.loads((self.folder / name / "pyproject.toml").read_text())
        for module in project["tool"]["setuptools"]["py-modules"]:
            source = (self.folder / name / f"{module}.py").read_text()
            (self.site / f"{module}.py").write_text(source)
        about = project["project"]
        info = self.site / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n"
        )
        lines = []
        for group, entries in about["entry-points"].items():
            lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def check_output(block: Block, printed: str) -> None:
    """Each line of the block is there, in this order.

    Whole numbers have to be the same; others may be off by a quarter or by 1, as another processor
    sums differently.
    """
    rest = iter(printed.splitlines())
    for line in block.code.splitlines():
        if line.strip() in ("", "..."):
            continue
        assert any(_same(line, found) for found in rest), (
            f"{block.where}: the page shows\n{line}\nwhich is not in, or not at this place of\n"
            f"{printed}"
        )


def _same(shown: str, found: str) -> bool:
    cut = shown.endswith("...")
    wanted = " ".join(shown.removesuffix("...").split())
    given = " ".join(found.split())
    skeletons = [NUMBER.sub("N", text) for text in (wanted, given)]
    if not (skeletons[1].startswith(skeletons[0]) if cut else skeletons[0] == skeletons[1]):
        return False
    pairs = zip(NUMBER.findall(wanted), NUMBER.findall(given), strict=not cut)
    return all(
        abs(float(a) - float(b)) <= max(1.0, abs(float(a)) / 4) if "." in a else a == b
        for a, b in pairs
    )
