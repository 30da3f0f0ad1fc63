"""value_and_grad, vjp, jvp, hvp and checkpoint against hand-written derivatives."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import emulator
from gpugrad.nn import functional as F
from gpugrad.ops import random


def _random(*shape, seed=0):
    return gg.tensor(np.random.default_rng(seed).normal(size=shape))


def _cubes(x):
    return (x**3).sum()


def test_value_and_grad_leaves_its_argument_alone():
    x = _random(4)
    value, slope = gg.value_and_grad(_cubes)(x)
    np.testing.assert_allclose(value.numpy(), (x.numpy() ** 3).sum(), rtol=1e-14)
    np.testing.assert_allclose(slope.numpy(), 3 * x.numpy() ** 2, rtol=1e-14)
    assert not x.requires_grad
    assert not value.requires_grad
    assert not slope.requires_grad


def test_value_and_grad_keeps_the_structure_of_its_argument():
    tree = {"w": _random(2, 3), "rest": [_random(3, seed=1), (_random(seed=2),)]}

    def f(t):
        return (t["w"] * t["rest"][0]).sum() * t["rest"][1][0]

    _, slopes = gg.value_and_grad(f)(tree)
    w, b, s = tree["w"].numpy(), tree["rest"][0].numpy(), tree["rest"][1][0].numpy()
    np.testing.assert_allclose(slopes["w"].numpy(), np.broadcast_to(b * s, (2, 3)), rtol=1e-14)
    np.testing.assert_allclose(slopes["rest"][0].numpy(), w.sum(0) * s, rtol=1e-14)
    np.testing.assert_allclose(slopes["rest"][1][0].numpy(), (w * b).sum(), rtol=1e-14)


def test_value_and_grad_of_several_arguments_with_aux():
    def f(x, y, scale):
        return (x * y).sum() * scale, "extra"

    x, y = _random(3), _random(3, seed=1)
    (value, extra), (dx, dy) = gg.value_and_grad(f, argnums=(0, 1), has_aux=True)(x, y, 2.0)
    assert extra == "extra"
    np.testing.assert_allclose(value.numpy(), 2 * (x.numpy() * y.numpy()).sum(), rtol=1e-14)
    np.testing.assert_allclose(dx.numpy(), 2 * y.numpy())
    np.testing.assert_allclose(dy.numpy(), 2 * x.numpy())


def test_value_and_grad_nests_to_the_third_order():
    def slope_sum(f):
        return lambda x: gg.value_and_grad(f)(x)[1].sum()

    x = _random(5)
    third = gg.value_and_grad(slope_sum(slope_sum(lambda x: (x**4).sum())))(x)[1]
    np.testing.assert_allclose(third.numpy(), 24 * x.numpy(), rtol=1e-12)


def _slopes(f, at):
    return gg.value_and_grad(f)(at)[1].sum()


def _pulled(f, at):
    return gg.vjp(f, at)[1](gg.tensor(1.0, dtype="float64"))[0].sum()


def _pushed(f, at):
    return gg.jvp(f, (at,), (gg.ones_like(at),))[1]


def _curvature(f, at):
    return gg.hvp(f, at, gg.ones_like(at)).sum()


@pytest.mark.parametrize(
    "inner",
    [_slopes, _pulled, _pushed, _curvature, lambda f, at: gg.jacobian(f, at).sum()],
    ids=["value_and_grad", "vjp", "jvp", "hvp", "jacobian"],
)
def test_the_variable_of_an_outer_transform_is_seen_from_an_inner_one(inner):
    x, at = _random(3), _random(3)
    found = gg.value_and_grad(lambda x: inner(lambda y: (x * y**2).sum(), at))(x)[1]
    expected = 2 * (at.numpy() if inner is not _curvature else np.ones(3))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert not found.requires_grad  # nothing is left to differentiate it by


def test_results_can_be_differentiated_by_what_leads_to_values_from_outside():
    leaf, at = _random(3), _random(3)
    leaf.requires_grad = True
    weight = leaf * 1.0
    value, slope = gg.value_and_grad(lambda y: (weight * y**2).sum())(at)
    (slope.sum() + value).backward()
    np.testing.assert_allclose(leaf.grad.numpy(), 2 * at.numpy() + at.numpy() ** 2, rtol=1e-12)
    with gg.no_grad():
        assert not _slopes(lambda y: (weight * y**2).sum(), at).requires_grad
    assert not _slopes(lambda y: (leaf * y**2).sum(), at).requires_grad


def test_transforms_work_under_no_grad():
    x = _random(3)
    with gg.no_grad():
        _, slope = gg.value_and_grad(_cubes)(x)
        assert not gg.is_grad_enabled()
    np.testing.assert_allclose(slope.numpy(), 3 * x.numpy() ** 2, rtol=1e-14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gg.value_and_grad(lambda x: x)(_random(2)), "one element"),
        (lambda: gg.value_and_grad(_cubes)(gg.tensor([1, 2])), "int64"),
        (lambda: gg.value_and_grad(_cubes, argnums=1)(_random(2)), "positional argument 1"),
        (lambda: gg.jvp(_cubes, (_random(2),), (_random(3),)), r"\(3,\).*\(2,\)"),
        (lambda: gg.jvp(_cubes, (_random(2),), ()), "1 primals but 0 tangents"),
        (lambda: gg.jvp(_cubes, _random(2), _random(2)), "tuples or lists"),
        (lambda: gg.vjp(lambda x: (x, x), _random(2))[1](_random(2)), "2 results but 1"),
        (lambda: gg.vjp(lambda x: 1.0, _random(2)), "vjp: the function must return tensors"),
        (
            lambda: gg.jvp(lambda x: 1.0, (_random(2),), (_random(2),)),
            "jvp: the function must return tensors",
        ),
    ],
)
def test_misuse_is_explained(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_vjp_and_jvp_are_transposes():
    w = _random(3, 4)

    def f(x):
        return gg.tanh(gg.matmul(x, w)), gg.exp(x).sum()

    x, u = _random(2, 3, seed=1), _random(2, 3, seed=2)
    v = (_random(2, 4, seed=3), _random(seed=4))
    outs, pullback = gg.vjp(f, x)
    again, moved = gg.jvp(f, (x,), (u,))
    for a, b in zip(outs, again, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    (pulled,) = pullback(v)
    left = sum(float((a * b).sum()) for a, b in zip(v, moved, strict=True))
    assert left == pytest.approx(float((pulled * u).sum()), rel=1e-12)
    np.testing.assert_array_equal(pullback(v)[0].numpy(), pulled.numpy())


def test_jvp_agrees_with_finite_differences():
    x, u = _random(3), _random(3, seed=1)

    def f(x):
        return gg.sin(x) * x.sum()

    _, moved = gg.jvp(f, (x,), (u,))
    h = 1e-6
    expected = (f(x + h * u).numpy() - f(x - h * u).numpy()) / (2 * h)
    np.testing.assert_allclose(moved.numpy(), expected, rtol=1e-8)


def test_jvp_of_a_linear_function_and_of_a_constant():
    x, u = _random(3), _random(3, seed=1)
    np.testing.assert_allclose(gg.jvp(lambda x: 2.0 * x, (x,), (u,))[1].numpy(), 2 * u.numpy())
    assert gg.jvp(lambda x: gg.ones(2), (x,), (u,))[1].tolist() == [0, 0]


def test_hvp_is_the_hessian_times_a_vector():
    a = np.random.default_rng(0).normal(size=(4, 4))
    hessian = a + a.T
    x, v = _random(4, seed=1), _random(4, seed=2)

    def f(x):
        return (x * gg.matmul(gg.tensor(a), x)).sum()

    np.testing.assert_allclose(gg.hvp(f, x, v).numpy(), hessian @ v.numpy(), rtol=1e-12)
    both = gg.hvp(lambda x, y: (x * x * y).sum(), (x, v), (v, x))
    xs, vs = x.numpy(), v.numpy()
    np.testing.assert_allclose(both[0].numpy(), 2 * vs * vs + 2 * xs * xs, rtol=1e-12)
    np.testing.assert_allclose(both[1].numpy(), 2 * xs * vs, rtol=1e-12)


class TestCheckpoint:
    def _block(self, w):
        return lambda x: gg.tanh(gg.matmul(x, w)) * w.sum()

    def test_gradients_equal_those_without(self):
        w = _random(3, 3).requires_grad_()
        x = _random(2, 3, seed=1).requires_grad_()
        results = []
        for run in (lambda f, a: f(a), gg.checkpoint):
            out = run(self._block(w), gg.exp(x))
            results.append((out.numpy(), *(g.numpy() for g in gg.grad(out.sum(), [x, w]))))
        for a, b in zip(*results, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_second_derivatives_equal_those_without(self):
        w = _random(3, 3).requires_grad_()
        x = _random(2, 3, seed=1).requires_grad_()
        results = []
        for run in (lambda f, a: f(a), gg.checkpoint):
            out = run(self._block(w), gg.exp(x))
            dx, dw = gg.grad((out * out).sum(), [x, w], create_graph=True)
            results.append([g.numpy() for g in gg.grad((dx.sum() * dw).sum(), [x, w])])
        for a, b in zip(*results, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)

    def test_backward_fills_parameters_taken_from_outside(self):
        w = _random(3, 3).requires_grad_()
        gg.checkpoint(self._block(w), _random(2, 3)).sum().backward()
        assert w.grad is not None
        assert w.grad.shape == (3, 3)

    @pytest.mark.parametrize("name", ["argument 1", "outside 0"])
    def test_what_is_changed_before_it_is_read_again_is_refused(self, name):
        x, other, w = _random(3).requires_grad_(), _random(3), _random(3).requires_grad_()
        out = gg.checkpoint(lambda x, y: x * y * w, x, other)
        with gg.no_grad():
            changed = other if name == "argument 1" else w
            changed *= 0
        with pytest.raises(RuntimeError, match=f"checkpoint saved '{name}' .* changed that array"):
            out.sum().backward()

    def test_inner_results_are_not_kept(self):
        import weakref

        kept = []

        def f(x):
            inner = gg.exp(x)
            kept.append(weakref.ref(inner.data))
            return gg.exp(inner)

        x = _random(3).requires_grad_()
        out = gg.checkpoint(f, x)
        assert kept[0]() is None
        out.sum().backward()
        assert len(kept) == 2

    def test_random_numbers_are_replayed(self):
        x = gg.ones(1000, requires_grad=True)
        gg.manual_seed(3)
        out = gg.checkpoint(lambda x: x * gg.random.bernoulli(0.5, 1000), x)
        state = random.get_state()
        out.sum().backward()
        np.testing.assert_array_equal(x.grad.numpy(), out.numpy())
        assert random.get_state() == state

    def test_random_numbers_are_replayed_in_a_recorded_step(self):
        """Each run draws others, and the backward pass those of the forward pass."""

        def step(x):
            weight = gg.ones(1000, requires_grad=True)
            out = gg.checkpoint(lambda w: F.dropout(F.dropout(w * x, 0.3), 0.5), weight)
            return out, gg.grad(out.sum(), weight)[0], F.dropout(x)

        x = gg.ones(1000)
        runs = []
        with emulator.enabled():
            for run in (step, gg.compile(step)):
                gg.manual_seed(3)
                runs.append([[t.numpy() for t in run(x)] for _ in range(3)])
                assert random.get_state()["offset"] == 9 * 250
        for expected, found in zip(*runs, strict=True):
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(found[1], found[0])
        assert len({out.tobytes() for out, _, _ in runs[1]}) == 3

    def test_several_results(self):
        x = _random(3).requires_grad_()
        a, b = gg.checkpoint(lambda x: (x * 2.0, x * x), x)
        (b.sum() + a.sum()).backward()
        np.testing.assert_allclose(x.grad.numpy(), 2 + 2 * x.numpy())
        with pytest.raises(TypeError, match="must return tensors"):
            gg.checkpoint(lambda x: 3.0, x)
