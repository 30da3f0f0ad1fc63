"""Taking tensors apart: views forward, linear time and memory backward."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import testing


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_views(axis) -> None:
    x = gg.random.normal(size=(2, 3, 4))
    parts = gg.unstack(x, axis)
    assert [p.tolist() for p in parts] == np.moveaxis(x.numpy(), axis, 0).tolist()
    assert all(np.shares_memory(p.numpy(), x.numpy()) for p in parts)


@pytest.mark.parametrize("check", [testing.gradcheck, testing.gradgradcheck])
@pytest.mark.parametrize("used", [(0, 1, 2), (1,), (2, 0, 2)], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_gradients(axis, used, check) -> None:
    def f(x: gg.Tensor) -> gg.Tensor:
        parts = gg.unstack(x, axis)
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
    for part in gg.unstack(x):
        part.register_hook(lambda g: sizes.append(g.size))
        (part * 2).sum().backward(retain_graph=True)
    assert sizes == [4] * 50


def test_nothing_is_recorded_without_need() -> None:
    assert not gg.unstack(gg.ones(2, 3))[0].requires_grad
    with gg.no_grad():
        assert not gg.unstack(gg.ones(2, 3, requires_grad=True))[0].requires_grad


@pytest.mark.parametrize("check", [testing.gradcheck, testing.gradgradcheck])
@pytest.mark.parametrize("cuts", [[1, 1, 3], [2]], ids=str)
def test_gradients_of_uneven_parts(cuts, check) -> None:
    def f(x: gg.Tensor) -> gg.Tensor:
        parts = gg.split(x, cuts, axis=1)
        return gg.sin(parts[0]).sum() * parts[-1] ** 2

    assert check(f, gg.random.normal(size=(3, 5), dtype="float64", requires_grad=True))


def test_a_vector_comes_apart_into_numbers() -> None:
    x = gg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    a, _, c = gg.unstack(x)
    (a * c).backward()
    assert x.grad.tolist() == [3.0, 0.0, 1.0]


def test_a_part_cannot_change_in_place_while_recorded() -> None:
    x = gg.ones(4, requires_grad=True) * 2.0
    part = gg.split(x, 2)[0]
    with pytest.raises(RuntimeError, match="view of another"):
        part += 1.0


@pytest.mark.parametrize("cuts", [[3, 1], [-1], [9]], ids=str)
def test_cuts_outside_or_out_of_order_are_refused(cuts) -> None:
    with pytest.raises(ValueError, match="split: indices"):
        gg.split(gg.ones(4), cuts)
