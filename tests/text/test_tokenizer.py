from __future__ import annotations

import re

import numpy as np
import pytest

from gpugrad.text import ByteTokenizer, CharTokenizer, WordTokenizer, load_tokenizer


def test_char_ids_follow_code_points() -> None:
    tokenizer = CharTokenizer("hello, 🙂é")
    assert tokenizer.characters == " ,ehloé🙂"
    assert tokenizer.vocab_size == 8
    assert tokenizer.encode("hole🙂").tolist() == [3, 5, 4, 2, 7]


def test_char_equals_a_dictionary() -> None:
    random = np.random.default_rng(0)
    codes = np.r_[random.integers(0, 0xD800, 1000), random.integers(0xE000, 0x110000, 1000)]
    text = "".join(map(chr, random.permutation(codes)))
    ids = {character: i for i, character in enumerate(sorted(set(text)))}
    assert CharTokenizer(text).encode(text).tolist() == [ids[character] for character in text]


@pytest.mark.parametrize("character", ["Z", "\0", "b", "🙂", "\U0010ffff", "\ud83d"], ids=ascii)
def test_char_unknown_is_named(character: str) -> None:
    tokenizer = CharTokenizer("acd")
    code = f"U+{ord(character):04X}"
    message = f"character {character!r} ({code}) at position 2 is not one of the vocabulary's 3"
    with pytest.raises(ValueError, match=re.escape(message)):
        tokenizer.encode("ac" + character + "d" + character)


def test_char_replacement() -> None:
    tokenizer = CharTokenizer("abc?")
    assert tokenizer.decode(tokenizer.encode("aXb🙂c", replacement="?")) == "a?b?c"
    assert tokenizer.decode(tokenizer.encode("abc", replacement="?")) == "abc"


@pytest.mark.parametrize("replacement", ["", "Z", "ab"])
def test_char_bad_replacement(replacement: str) -> None:
    with pytest.raises(ValueError, match="replacement must be one character of the vocabulary"):
        CharTokenizer("abc").encode("aX", replacement=replacement)


def test_char_needs_text() -> None:
    with pytest.raises(ValueError, match="text is empty"):
        CharTokenizer("")
    with pytest.raises(TypeError, match="CharTokenizer: text must be a str, got list"):
        CharTokenizer(["a", "b"])
    with pytest.raises(ValueError, match=re.escape("lone surrogate U+D83D")):
        CharTokenizer("a\ud83d")


def test_byte_ids_are_utf8() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("aé€🙂").tolist() == list("aé€🙂".encode())
    assert tokenizer.decode(range(128)) == "".join(map(chr, range(128)))


@pytest.mark.parametrize("data", [b"\xff", b"a\xe2\x82", b"\xf0\x9f\x99b", b"\xc0\x80"], ids=repr)
def test_byte_decode_replaces_what_is_not_utf8(data: bytes) -> None:
    text = ByteTokenizer().decode(list(data))
    assert "\ufffd" in text
    assert text == data.decode("utf-8", errors="replace")


def test_byte_refuses_a_lone_surrogate() -> None:
    with pytest.raises(ValueError, match=r"^ByteTokenizer\.encode: .*position 1"):
        ByteTokenizer().encode("a\ud83d")


def test_word_ids() -> None:
    tokenizer = WordTokenizer("the cat  saw\nThe\tother cat")
    assert tokenizer.words == ["The", "cat", "other", "saw", "the"]
    assert tokenizer.vocab_size == 6
    assert tokenizer.encode(" the other\ncat ").tolist() == [5, 3, 2]
    assert tokenizer.decode([0, 5, 0, 3, 2, 0, 0]) == "the other cat"


def test_word_unknown_is_named() -> None:
    with pytest.raises(ValueError, match="word 'dog' at position 1 is not one of the vocabulary's"):
        WordTokenizer("a cat").encode("a dog dog")


@pytest.mark.parametrize("text", ["", " \n\t "], ids=["empty", "white space"])
def test_word_needs_words(text: str) -> None:
    with pytest.raises(ValueError, match="text has no words"):
        WordTokenizer(text)


def test_unknown_words_share_one_id(tmp_path):
    tokenizer = WordTokenizer("the cat saw the dog", unknown="<unk>")
    assert tokenizer.words == ["<unk>", "cat", "dog", "saw", "the"]
    ids = tokenizer.encode("the bird saw the mouse")
    assert ids.tolist() == [5, 1, 4, 5, 1]
    assert tokenizer.decode(ids) == "the <unk> saw the <unk>"
    tokenizer.save(tmp_path / "words.json")
    again = load_tokenizer(tmp_path / "words.json")
    assert again.encode("a bird saw").tolist() == [1, 1, 4]


def test_a_word_of_the_text_may_stand_for_unknown_ones():
    tokenizer = WordTokenizer("the <unk> saw", unknown="<unk>")
    assert tokenizer.vocab_size == 4
    assert tokenizer.encode("<unk> bird").tolist() == [1, 1]


@pytest.mark.parametrize("unknown", ["", " ", "two words", "<unk>\n"])
def test_what_cannot_stand_for_unknown_words_is_refused(unknown):
    with pytest.raises(ValueError, match="unknown must be one word without white space"):
        WordTokenizer("the cat", unknown=unknown)


@pytest.mark.parametrize("unknown", [1, True, ["<unk>"]])
def test_unknown_is_text(unknown):
    with pytest.raises(TypeError, match="WordTokenizer, unknown: text must be a str"):
        WordTokenizer("the cat", unknown=unknown)
