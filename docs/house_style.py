"""How the docstrings of this project are laid out in the generated reference.

They describe a parameter or a field as `name: text`, several names as `one, other: text`, a
function of a protocol as `name(x) -> bool: text`, and a short description may follow another on its
line. Here each becomes an item of a list; all other lines stay as they are.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

NAME = r"[a-z_][a-z_0-9]*"
CALL = rf"{NAME}\([^)]*\)(?: -> \w+)?"
LABEL = rf"(?:{CALL}|{NAME}(?:, {NAME})*)"


class HouseStyle(griffe.Extension):
    """Rewrites docstrings as Markdown once an object and its members are known."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe once for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = laid_out(obj.docstring.value, names_of(obj))


def names_of(obj: griffe.Object) -> set[str]:
    """Of parameters, or of the fields and properties of a class."""
    if isinstance(obj, griffe.Function):
        return {parameter.name for parameter in obj.parameters}
    return set(obj.members) if isinstance(obj, griffe.Class) else set()


def laid_out(text: str, names: set[str]) -> str:
    """The text with a list item for each description of one of `names`."""
    # what continues a description is indented: join it, so that a description is a line
    joined = re.sub(rf"(?m)^({LABEL}: .*)((?:\n    +\S.*)+)", _join, text)
    lines: list[str] = []
    for line in joined.split("\n"):
        items = _items(line, names)
        if items and lines and lines[-1] and not lines[-1].startswith("- "):
            lines.append("")
        if not items and line and lines and lines[-1].startswith("- "):
            lines.append("")
        lines += items or [line]
    return "\n".join(lines)


def _join(match: re.Match[str]) -> str:
    return match[1] + re.sub(r"\n\s+", " ", match[2])


def _items(line: str, names: set[str]) -> list[str]:
    """`a: one. b: two.` as two items, if `a` is a name; else nothing."""
    found = [
        match
        for match in re.finditer(rf"(?:^|(?<=\. ))({LABEL}): ", line)
        if match[1].find("(") > 0 or names & set(match[1].split(", "))
    ]
    if not found or found[0].start() != 0:
        return []
    ends = [match.start() for match in found[1:]] + [len(line)]
    return [
        f"- {_code(match[1])}: {line[match.end() : end].strip()}"
        for match, end in zip(found, ends, strict=True)
    ]


def _code(label: str) -> str:
    names = [label] if "(" in label else label.split(", ")
    return ", ".join(f"`{name}`" for name in names)
