"""A11: the gradient and directions.

The derivative along u is grad . u; it is least along -grad/|grad|; grad is normal to level sets.
"""

from __future__ import annotations

import math

import numpy as np

import gpugrad as gg

N = 6
RNG = np.random.default_rng(11)
MATRIX = RNG.standard_normal((4, N))


def f(x: gg.Tensor) -> gg.Tensor:
    return gg.logsumexp(gg.tanh(gg.tensor(MATRIX) @ x)) + 0.1 * (x * x * x).sum()


def directions(count: int) -> list[np.ndarray]:
    vectors = RNG.standard_normal((count, N))
    return list(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def gradient(x: np.ndarray) -> np.ndarray:
    t = gg.tensor(x, requires_grad=True)
    f(t).backward()
    return t.grad.numpy()


def test_directional_derivative() -> None:
    x = RNG.standard_normal(N)
    g, eps = gradient(x), 1e-6
    for u in directions(100):
        _, along = gg.jvp(f, [gg.tensor(x)], [gg.tensor(u)])
        np.testing.assert_allclose(along.item(), g @ u, rtol=0, atol=1e-12)
        ends = [f(gg.tensor(x + step * u)).item() for step in (eps, -eps)]
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * eps), g @ u, rtol=0, atol=1e-8)


def test_minus_the_gradient_is_the_steepest_descent() -> None:
    x = RNG.standard_normal(N)
    g = gradient(x)
    steepest = -g / np.linalg.norm(g)
    _, least = gg.jvp(f, [gg.tensor(x)], [gg.tensor(steepest)])
    np.testing.assert_allclose(least.item(), -np.linalg.norm(g), rtol=0, atol=1e-12)
    for u in directions(100):
        _, along = gg.jvp(f, [gg.tensor(x)], [gg.tensor(u)])
        assert along.item() > least.item()


def test_the_gradient_is_normal_to_the_level_set() -> None:
    """On the ellipse x(t) = L^-T (cos t, sin t), x'Ax = 1 where A = L L'."""
    lower = np.array([[1.5, 0.0], [0.7, 0.8]])
    a, inverse = gg.tensor(lower @ lower.T), gg.tensor(np.linalg.inv(lower).T)

    def curve(t: gg.Tensor) -> gg.Tensor:
        return inverse @ gg.stack([gg.cos(t), gg.sin(t)])

    for angle in np.linspace(0, 2 * math.pi, 17):
        t = gg.tensor(angle, "float64")
        x, tangent = gg.jvp(curve, [t], [gg.ones((), dtype="float64")])
        value, normal = gg.value_and_grad(lambda x: x @ a @ x)(x)
        np.testing.assert_allclose(value.item(), 1.0, rtol=0, atol=1e-12)
        assert np.linalg.norm(tangent.numpy()) > 0.1
        np.testing.assert_allclose((normal @ tangent).item(), 0.0, rtol=0, atol=1e-12)
