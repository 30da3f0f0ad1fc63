"""Subwords by byte-pair encoding."""

from __future__ import annotations

from collections.abc import Iterable

from gpugrad.text.subwords import SubwordTokenizer, cut, learn, tokenizers_library


class BPETokenizer(SubwordTokenizer):
    """Subwords by byte-pair encoding, through the `tokenizers` library (extra `text`).

    Nothing is added to the text and nothing dropped: see SubwordTokenizer.

    Source: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword
    Units" (2016); over bytes as in Radford et al., "Language Models are Unsupervised Multitask
    Learners" (2019).
    """

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
        library = tokenizers_library("BPETokenizer")
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            show_progress=False,
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        )
        learn(tokenizer, cut(text) if isinstance(text, str) else text, trainer)
        return cls(tokenizer.to_str())
