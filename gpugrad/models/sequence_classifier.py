"""A class for each sequence, from the features of a language model at its last token."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backend, ops
from ..nn import Linear, Module, init
from ..nn import functional as F
from ..registry import describe
from ..tensor import Tensor
from ._beside import beside
from .gpt import GPT


class SequenceClassifier(Module):
    """A GPT's body under a new linear head, (C + 1) x classes fresh parameters.

    The last token has seen all others, so its features stand for the sequence. ``body`` is used as
    it is, not copied; its own head is not. ``nn.freeze(model, "body")`` trains the head alone. The
    head starts normal with std 0.02, biases at zero. Radford et al., "Improving language
    understanding by generative pre-training" (2018), section 3.2.
    """

    def __init__(self, body: GPT, classes: int) -> None:
        super().__init__()
        if not isinstance(body, GPT):
            raise TypeError(f"SequenceClassifier: body must be a GPT, got {type(body).__name__}")
        if classes < 1:
            raise ValueError(f"SequenceClassifier: classes must be at least 1, got {classes}")
        self.body = body
        weight = body.tokens.weight
        width = body.config.n_embd
        self.head = Linear(width, classes, device=weight.device, dtype=weight.dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a new head; the body stays."""
        init.normal_(self.head.weight, 0.0, 0.02)
        assert self.head.bias is not None
        init.zeros_(self.head.bias)

    def forward(
        self, ids: Any, lengths: Any = None, labels: Any = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return (logits, loss): (B, classes), and the mean cross-entropy, None without labels.

        ids: (B, T), padded behind with any ids. lengths: how many of each row count, (B,), in 1 ...
        T; None means all, and is what a recorded step (``gg.compile``) takes. labels: class numbers
        (B,). Raises ValueError for other lengths.
        """
        features = self.body.features(ids)  # (B, T, C)
        b, t, width = features.shape
        if lengths is None:
            last = features[:, -1]
        else:
            rows = self._last_rows(lengths, b, t)
            last = F.embedding(rows, ops.reshape(features, (b * t, width)))
        logits = self.head(last)
        if labels is None:
            return logits, None
        return logits, F.cross_entropy(logits, beside(self.head.weight, labels))

    def _last_rows(self, lengths: Any, b: int, t: int) -> Tensor:
        """Return where the last tokens lie when the rows follow each other, (B,)."""
        ends = ops.asarray(lengths)
        if ends.shape != (b,) or ends.dtype.kind not in "iu":
            raise ValueError(
                f"SequenceClassifier: lengths must be integers of shape ({b},), got "
                f"{describe(ends)}"
            )
        ends = Tensor(backend.to_device(ends._data, self.head.weight.device)).astype("int64")
        array = ends._data
        if isinstance(array, np.ndarray) and not ((array > 0) & (array <= t)).all():
            raise ValueError(
                f"SequenceClassifier: lengths must lie in 1..{t}, got {array.tolist()}"
            )
        return ends - 1 + ops.arange(b, device=ends.device) * t
