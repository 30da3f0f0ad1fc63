"""gg.compile: what changes from call to call, in a step that is run and in one that is replayed."""

from __future__ import annotations

import numpy as np
import pytest
from plain_and_compiled import bits

import gpugrad as gg
from gpugrad import nn, optim
from gpugrad.cuda.recording import NotRecordable
from gpugrad.nn import functional as F

pytestmark = pytest.mark.usefixtures("launched")


def affine(rng):
    w = gg.tensor(rng.standard_normal((5, 4)).astype("f"), requires_grad=True)

    def step(x):
        loss = (F.linear(x, w) ** 2).sum()
        loss.backward()
        return loss

    return w, step


ONE = np.ones(2, np.float32)


def test_gradients_stay_in_grad(rng):
    w, step = affine(rng)
    compiled = gg.compile(step)
    for _ in range(3):
        x = rng.standard_normal((6, 4)).astype("f")
        w.grad = None
        step(x)
        expected = bits(w.grad)
        w.grad = None
        compiled(x)
        assert bits(w.grad) == expected
    assert compiled.recordings == 1


def test_gradients_add_up_over_calls(rng):
    w, step = affine(rng)
    compiled = gg.compile(step)
    xs = [rng.standard_normal((6, 4)).astype("f") for _ in range(4)]
    for x in xs:
        step(x)
    expected = bits(w.grad)
    for _ in range(2):
        w.grad = None
        for x in xs:
            compiled(x)
        assert bits(w.grad) == expected
    assert compiled.recordings == 2  # with and without a gradient to add to


def test_zero_grad_inside_forgets_what_was_there(rng):
    w, _step = affine(rng)
    module = nn.Module()
    module.w = nn.Parameter(w.data)

    @gg.compile
    def fresh(x):
        module.zero_grad()
        (F.linear(x, module.w) ** 2).sum().backward()

    x = rng.standard_normal((6, 4)).astype("f")
    fresh(x)
    first = bits(module.w.grad)
    fresh(x)
    assert bits(module.w.grad) == first
    assert fresh.recordings == 1


def test_a_parameter_that_is_frozen_later(rng):
    w, v = (gg.tensor(rng.standard_normal(4).astype("f"), requires_grad=True) for _ in range(2))

    @gg.compile
    def step(x):
        w.grad = v.grad = None
        (w * v * x).sum().backward()

    x = np.ones(4, np.float32)
    step(x)
    assert v.grad is not None
    v.requires_grad = False
    step(x)
    assert v.grad is None
    assert step.recordings == 2


def both(make, calls):
    """Return what the calls return for a plain and for a compiled step of ``make()``."""
    found = []
    for wrap in (lambda f: f, gg.compile):
        gg.manual_seed(1)
        found.append(calls(*make(wrap)))
    return found


def one_weight(loss, clear_last=True, **given):
    """Return a maker of a step on a weight w (2,), by SGD."""

    def make(wrap):
        w = gg.tensor([1.0, 1.0], requires_grad=True)
        optimizer = optim.SGD([w], lr=0.1, **given)

        def step(x):
            loss(w, x).backward()
            optimizer.step()
            if clear_last:
                optimizer.zero_grad()

        return w, wrap(step), optimizer

    return make


def test_a_gradient_that_was_there_before_is_used():
    def calls(w, step, optimizer):
        step(ONE)
        (w * 5).sum().backward()
        step(ONE)
        w.grad = gg.tensor([2.0, 3.0])
        step(ONE)
        return w.tolist()

    plain, replayed = both(one_weight(lambda w, x: (w * x).sum()), calls)
    np.testing.assert_allclose(plain, replayed, rtol=1e-6)


def test_what_is_computed_from_constants_follows_them():
    scale, table = gg.tensor(2.0), np.array([1.0, 2.0], np.float32)

    def loss(w, x):
        return (w.detach() ** 2 * w * x * (1 / scale) * gg.exp(table)).sum()

    def calls(w, step, optimizer):
        for number in range(3):
            with gg.no_grad():
                scale[...] = number + 1.0
            table[...] = number
            step(ONE)
        return w.tolist()

    plain, replayed = both(one_weight(loss), calls)
    np.testing.assert_allclose(plain, replayed, rtol=1e-6)


def test_joined_and_split_parameters():
    def make(wrap):
        a, b = (gg.tensor([1.0, 2.0], requires_grad=True) for _ in "ab")
        optimizer = optim.SGD([a, b], lr=0.1)

        def step(x):
            first, second = gg.split(gg.concat([a, b]) * gg.concat([b, x]), 2)
            (first * second).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        return a, b, wrap(step)

    def calls(a, b, step):
        for _ in range(3):
            step(ONE)
        return a.tolist() + b.tolist()

    plain, replayed = both(make, calls)
    np.testing.assert_allclose(plain, replayed, rtol=1e-6)


