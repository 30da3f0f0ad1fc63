"""gg.compile: training steps, call by call."""

from __future__ import annotations

import numpy as np
import pytest
from plain_and_compiled import Cases, leaf, numbers, seen, state_of

import gpugrad as gg
from gpugrad import nn, optim

case = Cases()


@case
def two_optimisers(wrap):
    a, b = leaf(3), leaf(3, seed=1)
    first, second = optim.SGD([a], lr=0.5), optim.SGD([b], lr=0.25, momentum=0.5)

    @wrap
    def step(x):
        loss = (a * b * x).sum()
        loss.backward()
        first.step()
        second.step()
        first.zero_grad()
        second.zero_grad()
        return loss

    return [seen(step(numbers(3, seed=s)), a, b) for s in range(3)], state_of(second)


@case
def one_parameter_twice(wrap):
    layer = nn.Linear(4, 4, bias=False)
    layer.weight.data[...] = numbers(4, 4)

    @wrap
    def step(x):
        loss = (layer(layer(x)) + layer.weight).sum()
        loss.backward()
        return loss

    return [seen(step(numbers(4, seed=s)), layer.weight.grad) for s in range(3)]


@case
def dropout(wrap):
    gg.manual_seed(4)
    layer = nn.Dropout(0.5)
    w = leaf(64)

    @wrap
    def step(x):
        y = layer(w * x)
        y.sum().backward()
        return y

    found = [seen(step(numbers(64, seed=s)), w.grad) for s in range(3)]
    return found, gg.random.get_state()


@case
def running_mean(wrap):
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", gg.zeros(4))
            self.register_buffer("count", gg.zeros((), dtype="int64"))

        def forward(self, x):
            with gg.no_grad():
                self.mean *= 0.5
                self.mean += 0.5 * x[0]
                self.count += 1
            return x - self.mean

    norm = Norm()
    step = wrap(lambda x: norm(x))
    return [seen(step(numbers(2, 4, seed=s)), norm.mean, norm.count) for s in range(3)]


@case
def returns_intermediates_and_gradients(wrap):
    w = leaf(4)

    @wrap
    def step(x):
        y = w * x
        z = y * y
        z.sum().backward()
        return y, {"z": z, "x": x}, w.grad, w.grad * 2, w

    found = []
    for s in range(3):
        y, more, g, twice, again = step(numbers(4, seed=s))
        found.append(seen(y, more["z"], more["x"], g, twice, again, w.grad))
    return found


@case
def no_backward(wrap):
    layer = nn.Linear(4, 3)
    layer.weight.data[...], layer.bias.data[...] = numbers(3, 4), numbers(3)

    @wrap
    def step(x):
        with gg.no_grad():
            return layer(x), layer.weight.T[::-1], x[..., ::-1]

    found = []
    for s in range(3):
        found.append(seen(*step(numbers(2, 4, seed=s))))
        layer.weight.data[0] += 1
    return found


@case
def functions_in_functions(wrap):
    w = leaf(4)
    inner = wrap(lambda x: w * x)

    @wrap
    def step(x):
        def loss(v):
            return (inner(v) + gg.checkpoint(lambda u: u * w * 2, v)).sum()

        value = loss(x)
        value.backward()
        return value

    def alone():
        with gg.no_grad():
            return inner(numbers(4))

    return [seen(step(numbers(4, seed=s)), w.grad, alone()) for s in range(3)]


@case
def an_error_and_a_fresh_call(wrap):
    w = leaf(4)
    optimizer = optim.SGD([w], lr=0.5, momentum=0.5)
    fails = [True]
    w.grad = gg.ones(4)

    @wrap
    def step(x):
        (w * x).sum().backward()
        w.requires_grad_(False).requires_grad_(True)
        if fails:
            fails.pop()
            raise KeyError("on the way")
        optimizer.step()
        optimizer.zero_grad()

    with pytest.raises(KeyError):
        step(numbers(4))
    w.grad = None
    for s in range(3):
        step(numbers(4, seed=s))
    return seen(w), w.requires_grad, state_of(optimizer)


@case
def an_exponential_mean_of_parameters(wrap):
    w, mean = leaf(4), gg.zeros(4)
    optimizer = optim.SGD([w], lr=0.5)

    @wrap
    def step(x):
        (w * x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        with gg.no_grad():
            mean.copy_(0.5 * mean + 0.5 * w)
            w[1:3] = 0.25
            w[0] = x[3]

    return [seen(step(numbers(4, seed=s)), w, mean) for s in range(3)]


@case
def arguments_of_all_kinds(wrap):
    w = leaf(4)

    @wrap
    def step(pair, factor, *, p, ids):
        x, y = pair
        (p * x * factor + y["a"]).sum().backward()
        return gg.where(ids > 1, x, y["a"]), ids + 1

    found = []
    for s in range(4):
        x, y = numbers(4, seed=s), gg.tensor(numbers(4, seed=s + 9))
        found.append(seen(*step((x, {"a": y}), s % 2 + 0.5, p=w, ids=np.arange(4)), w.grad))
    return found


@case
def no_gradients_for_some(wrap):
    w, v = leaf(4), leaf(4, seed=1)
    optimizer = optim.AdamW([w, v], lr=0.5)

    @wrap
    def step(x):
        with gg.no_grad():
            fixed = v * x
        (w * fixed).sum().backward()
        optimizer.step(max_norm=1.0)
        optimizer.zero_grad()

    return [seen(step(numbers(4, seed=s)), w, v, v.grad) for s in range(3)], state_of(optimizer)


@case
def an_update_of_assigned_data(wrap):
    w = leaf(4)
    narrow = gg.tensor(numbers(4), dtype="bfloat16", requires_grad=True)
    optimizer = optim.SGD([w, narrow], lr=0.5, momentum=0.5)

    @wrap
    def step(x):
        (w * narrow.astype("float32") * x).sum().backward()
        w.data = gg.clip(w.detach(), -1, 1).data
        narrow.data = (narrow.detach() * 0.5).data
        optimizer.step()
        optimizer.zero_grad()

    found = []
    for s in range(3):
        step(numbers(4, seed=s))
        found.append(seen(w, narrow.astype("float32")))
    return found, state_of(optimizer)


@case
def what_looks_at_data_that_is_replaced(wrap):
    w, v = leaf(4), leaf(4, seed=1)

    @wrap
    def step(x):
        with gg.no_grad():
            before = w.detach(), w.data, w.detach()[1:], v.detach()[::2]
            v.grad = w.detach()[::-1]
            w.data, v.data = v.data, w.data * 2 + x.data
        return before

    return [seen(*step(numbers(4, seed=s)), w, v, v.grad) for s in range(3)]


@pytest.mark.parametrize("function", case.found, ids=lambda function: function.__name__)
def test_a_compiled_step_does_what_a_plain_one_does(function):
    case.agrees(function)
