"""gg.jacobian and gg.hessian: whole matrices of derivatives."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F


def random(*shape: int, dtype: str = "float64") -> gg.Tensor:
    gg.manual_seed(sum(shape))
    return gg.random.normal(size=shape, dtype=dtype)


def test_jacobian_of_softmax() -> None:
    x = random(5)
    s = F.softmax(x).numpy()
    np.testing.assert_allclose(
        gg.jacobian(F.softmax, x).numpy(), np.diag(s) - np.outer(s, s), rtol=0, atol=1e-14
    )
    assert x.grad is None


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3)], ids=str)
def test_shapes_and_finite_differences(shape: tuple[int, ...]) -> None:
    w, x = random(7, 4), random(*shape)

    def f(x: gg.Tensor) -> gg.Tensor:
        return gg.tanh(w * x.sum()) + gg.sin(x).mean()

    found = gg.jacobian(f, x).numpy()
    assert found.shape == (7, 4, *shape)
    eps = 1e-6
    for index in np.ndindex(*shape):
        step = np.zeros(shape)
        step[index] = eps
        up, down = f(x + gg.tensor(step)), f(x - gg.tensor(step))
        difference = ((up - down) / (2 * eps)).numpy()
        np.testing.assert_allclose(found[(..., *index)], difference, rtol=0, atol=1e-8)


def test_hessian_is_symmetric_and_what_hvp_multiplies_by() -> None:
    w, x, v = random(4, 3), random(3), random(3)

    def f(x: gg.Tensor) -> gg.Tensor:
        return gg.logsumexp(gg.tanh(w @ x)) + (x**3).sum()

    h = gg.hessian(f, x)
    np.testing.assert_allclose(h.numpy(), h.numpy().T, rtol=0, atol=1e-14)
    np.testing.assert_allclose((h @ v).numpy(), gg.hvp(f, x, v).numpy(), rtol=0, atol=1e-13)


def test_a_jacobian_can_be_differentiated() -> None:
    x = random(3).requires_grad_()
    (gg.jacobian(lambda v: v**3, x) ** 2).sum().backward()  # the sum of 9 x^4
    np.testing.assert_allclose(x.grad.numpy(), 36 * x.detach().numpy() ** 3, rtol=1e-13)


def test_constants_empty_results_numbers_and_dtypes() -> None:
    assert gg.jacobian(lambda x: gg.ones(2), random(3)).tolist() == [[0.0] * 3] * 2
    assert gg.jacobian(lambda x: x[:0], random(3)).shape == (0, 3)
    assert gg.jacobian(lambda x: x * x, random(0)).shape == (0, 0)
    assert gg.hessian(lambda x: x**3, 2.0).item() == 12.0
    assert gg.jacobian(gg.exp, random(2, dtype="float32")).dtype == "float32"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gg.jacobian(gg.exp, gg.tensor([1, 2])), TypeError, r"int64\[2\]; use a floating"),
        (lambda: gg.jacobian(lambda x: (x, x), random(2)), TypeError, "must return one tensor"),
        (lambda: gg.jacobian(lambda x: 1.0, random(2)), TypeError, "must return tensors, got"),
        (lambda: gg.hessian(gg.exp, random(2)), ValueError, "must return a tensor of one element"),
    ],
)
def test_misuse(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
