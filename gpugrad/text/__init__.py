"""Text for language models: tokenizers, corpora, token files, batches and baselines."""

from gpugrad.boundary import name_all
from gpugrad.text.baselines import bigram_loss, unigram_loss
from gpugrad.text.batches import (
    ConsecutiveWindows,
    RandomWindows,
    fixed_windows,
)
from gpugrad.text.bpe import BPETokenizer
from gpugrad.text.chat import ChatTemplate
from gpugrad.text.corpus import load_text, stdlib_files
from gpugrad.text.counts import NGramCounts
from gpugrad.text.files import atomic_write
from gpugrad.text.mixture import Mixture, epochs_elapsed
from gpugrad.text.packing import PackedBatch, pack
from gpugrad.text.padding import PaddedBatch, pad_batch, pad_truncate
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
from gpugrad.text.wordpiece import WordPieceTokenizer

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "ChatTemplate",
    "ConsecutiveWindows",
    "DamagedTokenFileError",
    "Mixture",
    "NGramCounts",
    "PackedBatch",
    "PaddedBatch",
    "RandomWindows",
    "StreamDecoder",
    "TokenFile",
    "Tokenizer",
    "WordPieceTokenizer",
    "WordTokenizer",
    "atomic_write",
    "bigram_loss",
    "encode_corpus",
    "epochs_elapsed",
    "fixed_windows",
    "load_text",
    "load_tokenizer",
    "open_tokens",
    "pack",
    "pad_batch",
    "pad_truncate",
    "split",
    "stdlib_files",
    "unigram_loss",
    "until",
    "write_tokens",
]

name_all(globals(), "gpugrad.text.")
