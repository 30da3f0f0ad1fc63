from __future__ import annotations

import hashlib
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from gpugrad.text import (
    ByteTokenizer,
    CharTokenizer,
    DamagedTokenFileError,
    encode_corpus,
    open_tokens,
    split,
    write_tokens,
)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(1, np.uint16), (65, np.uint16), (2**16, np.uint16), (2**16 + 1, np.uint32), (2**32, "u4")],
)
@pytest.mark.parametrize("count", [1, 7, 1023])
def test_round_trip(tmp_path: Path, vocab_size: int, dtype, count: int) -> None:
    ids = np.random.default_rng(0).integers(0, vocab_size, count)
    ids[-1] = vocab_size - 1
    path = tmp_path / "tokens.bin"
    written = write_tokens(path, ids, vocab_size, "ab" * 32, "cd" * 32)
    for tokens in (written, open_tokens(path), open_tokens(path, verify=False)):
        assert tokens.path == path
        assert isinstance(tokens.ids, np.memmap)
        assert tokens.ids.dtype == dtype
        assert not tokens.ids.flags.writeable
        assert tokens.vocab_size == vocab_size
        assert tokens.tokenizer_fingerprint == "ab" * 32
        assert tokens.text_fingerprint == "cd" * 32
        np.testing.assert_array_equal(tokens.ids, ids)
    assert os.listdir(tmp_path) == ["tokens.bin"]


def test_layout(tmp_path: Path) -> None:
    """Byte by byte as documented, so that other programs can read it."""
    path = tmp_path / "tokens.bin"
    write_tokens(path, [1, 258], 300, "ab" * 32, "cd" * 32)
    header = b"gpugradT" + struct.pack("<IIQQ", 1, 2, 2, 300) + b"\xab" * 32 + b"\xcd" * 32
    ids = b"\x01\x00\x02\x01"
    assert path.read_bytes() == header + hashlib.sha256(header + ids).digest() + ids


@pytest.mark.parametrize(
    "ids", [np.arange(20)[::-3], np.arange(20, dtype=">u8")[::2], [3, 1]], ids=["-3", "big", "list"]
)
def test_writes_any_layout(tmp_path: Path, ids) -> None:
    np.testing.assert_array_equal(write_tokens(tmp_path / "t", ids, 20).ids, ids)
    np.testing.assert_array_equal(open_tokens(tmp_path / "t").ids, ids)


@pytest.mark.parametrize(
    ("ids", "vocab_size", "message"),
    [
        ([], 5, "at least one, got shape (0,)"),
        ([[1]], 5, "got shape (1, 1)"),
        ([1.0], 5, "dtype float64"),
        ([0, 5, 1], 5, "id 5 at position 1 is outside 0..4"),
        ([0, 1, -2], 5, "id -2 at position 2 is outside 0..4"),
        ([0], 0, "vocab_size must be in 1..2**32, got 0"),
        ([0], 2**32 + 1, "vocab_size must be in"),
    ],
    ids=["empty", "2-D", "float", "too large", "negative", "no vocabulary", "large vocabulary"],
)
def test_bad_ids_are_refused(tmp_path: Path, ids, vocab_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        write_tokens(tmp_path / "t", ids, vocab_size)
    assert os.listdir(tmp_path) == []


def test_bad_fingerprint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="64 hex digits, got 'abcd'"):
        write_tokens(tmp_path / "t", [1], 5, "abcd")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.bin"
    write_tokens(path, np.arange(100) % 65, 65)
    return path


@pytest.mark.parametrize("size", [0, 1, 8, 64, 127, 128, 129, 327])
def test_truncated_file_is_refused(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedTokenFileError, match=f"{re.escape(str(path))} is truncated"):
        open_tokens(path)


def test_longer_file_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DamagedTokenFileError, match="longer than its header says: 329 bytes where"):
        open_tokens(path)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("content", [b"PK\x03\x04" + b"x" * 200, b"text", b"gpugradX"], ids=repr)
def test_foreign_file_is_refused(path: Path, content: bytes, verify: bool) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a gpugrad token file") as caught:
        open_tokens(path, verify)
    assert not isinstance(caught.value, DamagedTokenFileError)


