"""A1: L = c(a + 2b) as d = 2b, e = a + d, L = c e, with a = 3, b = 1, c = -2."""

from __future__ import annotations

import gpugrad as gg


def test_values_and_gradients_of_leaves_and_intermediates() -> None:
    a, b, c = (gg.tensor(v, "float64", requires_grad=True) for v in (3.0, 1.0, -2.0))
    d = 2.0 * b
    e = a + d
    loss = c * e
    for t in (d, e, loss):
        t.retain_grad()
    loss.backward()
    assert [t.item() for t in (d, e, loss)] == [2.0, 5.0, -10.0]
    assert [t.grad.item() for t in (loss, c, e, a, d, b)] == [1.0, 5.0, -2.0, -2.0, -2.0, -4.0]


def test_the_same_by_grad() -> None:
    a, b, c = (gg.tensor(v, "float64", requires_grad=True) for v in (3.0, 1.0, -2.0))
    d = 2.0 * b
    e = a + d
    grads = gg.grad(c * e, [c, e, a, d, b])
    assert [g.item() for g in grads] == [5.0, -2.0, -2.0, -2.0, -4.0]
    assert a.grad is None
