"""What Paddle's exceptions say, without what is around it."""

from __future__ import annotations

from onnxq.errors import one_line

__all__ = ["reason_of"]

MOST_LINES = 6


def reason_of(error: Exception) -> str:
    """The sentence in Paddle's report, which has a stack of C++ calls and rulers before it."""
    lines = [line.strip() for line in str(error).splitlines()]
    marked = [i for i, line in enumerate(lines) if "Error:" in line or "Error Message" in line]
    kept = [line for line in lines[marked[-1] if marked else 0 :] if line.strip("-")]
    return one_line(Exception(" ".join(kept[:MOST_LINES])))
