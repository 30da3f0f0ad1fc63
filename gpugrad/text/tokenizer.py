"""Text to ids and back: characters, bytes and words; `load_tokenizer` for every kind."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from gpugrad.text.bpe import BPETokenizer
from gpugrad.text.files import parse_json, read_small
from gpugrad.text.protocol import Ids, Tokenizer, check_ids, require_text
from gpugrad.text.wordpiece import WordPieceTokenizer


class CharTokenizer(Tokenizer):
    """One id per character of `text`, in order of code points."""

    def __init__(self, text: str) -> None:
        require_text(text, "CharTokenizer")
        self.characters = "".join(sorted(set(text)))
        codes = _code_points(self.characters)
        if not codes.size:
            raise ValueError("CharTokenizer: text is empty, so there is no vocabulary")
        surrogate = (codes >= 0xD800) & (codes <= 0xDFFF)
        if surrogate.any():
            code = codes[np.argmax(surrogate)]
            raise ValueError(f"CharTokenizer: text holds the lone surrogate U+{code:04X}")
        self.vocab_size = codes.size
        self._codes = codes
        self._table = np.full(int(codes[-1]) + 2, -1)  # code point -> id; -1: unknown
        self._table[codes] = np.arange(codes.size)

    def encode(self, text: str, replacement: str | None = None) -> Ids:
        """Return one id per character.

        Raises ValueError naming the first character outside the vocabulary and its position;
        with `replacement`, a character of the vocabulary, such characters become that one.
        """
        require_text(text, "CharTokenizer.encode")
        ids = self._lookup(text)
        unknown = ids < 0
        if not unknown.any():
            return ids
        if replacement is None:
            position = int(np.argmax(unknown))
            character = text[position]
            raise ValueError(
                f"CharTokenizer.encode: character {character!r} (U+{ord(character):04X}) at "
                f"position {position} is not one of the vocabulary's {self.vocab_size}; pass "
                "replacement= a character to put in its place, or build the tokenizer from text "
                "that has it"
            )
        if len(replacement) != 1 or replacement not in self.characters:
            raise ValueError(
                "CharTokenizer.encode: replacement must be one character of the vocabulary, "
                f"got {replacement!r}"
            )
        ids[unknown] = self._lookup(replacement)
        return ids

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return one character per id."""
        codes = self._codes[check_ids(ids, self.vocab_size, "CharTokenizer.decode")]
        return codes.tobytes().decode("utf-32-le")

    def to_json(self) -> str:
        """Return the vocabulary as JSON."""
        return _describe("char", characters=self.characters)

    def _lookup(self, text: str) -> Ids:
        return self._table[np.minimum(_code_points(text), self._table.size - 1)]


class ByteTokenizer(Tokenizer):
    """The 256 byte values of the text's UTF-8 form: no vocabulary to learn, nothing unknown."""

    vocab_size = 256

    def encode(self, text: str) -> Ids:
        """Return one id per UTF-8 byte."""
        require_text(text, "ByteTokenizer.encode")
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text; bytes that are not UTF-8 become U+FFFD."""
        values = check_ids(ids, self.vocab_size, "ByteTokenizer.decode")
        return values.astype(np.uint8).tobytes().decode(errors="replace")

    def to_json(self) -> str:
        """Return the kind as JSON."""
        return _describe("byte")


class WordTokenizer(Tokenizer):
    """One id per word between white space: PAD = 0, then 1, 2, ... in order of code points.

    ``unknown``, such as "<unk>", is one more word of the vocabulary, which stands for all that the
    text does not have; without it they are errors.
    """

    pad = 0

    def __init__(self, text: str, unknown: str | None = None) -> None:
        require_text(text, "WordTokenizer")
        found = set(text.split())
        if not found:
            raise ValueError("WordTokenizer: text has no words, so there is no vocabulary")
        if unknown is not None:
            require_text(unknown, "WordTokenizer, unknown")
            if unknown.split() != [unknown]:
                raise ValueError(
                    f"WordTokenizer: unknown must be one word without white space, got {unknown!r}"
                )
            found.add(unknown)
        self.unknown = unknown
        self.words = sorted(found)
        self.vocab_size = len(self.words) + 1
        self._ids = {word: i for i, word in enumerate(self.words, start=1)}

    def encode(self, text: str) -> Ids:
        """Return one id per word, that of ``unknown`` for unknown words.

        Without ``unknown`` raises ValueError naming the first such word and its position.
        """
        require_text(text, "WordTokenizer.encode")
        words = text.split()
        other = -1 if self.unknown is None else self._ids[self.unknown]
        ids = np.array([self._ids.get(word, other) for word in words], np.int64)
        if (ids < 0).any():
            position = int(np.argmax(ids < 0))
            raise ValueError(
                f"WordTokenizer.encode: word {words[position]!r} at position {position} is not "
                f"one of the vocabulary's {len(self.words)}; build the tokenizer from text that "
                "has it, or with unknown='<unk>'"
            )
        return ids

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the words with single spaces between them; PAD gives nothing."""
        values = check_ids(ids, self.vocab_size, "WordTokenizer.decode")
        return " ".join(self.words[i - 1] for i in values.tolist() if i != self.pad)

    def to_json(self) -> str:
        """Return the vocabulary as JSON."""
        unknown = {} if self.unknown is None else {"unknown": self.unknown}
        return _describe("word", words=" ".join(self.words), **unknown)


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read what a tokenizer's `save` wrote, or a tokenizer.json of the `tokenizers` library.

    Raises ValueError when the file is truncated, damaged, or something else.
    """
    try:
        text = read_small(path).decode()
        description = parse_json(text)
    except ValueError as error:
        raise ValueError(f"load_tokenizer: {path} is truncated or not JSON: {error}") from error
    try:
        return _rebuild(description, text)
    except ValueError as error:
        raise ValueError(f"load_tokenizer: {path}: {error}") from error


def _rebuild(description: Any, text: str) -> Tokenizer:
    tokenizer: Tokenizer
    match description:
        case {"format": "gpugrad-tokenizer", "kind": "char", "characters": str(characters)}:
            tokenizer = CharTokenizer(characters)
        case {"format": "gpugrad-tokenizer", "kind": "word", "words": str(words)}:
            unknown = description.get("unknown")
            tokenizer = WordTokenizer(words, unknown if isinstance(unknown, str) else None)
        case {"format": "gpugrad-tokenizer", "kind": "byte"}:
            tokenizer = ByteTokenizer()
        case {"model": {"type": "WordPiece"}}:
            return WordPieceTokenizer(text)
        case {"model": dict()}:
            return BPETokenizer(text)
        case _:
            raise ValueError(
                "JSON, but neither a gpugrad tokenizer nor a tokenizer.json of the tokenizers "
                "library"
            )
    if json.loads(tokenizer.to_json()) != description:
        raise ValueError(
            "changed since it was saved, or saved by another version of gpugrad "
            f"(version {description.get('version')!r})"
        )
    return tokenizer


def _describe(kind: str, **vocabulary: str) -> str:
    return json.dumps({"format": "gpugrad-tokenizer", "version": 1, "kind": kind, **vocabulary})


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    # A lone surrogate passes, to be named as an unknown character.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))
