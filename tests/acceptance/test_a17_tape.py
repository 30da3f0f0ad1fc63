"""A17: accumulators start at 0, only the root at 1; on the graph of A1.

Starting every accumulator at 1 is the classic bug: it gives 0, 1, 6 instead of -2, -4, 5.
"""

from __future__ import annotations

import pytest

import gpugrad as gg
from gpugrad.examples import three_backwards

A, B, C = 3.0, 1.0, -2.0


def tape(start: float) -> tuple[float, float, float]:
    """Return the accumulators of a, b, c of L = c e, e = a + d, d = 2 b, run backward by hand."""
    d = 2 * B
    e = A + d
    grad = dict.fromkeys("abcde", start)
    grad["c"] += e * 1.0
    grad["e"] += C * 1.0
    grad["a"] += grad["e"]
    grad["d"] += grad["e"]
    grad["b"] += 2 * grad["d"]
    return grad["a"], grad["b"], grad["c"]


def engine() -> tuple[float, float, float]:
    a, b, c = (gg.tensor(v, "float64", requires_grad=True) for v in (A, B, C))
    (c * (a + 2.0 * b)).backward()
    return a.grad.item(), b.grad.item(), c.grad.item()


def test_the_engine_starts_at_zero() -> None:
    assert engine() == tape(start=0.0) == (-2.0, -4.0, 5.0)


def test_the_classic_bug() -> None:
    assert tape(start=1.0) == (0.0, 1.0, 6.0)
    assert engine() != tape(start=1.0)


def test_a_tape_of_modules_agrees() -> None:
    assert three_backwards.product(start=0.0) == list(engine())
    assert three_backwards.product(start=1.0) == [0.0, 1.0, 6.0]


@pytest.mark.parametrize("times", [1, 2, 3])
def test_only_grad_itself_accumulates_between_calls(times: int) -> None:
    a = gg.tensor(A, "float64", requires_grad=True)
    for _ in range(times):
        (a * C).backward()
    assert a.grad.item() == times * C
