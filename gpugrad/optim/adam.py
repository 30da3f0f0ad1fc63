"""Adam, and AdamW with decoupled weight decay."""

from __future__ import annotations

import math
from typing import Any

from .. import cuda, openblas
from ..backend import Array
from .blocks import add_scaled
from .checks import require
from .optimizer import Group, Optimizer, Parameters

# Of the gradient's share of the first moment, 1 - b1: with less, m = b1 m + (1 - b1) g is biased by
# more than 1e-6 in float32, where b1 is rounded by up to 3e-8, and m + (1 - b1) (g - m) is not.
LEAST_NEW = 0.03


class Adam(Optimizer):
    """Adam; weight decay, if any, is added to the gradient (L2).

    At a parameter's step t, with g = gradient + weight_decay x and betas = (b1, b2):

        m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
        x = x - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    A float32 gradient above 1.8e19 overflows v (NumPy warns) and stops its element for good: clip
    by ``step(max_norm=...)``. Kingma, Ba, "Adam: a method for stochastic optimization" (ICLR 2015).
    """

    decoupled = False
    kernel = "adamw"
    source = cuda.Source("adamw.cu", large=True)

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    def slots(self, group: Group) -> tuple[str, ...]:
        """Return the names of the first and second moment."""
        return "exp_avg", "exp_avg_sq"

    def check(self, group: Group) -> None:
        """Raise ValueError for a setting that makes no sense."""
        for key in ("lr", "eps", "weight_decay"):
            require(self._name, key, group[key], 0)
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"{self._name}: betas must be two numbers, got {betas!r}")
        for i, beta in enumerate(betas):
            require(self._name, f"betas[{i}]", beta, 0, 1)
        group["betas"] = tuple(betas)

    def settings(self, group: Group) -> tuple[float, ...]:
        """Return what the kernel computes the same numbers from."""
        values = group["lr"], *group["betas"], group["eps"], group["weight_decay"], self.decoupled
        return tuple(map(float, values))

    def numbers(self, group: Group, step: int) -> tuple[float, ...]:
        """Return the constants of one step, with both bias corrections folded into two numbers.

        (m / c1) / (sqrt(v / c2) + eps) = m (sqrt(c2) / c1) / (sqrt(v) + eps sqrt(c2)).
        """
        # NumPy's float64 scalars would widen every float32 pass
        lr, eps, weight_decay = (float(group[key]) for key in ("lr", "eps", "weight_decay"))
        beta1, beta2 = map(float, group["betas"])
        root = math.sqrt(1 - beta2**step)
        keep, penalty = (1 - lr * weight_decay, 0.0) if self.decoupled else (1.0, weight_decay)
        rate = lr * root / (1 - beta1**step)
        return beta1, 1 - beta1, beta2, 1 - beta2, eps * root, rate, keep, penalty

    def update(
        self, xp: Any, x: Array, g: Array, state: list[Array], work: tuple, numbers: tuple
    ) -> None:
        """Change x and both moments in place."""
        beta1, new, beta2, new2, eps, rate, keep, penalty = numbers
        m, v = state
        change, decayed = work
        if penalty:
            xp.multiply(x, penalty, out=decayed)
            decayed += g
            g = decayed
        if new < LEAST_NEW or not openblas.add_scaled(g, new, m, beta1):
            xp.subtract(g, m, out=change)
            add_scaled(xp, change, new, m, 1.0, change)
        xp.multiply(g, g, out=change)
        add_scaled(xp, change, new2, v, beta2, change)
        xp.sqrt(v, out=change)
        change += eps
        xp.divide(m, change, out=change)
        add_scaled(xp, change, -rate, x, keep, change)


class AdamW(Adam):
    """Adam with decoupled decay: x = x - lr weight_decay x on the old value, then Adam's step.

    Loshchilov, Hutter, "Decoupled weight decay regularization" (ICLR 2019).
    """

    decoupled = True

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
