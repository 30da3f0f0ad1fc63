"""Find the text to train on."""

from __future__ import annotations

import codecs
import glob
import os
import sys
import sysconfig
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

STDLIB = "python-stdlib"

# Not prose by people: installed packages, test data, generated tables, files of this machine.
_EXCLUDED = {
    "__pycache__",
    "dist-packages",
    "encodings",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
}
_EXCLUDED_PREFIXES = (".", "_sysconfigdata", "config-", "sitecustomize", "usercustomize")


def load_text(source: str | os.PathLike[str] = STDLIB, max_chars: int | None = None) -> str:
    """Return the text of a corpus.

    source: `python-stdlib` (the source code of the running Python's standard library), a file,
        a folder (every file below it, hidden ones excepted), a glob (`**` crosses folders), or
        `-` for standard input. Several files come in order of their path, each on a line of its
        own.
    max_chars: keep only the first so many characters.

    Text is UTF-8, with or without a byte order mark; line ends become a newline. Raises
    FileNotFoundError when nothing matches, ValueError for text that is not UTF-8 or empty,
    OSError for files that cannot be read; each names the file.
    """
    source = os.fspath(source)
    if not source:
        raise ValueError("load_text: the name of the corpus is empty; '.' is this folder")
    if max_chars is not None and max_chars < 1:
        raise ValueError(f"load_text: max_chars must be at least 1, got {max_chars}")
    pieces: list[str] = []
    length = -1
    for piece in _read_all(source, max_chars):
        pieces.append(piece)
        length += len(piece) + 1
        if max_chars is not None and length >= max_chars:
            break
    text = "\n".join(pieces)[:max_chars]
    if not text or text.isspace():
        raise ValueError(f"load_text: the corpus {source!r} is empty or blank")
    return text


def stdlib_files() -> list[Path]:
    """Return the .py files of the standard library, ordered by their path below its folder.

    Left out: site-packages, tests, generated tables, and what is particular to one machine.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    found = _walk(folder, _in_stdlib) if folder.is_dir() else []  # it may be a zip file
    files = [path for path in found if path.suffix == ".py"]
    if not files:
        raise FileNotFoundError(
            f"load_text: no Python source code below {folder}; give a text file or a folder instead"
        )
    return files


def _read_all(source: str, max_chars: int | None) -> Iterator[str]:
    if source == "-":
        yield _read(sys.stdin.buffer, "standard input", max_chars)
    elif source == STDLIB:
        for path in stdlib_files():
            with tokenize.open(path) as module:  # honours a coding line
                yield module.read()
    else:
        for path in _find(source):
            try:
                with open(path, "rb") as file:
                    yield _read(file, str(path), max_chars)
            except OSError as error:
                raise type(error)(f"load_text: cannot read {path}: {error.strerror}") from error


def _find(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        files = _walk(path, lambda name: not name.startswith("."))
    elif path.exists():
        return [path]
    else:
        matches = {Path(name) for name in glob.glob(source, recursive=True)}
        files = sorted(path for path in matches if path.is_file())
    if not files:
        what = "no files below the folder" if path.is_dir() else "no file, folder or glob match for"
        raise FileNotFoundError(
            f"load_text: {what} {source!r}; a corpus is {STDLIB!r}, a text file, a folder, a "
            "glob such as 'books/**/*.txt', or '-' for standard input"
        )
    return files


def _in_stdlib(name: str) -> bool:
    return name not in _EXCLUDED and not name.startswith(_EXCLUDED_PREFIXES)


def _walk(folder: Path, keep: Callable[[str], bool]) -> list[Path]:
    """Return the files below `folder`, keeping folders and files by name, in order of path."""

    def fail(error: OSError) -> None:
        raise error  # os.walk would pass over a folder it cannot list

    files: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=fail):
        folders[:] = filter(keep, folders)
        files += [Path(root, name) for name in filter(keep, names)]
    files = [path for path in files if path.is_file()]
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def _read(file: BinaryIO, name: str, max_chars: int | None) -> str:
    # A character is at most 4 bytes; 3 more for the byte order mark.
    limit = -1 if max_chars is None else 4 * max_chars + 3
    data = file.read(limit)
    try:
        text, _ = codecs.utf_8_decode(data, "strict", len(data) != limit)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"load_text: {name} is not UTF-8 text: byte 0x{data[error.start]:02x} at offset "
            f"{error.start} ({error.reason}); convert it first, or leave it out with a glob "
            "such as 'folder/**/*.txt'"
        ) from error
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    return text[:max_chars]
