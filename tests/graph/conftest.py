"""Recorded graphs of every kind, for all tests of pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F


class Cube(gg.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * 3 * x * x


def leaf(*shape: int, seed: int = 0) -> gg.Tensor:
    return gg.tensor(np.random.default_rng(seed).uniform(0.5, 2.0, shape), requires_grad=True)


def shared() -> gg.Tensor:
    x = leaf()
    y = x * x
    return y + y * x


def broadcast() -> gg.Tensor:
    return (leaf(3, 1) + leaf(4, seed=1) * 2.0).sum()


def several_outputs() -> gg.Tensor:
    a, b, _ = gg.unstack(leaf(3, 5))
    low, high = gg.split(a * b + a, [2])
    return gg.exp(low).sum() + high.sum()


def fused() -> gg.Tensor:
    x, weight, bias = leaf(5, 7), leaf(7, seed=1), leaf(7, seed=2)
    y = F.gelu(F.layer_norm(x, (7,), weight, bias))
    return F.cross_entropy(y + x, gg.tensor([0, 6, 3, 1, 2]))


def checkpointed() -> gg.Tensor:
    weight = leaf(4, 4, seed=3)
    return gg.checkpoint(lambda x: gg.tanh(x @ weight), leaf(2, 4)).sum()


def function() -> gg.Tensor:
    return gg.concat([Cube.apply(leaf(3)), leaf(2, seed=1)]).sum()


def views() -> gg.Tensor:
    x = leaf(4, 6)
    return (x[1:].T.reshape(3, 6) * x[gg.tensor([0, 2, 2])]).mean()


def second_derivative() -> gg.Tensor:
    x = leaf(3)
    (g,) = gg.grad(gg.sin(x).sum(), x, create_graph=True)
    return (g * g).sum()


def model() -> gg.Tensor:
    gg.manual_seed(0)
    config = gg.models.GPTConfig(vocab_size=11, block_size=4, n_layer=2, n_head=2, n_embd=8)
    ids = gg.random.integers(11, size=(2, 4))
    return gg.models.GPT(config)(ids, targets=ids)[1]


GRAPHS: list[Callable[[], gg.Tensor]] = [
    shared,
    broadcast,
    several_outputs,
    fused,
    checkpointed,
    function,
    views,
    second_derivative,
    model,
]


@pytest.fixture(params=GRAPHS, ids=lambda f: f.__name__)
def root(request: pytest.FixtureRequest) -> gg.Tensor:
    """A recorded result of one element."""
    return request.param()


class Figure:
    """The textbook's L = c (a + 2b) at a = 3, b = 1, c = -2."""

    def __init__(self) -> None:
        self.a, self.b, self.c = (
            gg.tensor(v, "float64", requires_grad=True) for v in (3.0, 1.0, -2.0)
        )
        with gg.graph.keep_values():
            self.d = 2.0 * self.b
            self.e = self.a + self.d
            self.L = self.c * self.e


@pytest.fixture
def figure() -> Figure:
    return Figure()
