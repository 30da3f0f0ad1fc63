"""SkipGram: word vectors that predict the words around, by negative sampling.

    model = SkipGram(SkipGramConfig(vocab_size=5000, n_embd=64))
    for centers, contexts, negatives in SkipGramBatches(tokens, model.config, batch=512):
        loss = model.loss(centers, contexts, negatives)
        ...
    model.nearest(word, 5)
    window_lm.use_embeddings(model.vectors)

    loss = -log sigmoid(u_o v_c) - sum over k negatives of log sigmoid(-u_k v_c)

for a word c and one o beside it; negatives are drawn with n(w)^0.75, and frequent words are left
out with probability 1 - sqrt(t / f(w)). Mikolov, Sutskever, Chen, Corrado, Dean, "Distributed
representations of words and phrases and their compositionality" (2013).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import backend, ops
from ..nn import Embedding, init
from ..nn.module import Module
from ..registry import describe
from ..tensor import Tensor
from ..text.counts import checked_tokens
from ._beside import beside
from ._checks import require, require_floating, require_sizes
from ._files import Saved

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SkipGramConfig:
    """The shape of a SkipGram, and which pairs of words it is shown.

    vocab_size: number of token ids. n_embd: width of a vector. window: how far the words around
    are taken at most; the reach is drawn anew for each word, so that near ones come more often.
    negatives: how many words a pair is set against. power: of the counts negatives are drawn with.
    subsample: t above, the share of the text from which on a word counts as frequent. dtype: of
    the parameters.

    Raises ValueError naming the field.
    """

    vocab_size: int
    n_embd: int = 64
    window: int = 5
    negatives: int = 5
    power: float = 0.75
    subsample: float = 1e-3
    dtype: str = "float32"

    def __post_init__(self) -> None:
        where = "SkipGramConfig"
        require_sizes(self, "vocab_size", "n_embd", "window", "negatives")
        require(where, self.power >= 0, f"power must be >= 0, got {self.power!r}")
        require(where, self.subsample > 0, f"subsample must be > 0, got {self.subsample!r}")
        require_floating(self)


class SkipGram(Module, Saved):
    """Two vectors per word, as centre and as context; centres start small, contexts at zero."""

    Config = SkipGramConfig

    def __init__(self, config: SkipGramConfig, device: str | None = None) -> None:
        super().__init__()
        self.config = config
        made: dict[str, Any] = {"device": device, "dtype": config.dtype}
        self.centers = Embedding(config.vocab_size, config.n_embd, **made)
        self.contexts = Embedding(config.vocab_size, config.n_embd, **made)
        init.uniform_(self.centers.weight, -0.5 / config.n_embd, 0.5 / config.n_embd)
        init.zeros_(self.contexts.weight)

    def loss(self, centers: Any, contexts: Any, negatives: Any) -> Tensor:
        """Return the sum of a pair's terms, averaged over pairs.

        centers and contexts: ids (N); negatives: ids (N, k). Raises ValueError for other shapes.
        """
        given = centers, contexts, negatives
        centers, contexts, negatives = (beside(self.centers.weight, x) for x in given)
        (n,) = centers.shape if centers.ndim == 1 else (-1,)
        if contexts.shape != (n,) or negatives.ndim != 2 or len(negatives) != n:
            raise ValueError(
                "SkipGram.loss: centers and contexts must be (N,), negatives (N, k), got "
                f"{describe(centers)}, {describe(contexts)}, {describe(negatives)}"
            )
        v = self.centers(centers)[:, :, None]  # (N, C, 1)
        u = self.contexts(ops.concat([contexts[:, None], negatives], 1))  # (N, 1 + k, C)
        scores = ops.matmul(u, v)[:, :, 0]  # (N, 1 + k)
        return (ops.softplus(-scores[:, 0]) + ops.softplus(scores[:, 1:]).sum(axis=1)).mean()

    @property
    def vectors(self) -> Tensor:
        """The words' vectors as centres, (vocab_size, n_embd), detached."""
        return self.centers.weight.detach()

    def nearest(self, word: int, count: int = 10) -> list[tuple[int, float]]:
        """Return the words whose vectors have the largest cosine with that of a word, in order.

        The word itself is left out. Raises IndexError for an id that is none.
        """
        if not 0 <= word < self.config.vocab_size:
            raise IndexError(f"SkipGram.nearest: word {word} is none of {self.config.vocab_size}")
        vectors = backend.to_numpy(self.centers.weight._data).astype(np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
        cosines = vectors @ vectors[word]
        cosines[word] = -np.inf
        order = np.argsort(-cosines, kind="stable")[: min(count, len(cosines) - 1)]
        return [(int(i), float(cosines[i])) for i in order]


class SkipGramBatches(Iterator[tuple[Ids, Ids, Ids]]):
    """Endless batches (centers (N,), contexts (N,), negatives (N, k)) from 1-D tokens.

    Each draws N places of the text that subsampling kept, and for each a distance d, with weight
    window + 1 - d, and a side. A seed decides every batch. Raises ValueError for tokens out of the
    vocabulary, or of which subsampling leaves no more than two windows.
    """

    def __init__(
        self, tokens: npt.NDArray[np.integer], config: SkipGramConfig, batch: int, seed: int = 0
    ) -> None:
        where = "SkipGramBatches"
        require(where, batch >= 1, f"batch must be at least 1, got {batch}")
        text = checked_tokens(tokens, config.vocab_size, where, "tokens", 2)
        self.config, self.batch = config, batch
        self._random = np.random.default_rng(seed)
        counts = np.bincount(text, minlength=config.vocab_size)
        share = np.maximum(counts / len(text), 1e-300)
        kept = self._random.random(len(text)) < np.sqrt(config.subsample / share)[text]
        self._text = text[kept]
        left = f"subsampling leaves {len(self._text)} of {len(text)} tokens, too few for a window "
        enough = len(self._text) > 2 * config.window
        require(where, enough, f"{left}of {config.window}; use a longer text or a larger subsample")
        weights = np.where(counts > 0, counts.astype(np.float64), 0) ** config.power
        weights[counts == 0] = 0  # 0 ** 0 is 1
        cumulative = np.cumsum(weights)
        self._cumulative = cumulative / cumulative[-1]

    def __next__(self) -> tuple[Ids, Ids, Ids]:
        draw, size = self._random, self.batch
        window = self.config.window
        chances = np.arange(window, 0, -1) / (window * (window + 1) / 2)
        distance = draw.choice(np.arange(1, window + 1), size, p=chances)
        offset = distance * draw.choice((-1, 1), size)
        here = draw.integers(0, len(self._text), size)
        there = here + offset
        there = np.where((there < 0) | (there >= len(self._text)), here - offset, there)
        uniform = draw.random((size, self.config.negatives))
        negatives = np.searchsorted(self._cumulative, uniform, side="right")
        return self._text[here], self._text[there], negatives
