"""WindowLM: the feed-forward language model, which sees the last n tokens and no more.

    model = WindowLM(WindowLMConfig(vocab_size=256, window=8))
    loss = model.loss(ids, targets)         # ids, targets (B, T)
    loss.backward()
    model.generate([104, 105], 100)

The vectors of the last n tokens are joined, x = (C(w_1), ..., C(w_n)), and

    logits = U tanh(d + H x)  (+ W x, the direct connections)

Bengio, Ducharme, Vincent, Jauvin, "A neural probabilistic language model" (2003). Where the text
begins, learned vectors stand for what is missing. All positions of (B, T) are computed at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import ops
from ..nn import Dropout, Embedding, Linear, Parameter, init
from ..tensor import Tensor
from . import decoding
from ._checks import require_flags, require_floating, require_shares, require_sizes
from ._language_model import TrainedLM


@dataclass(frozen=True)
class WindowLMConfig:
    """The shape of a WindowLM.

    vocab_size: number of token ids. window: n, how many tokens it sees. n_embd: width of a token's
    vector. n_hidden: width of the hidden layer. direct: connect the vectors with the logits, too.
    dropout: probability, on the hidden layer. dtype: of the parameters.

    Raises ValueError naming the field.
    """

    vocab_size: int
    window: int = 8
    n_embd: int = 32
    n_hidden: int = 256
    direct: bool = False
    dropout: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        require_sizes(self, "vocab_size", "window", "n_embd", "n_hidden")
        require_flags(self)
        require_shares(self, "dropout")
        require_floating(self)


class WindowLM(TrainedLM):
    """The language model of a WindowLMConfig; initial values are drawn from ``gg.random``."""

    Config = WindowLMConfig
    generate = decoding.generate

    def __init__(self, config: WindowLMConfig, device: str | None = None) -> None:
        super().__init__()
        self.config = config
        made: dict[str, Any] = {"device": device, "dtype": config.dtype}
        width = config.window * config.n_embd
        self.tokens = Embedding(config.vocab_size, config.n_embd, **made)
        missing = (config.window - 1, config.n_embd)
        self.start = Parameter(ops.zeros(missing, **made)) if config.window > 1 else None
        self.hidden = Linear(width, config.n_hidden, **made)
        self.dropout = Dropout(config.dropout)
        joined = config.n_hidden + config.direct * width
        self.head = Linear(joined, config.vocab_size, bias=False, **made)
        init.normal_(self.tokens.weight, 0.0, 0.5)

    @property
    def head_weight(self) -> Any:
        """The weight of the head, (V, n_hidden), with direct connections more columns."""
        return self.head.weight

    def use_embeddings(self, vectors: Any, freeze: bool = True) -> None:
        """Take token vectors (V, n_embd) from elsewhere, such as word2vec's; freeze: keep them so.

        A frozen weight wants no gradient; an optimiser made afterwards from the parameters that do
        leaves it alone. Raises ValueError for another shape.
        """
        given, weight = ops.asarray(vectors), self.tokens.weight
        if given.shape != weight.shape:
            raise ValueError(
                f"WindowLM.use_embeddings: vectors have shape {given.shape}, the model "
                f"(vocab_size, n_embd) = {tuple(weight.shape)}"
            )
        self.load_state_dict({"tokens.weight": given.detach()}, strict=False)
        weight.requires_grad = not freeze

    def features(self, ids: Any) -> Tensor:
        """Return what the head sees of each position of ids (B, T): (B, T, n_hidden or more)."""
        ids = self.checked("ids", ids)
        (batch, length), n = ids.shape, self.config.window
        x = self.tokens(ids)
        if self.start is not None:
            start = ops.broadcast_to(self.start, (batch, *self.start.shape))
            x = ops.concat([start, x], 1)  # (B, n - 1 + T, C)
        windows = ops.concat([x[:, k : k + length] for k in range(n)], -1)  # (B, T, n C)
        hidden = self.dropout(ops.tanh(self.hidden(windows)))
        return ops.concat([hidden, windows], -1) if self.config.direct else hidden

    def forward(self, ids: Any, targets: Any = None) -> tuple[Tensor, Tensor | None]:
        """Return (logits (B, T, V), mean cross-entropy), the loss None without targets (B, T)."""
        features = self.features(ids)
        loss = None if targets is None else self.mean_loss(features, targets, "mean")
        return self.head(features), loss

    def loss(self, ids: Any, targets: Any, reduction: str = "mean") -> Tensor:
        """Return the cross-entropy of targets (B, T), the tokens that follow ids (B, T), in nats.

        reduction: "mean", "sum", or "none" for (B, T).
        """
        return self.mean_loss(self.features(ids), targets, reduction)

    @property
    def block_size(self) -> int:
        """How many tokens it sees."""
        return self.config.window

    def next_logits(self, ids: Any, cache: None = None) -> Tensor:
        """Return the logits of what follows ids (B, T): (B, V)."""
        ids = self.checked("ids", ids)
        return self.head(self.features(ids[:, -self.config.window :])[:, -1])

    def sequence_logits(self, ids: Any) -> Tensor:
        """Return the logits of what follows every one of ids (B, T): (B, T, V)."""
        return self.head(self.features(ids))

    def new_cache(self) -> None:
        """Return None: a window is computed as a whole."""
