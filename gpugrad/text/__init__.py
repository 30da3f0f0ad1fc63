"""Text for language models: tokenizers, corpora, token files, batches and baselines."""

from gpugrad.text.baselines import bigram_loss, unigram_loss
from gpugrad.text.batches import (
    ConsecutiveWindows,
    RandomWindows,
    fixed_windows,
    pad_truncate,
)
from gpugrad.text.bpe import BPETokenizer
from gpugrad.text.corpus import load_text, stdlib_files
from gpugrad.text.counts import NGramCounts
from gpugrad.text.files import atomic_write
from gpugrad.text.protocol import Tokenizer
from gpugrad.text.streaming import StreamDecoder, until
from gpugrad.text.tokenizer import ByteTokenizer, CharTokenizer, WordTokenizer, load_tokenizer
from gpugrad.text.tokens import (
    DamagedTokenFileError,
    TokenFile,
    encode_corpus,
    open_tokens,
    split,
    write_tokens,
)

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "ConsecutiveWindows",
    "DamagedTokenFileError",
    "NGramCounts",
    "RandomWindows",
    "StreamDecoder",
    "TokenFile",
    "Tokenizer",
    "WordTokenizer",
    "atomic_write",
    "bigram_loss",
    "encode_corpus",
    "fixed_windows",
    "load_text",
    "load_tokenizer",
    "open_tokens",
    "pad_truncate",
    "split",
    "stdlib_files",
    "unigram_loss",
    "until",
    "write_tokens",
]
