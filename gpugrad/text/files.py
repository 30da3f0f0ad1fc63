"""Files that are either complete or absent, errors that name them, and JSON read with suspicion."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp")


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file that takes the name `path` only once it is complete and on disk.

    It is written under a temporary name in the same folder, fsynced and renamed. When the body
    raises, the temporary file goes and whatever was at `path` stays.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    temporary = temporary_name(path)
    with naming(path):
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """Return a new name beside `path` under which it can be prepared: see `leftovers`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def leftovers(folder: Path, name: str) -> list[Path]:
    """Return what processes that were killed while writing left behind in a folder.

    name: a regular expression for the names they were writing.
    """
    found = ((path, _LEFTOVER.fullmatch(path.name)) for path in folder.iterdir())
    return sorted(path for path, match in found if match and re.fullmatch(name, match["name"]))


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; OSError names the whole path."""
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name `path` in an OSError that names no file, as those of a full disk do."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


def read_small(path: str | os.PathLike[str], largest: int = 2**28) -> bytes:
    """Return what is in a file that describes something; ValueError when it is larger than that."""
    with open(os.fspath(path), "rb") as file:  # not the number of an open file
        size = os.fstat(file.fileno()).st_size  # read takes room ahead for all it is asked for
        data = file.read(min(size, largest) + 1)
        while len(data) <= largest and (more := file.read(2**20)):  # of a pipe, say
            data += more
    if len(data) > largest:
        raise ValueError(f"{path} has more than {largest} bytes: it cannot be what it should be")
    return data


def parse_json(data: bytes | str) -> Any:
    """Return what JSON from anywhere says; ValueError for all that is not plain JSON.

    Refused beside what `json` refuses: NaN and infinities, integers of more than 300 digits, which
    no float can hold, a key twice in one object, and nesting deeper than the interpreter's stack.
    """
    try:
        return json.loads(
            data,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=_checked_int,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:80]!r} occurs twice")
    return found


def _checked_int(digits: str) -> int:
    if len(digits) > 300:
        raise ValueError(f"an integer has {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")
