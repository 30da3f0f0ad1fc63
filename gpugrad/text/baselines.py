"""What counting alone can predict: the losses that a trained model has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# A table of pairs up to this size (32 MiB of counts); beyond it, the pairs that occur are sorted.
_LARGEST_TABLE = 2**22


def unigram_loss(
    train: npt.NDArray[np.integer],
    val: npt.NDArray[np.integer],
    vocab_size: int,
    smoothing: float = 1.0,
) -> float:
    """Return the mean of -log p(b) over the tokens of `val` but the first, in nats per token.

    p(b) = (n(b) + s) / (n + s V), with n counted in `train` and s the `smoothing`. The first
    token is left out so that `bigram_loss` predicts the same ones.
    """
    train, val = _check(train, val, vocab_size, smoothing, "unigram_loss")
    counts = np.bincount(train, minlength=vocab_size) + smoothing
    return float(-np.mean(np.log(counts / counts.sum())[val[1:]]))


def bigram_loss(
    train: npt.NDArray[np.integer],
    val: npt.NDArray[np.integer],
    vocab_size: int,
    smoothing: float | Sequence[float] = (1.0, 0.1, 0.01),
) -> float:
    """Return the mean of -log p(b | a) over the neighbours a, b in `val`, in nats per token.

    p(b | a) = (n(a, b) + s) / (n(a) + s V), with n counted in `train` and s the `smoothing`. Of
    several s the one best on `val` counts, in the baseline's favour: s = 1 suits characters, but
    with thousands of subwords it drowns the counts and does worse than no context at all.
    """
    train, val = _check(train, val, vocab_size, smoothing, "bigram_loss")
    train_pairs = train[:-1] * vocab_size + train[1:]
    val_pairs = val[:-1] * vocab_size + val[1:]
    if vocab_size**2 <= _LARGEST_TABLE:
        found = np.bincount(train_pairs, minlength=vocab_size**2)[val_pairs]
    else:
        found = _count_sparse(train_pairs, val_pairs)
    contexts = np.bincount(train[:-1], minlength=vocab_size)[val[:-1]]
    return min(
        float(-np.mean(np.log((found + s) / (contexts + s * vocab_size))))
        for s in np.atleast_1d(smoothing)
    )


def _count_sparse(
    train_pairs: npt.NDArray[np.int64], val_pairs: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return how often each of `val_pairs` occurs in `train_pairs`."""
    pairs, counts = np.unique(train_pairs, return_counts=True)
    place = np.minimum(np.searchsorted(pairs, val_pairs), pairs.size - 1)
    return np.where(pairs[place] == val_pairs, counts[place], 0)


def _check(
    train: npt.NDArray[np.integer],
    val: npt.NDArray[np.integer],
    vocab_size: int,
    smoothing: float | Sequence[float],
    where: str,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    if not np.size(smoothing) or not np.all(np.asarray(smoothing) > 0):
        raise ValueError(
            f"{where}: smoothing must be above 0, got {smoothing}: without it an unseen token "
            "costs infinitely much"
        )
    for name, tokens in (("train", train), ("val", val)):
        if tokens.ndim != 1 or tokens.size < 2:
            raise ValueError(
                f"{where}: {name} must be 1-D with at least 2 tokens, got shape {tokens.shape}"
            )
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"{where}: {name} has ids {low}..{high}, the vocabulary 0..{vocab_size - 1}"
            )
    # int64: a pair's number is up to vocab_size squared
    return np.asarray(train, np.int64), np.asarray(val, np.int64)