def test_gradients_that_share_memory(rng):
    a, b = (gg.tensor(np.ones((2, 2), np.float32), requires_grad=True) for _ in "ab")
    step = gg.compile(lambda x: ((a + b.T) * x).sum().backward())
    x = np.array([[1, 2], [3, 4]], np.float32)
    step(x)
    step(x)
    np.testing.assert_array_equal(a.grad.numpy(), 2 * x)
    np.testing.assert_array_equal(b.grad.numpy(), 2 * x.T)


def test_data_that_is_assigned():
    def make(wrap):
        w = gg.tensor([1.0, 1.0], requires_grad=True)
        mean = gg.zeros(2)

        def step(x):
            (w * x).sum().backward()
            w.data = w.data - 0.1 * w.grad.data
            mean.data *= 0.9
            mean.data[0] = 5.0
            w.grad = None

        return w, mean, wrap(step)

    def calls(w, mean, step):
        mean.data[...] = 1.0
        for _ in range(3):
            step(ONE)
        return w.tolist() + mean.tolist()

    plain, replayed = both(make, calls)
    np.testing.assert_allclose(plain, replayed, rtol=1e-6)


def test_a_graph_from_before_a_step_is_stale():
    w, step, _ = one_weight(lambda w, x: (w * x).sum())(gg.compile)
    step(ONE)
    y = (w * w).sum()
    step(ONE)
    with pytest.raises(RuntimeError, match="a compiled step changed that array"):
        y.backward()


@gg.no_grad()
def test_replaced_parts_of_a_model(rng):
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Dropout(0.5))
    run = gg.compile(lambda x: model(x))
    model.eval()

    def agrees():
        np.testing.assert_allclose(run(ONE).numpy(), model(ONE).detach().numpy(), rtol=1e-5)

    agrees()
    model[0].weight = nn.Parameter(gg.zeros(2, 2))
    agrees()
    model[1] = nn.ReLU()
    agrees()
    model.train()
    model[2].p = 0.0
    agrees()


@gg.no_grad()
def test_a_model_that_looks_at_its_own_mode():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        @gg.compile
        def loss(self, x):
            return self.inner(x) * (2 if self.training else 1)

    model, other = Model(), Model()
    one = model.loss(ONE).numpy()
    model.eval()
    np.testing.assert_allclose(model.loss(ONE).numpy() * 2, one, rtol=1e-6)
    np.testing.assert_allclose(other.loss(ONE).numpy(), 2 * other.inner(ONE).detach().numpy())


def test_groups_hooks_and_parameters_as_arguments():
    w, v = (gg.tensor([1.0, 1.0], requires_grad=True) for _ in "wv")
    optimizer = optim.SGD([w], lr=0.1)

    @gg.compile
    def step(p, x):
        (p * v * x).sum().backward()
        optimizer.step()
        p.grad = v.grad = None

    step(w, ONE)
    np.testing.assert_allclose(w.tolist(), [0.9, 0.9])
    optimizer.add_param_group({"params": [v]})
    step(w, ONE)
    np.testing.assert_allclose(w.tolist(), [0.8, 0.8])
    np.testing.assert_allclose(v.tolist(), [0.91, 0.91])
    w.register_hook(lambda g: g * 0)
    step(w, ONE)
    np.testing.assert_allclose(w.tolist(), [0.8, 0.8])
    assert step.recordings == 3


@pytest.mark.parametrize("clear", ["inside", "outside", "at the start"])
def test_a_gradient_of_a_parameter_that_the_step_does_not_use(clear):
    def make(wrap):
        w, p = (gg.tensor([1.0, 1.0], requires_grad=True) for _ in "wp")
        optimizer = optim.SGD([w, p], lr=0.1)

        def step(x):
            if clear == "at the start":
                optimizer.zero_grad()
            (w * x).sum().backward()
            norm = optimizer.step(max_norm=1.0)
            if clear == "inside":
                optimizer.zero_grad()
            return norm

        return w, p, wrap(step), optimizer

    def calls(w, p, step, optimizer):
        norms = []
        for number in range(4):
            if number % 2:
                (p * 3).sum().backward()
            norms.append(step(ONE).item())
            if clear == "outside":
                optimizer.zero_grad()
        return norms + w.tolist() + p.tolist() + [p.grad is None]

    plain, replayed = both(make, calls)
    np.testing.assert_allclose(plain, replayed, rtol=1e-5)


def test_replaced_groups_and_attributes_that_a_step_sets():
    w = gg.tensor(np.ones(2, np.float32), requires_grad=True)
    optimizer = optim.SGD([w], lr=1.0)

    @gg.compile
    def step(x):
        (w * x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step(ONE)
    optimizer.param_groups[0] = {**optimizer.param_groups[0], "lr": 0.5}
    step(ONE)
    np.testing.assert_array_equal(w.tolist(), [-0.5, -0.5])

    class Counting(nn.Module):
        k = 0

        def forward(self, x):
            self.k += 1
            return x * self.k

    with pytest.raises(NotRecordable, match="an attribute of Counting"):
        gg.compile(Counting())(ONE)
