"""JSON files that carry a SHA-256 of themselves, of which every single bit counts."""

from __future__ import annotations

import hashlib
import json
from typing import Any

SEAL = "sha256"


def sealed(content: dict[str, Any]) -> bytes:
    """Return `content` as JSON with one more key, `sha256`, the digest of the JSON without it.

    Raises ValueError for a number that is not finite.
    """
    digest = hashlib.sha256(_text(content)).hexdigest()
    return _text({**content, SEAL: digest})


def is_intact(found: dict[str, Any], data: bytes) -> bool:
    """Return whether `data`, the file in which `found` was read, is bit for bit what was sealed."""
    content = {key: value for key, value in found.items() if key != SEAL}
    try:
        return sealed(content) == data
    except (RecursionError, ValueError):  # deeper than JSON can be written, 1e999
        return False


def _text(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"
