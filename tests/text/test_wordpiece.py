from __future__ import annotations

import json

import numpy as np
import pytest

from gpugrad.text import BPETokenizer, WordPieceTokenizer, load_tokenizer

TEXT = "low lower lowest, new newer newest; wide wider widest.\nslow slower slowest!\n" * 20


def test_cuts_the_longest_piece_first() -> None:
    tokenizer = WordPieceTokenizer.train(TEXT, 60)
    vocabulary = set(json.loads(tokenizer.to_json())["model"]["vocab"])
    for word in ("lowest", "wider", "slowliest", "new"):
        pieces, rest = [], word
        while rest:
            prefix = "##" if pieces else ""
            size = next(n for n in range(len(rest), 0, -1) if prefix + rest[:n] in vocabulary)
            pieces.append(prefix + rest[:size])
            rest = rest[size:]
        assert tokenizer.tokens(word) == pieces
    assert len(tokenizer.tokens("lowest")) < 6


def test_text_comes_back_with_single_spaces() -> None:
    tokenizer = WordPieceTokenizer.train(TEXT, 60)
    assert tokenizer.decode(tokenizer.encode("lower,\n  newest!slow")) == "lower , newest ! slow"
    assert tokenizer.encode("").shape == (0,)


def test_unknown_words() -> None:
    tokenizer = WordPieceTokenizer.train(TEXT, 60)
    assert tokenizer.encode("xylophone").tolist() == [0]
    assert tokenizer.tokens("new lowx wide") == ["new", "[UNK]", "wide"]
    assert tokenizer.tokens("low" * 34) == ["[UNK]"]


def test_training_is_reproducible() -> None:
    """The library alone gives another vocabulary each time."""
    text = "".join(np.random.default_rng(0).choice(list("abcdefgh  "), 4000))
    found = {WordPieceTokenizer.train(text, 90).to_json() for _ in range(4)}
    assert len(found) == 1
    assert WordPieceTokenizer.train(iter(text.splitlines()), 90).to_json() in found


def test_size_of_the_vocabulary() -> None:
    assert WordPieceTokenizer.train(TEXT, 40).vocab_size == 40
    assert WordPieceTokenizer.train("ab ab", 99).vocab_size < 10
    with pytest.raises(
        ValueError, match=r"vocab_size 7 is less than the .* pieces of a single char"
    ):
        WordPieceTokenizer.train(TEXT, 7)


def test_a_long_text_is_cut_without_changing_its_ids(monkeypatch) -> None:
    tokenizer = WordPieceTokenizer.train(TEXT, 60)
    whole = tokenizer.encode(TEXT)
    lines = TEXT.splitlines(keepends=True)
    monkeypatch.setattr("gpugrad.text.subwords.cut", lambda text: lines)
    np.testing.assert_array_equal(tokenizer.encode(TEXT), whole)


def test_saved_and_loaded(tmp_path) -> None:
    tokenizer = WordPieceTokenizer.train(TEXT, 50)
    tokenizer.save(tmp_path / "tokenizer.json")
    for loaded in (
        load_tokenizer(tmp_path / "tokenizer.json"),
        WordPieceTokenizer.load(tmp_path / "tokenizer.json"),
    ):
        assert type(loaded) is WordPieceTokenizer
        assert loaded.fingerprint() == tokenizer.fingerprint()
    BPETokenizer.train(TEXT, 270).save(tmp_path / "bpe.json")
    assert type(load_tokenizer(tmp_path / "bpe.json")) is BPETokenizer


def test_refuses_what_is_no_text() -> None:
    with pytest.raises(
        TypeError, match=r"WordPieceTokenizer\.encode: text must be a str, got bytes"
    ):
        WordPieceTokenizer.train(TEXT, 50).encode(b"low")
    with pytest.raises(ValueError, match="WordPieceTokenizer: the tokenizers library cannot read"):
        WordPieceTokenizer("{}")
    with pytest.raises(ValueError, match=r"WordPieceTokenizer.decode: id 50 at position 0"):
        WordPieceTokenizer.train(TEXT, 50).decode([50])
