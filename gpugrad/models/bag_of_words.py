"""BagOfWords: a text is the mean of its words' vectors, and a network of any depth classifies it.

    model = BagOfWords(BagOfWordsConfig(vocab_size=5000, n_classes=2, hidden=(64, 64)))
    loss = model.loss(ids, classes)         # ids (B, T), classes (B)
    loss.backward()
    model.predict(ids)

    h0 = mean of E(w),   h_k = relu(W_k h_(k-1) + b_k),   p = softmax(U h + a)

The order of the words does not matter, nor does padding count. Iyyer et al., "Deep unordered
composition rivals syntactic methods for text classification" (2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import backend, ops
from ..nn import Dropout, Embedding, Linear, ModuleList
from ..nn import functional as F
from ..nn.module import Module
from ..registry import describe
from ..tensor import Tensor
from ._beside import beside
from ._checks import require, require_flags, require_floating, require_shares, require_sizes
from ._files import Saved


@dataclass(frozen=True)
class BagOfWordsConfig:
    """The shape of a BagOfWords.

    vocab_size, n_classes: number of token ids and of classes. n_embd: width of a word's vector.
    hidden: widths of the hidden layers, none for a linear classifier. padding: the id that fills
    short texts up, which counts for nothing; None if there is none. head_bias: whether the last
    layer has one. dropout: probability, on the mean and the hidden layers. dtype: of the
    parameters.

    Raises ValueError naming the field.
    """

    vocab_size: int
    n_classes: int
    n_embd: int = 64
    hidden: tuple[int, ...] = (64,)
    padding: int | None = None
    head_bias: bool = True
    dropout: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        require_sizes(self, "vocab_size", "n_classes", "n_embd")
        require_flags(self)
        sizes = all(type(size) is int and size >= 1 for size in self.hidden)
        message = f"hidden must be a tuple of integers >= 1, got {self.hidden!r}"
        require("BagOfWordsConfig", isinstance(self.hidden, tuple) and sizes, message)
        known = self.padding is None or 0 <= self.padding < self.vocab_size
        message = f"padding must be an id below {self.vocab_size}, got {self.padding!r}"
        require("BagOfWordsConfig", known, message)
        require_shares(self, "dropout")
        require_floating(self)


class BagOfWords(Module, Saved):
    """The classifier of a BagOfWordsConfig; initial values are drawn from ``gg.random``."""

    Config = BagOfWordsConfig

    def __init__(self, config: BagOfWordsConfig, device: str | None = None) -> None:
        super().__init__()
        self.config = config
        made: dict[str, Any] = {"device": device, "dtype": config.dtype}
        widths = (config.n_embd, *config.hidden)
        self.words = Embedding(config.vocab_size, config.n_embd, config.padding, **made)
        self.dropout = Dropout(config.dropout)
        self.hidden = ModuleList(
            Linear(a, b, **made) for a, b in zip(widths, config.hidden, strict=False)
        )
        self.head = Linear(widths[-1], config.n_classes, config.head_bias, **made)

    def encode(self, ids: Any) -> Tensor:
        """Return the mean of the words' vectors, (B, n_embd), zeros for a text of padding alone.

        ids: integers (B, T). Raises ValueError for another shape or dtype.
        """
        ids = ops.asarray(ids)
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.shape[1]:
            raise ValueError(
                f"BagOfWords: ids must be integers of shape (B, T) with T >= 1, got {describe(ids)}"
            )
        ids = Tensor(backend.to_device(ids._data, self.words.weight.device))
        vectors = self.words(ids)
        if self.config.padding is None:
            return vectors.mean(axis=1)
        counts = (ids != self.config.padding).astype(vectors.dtype)[:, :, None]
        return (vectors * counts).sum(axis=1) / ops.maximum(counts.sum(axis=1), 1)

    def forward(self, ids: Any, targets: Any = None) -> tuple[Tensor, Tensor | None]:
        """Return (logits (B, n_classes), mean cross-entropy), the loss None without targets (B)."""
        x = self.dropout(self.encode(ids))
        for layer in self.hidden:
            x = self.dropout(ops.relu(layer(x)))
        logits = self.head(x)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits, beside(self.head.weight, targets))

    def loss(self, ids: Any, targets: Any) -> Tensor:
        """Return the mean cross-entropy of the classes targets (B) of the texts ids (B, T)."""
        loss = self.forward(ids, targets)[1]
        assert loss is not None
        return loss

    def predict(self, ids: Any) -> Tensor:
        """Return the most likely class of each text, (B,)."""
        return ops.argmax(self.forward(ids)[0], axis=-1)
