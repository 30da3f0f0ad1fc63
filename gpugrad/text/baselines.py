"""What counting alone can predict: the losses that a trained model has to beat.

For longer contexts and better smoothing see ``gpugrad.models.NGram``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gpugrad.text.counts import NGramCounts, checked_tokens


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
    return _loss("unigram_loss", 1, train, val, vocab_size, smoothing)


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
    return _loss("bigram_loss", 2, train, val, vocab_size, smoothing)


def _loss(
    where: str,
    order: int,
    train: npt.NDArray[np.integer],
    val: npt.NDArray[np.integer],
    vocab_size: int,
    smoothing: float | Sequence[float],
) -> float:
    if not np.size(smoothing) or not np.all(np.asarray(smoothing) > 0):
        raise ValueError(
            f"{where}: smoothing must be above 0, got {smoothing}: without it an unseen token "
            "costs infinitely much"
        )
    train = checked_tokens(train, vocab_size, where, "train", 2)
    val = checked_tokens(val, vocab_size, where, "val", 2)
    counts = NGramCounts(train, vocab_size, order, where)
    contexts = counts.find_all(np.stack([val[:-1]], -1)[:, : order - 1])
    found = counts.find(contexts, val[1:], order)
    occurring = counts.levels[-1].counts
    seen = np.where(found >= 0, occurring[found], 0)
    total = np.where(contexts >= 0, counts.followed(order, occurring)[contexts], 0)
    return min(
        float(-np.mean(np.log((seen + s) / (total + s * vocab_size))))
        for s in np.atleast_1d(smoothing)
    )
