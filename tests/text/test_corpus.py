from __future__ import annotations

import io
import os
import re
import sys
import sysconfig
from pathlib import Path

import pytest

from gpugrad.text import load_text, stdlib_files


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def books(tmp_path: Path) -> Path:
    return write(
        tmp_path / "books",
        {
            "b.txt": b"second",
            "a/z.txt": b"first",
            "c/d/e.txt": b"third\n",
            "c/d/f.md": b"fourth",
            ".git/config": b"hidden",
            "c/.hidden": b"hidden",
        },
    )


def test_file(tmp_path: Path) -> None:
    path = write(tmp_path, {"input.txt": "thé\r\nend\rof\n".encode()}) / "input.txt"
    assert load_text(path) == load_text(str(path)) == "thé\nend\nof\n"


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = write(tmp_path, {"input.txt": b"\xef\xbb\xbfabc"}) / "input.txt"
    assert load_text(path) == "abc"
    assert load_text(path, max_chars=2) == "ab"


def test_folder_in_order_of_path_without_hidden_files(books: Path) -> None:
    assert load_text(books) == "first\nsecond\nthird\n\nfourth"


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("*.txt", "second"),
        ("**/*.txt", "first\nsecond\nthird\n"),
        ("**/**/*.md", "fourth"),
        ("?/z.tx[st]", "first"),
    ],
)
def test_glob(books: Path, pattern: str, text: str) -> None:
    assert load_text(os.path.join(books, pattern)) == text


def test_an_existing_file_is_no_glob(tmp_path: Path) -> None:
    write(tmp_path, {"[ab].txt": b"brackets", "a.txt": b"a"})
    assert load_text(tmp_path / "[ab].txt") == "brackets"


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def pipe(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "latin-1"))

    pipe("a🙂\r\n".encode())
    assert load_text("-") == "a🙂\n"
    pipe(b"abc")
    assert load_text("-", max_chars=2) == "ab"
    pipe(b"a\xff")
    with pytest.raises(ValueError, match="standard input is not UTF-8 text: byte 0xff at offset 1"):
        load_text("-")
    pipe(b"")
    with pytest.raises(ValueError, match="the corpus '-' is empty or blank"):
        load_text("-")


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("unit", ["a", "é", "日", "🙂", "a\r\n", "a🙂", "é\r\n日"], ids=ascii)
@pytest.mark.parametrize("max_chars", [1, 2, 3, 10, 99, 1000])
def test_max_chars_is_a_prefix(tmp_path: Path, unit: str, bom: bytes, max_chars: int) -> None:
    path = write(tmp_path, {"input.txt": bom + (unit * 50).encode()}) / "input.txt"
    assert load_text(path, max_chars=max_chars) == load_text(path)[:max_chars]


@pytest.mark.parametrize("max_chars", range(1, 30))
def test_max_chars_across_files(books: Path, max_chars: int) -> None:
    assert load_text(books, max_chars=max_chars) == load_text(books)[:max_chars]


def test_max_chars_reads_no_further_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", {"a.txt": b"abc", "b.txt": b"\xff"})
    assert load_text(folder, max_chars=3) == "abc"
    with pytest.raises(ValueError, match=r"b\.txt is not UTF-8"):
        load_text(folder, max_chars=5)


def test_max_chars_of_a_truncated_character_at_the_end(tmp_path: Path) -> None:
    path = write(tmp_path, {"input.txt": b"abc\xe2\x82"}) / "input.txt"
    with pytest.raises(ValueError, match="byte 0xe2 at offset 3"):
        load_text(path, max_chars=100)


@pytest.mark.parametrize("max_chars", [0, -1])
def test_max_chars_must_be_positive(max_chars: int) -> None:
    with pytest.raises(ValueError, match=f"max_chars must be at least 1, got {max_chars}"):
        load_text("-", max_chars=max_chars)


