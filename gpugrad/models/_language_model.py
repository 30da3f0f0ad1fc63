"""What the trained language models without a transformer share: logits, loss, decoding."""

from __future__ import annotations

from typing import Any

from .. import backend, ops
from ..fused import linear_cross_entropy
from ..nn import Module
from ..registry import describe
from ..tensor import Tensor
from ._files import Saved


class TrainedLM(Module, Saved):
    """Ids in, logits of the next token out; a subclass defines features and the head's weight."""

    head_weight: Any  # (V, C): what features are multiplied by

    def checked(self, name: str, ids: Any) -> Tensor:
        """Return ids (B, T), T at least 1, on the model's device; ValueError for others."""
        ids = ops.asarray(ids)
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.shape[1]:
            raise ValueError(
                f"{type(self).__name__}: {name} must be integers of shape (B, T) with T >= 1, "
                f"got {describe(ids)}"
            )
        return Tensor(backend.to_device(ids._data, self.head_weight.device))

    def mean_loss(self, features: Tensor, targets: Any, reduction: str) -> Tensor:
        """Return the cross-entropy of targets (B, T) for features (B, T, C)."""
        targets = self.checked("targets", targets)
        if targets.shape != features.shape[:2]:
            raise ValueError(
                f"{type(self).__name__}: targets {targets.shape} must have the shape of ids, "
                f"{tuple(features.shape[:2])}"
            )
        return linear_cross_entropy(features, self.head_weight, targets, reduction=reduction)

    def extra_repr(self) -> str:
        """Return the size."""
        return f"{sum(p.size for p in self.parameters()):,} parameters"
