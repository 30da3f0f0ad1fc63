"""A25: the size of recorded graphs: linear in T for an RNN, T(T+1)/2 pairs for attention."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.engine import reachable

C = 4
LENGTHS = (8, 16, 32)


def graph(loss: gg.Tensor) -> tuple[Counter[str], int]:
    """Return how many nodes each operation has, and the number of edges."""
    nodes = reachable([loss._node])
    return Counter(node.op.name for node in nodes), sum(len(node.parents) for node in nodes)


def rnn(steps: int) -> gg.Tensor:
    """h_t = tanh(W h_(t-1) + U x_t), loss = sum over t of sum(h_t)."""
    rng = np.random.default_rng(0)
    w, u = (gg.tensor(rng.standard_normal((C, C)), requires_grad=True) for _ in range(2))
    h, loss = gg.zeros(C, dtype="float64"), gg.zeros((), dtype="float64")
    for x in rng.standard_normal((steps, C)):
        h = gg.tanh(w @ h + u @ x)
        loss = loss + h.sum()
    return loss


def attention(steps: int) -> gg.Tensor:
    """Causal attention written pair by pair: one score node for every query and earlier key."""
    rng = np.random.default_rng(0)
    x = gg.tensor(rng.standard_normal((steps, C)), requires_grad=True)
    tokens = gg.unstack(x)
    loss = gg.zeros((), dtype="float64")
    for i, query in enumerate(tokens):
        scores = gg.stack([(query * key).sum() for key in tokens[: i + 1]])
        loss = loss + gg.logsumexp(scores)
    return loss


def sizes(build: Callable[[int], gg.Tensor]) -> list[tuple[int, int]]:
    counted = [graph(build(t)) for t in LENGTHS]
    return [(sum(nodes.values()), edges) for nodes, edges in counted]


def test_an_rnn_is_linear() -> None:
    (n8, e8), (n16, e16), (n32, e32) = sizes(rnn)
    assert n32 - n16 == 2 * (n16 - n8) > 0
    assert e32 - e16 == 2 * (e16 - e8) > 0
    assert n32 < 20 * 32
    per_step = graph(rnn(16))[0] - graph(rnn(15))[0]
    assert per_step["tanh"] == 1
    assert per_step["matmul"] == 2


@pytest.mark.parametrize("steps", LENGTHS)
def test_attention_has_one_score_per_pair(steps: int) -> None:
    nodes, _ = graph(attention(steps))
    assert nodes["multiply"] == nodes["sum"] == steps * (steps + 1) // 2
    assert nodes["logsumexp"] == steps


def test_attention_is_quadratic() -> None:
    for smaller, larger in itertools.pairwise(sizes(attention)):  # T doubles
        for n, m in zip(smaller, larger, strict=True):
            assert 3 < m / n < 4
