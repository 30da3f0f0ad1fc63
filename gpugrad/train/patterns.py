"""Settings that name parameters: patterns with commas between them, some with a factor."""

from __future__ import annotations


def patterns(text: str) -> list[str]:
    """Return the patterns in a setting such as ``freeze``."""
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]


def factors(text: str) -> dict[str, float]:
    """Return the factors in ``lr_scales``, by pattern.

    Raises ValueError for what is not PATTERN=FACTOR.
    """
    found = {}
    for part in patterns(text):
        pattern, _, factor = part.partition("=")
        try:
            found[pattern.strip()] = float(factor)
        except ValueError:
            raise ValueError(f"lr_scales must be PATTERN=FACTOR,..., got {part!r}") from None
    return found
