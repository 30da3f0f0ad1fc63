"""A16: eight sentences, cut and padded to ten words."""

from __future__ import annotations

import numpy as np

import gpugrad as gg
from gpugrad import nn
from gpugrad.models import GPT, GPTConfig
from gpugrad.text import WordTokenizer, pad_batch, pad_truncate

SENTENCES = [
    "In the hole in the ground there lived a hobbit",
    "It is our choices that show what we truly are",
    "It was the best of times it was the worst of times",
    "Even miracles take a little time",
    "The more that you read the more things you will know",
    "We'll always have each other no matter what happens",
    "The sun did not shine it was too wet to play",
    "The important thing is to never stop questioning",
]
ROWS = [
    [2, 41, 17, 19, 41, 13, 42, 23, 6, 16],
    [3, 20, 32, 10, 40, 36, 53, 51, 49, 8],
    [3, 50, 41, 9, 30, 46, 21, 50, 41, 55],
    [1, 25, 39, 6, 22, 45, 0, 0, 0, 0],
    [4, 26, 40, 56, 34, 41, 26, 44, 56, 54],
    [5, 7, 15, 12, 31, 28, 24, 53, 14, 0],
    [4, 38, 11, 29, 35, 21, 50, 48, 52, 47],
    [4, 18, 43, 20, 47, 27, 37, 33, 0, 0],
]
BLOCK = 10


def truncated_sentences() -> list[str]:
    return [" ".join(sentence.split()[:BLOCK]) for sentence in SENTENCES]


def test_a16_pad_truncate() -> None:
    truncated = truncated_sentences()
    tokenizer = WordTokenizer(" ".join(truncated))
    assert tokenizer.vocab_size == 57
    rows = pad_truncate([tokenizer.encode(sentence) for sentence in truncated], BLOCK)
    np.testing.assert_array_equal(rows, ROWS)
    assert [tokenizer.decode(row) for row in rows] == truncated


def test_a16_truncates_ids_as_it_truncates_words() -> None:
    """With every word in the vocabulary, `pad_truncate` itself cuts the long sentences."""
    tokenizer = WordTokenizer(" ".join(SENTENCES))
    rows = pad_truncate([tokenizer.encode(sentence) for sentence in SENTENCES], BLOCK)
    assert [tokenizer.decode(row) for row in rows] == truncated_sentences()
    np.testing.assert_array_equal(rows == 0, np.array(ROWS) == 0)


def test_a16_from_ids_to_embeddings_and_a_loss_that_ignores_the_padding() -> None:
    tokenizer = WordTokenizer(" ".join(truncated_sentences()))
    rows = [tokenizer.encode(sentence) for sentence in truncated_sentences()]
    batch = pad_batch(rows, BLOCK, tokenizer.pad)
    np.testing.assert_array_equal(batch.ids, ROWS)
    np.testing.assert_array_equal(batch.mask, np.array(ROWS) != 0)
    counted = batch.targets != -100
    np.testing.assert_array_equal(counted[:, :-1], batch.mask[:, 1:])
    np.testing.assert_array_equal(batch.targets[counted], batch.ids[:, 1:][counted[:, :-1]])

    embedding = nn.Embedding(57, 4, padding_idx=0)
    vectors = embedding(batch.ids)
    assert vectors.shape == (8, BLOCK, 4)
    assert (vectors.numpy()[~batch.mask] == 0).all()
    vectors.sum().backward()
    assert (embedding.weight.grad.numpy()[0] == 0).all()

    gg.manual_seed(16)
    model = GPT(GPTConfig(57, BLOCK, 1, 2, 8, dtype="float64"))
    loss = model.loss(batch.ids, batch.targets)
    alone = [model.loss(row[None, :-1], row[None, 1:], "sum").item() for row in rows]
    assert abs(loss.item() - sum(alone) / counted.sum()) < 1e-12
    loss.backward()
    assert (model.positions.weight.grad.numpy()[-1] == 0).all()  # the last place has no target
    masked = model.loss(batch.ids, batch.targets, attn_mask=nn.padding_mask(batch.mask))
    assert abs(masked.item() - loss.item()) < 1e-12
