from __future__ import annotations

import errno
import json
import os
import stat
import tracemalloc
from pathlib import Path

import pytest

from gpugrad.text import BPETokenizer, ByteTokenizer, load_tokenizer, open_tokens
from gpugrad.text.files import (
    atomic_write,
    leftovers,
    naming,
    parse_json,
    read_small,
    temporary_name,
)
from gpugrad.train.metrics import append_metrics, read_metrics


def test_writes_and_leaves_nothing_else(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.bin") as file:
        file.write(b"new")
        assert not (tmp_path / "a.bin").exists()
    assert os.listdir(tmp_path) == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failing_writer_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise error

    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == ["a.bin"]
    assert path.read_bytes() == b"old"


def test_is_on_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append("fsync folder" if folder else f"fsync {os.fstat(descriptor).st_size} bytes")
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        assert Path(source).parent == Path(target).parent
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    with atomic_write(tmp_path / "a.bin") as file:
        file.write(b"12345")
    assert events == ["fsync 5 bytes", "rename", "fsync folder"]


def test_honours_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    with atomic_write(tmp_path / "atomic"):
        pass
    modes = {(tmp_path / name).stat().st_mode for name in ("plain", "atomic")}
    assert len(modes) == 1


def test_missing_folder_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with (
        pytest.raises(FileNotFoundError, match=f"there is no folder {missing}"),
        atomic_write(missing / "a.bin"),
    ):
        pass


def test_an_error_without_a_name_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with (
        pytest.raises(OSError, match=f"No space left on device: '{path}'"),
        atomic_write(path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError, match="other"), naming(path):
        raise FileNotFoundError(errno.ENOENT, "No such file", "other")


def test_leftovers_are_found_by_the_name_they_were_to_have(tmp_path: Path) -> None:
    mine = temporary_name(tmp_path / "a.bin")
    mine.write_bytes(b"half")
    for name in (".b.bin.01234567.tmp", ".a.bin.0123456.tmp", "a.bin", ".a.bin.tmp"):
        (tmp_path / name).write_bytes(b"")
    assert leftovers(tmp_path, r"a\.bin") == [mine]


@pytest.mark.parametrize("text", ['{"a": 1, "b": {"a": -0.5}}', "[]", "3", '"x"', "null"])
def test_plain_json_is_read(text: str) -> None:
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {"b": 1, "c": 2, "b": 1}}', "the key 'b' occurs twice"),
        ("[Infinity]", "Infinity is not a number"),
        ("[" * 10**5, "nested too deeply"),
        ("{", "Expecting"),
        (b"\xff", "codec"),
    ],
)
def test_other_json_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_a_file_descriptor_is_no_path(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    ByteTokenizer().save(path)
    with path.open("rb") as file:
        for read in (load_tokenizer, open_tokens, BPETokenizer.load, append_metrics, read_metrics):
            with pytest.raises(TypeError, match="not int"):
                read(file.fileno())
        assert file.read() == path.read_bytes()  # it is still open


def test_reading_takes_little_more_than_the_file(tmp_path: Path) -> None:
    """Not as much as the largest that is read: a limit of memory may be below it."""
    path, data = tmp_path / "a.json", os.urandom(2**23 + 5)
    path.write_bytes(data)
    tracemalloc.start()
    try:
        assert read_small(path) == data
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < len(data) + 2**21


def test_what_tells_no_size_is_read_to_its_end(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"abc" * 1000)
    os.close(write)
    try:
        assert read_small(f"/dev/fd/{read}") == b"abc" * 1000
    finally:
        os.close(read)
