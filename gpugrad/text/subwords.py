"""What the subword tokenizers share: the `tokenizers` library does their work."""

from __future__ import annotations

import importlib
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from gpugrad.text.files import read_small
from gpugrad.text.protocol import Ids, Tokenizer, check_ids, require_text

_LINE_END = re.compile(r"(?<=\S)\n(?=\S)")
_LARGEST = 2**24  # ids; the largest vocabularies in use have 2**18
Self = TypeVar("Self", bound="SubwordTokenizer")


class SubwordTokenizer(Tokenizer):
    """A tokenizer.json of the `tokenizers` library (extra `text`).

    Nothing is added to the text and nothing dropped that the file's own steps leave in: no special
    tokens around it when encoding, none skipped when decoding, no padding or truncation, whatever
    the file says.
    """

    def __init__(self, tokenizer_json: str) -> None:
        library = tokenizers_library(type(self).__name__)
        try:
            self._tokenizer = library.Tokenizer.from_str(tokenizer_json)
        except BaseException as error:  # the library raises no narrower type, panics among them
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise ValueError(
                f"{type(self).__name__}: the tokenizers library cannot read this JSON: {error}"
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # The largest id counts, not the number of entries: a vocabulary may have gaps.
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        if self.vocab_size > _LARGEST:  # the library takes memory for every id up to the largest
            raise ValueError(
                f"{type(self).__name__}: the vocabulary has an id of {self.vocab_size - 1}; ids "
                f"must be less than {_LARGEST}"
            )
        self._splits_lines = _splits_lines(json.loads(self._tokenizer.to_str()))

    @classmethod
    def load(cls: type[Self], path: str | os.PathLike[str]) -> Self:
        """Read a tokenizer.json, such as `save` or the `tokenizers` library writes."""
        try:
            return cls(read_small(path).decode())
        except ValueError as error:
            raise ValueError(f"{cls.__name__}.load: {path}: {error}") from error

    def encode(self, text: str) -> Ids:
        """Return the ids of the subwords."""
        require_text(text, f"{type(self).__name__}.encode")
        text.encode()  # names a lone surrogate, where the library's error says nothing
        pieces = list(cut(text)) if self._splits_lines else [text]
        try:
            encodings = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        except Exception as error:  # a vocabulary without the token for the unknown, say
            raise ValueError(f"{type(self).__name__}.encode: {error}") from error
        return np.concatenate([np.array(encoding.ids, np.int64) for encoding in encodings])

    def tokens(self, text: str) -> list[str]:
        """Return the subwords of the text as the vocabulary writes them."""
        return [self._tokenizer.id_to_token(id) for id in self.encode(text).tolist()]

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text; bytes that are not UTF-8 become U+FFFD."""
        values = check_ids(ids, self.vocab_size, f"{type(self).__name__}.decode")
        return self._tokenizer.decode(values.tolist(), skip_special_tokens=False)

    def to_json(self) -> str:
        """Return the library's own tokenizer.json."""
        return self._tokenizer.to_str()


def cut(text: str, size: int = 2**16) -> Iterator[str]:
    """Cut a long text after lines, for the library to work on the pieces in parallel.

    GPT-2's pre-tokenizer makes a newline between two characters that are not white space a word
    of its own, BERT's drops it: a cut there changes no word.
    """
    start = 0
    while newline := _LINE_END.search(text, start + size):
        yield text[start : newline.end()]
        start = newline.end()
    yield text[start:]


def learn(tokenizer: Any, texts: Iterable[str], trainer: Any) -> None:
    """Have the library learn a vocabulary: in a thread, for it does not hear Ctrl-C, which leaves
    that behind.
    """
    errors: list[BaseException] = []

    def work() -> None:
        try:
            tokenizer.train_from_iterator(texts, trainer)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True, name="gpugrad-learn")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def _splits_lines(description: dict[str, Any]) -> bool:
    """Say whether `cut` is harmless to the tokenizer that a tokenizer.json describes."""
    gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    words = description["pre_tokenizer"] or {}
    return (
        description["normalizer"] is None
        and (gpt2.items() <= words.items() or words == {"type": "BertPreTokenizer"})
        and not any(
            "\n" in token["content"] or token["lstrip"] or token["rstrip"]
            for token in description["added_tokens"]
        )
    )


def tokenizers_library(user: str) -> Any:
    """Return the library; ModuleNotFoundError says who needs it and how to install it."""
    try:
        return importlib.import_module("tokenizers")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{user} needs the tokenizers library, which is not installed: "
            'pip install "gpugrad[text]"'
        ) from error
