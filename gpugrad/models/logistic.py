"""LogisticRegression: one linear score, squashed into a probability.

    model = LogisticRegression(LogisticRegressionConfig(n_features=2))
    loss = model.loss(x, y)                 # x (N, n_features), y (N) of 0 and 1
    loss.backward()
    model.probabilities(x), model.predict(x)

    p(y = 1 | x) = sigmoid(w x + b),   dloss/dw = (p - y) x

The loss is convex: gradient descent finds the best w from anywhere, if there is one; classes that a
line separates drive |w| to infinity, which ``weight_decay`` of the optimiser prevents. Cox, "The
regression analysis of binary sequences" (1958).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from ..nn import Linear, init
from ..nn import functional as F
from ..nn.module import Module
from ..registry import describe
from ..tensor import Tensor
from ._beside import beside
from ._checks import require_flags, require_floating, require_sizes
from ._files import Saved


@dataclass(frozen=True)
class LogisticRegressionConfig:
    """n_features: numbers per example. bias: whether there is a b. dtype: of the parameters.

    Raises ValueError naming the field.
    """

    n_features: int
    bias: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        require_sizes(self, "n_features")
        require_flags(self)
        require_floating(self)


class LogisticRegression(Module, Saved):
    """The two-class classifier of a LogisticRegressionConfig; all weights start at zero."""

    Config = LogisticRegressionConfig

    def __init__(self, config: LogisticRegressionConfig, device: str | None = None) -> None:
        super().__init__()
        self.config = config
        self.linear = Linear(config.n_features, 1, config.bias, device=device, dtype=config.dtype)
        for parameter in self.parameters():
            init.zeros_(parameter)

    def forward(self, x: Any) -> Tensor:
        """Return the score w x + b of each example, the log-odds of class 1: (N,) for x (N, n).

        Raises ValueError for another shape.
        """
        x = beside(self.linear.weight, x)
        if x.ndim != 2 or x.shape[1] != self.config.n_features:
            raise ValueError(
                f"LogisticRegression: x must have shape (N, {self.config.n_features}), "
                f"got {describe(x)}"
            )
        return self.linear(x.astype(self.config.dtype))[:, 0]

    def loss(self, x: Any, y: Any) -> Tensor:
        """Return the mean of -log p(y | x) for classes y (N) of 0 and 1, in nats.

        A y between them is the probability of class 1. Raises ValueError for others, such as -1;
        only y on the CPU is checked.
        """
        target = ops.asarray(y).astype(self.config.dtype)
        values = target.data
        if isinstance(values, np.ndarray) and not ((values >= 0) & (values <= 1)).all():
            raise ValueError(
                "LogisticRegression: classes must be 0 and 1, or probabilities between them, got "
                f"{values.min():g} to {values.max():g}; for -1 and 1 pass (y + 1) / 2"
            )
        target = beside(self.linear.weight, target)
        return F.binary_cross_entropy_with_logits(self.forward(x), target)

    def probabilities(self, x: Any) -> Tensor:
        """Return p(y = 1 | x) for each example, (N,)."""
        return ops.sigmoid(self.forward(x))

    def predict(self, x: Any) -> Tensor:
        """Return the more likely class of each example, (N,) of 0 and 1."""
        return (self.forward(x) > 0).astype("int64")
