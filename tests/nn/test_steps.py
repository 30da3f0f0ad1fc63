from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import testing
from gpugrad.nn.steps import steps


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_views(axis) -> None:
    x = gg.random.normal(size=(2, 3, 4))
    parts = steps(x, axis)
    assert [p.tolist() for p in parts] == [p.tolist() for p in gg.unstack(x, axis)]
    assert all(np.shares_memory(p.numpy(), x.numpy()) for p in parts)


@pytest.mark.parametrize("check", [testing.gradcheck, testing.gradgradcheck])
@pytest.mark.parametrize("used", [(0, 1, 2), (1,), (2, 0, 2)], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_gradients(axis, used, check) -> None:
    def f(x: gg.Tensor) -> gg.Tensor:
        parts = steps(x, axis)
        out = parts[used[0]]
        for i in used[1:]:
            out = gg.sin(out) * parts[i] + parts[i]
        return out

    x = gg.random.normal(size=(3, 3), dtype="float64", requires_grad=True)
    assert check(f, x)


def test_backward_is_linear_in_the_length() -> None:
    """Every slice's gradient is as large as the slice, not as the whole."""
    x = gg.ones(50, 4, requires_grad=True)
    sizes = []
    for part in steps(x):
        part.register_hook(lambda g: sizes.append(g.size))
        (part * 2).sum().backward(retain_graph=True)
    assert sizes == [4] * 50


def test_nothing_is_recorded_without_need() -> None:
    assert not steps(gg.ones(2, 3))[0].requires_grad
    with gg.no_grad():
        assert not steps(gg.ones(2, 3, requires_grad=True))[0].requires_grad