def test_other_version_is_refused(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8] = 2
    path.write_bytes(content)
    with pytest.raises(ValueError, match="has version 2; this gpugrad reads version 1"):
        open_tokens(path)


@pytest.mark.parametrize("position", [12, 16, 24, 31, 32, 64, 95, 96, 127, 128, 200, 327])
@pytest.mark.parametrize("bit", [0, 7])
def test_one_flipped_bit_is_found(path: Path, position: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(DamagedTokenFileError):
        open_tokens(path)


@pytest.mark.parametrize(("width", "count"), [(3, 5), (8, 5), (0, 5), (2, 0)])
def test_impossible_header_is_refused(path: Path, width: int, count: int) -> None:
    header = b"gpugradT" + struct.pack("<IIQQ", 1, width, count, 65) + bytes(64)
    ids = bytes(width * count)
    path.write_bytes(header + hashlib.sha256(header + ids).digest() + ids)
    message = f"its header says {count} ids of {width} bytes"
    with pytest.raises(DamagedTokenFileError, match=message):
        open_tokens(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_tokens(tmp_path / "none")


class Counting(CharTokenizer):
    calls = 0

    def encode(self, text: str, replacement: str | None = None):
        self.calls += 1
        return super().encode(text, replacement)


def test_corpus_is_encoded_once(tmp_path: Path) -> None:
    text, path = "hello thére", tmp_path / "tokens.bin"
    tokenizer = Counting(text)
    first = encode_corpus(text, tokenizer, path)
    second = encode_corpus(text, Counting(text), path)
    assert tokenizer.decode(first.ids) == tokenizer.decode(second.ids) == text
    assert first.vocab_size == tokenizer.vocab_size
    inode = path.stat().st_ino
    assert encode_corpus(text, tokenizer, path).ids.tolist() == first.ids.tolist()
    assert tokenizer.calls == 1
    assert path.stat().st_ino == inode


def test_other_text_or_tokenizer_is_encoded_again(tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    old = encode_corpus("abc", CharTokenizer("abc"), path)
    assert encode_corpus("cab", CharTokenizer("abc"), path).ids.tolist() == [2, 0, 1]
    assert encode_corpus("cab", CharTokenizer("abcd "), path).ids.tolist() == [3, 1, 2]
    assert encode_corpus("cab", ByteTokenizer(), path).ids.tolist() == list(b"cab")
    assert old.ids.tolist() == [0, 1, 2]  # an open map keeps the file it was opened on


@pytest.mark.parametrize("size", [0, 100, 130], ids=["empty", "header", "ids"])
def test_damaged_corpus_is_encoded_again_with_a_warning(tmp_path: Path, size: int) -> None:
    path = tmp_path / "tokens.bin"
    tokenizer = CharTokenizer("abc")
    encode_corpus("abc", tokenizer, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.warns(RuntimeWarning, match="is truncated: .*; encoding the text again"):
        assert encode_corpus("abc", tokenizer, path).ids.tolist() == [0, 1, 2]
    assert open_tokens(path).ids.tolist() == [0, 1, 2]


def test_foreign_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    path.write_text("years of work")
    with pytest.raises(ValueError, match="is not a gpugrad token file"):
        encode_corpus("abc", CharTokenizer("abc"), path)
    assert path.read_text() == "years of work"


def test_unknown_character_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="character 'z'"):
        encode_corpus("abz", CharTokenizer("ab"), tmp_path / "t")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("count", "fraction", "boundary"),
    [(1_115_394, 0.9, 1_003_854), (10, 0.5, 5), (7, 0.9, 6), (1, 0.9, 0), (3, 0.34, 1)],
)
def test_split_is_contiguous(count: int, fraction: float, boundary: int) -> None:
    ids = np.arange(count)
    train, val = split(ids, fraction)
    np.testing.assert_array_equal(train, ids[:boundary])
    np.testing.assert_array_equal(val, ids[boundary:])
    assert train.base is ids
    assert val.base is ids


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_split_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match="train_fraction must be between 0 and 1"):
        split(np.arange(10), fraction)
