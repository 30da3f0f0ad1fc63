"""Subwords of words: the longest piece in the vocabulary first."""

from __future__ import annotations

import json
from collections.abc import Iterable

from gpugrad.text.subwords import SubwordTokenizer, cut, learn, tokenizers_library

UNKNOWN = "[UNK]"


class WordPieceTokenizer(SubwordTokenizer):
    """Subwords of words and punctuation marks, through the `tokenizers` library (extra `text`).

    A word is cut from its beginning: each time the longest piece that the vocabulary has, a piece
    within a word being written ##piece. A word with a character that the vocabulary lacks, or of
    more than 100 characters, is [UNK]. White space separates words and is not kept: decoding puts a
    single space between words and marks.

    Source: Schuster and Nakajima, "Japanese and Korean voice search" (2012); as in Devlin et al.,
    "BERT: Pre-training of Deep Bidirectional Transformers" (2019), cased, without its special
    tokens but [UNK] = 0.
    """

    @classmethod
    def train(cls, text: str | Iterable[str], vocab_size: int) -> WordPieceTokenizer:
        """Learn at most `vocab_size` pieces from `text`: its characters, then frequent pairs.

        The library merges the most frequent pair first, where the source takes the one that makes
        the text most likely. Raises ValueError when the characters alone, each at the beginning of
        and within words where it occurs there, are more than `vocab_size`.
        """
        library = tokenizers_library("WordPieceTokenizer")
        model = library.models.WordPiece({}, unk_token=UNKNOWN, max_input_chars_per_word=100)
        tokenizer = library.Tokenizer(model)
        tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = library.decoders.WordPiece(prefix="##", cleanup=False)
        pieces = list(cut(text) if isinstance(text, str) else text)
        split = tokenizer.pre_tokenizer.pre_tokenize_str
        within = {c for piece in pieces for word, _ in split(piece) for c in word[1:]}
        # Named before training, in order: the library numbers them as its hash table has them, in
        # another order each time, and prefers smaller numbers among equally frequent pairs.
        named = [UNKNOWN, *(f"##{c}" for c in sorted(within))]
        trainer = library.trainers.WordPieceTrainer(
            vocab_size=vocab_size, special_tokens=named, show_progress=False
        )
        learn(tokenizer, pieces, trainer)
        description = json.loads(tokenizer.to_str())
        description["added_tokens"] = []  # pieces like all others
        learned = cls(json.dumps(description))
        if learned.vocab_size > vocab_size:
            raise ValueError(
                f"WordPieceTokenizer.train: vocab_size {vocab_size} is less than the "
                f"{learned.vocab_size} pieces of a single character that the text takes"
            )
        return learned
