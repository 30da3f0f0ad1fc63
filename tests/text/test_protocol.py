"""What holds for every tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from gpugrad.text import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
    load_tokenizer,
)

TEXT = "to be, or not to be: thé quéstion 🙂 日本"
TOKENIZERS = {
    "char": CharTokenizer(TEXT),
    "byte": ByteTokenizer(),
    "word": WordTokenizer(TEXT),
    "bpe": BPETokenizer.train(TEXT * 3, 300),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]


@pytest.mark.parametrize("text", [TEXT, "", "to", "日本"], ids=["all", "empty", "word", "wide"])
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.ndim == 1
    assert ids.dtype == np.int64
    assert ((ids >= 0) & (ids < tokenizer.vocab_size)).all()
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("convert", [list, np.uint16, lambda ids: ids[::-1][::-1]])
def test_decode_takes_any_integers(tokenizer: Tokenizer, convert) -> None:
    assert tokenizer.decode(convert(tokenizer.encode(TEXT))) == TEXT


def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("something older")
    tokenizer.save(path)
    assert os.listdir(tmp_path) == ["tokenizer.json"]
    loaded = load_tokenizer(path)
    assert type(loaded) is type(tokenizer)
    assert loaded.vocab_size == tokenizer.vocab_size
    assert loaded.fingerprint() == tokenizer.fingerprint()
    np.testing.assert_array_equal(loaded.encode(TEXT), tokenizer.encode(TEXT))
    assert loaded.decode(loaded.encode(TEXT)) == TEXT


def test_fingerprint_is_the_sha256_of_the_json(tokenizer: Tokenizer) -> None:
    digest = hashlib.sha256(tokenizer.to_json().encode()).hexdigest()
    assert tokenizer.fingerprint() == digest


def test_fingerprints_tell_tokenizers_apart() -> None:
    others = [CharTokenizer(TEXT + "X"), WordTokenizer(TEXT + " X"), BPETokenizer.train(TEXT, 290)]
    every = [*TOKENIZERS.values(), *others]
    assert len({tokenizer.fingerprint() for tokenizer in every}) == len(every)


@pytest.mark.parametrize("size", [0, 1, 10, -1], ids=["empty", "1", "10", "all but 1"])
def test_truncated_file_is_refused(tokenizer: Tokenizer, tmp_path: Path, size: int) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer.to_json().encode()[:size])
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is truncated or not JSON"):
        load_tokenizer(path)


@pytest.mark.parametrize("bad", [-1, 100_000, 2**40])
def test_id_outside_the_vocabulary_is_named(tokenizer: Tokenizer, bad: int) -> None:
    message = f"decode: id {bad} at position 2 is outside 0..{tokenizer.vocab_size - 1}"
    with pytest.raises(ValueError, match=re.escape(message)):
        tokenizer.decode([1, 2, bad, 1])


def test_first_id_beyond_the_vocabulary_is_refused(tokenizer: Tokenizer) -> None:
    tokenizer.decode([tokenizer.vocab_size - 1])
    with pytest.raises(ValueError, match="at position 0 is outside"):
        tokenizer.decode([tokenizer.vocab_size])


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([[1, 2]], ValueError, r"1-D, got shape \(1, 2\)"),
        (3, ValueError, r"1-D, got shape \(\)"),
        ([1.0], TypeError, "integers, got dtype float64"),
    ],
    ids=["2-D", "0-d", "float"],
)
def test_other_ids_are_refused(tokenizer: Tokenizer, ids, error, message: str) -> None:
    with pytest.raises(error, match=message):
        tokenizer.decode(ids)


def test_bytes_are_no_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(TypeError, match="encode: text must be a str, got bytes"):
        tokenizer.encode(b"to be")


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "3",
        "{}",
        '{"format": "gpugrad-tokenizer"}',
        '{"format": "gpugrad-tokenizer", "version": 1, "kind": "morse"}',
        '{"format": "gpugrad-tokenizer", "version": 1, "kind": "char", "characters": [97]}',
        '{"characters": "abc"}',
        '{"model_type": "gpt2", "n_layer": 12}',
    ],
)
def test_foreign_json_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: JSON, but neither"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("char", {"characters": "ba"}),
        ("char", {"characters": "aab"}),
        ("char", {"version": 2}),
        ("word", {"words": "b a"}),
        ("byte", {"extra": 1}),
    ],
    ids=["unsorted", "double", "version", "unsorted words", "extra key"],
)
def test_changed_file_is_refused(tmp_path: Path, kind: str, change: dict) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(TOKENIZERS[kind].to_json()) | change))
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: changed since it was saved"):
        load_tokenizer(path)


def test_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(ValueError, match="truncated or not JSON"):
        load_tokenizer(path)


def test_library_json_that_is_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": "1.0", "model": {"type": "BPE"}}')
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: BPETokenizer: .* cannot read"):
        load_tokenizer(path)
