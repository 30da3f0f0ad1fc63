"""A5: c = wx, d = c + b, e = y - d, l = e**2 with w = 2, x = 3, b = 1, y = 10."""

from __future__ import annotations

import gpugrad as gg


def test_one_neuron() -> None:
    w, x, b, y = 2.0, 3.0, 1.0, 10.0
    w, b = (gg.tensor(v, "float64", requires_grad=True) for v in (w, b))
    c = w * x
    d = c + b
    e = y - d
    loss = e**2
    loss.backward()
    assert [t.item() for t in (c, d, e, loss)] == [6.0, 7.0, 3.0, 9.0]
    assert (w.grad.item(), b.grad.item()) == (-18.0, -6.0)
