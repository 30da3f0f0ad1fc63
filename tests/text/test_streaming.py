from __future__ import annotations

import json

import numpy as np
import pytest

from gpugrad.text import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    StreamDecoder,
    Tokenizer,
    WordTokenizer,
    until,
)

TEXT = "naïve café — 日本語 🙂🙃 a\ufffdb 👩‍🚀 end"


def llama_like() -> BPETokenizer:
    """A tokenizer that writes a space as U+2581 and drops it at the start when decoding."""
    letters = sorted(set(TEXT.replace(" ", "▁")))
    description = json.loads(BPETokenizer.train("ab", 256).to_json())
    description |= {
        "model": {"type": "BPE", "vocab": {c: i for i, c in enumerate(letters)}, "merges": []},
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "always",
            "split": False,
        },
        "decoder": {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "always",
            "split": False,
        },
    }
    return BPETokenizer(json.dumps(description))


TOKENIZERS = {
    "char": CharTokenizer(TEXT),
    "byte": ByteTokenizer(),
    "word": WordTokenizer(TEXT),
    "bpe": BPETokenizer.train(TEXT, 270),
    "llama": llama_like(),
}


def stream(tokenizer: Tokenizer, ids: list[int], size: int = 1) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.feed(ids[i : i + size]) for i in range(0, len(ids), size)]
    return [*pieces, decoder.finish()]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_join_to_the_whole(name: str, size: int) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(TEXT).tolist()
    assert "".join(stream(tokenizer, ids, size)) == tokenizer.decode(ids) == TEXT


@pytest.mark.parametrize("name", ["byte", "bpe"])
@pytest.mark.parametrize("seed", range(20))
def test_random_ids_join_to_the_whole(name: str, seed: int) -> None:
    """Mostly invalid UTF-8, as from an untrained model."""
    tokenizer = TOKENIZERS[name]
    random = np.random.default_rng(seed)
    low = 0 if seed % 2 else min(100, tokenizer.vocab_size - 1)
    ids = random.integers(low, tokenizer.vocab_size, 200).tolist()
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_split_character_is_held_back() -> None:
    assert stream(ByteTokenizer(), list("a🙂é".encode())) == ["a", "", "", "", "🙂", "", "é", ""]


def test_text_appears_as_soon_as_it_is_certain() -> None:
    assert stream(CharTokenizer("abc"), [0, 1, 2]) == ["a", "b", "c", ""]
    assert stream(WordTokenizer("a b c"), [1, 2, 3]) == ["a", " b", " c", ""]


def test_an_invalid_byte_does_not_hold_back_what_follows() -> None:
    assert stream(ByteTokenizer(), [0xFF, 0x61, 0x62]) == ["", "\ufffda", "b", ""]


def test_finish_shows_what_never_became_complete() -> None:
    assert stream(ByteTokenizer(), list("a🙂".encode()[:-1])) == ["a", "", "", "", "\ufffd"]


def test_a_word_behind_padding_keeps_its_space() -> None:
    tokenizer = WordTokenizer("a b c")
    ids = [0, 1, 0, 0, 2, 3, 0]
    assert stream(tokenizer, ids) == ["", "a", "", "", " b", " c", "", ""]
    assert "".join(stream(tokenizer, ids, 2)) == tokenizer.decode(ids) == "a b c"


def test_pieces_continue_a_text() -> None:
    decoder = StreamDecoder(WordTokenizer("a b c"), after=[1, 2])
    assert [decoder.feed([3]), decoder.feed([1]), decoder.finish()] == [" c", " a", ""]
    decoder = StreamDecoder(ByteTokenizer(), after="é\n".encode())
    assert [decoder.feed([id]) for id in "é".encode()] == ["", "é"]


def test_pieces_complete_the_character_in_which_a_text_ends() -> None:
    first, *rest = "🙂a".encode()
    decoder = StreamDecoder(ByteTokenizer(), after=[*b"b", first])
    assert [decoder.feed([id]) for id in rest] == ["", "", "🙂", "a"]


def test_feeding_nothing_changes_nothing() -> None:
    decoder = StreamDecoder(WordTokenizer("a b"))
    assert [decoder.feed(ids) for ids in ([], [1], [], np.array([2]))] == ["", "a", "", " b"]
    assert decoder.finish() == ""


def test_work_per_token_does_not_grow() -> None:
    class Counting(ByteTokenizer):
        longest = 0

        def decode(self, ids) -> str:
            self.longest = max(self.longest, len(ids))
            return super().decode(ids)

    tokenizer = Counting()
    stream(tokenizer, list(("é🙂" * 500).encode()))
    assert tokenizer.longest <= 8  # two characters of four bytes


# Stops


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", [" three"], "one two"),
        ("one two three", ["two", "one t"], ""),
        ("one two three", ["wo t", "two"], "one "),
        ("aabaabaac", ["aabaac"], "aab"),
        ("abcabd", ["abd", "bcx"], "abc"),
        ("one", ["one "], "one"),
        ("one", [], "one"),
        ("", ["x"], ""),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 2, 5, 99])
def test_until_however_the_text_is_cut(text, stops, expected, size) -> None:
    """The stop that is complete first counts; the pieces joined are all before it."""
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    found = "".join(until(pieces, stops))
    assert found == expected


def test_until_holds_back_no_more_than_it_must_and_takes_no_more_than_it_needs() -> None:
    taken: list[str] = []
    found = until((taken.append(c) or c for c in "ab->>x->end"), ["->e"])
    shown = [(next(found), len(taken)) for _ in range(6)]
    assert [piece for piece, _ in shown] == ["a", "b", "", "", "->>", "x"]
    assert [n for _, n in shown] == [1, 2, 3, 4, 5, 6]
    assert "".join(found) == ""
    assert "".join(taken) == "ab->>x->e"


def test_until_refuses_an_empty_stop_at_once() -> None:
    with pytest.raises(ValueError, match="a stop must not be empty"):
        until([], ["x", ""])
