"""The text of a run: read, turned into ids, split, and kept in the run's folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..text import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    bigram_loss,
    load_text,
    load_tokenizer,
    open_tokens,
    split,
    unigram_loss,
    write_tokens,
)
from .config import TrainConfig
from .folder import RunFolder

# Counting needs no more to be a fair baseline, and its tables are int64.
_COUNTED = 2**25

Ids = npt.NDArray[np.integer]
_FLAGS = {
    "train": "--train-fraction",
    "validation": "--train-fraction",
    "test": "--test-fraction",
}


class Data(NamedTuple):
    """A tokenizer, the ids to train on, those to choose by (dev), and those for the last word.

    ``test`` is empty unless `test_fraction` says otherwise. Training and selection never look at
    it: ``evaluation`` does, once. ``checksum`` is that of the token file, which names text and
    tokenizer: of other data a run must not go on.
    """

    tokenizer: Tokenizer
    train: Ids
    val: Ids
    test: Ids
    checksum: str


class Corpus(NamedTuple):
    """Encoded text that is not on disk yet."""

    tokenizer: Tokenizer
    ids: Ids
    text_fingerprint: str


def read_corpus(config: TrainConfig) -> Corpus:
    """Read and encode a run's text.

    Raises ValueError when it is too short for a window in one of its parts, and what
    `load_text` and the tokenizers raise.
    """
    saved = saved_tokenizer(config)
    text = load_text(config.data, config.max_chars or None)
    tokenizer = saved or _tokenizer(config, text)
    ids = tokenizer.encode(text)
    _parts(config, ids)
    return Corpus(tokenizer, ids, hashlib.sha256(text.encode()).hexdigest())


def store(corpus: Corpus, folder: RunFolder) -> None:
    """Write the tokenizer and the token file of a run."""
    tokenizer = corpus.tokenizer
    tokenizer.save(folder.tokenizer)
    write_tokens(
        folder.tokens,
        corpus.ids,
        tokenizer.vocab_size,
        tokenizer.fingerprint(),
        corpus.text_fingerprint,
    )


def open_data(config: TrainConfig, folder: RunFolder) -> Data:
    """Open what `store` wrote; raises ValueError when the two files do not belong together."""
    tokenizer = load_tokenizer(folder.tokenizer)
    tokens = open_tokens(folder.tokens)
    if tokens.tokenizer_fingerprint != tokenizer.fingerprint():
        raise ValueError(f"{folder.tokens} was not encoded by {folder.tokenizer}")
    return Data(tokenizer, *_parts(config, tokens.ids), tokens.checksum)


def baselines(data: Data) -> dict[str, float]:
    """Return the losses on held-out text that counting reaches, in nats per token, by name."""
    train, size = data.train[:_COUNTED], data.tokenizer.vocab_size
    return {
        "unigram": unigram_loss(train, data.val, size),
        "bigram": bigram_loss(train, data.val, size),
    }


def saved_tokenizer(config: TrainConfig) -> Tokenizer | None:
    """Return the tokenizer of a run that names a tokenizer.json, None for one that needs no file.

    Raises ValueError for another name, and what `load_tokenizer` raises.
    """
    if config.tokenizer in ("byte", "char", "bpe"):
        return None
    if not Path(config.tokenizer).is_file():
        raise ValueError(
            f"tokenizer {config.tokenizer!r} is neither byte, char or bpe nor a tokenizer.json file"
        )
    return load_tokenizer(config.tokenizer)


def _tokenizer(config: TrainConfig, text: str) -> Tokenizer:
    match config.tokenizer:
        case "byte":
            return ByteTokenizer()
        case "char":
            return CharTokenizer(text)
        case _:
            return BPETokenizer.train(text, config.vocab_size)


def _parts(config: TrainConfig, ids: Ids) -> tuple[Ids, Ids, Ids]:
    """Cut the ids into train, dev and test, in this order."""
    train, held_out = split(ids, config.train_fraction)
    boundary = len(held_out) - int(len(ids) * config.test_fraction)
    val, test = held_out[:boundary], held_out[boundary:]
    for name, part in (("train", train), ("validation", val), ("test", test)):
        if len(part) <= config.block_size and (name != "test" or config.test_fraction):
            raise ValueError(
                f"the {name} part of {config.data!r} has {len(part):,} of {len(ids):,} tokens, too "
                f"few for a window of block_size + 1 = {config.block_size + 1}; give more text, a "
                f"smaller --block-size, or another {_FLAGS[name]}"
            )
    return train, val, test
