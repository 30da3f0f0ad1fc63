"""User-defined operations."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg


class Scaled(gg.Function):
    """x * factor and x + y, with a non-tensor argument and two results."""

    @staticmethod
    def forward(ctx, x, y, factor):
        ctx.factor = factor
        return x * factor, x + y

    @staticmethod
    def backward(ctx, g_product, g_sum):
        return g_product * ctx.factor + g_sum, g_sum, None


class Exp(gg.Function):
    @staticmethod
    def forward(ctx, x):
        out = gg.exp(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, g):
        (out,) = ctx.saved_tensors
        return g * out


def _x(n=3, seed=0):
    return gg.tensor(np.random.default_rng(seed).normal(size=n), requires_grad=True)


def test_a_saved_result_carries_its_own_history():
    x = _x()
    out = Exp.apply(x)
    (first,) = gg.grad(out.sum(), x, create_graph=True)
    (second,) = gg.grad(first.sum(), x, create_graph=True)
    (third,) = gg.grad(second.sum(), x)
    for g in (first, second, third):
        np.testing.assert_allclose(g.numpy(), np.exp(x.numpy()), rtol=1e-15)


def test_several_results_some_unused():
    x, y = _x(), _x(seed=1)
    product, total = Scaled.apply(x, y, 3.0)
    dx, dy = gg.grad(product.sum(), [x, y])
    assert dx.tolist() == [3, 3, 3]
    assert dy.tolist() == [0, 0, 0]
    product, total = Scaled.apply(x, y, 3.0)
    dx, dy = gg.grad((product + 2 * total).sum(), [x, y], create_graph=True)
    assert dx.tolist() == [5, 5, 5]
    assert dy.tolist() == [2, 2, 2]


class Widened(gg.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2.0

    @staticmethod
    def backward(ctx, g):
        return g.astype("float64") * 2.0


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_have_the_dtype_of_their_argument(create_graph):
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    assert gg.grad(Widened.apply(x).sum(), x, create_graph=create_graph)[0].dtype == np.float32
    for _ in range(2):
        Widened.apply(x).sum().backward()
        assert x.grad.dtype == np.float32


def test_a_keyword_that_requires_grad_is_refused():
    x = _x()
    with pytest.raises(TypeError, match="'x' requires grad but is passed by keyword"):
        Exp.apply(x=x)
    assert not Exp.apply(x=x.detach()).requires_grad


def test_nothing_is_recorded_without_need():
    assert not Exp.apply(_x().detach()).requires_grad
    with gg.no_grad():
        assert not Exp.apply(_x()).requires_grad


def test_needs_input_grad_and_missing_gradients():
    class Picky(gg.Function):
        @staticmethod
        def forward(ctx, x, y):
            assert ctx.needs_input_grad == (True, False)
            return x + y

        @staticmethod
        def backward(ctx, g):
            return None, g

    x = _x()
    (dx,) = gg.grad(Picky.apply(x, _x().detach()).sum(), x)
    assert dx.tolist() == [0, 0, 0]


def test_a_second_backward_and_in_place_changes_are_noticed():
    out = Exp.apply(_x())
    out.backward(gg.ones(3))
    with pytest.raises(RuntimeError, match=r"Exp .* freed"):
        out.backward(gg.ones(3))
    result = Exp.apply(_x())
    with gg.no_grad():
        result += 1.0
    with pytest.raises(RuntimeError, match="Exp saved"):
        result.sum().backward()


def _broken(**methods):
    def forward(ctx, x):
        return x * 1.0

    def backward(ctx, g):
        return g

    members = {"forward": forward, "backward": backward, **methods}
    return type("Broken", (gg.Function,), {k: staticmethod(f) for k, f in members.items()})


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"forward": lambda ctx, x: 3.0}, "must return tensors"),
        ({"forward": lambda ctx, x: x > 0}, "bool result has no gradient"),
        ({"backward": lambda ctx, g: (g, g)}, "2 gradients for 1 arguments"),
        ({"backward": lambda ctx, g: g.sum()}, r"shape \(3,\)"),
        ({"backward": lambda ctx, g: 1.0}, r"shape \(3,\)"),
        (
            {"backward": lambda ctx, g: g.numpy()},
            r"tensor of shape \(3,\), got ndarray float\d+\[3\]; compute it by operations",
        ),
        ({"backward": lambda ctx, g: ctx.save_for_backward(1)}, "takes tensors"),
    ],
)
def test_mistakes_are_named(methods, message):
    with pytest.raises((TypeError, ValueError), match=message):
        _broken(**methods).apply(_x()).sum().backward()


def test_saved_tensors_only_inside_backward():
    def forward(ctx, x):
        ctx.save_for_backward(x)
        assert ctx.saved_tensors
        return x

    with pytest.raises(RuntimeError, match="inside backward"):
        _broken(forward=forward).apply(_x())