@pytest.mark.parametrize(
    ("content", "position"),
    [
        (b"caf\xe9 latin-1", "byte 0xe9 at offset 3"),
        ("utf-16".encode("utf-16"), "byte 0xff at offset 0"),
        (b"\xef\xbb\xbfa\x80", "byte 0x80 at offset 4"),
        (b"end\xf0\x9f", "byte 0xf0 at offset 3"),
    ],
    ids=["latin-1", "utf-16", "after a byte order mark", "truncated"],
)
def test_bad_encoding_is_named(tmp_path: Path, content: bytes, position: str) -> None:
    path = write(tmp_path, {"input.txt": content}) / "input.txt"
    with pytest.raises(ValueError, match=re.escape(f"{path} is not UTF-8 text: {position}")):
        load_text(path)


def test_an_empty_name_is_no_folder() -> None:
    with pytest.raises(ValueError, match="the name of the corpus is empty"):
        load_text("")


@pytest.mark.parametrize("content", [b"", b" \n\t\r\n", b"\xef\xbb\xbf"], ids=repr)
def test_empty_corpus_is_refused(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, {"input.txt": content}) / "input.txt"
    with pytest.raises(ValueError, match=re.escape(f"the corpus '{path}' is empty")):
        load_text(path)


@pytest.mark.parametrize("name", ["missing.txt", "*.none", "", "folder/**/*"])
def test_no_match_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    if not name:
        name = str(tmp_path / "none.txt")
    with pytest.raises(FileNotFoundError, match=re.escape(f"glob match for {name!r}")):
        load_text(name)


def test_folder_without_files_is_named(tmp_path: Path) -> None:
    write(tmp_path, {".hidden": b"x"})
    with pytest.raises(FileNotFoundError, match=f"no files below the folder '{tmp_path}'"):
        load_text(tmp_path)


def test_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {"input.txt": b"abc"}) / "input.txt"

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match=f"cannot read {path}: Permission denied"):
        load_text(path)


def test_folder_that_cannot_be_listed_is_named(
    books: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: str | os.PathLike[str]):
        if os.path.basename(path) == "d":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match=re.escape(str(books / "c" / "d"))):
        load_text(books)


def test_stdlib_is_source_code() -> None:
    files = stdlib_files()
    folder = Path(sysconfig.get_path("stdlib"))
    names = [path.relative_to(folder).as_posix() for path in files]
    assert names == sorted(names)
    assert {"ast.py", "argparse.py", "json/decoder.py"} <= set(names)
    parts = {part for name in names for part in name.split("/")}
    assert not parts & {"test", "tests", "site-packages", "dist-packages", "__pycache__", "idlelib"}
    assert not [name for name in names if "sysconfigdata" in name]


def test_stdlib_text() -> None:
    text = load_text("python-stdlib")
    assert len(text) > 2_000_000
    assert Path(sysconfig.get_path("stdlib"), "ast.py").read_text("utf-8") in text
    assert load_text() == text
    assert load_text(max_chars=300_000) == text[:300_000]


def test_stdlib_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's folder, with what must not be read."""
    latin = "# -*- coding: latin-1 -*-\ncafé = 1\n".encode("latin-1")
    write(
        tmp_path,
        {
            "b.py": latin,
            "a/__init__.py": b"import b\n",
            "a/test/test_a.py": b"\xff",
            "a.so": b"\xff",
            "_sysconfigdata__linux.py": b"\xff",
            "sitecustomize.py": b"\xff",
            "config-3.13-x86_64-linux-gnu/python-config.py": b"\xff",
            "dist-packages/p.py": b"\xff",
            "site-packages/p.py": b"\xff",
            "encodings/cp037.py": b"\xff",
        },
    )
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert load_text() == "import b\n\n# -*- coding: latin-1 -*-\ncafé = 1\n"


def test_stdlib_without_source_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "python.zip"))
    with pytest.raises(FileNotFoundError, match=r"(?s)no Python source code below.*python\.zip"):
        load_text()
