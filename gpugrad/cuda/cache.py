"""Files of the cache folder: written whole or not at all, and read only if undamaged."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from pathlib import Path

ABANDONED = 24 * 3600  # seconds after which no process can still be writing a file


def temporary(path: Path) -> Path:
    """Make an empty file beside ``path``, and the folder; return it.

    As any new file it is for whom the umask lets read it: users may share a cache. What processes
    that were killed left in the folder is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(".tmp-*"):
        with contextlib.suppress(OSError):  # another process removed it, or it is another user's
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
    made = path.with_name(f".tmp-{secrets.token_hex(8)}")
    made.touch(exist_ok=False)
    return made


def write(path: Path, magic: bytes, body: bytes) -> None:
    """Write a file that begins with ``magic`` and the checksum of what follows."""
    made = temporary(path)
    try:
        made.write_bytes(magic + hashlib.sha256(body).digest() + body)
        os.replace(made, path)
    except BaseException:
        made.unlink(missing_ok=True)
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
