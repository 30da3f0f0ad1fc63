"""Parts of the pages that say what became of mutants."""

from __future__ import annotations

import math
from collections.abc import Sequence


def share(part: int, whole: int) -> str:
    """Return a share in per cent with its 95 % interval (Wilson: Probable inference, 1927)."""
    if not whole:
        return "none"
    p, z = part / whole, 1.959964
    middle = (p + z * z / (2 * whole)) / (1 + z * z / whole)
    half = z * math.sqrt(p * (1 - p) / whole + (z / whole / 2) ** 2) / (1 + z * z / whole)
    return f"{p:.1%} (95 % interval {middle - half:.1%} to {middle + half:.1%})"


def code(text: str) -> str:
    """Return text as code in a table."""
    return f"`{text}`".replace("|", "\\|")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
