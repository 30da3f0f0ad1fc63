"""Subword tokens, through the `tokenizers` library."""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpugrad.text.protocol import Ids, Tokenizer, check_ids, require_text

_LINE_END = re.compile(r"(?<=\S)\n(?=\S)")


class BPETokenizer(Tokenizer):
    """Subwords by byte-pair encoding, through the `tokenizers` library (extra `text`).

    Nothing is added to the text and nothing dropped: no special tokens around it when encoding,
    none skipped when decoding, no padding or truncation, whatever the file says.

    Source: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword
    Units" (2016); over bytes as in Radford et al., "Language Models are Unsupervised Multitask
    Learners" (2019).
    """

    def __init__(self, tokenizer_json: str) -> None:
        library = _tokenizers_library()
        try:
            self._tokenizer = library.Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises no narrower type
            raise ValueError(
                f"BPETokenizer: the tokenizers library cannot read this JSON: {error}"
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # The largest id counts, not the number of entries: a vocabulary may have gaps.
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        self._splits_lines = _splits_lines(json.loads(self._tokenizer.to_str()))

    @classmethod
    def train(cls, text: str | Iterable[str], vocab_size: int) -> BPETokenizer:
        """Learn a byte-level vocabulary of at most `vocab_size` ids from `text`.

        The first 256 are the bytes, so any text can be encoded. A short text has fewer pairs to
        merge than asked for: the result's `vocab_size` is what was found.
        """
        if vocab_size < 256:
            raise ValueError(
                f"BPETokenizer.train: vocab_size must be at least 256 (the bytes), got {vocab_size}"
            )
        library = _tokenizers_library()
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            show_progress=False,
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        )
        tokenizer.train_from_iterator(_cut(text) if isinstance(text, str) else text, trainer)
        return cls(tokenizer.to_str())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BPETokenizer:
        """Read a tokenizer.json, such as `save` or the `tokenizers` library writes."""
        try:
            return cls(Path(path).read_bytes().decode())
        except ValueError as error:
            raise ValueError(f"BPETokenizer.load: {path}: {error}") from error

    def encode(self, text: str) -> Ids:
        """Return the ids of the subwords."""
        require_text(text, "BPETokenizer.encode")
        text.encode()  # names a lone surrogate, where the library's error says nothing
        pieces = list(_cut(text)) if self._splits_lines else [text]
        encodings = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        return np.concatenate([np.array(encoding.ids, np.int64) for encoding in encodings])

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text; bytes that are not UTF-8 become U+FFFD."""
        values = check_ids(ids, self.vocab_size, "BPETokenizer.decode")
        return self._tokenizer.decode(values.tolist(), skip_special_tokens=False)

    def to_json(self) -> str:
        """Return the library's own tokenizer.json."""
        return self._tokenizer.to_str()


def _cut(text: str, size: int = 2**16) -> Iterator[str]:
    """Cut a long text after lines, for the library to work on the pieces in parallel.

    GPT-2's pre-tokenizer makes a newline between two characters that are not white space a word
    of its own, so a cut there changes no word.
    """
    start = 0
    while newline := _LINE_END.search(text, start + size):
        yield text[start : newline.end()]
        start = newline.end()
    yield text[start:]


def _splits_lines(description: dict[str, Any]) -> bool:
    """Say whether `_cut` is harmless to the tokenizer that a tokenizer.json describes."""
    gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    return (
        description["normalizer"] is None
        and gpt2.items() <= (description["pre_tokenizer"] or {}).items()
        and not any(
            "\n" in token["content"] or token["lstrip"] or token["rstrip"]
            for token in description["added_tokens"]
        )
    )


def _tokenizers_library() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "BPETokenizer needs the tokenizers library, which is not installed: "
            'pip install "gpugrad[text]"'
        ) from error
