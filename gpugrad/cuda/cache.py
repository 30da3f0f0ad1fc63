"""Files of the cache folder: written whole or not at all, and read only if undamaged."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path


def write(path: Path, magic: bytes, body: bytes) -> None:
    """Write a file that begins with ``magic`` and the checksum of what follows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(magic + hashlib.sha256(body).digest() + body)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: Path, magic: bytes) -> bytes | None:
    """Return what was written; None if there is no such file or it is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    start = len(magic) + 32
    body = data[start:]
    if data[: len(magic)] != magic or hashlib.sha256(body).digest() != data[len(magic) : start]:
        return None
    return body
