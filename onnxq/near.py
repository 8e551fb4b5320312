"""What a user may have meant by a name that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Collection

__all__ = ["near"]

NEAR = 5


def near(word: str, known: Collection[str]) -> str:
    """The known words that are like `word`, or a few of them, as the end of a message."""
    plain = word.strip("*")
    close = difflib.get_close_matches(plain, sorted(known), n=NEAR, cutoff=0.4)
    contains = [name for name in sorted(known) if plain and plain.lower() in name.lower()]
    found = list(dict.fromkeys([*close, *contains]))[:NEAR]
    return (
        f"; near are {', '.join(found)}"
        if found
        else f"; there is {', '.join(sorted(known)[:NEAR])}"
    )
