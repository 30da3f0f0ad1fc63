"""Stochastic gradient descent."""

from __future__ import annotations

import math
from typing import Any

from .. import cuda
from ..backend import Array
from .blocks import add_scaled
from .checks import require
from .optimizer import Group, Optimizer, Parameters


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, PyTorch's definition and arguments.

    d = g + weight_decay x;  b = momentum b + (1 - dampening) d, on the first step b = d;
    x = x - lr b, with ``nesterov`` x = x - lr (d + momentum b), without momentum x = x - lr d.

    Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep
    learning" (ICML 2013), with the learning rate outside the momentum.
    """

    kernel = "sgd"
    idle = ("momentum_buffer",)
    source = cuda.Source("sgd.cu", large=True)

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
            },
        )

    def slots(self, group: Group) -> tuple[str, ...]:
        """Return the momentum's name, if there is momentum."""
        return ("momentum_buffer",) if group["momentum"] else ()

    def check(self, group: Group) -> None:
        """Raise ValueError for a setting that makes no sense."""
        for key in ("lr", "momentum", "weight_decay"):
            require("SGD", key, group[key], 0)
        require("SGD", "dampening", group["dampening"], -math.inf)
        if group["nesterov"] and (not group["momentum"] or group["dampening"]):
            raise ValueError(
                "SGD: nesterov needs momentum > 0 and dampening 0, got "
                f"momentum={group['momentum']} and dampening={group['dampening']}"
            )

    def settings(self, group: Group) -> tuple[float, ...]:
        """Return the settings in the order of the arguments."""
        return tuple(float(group[key]) for key in self.defaults)

    def numbers(self, group: Group, step: int) -> tuple[float, ...]:
        """Return the settings; the first step's momentum takes the gradient undamped."""
        keys = ("lr", "momentum", "dampening", "weight_decay")
        lr, momentum, dampening, weight_decay = (float(group[key]) for key in keys)
        new = 1.0 if step == 1 else 1.0 - dampening
        return lr, momentum, new, weight_decay, float(group["nesterov"])

    def update(
        self, xp: Any, x: Array, g: Array, state: list[Array], work: tuple, numbers: tuple
    ) -> None:
        """Change x and the momentum in place."""
        lr, momentum, new, weight_decay, nesterov = numbers
        direction, scaled = work
        if weight_decay:
            xp.multiply(x, weight_decay, out=direction)
            direction += g
            g = direction
        if momentum:
            (buffer,) = state
            add_scaled(xp, g, new, buffer, momentum, scaled)
            if nesterov:
                xp.multiply(buffer, momentum, out=scaled)
                g = xp.add(scaled, g, out=direction)
            else:
                g = buffer
        add_scaled(xp, g, -lr, x, 1.0, scaled)
