"""gg.compile: each step does, in every call, what it does when it is run as it is.

A case is a function of ``wrap``, which is ``gg.compile`` or nothing, and returns all that there is
to see. Numbers are small multiples of powers of two, so that no order of rounding matters: what is
compared are bits.
"""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import emulator, nn, optim
from gpugrad.nn import functional as F

CASES = []


def case(function):
    CASES.append(function)
    return function


def numbers(*shape, seed=0):
    """Return multiples of 1/4 from -2 to 2."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32) / 4


def leaf(*shape, seed=0):
    return gg.tensor(numbers(*shape, seed=seed), requires_grad=True)


def seen(*values):
    """Return what can be compared of tensors and other values."""
    found = []
    for value in values:
        if isinstance(value, (gg.Tensor, np.ndarray)):
            array = gg.asarray(value).detach().numpy()
            found.append((array.shape, array.dtype.name, array.tobytes()))
        elif isinstance(value, (list, tuple)):
            found.append(seen(*value))
        else:
            found.append(value)
    return found


def state_of(optimizer):
    return [
        (name, np.asarray(value).tobytes())
        for one in optimizer.state_dict()["state"].values()
        for name, value in one.items()
    ]


@pytest.fixture(autouse=True)
def emulated():
    with emulator.enabled("plain"):
        yield


@case
def accumulates_in_the_step(wrap):
    w = leaf(4)
    optimizer = optim.SGD([w], lr=0.5, momentum=0.5)

    @wrap
    def step(x):
        for i in range(3):
            (w * x[i]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    for seed in range(3):
        step(numbers(3, 4, seed=seed))
    return seen(w), state_of(optimizer)


@case
def accumulates_over_calls(wrap):
    w = leaf(4)
    step = wrap(lambda x: (w * w * x).sum().backward())
    found = []
    for seed in range(4):
        step(numbers(4, seed=seed))
        found.append(seen(w.grad))
        if seed == 2:
            w.grad = None
    return found


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
def parameters_in_one_memory(wrap):
    flat = numbers(8)
    a, b = gg.Tensor(flat[:4], requires_grad=True), gg.Tensor(flat[4:], requires_grad=True)
    both = gg.from_numpy(flat)
    optimizer = optim.SGD([a, b], lr=0.5, momentum=0.5)

    @wrap
    def step(x):
        before = both * 1.0
        (a * x + b).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return before, both * 2.0

    return [seen(step(numbers(4, seed=s)), a, b) for s in range(3)]


@case
def bfloat16_views_of_one_memory(wrap):
    flat = gg.tensor(numbers(8), dtype="bfloat16")
    a, b = (gg.Tensor(flat.data[i : i + 4], requires_grad=True) for i in (0, 4))
    optimizer = optim.SGD([a, b], lr=0.5)

    @wrap
    def step(x):
        (a * x + b).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    for s in range(3):
        step(gg.tensor(numbers(4, seed=s), dtype="bfloat16"))
    return seen(flat.astype("float32"), a.astype("float32"))


@case
def hooks(wrap):
    w = leaf(4)
    w.register_hook(lambda g: g * 2)

    @wrap
    def step(x):
        y = w * x
        y.register_hook(lambda g: g + 1)
        handle = w.register_hook(lambda g: g - 1)
        (y * y).sum().backward()
        handle.remove()

    found = []
    for s in range(3):
        step(numbers(4, seed=s))
        found.append(seen(w.grad))
        w.grad = None
    return found


@case
def hooks_that_stay(wrap):
    w = leaf(4)

    @wrap
    def step(x):
        w.grad = None
        w.register_hook(lambda g: g * 2)
        (w * x).sum().backward()

    found = []
    for s in range(3):
        step(numbers(4, seed=s))
        found.append(seen(w.grad))
    return found


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
def counter_by_assignment(wrap):
    n = gg.tensor([0, 5], dtype="int64")
    even = gg.tensor([True, False])

    @wrap
    def step(x):
        n[...] = n + 1
        even[...] = ~even
        return x * n, gg.where(even, x, -x), n // 2, n.astype("float32") * x, n > 3

    return [seen(step(numbers(2, seed=s)), n, even) for s in range(3)]


@case
def masks_from_outside_change(wrap):
    mask = gg.tensor([True, False, True])
    ids = np.array([1, 2, 3])
    step = wrap(lambda x: gg.where(mask & (gg.from_numpy(ids) > 1), x, 0.0))
    found = []
    for s in range(3):
        found.append(seen(step(numbers(3, seed=s))))
        mask.data[s] = not mask.data[s]
        ids += 1
    return found


@case
def integers_made_inside(wrap):
    @wrap
    def step(x):
        i = gg.arange(4)
        later = i + 1
        later += 1
        lower = gg.tril(gg.ones((4, 4), dtype="bool"))
        seen_by = gg.where(i[:, None] >= i, x, 0.0)
        part = i[1:]
        i += 10
        return later, lower, seen_by, part + 1, i

    return [seen(*step(numbers(4, 4, seed=s))) for s in range(3)]


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
def gradients_by_grad(wrap):
    w, v = leaf(4), leaf(4, seed=1)

    @wrap
    def step(x):
        loss = (w * w * v * x).sum()
        first, second = gg.grad(loss, [w, v], create_graph=True)
        (third,) = gg.grad((first * second).sum(), [w])
        return loss, first, third

    return [seen(*step(numbers(4, seed=s)), w.grad) for s in range(3)]


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

    return [seen(step(numbers(4, seed=s)), w.grad, inner(numbers(4))) for s in range(3)]


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
def clipping_in_the_step(wrap):
    w, v = leaf(2), leaf(2, seed=1)
    optimizer = optim.SGD([w, v], lr=0.5)
    norms = []

    @wrap
    def step(x):
        optimizer.zero_grad()
        (w * x[0]).sum().backward()
        (v * x[1]).sum().backward()
        norm = optim.clip_grad_norm_([w, v], 1.0)
        optimizer.step()
        return norm

    for number in range(3):
        x = np.array([[3, 0], [0, 4]], np.float32) * (4.0**number) / 16
        norms.append(float(step(x)))
    return norms, seen(w, v, w.grad, v.grad)


# Gradients that a step comes with


@case
def the_gradient_from_before(wrap):
    w = leaf(4)
    w.grad = gg.ones(4)

    @wrap
    def step(x):
        old = w.grad
        w.grad = None
        (w * x).sum().backward()
        return old * 2, old

    found = [seen(*step(numbers(4, seed=s)), w.grad) for s in range(3)]
    w.grad = gg.tensor(numbers(4, seed=9))
    return found, seen(*step(numbers(4)), w.grad)


@case
def one_array_as_two_gradients(wrap):
    a, b = leaf(4), leaf(4, seed=1)
    t = gg.tensor(numbers(4, seed=2))
    a.grad = b.grad = t

    @wrap
    def step(x):
        (a * x + b * 2).sum().backward()

    found = []
    for s in range(3):
        step(numbers(4, seed=s))
        found.append(seen(a.grad, b.grad, t))
    a.grad, b.grad = b.grad, a.grad
    step(numbers(4))
    return found, seen(a.grad, b.grad, t)


@case
def gradients_that_overlap(wrap):
    flat = gg.tensor(numbers(6))
    a, b = leaf(4), leaf(4, seed=1)
    a.grad, b.grad = gg.Tensor(flat.data[:4]), gg.Tensor(flat.data[2:])
    step = wrap(lambda x: (a * x + b * 2).sum().backward())
    found = []
    for s in range(3):
        step(numbers(4, seed=s))
        found.append(seen(a.grad, b.grad, flat))
    return found


@case
def gradients_set_to_zero_outside(wrap):
    w = leaf(4)
    optimizer = optim.SGD([w], lr=0.5)

    @wrap
    def step(x):
        (w * x).sum().backward()
        optimizer.step()

    for s in range(4):
        step(numbers(4, seed=s))
        optimizer.zero_grad(set_to_none=False)
    assert getattr(step, "recordings", 2) == 2
    return seen(w, w.grad)


@case
def gradients_set_to_zero_inside(wrap):
    w = leaf(4)
    optimizer = optim.SGD([w], lr=0.5)

    @wrap
    def step(x):
        optimizer.zero_grad(set_to_none=False)
        (w * x).sum().backward()
        optimizer.step()

    for s in range(4):
        step(numbers(4, seed=s))
    assert getattr(step, "recordings", 2) == 2
    return seen(w, w.grad)


@case
def gradients_from_outside_and_an_update_inside(wrap):
    w = leaf(4)
    optimizer = optim.SGD([w], lr=0.5, momentum=0.5)

    @wrap
    def update():
        optimizer.step()

    for s in range(3):
        w.grad = None
        (w * numbers(4, seed=s)).sum().backward()
        update()
    assert getattr(update, "recordings", 1) == 1
    return seen(w, w.grad), state_of(optimizer)


@case
def a_frozen_parameter_with_a_gradient(wrap):
    w, frozen = leaf(4), gg.tensor(numbers(4, seed=1))
    optimizer = optim.SGD([w, frozen], lr=0.5)

    @wrap
    def step(x):
        (w * x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    found = []
    for s in range(4):
        step(numbers(4, seed=s))
        if s % 2:
            frozen.grad = gg.ones(4)
        found.append(seen(w, frozen))
    return found


@case
def gradients_that_the_step_assigns(wrap):
    a, b, c, d = (leaf(4, seed=s) for s in range(4))
    t = gg.tensor(numbers(4, seed=5))

    @wrap
    def step(x):
        (a * x).sum().backward()
        b.grad = a.grad
        c.grad = t
        d.grad = gg.zeros(4)
        d.grad += x

    found = []
    for s in range(3):
        step(gg.tensor(numbers(4, seed=s)))
        found.append(seen(a.grad, b.grad, c.grad, d.grad, t))
        t += 1
        found.append(seen(c.grad))
    return found


@case
def the_argument_as_gradient(wrap):
    w, v = leaf(4), leaf(4, seed=1)

    @wrap
    def step(x, y):
        (v * w * y).sum().backward()
        w.grad = x

    found = []
    for s in range(3):
        g = gg.tensor(numbers(4, seed=s)) if s < 2 else w.grad
        step(g, gg.tensor(numbers(4, seed=s + 3)))
        found.append(seen(w.grad, v.grad))
    return found


@case
def a_leaf_made_inside(wrap):
    w = leaf(4)
    table = numbers(4, seed=3)

    @wrap
    def step(x):
        v = gg.ones(4, requires_grad=True)
        u = gg.Tensor(table, requires_grad=True)
        t = w.detach().requires_grad_()
        (v * x * u * t).sum().backward()
        return v.grad, u.grad, t.grad

    found = [seen(*step(numbers(4, seed=s)), w.grad) for s in range(3)]
    assert getattr(step, "recordings", 1) == 1
    return found


@case
def requires_grad_toggled_inside(wrap):
    w, v = leaf(4), leaf(4, seed=1)

    @wrap
    def step(x):
        w.requires_grad = False
        (w * v * x).sum().backward()
        w.requires_grad = True
        v.requires_grad = not v.requires_grad
        if v.requires_grad:
            (w * x).sum().backward()
        v.requires_grad = True

    found = []
    for s in range(3):
        step(numbers(4, seed=s))
        found.append(seen(w.grad, v.grad, w.requires_grad, v.requires_grad))
        w.grad = v.grad = None
    assert getattr(step, "recordings", 1) == 1
    return found


@case
def frozen_by_the_step(wrap):
    w, v = leaf(4), leaf(4, seed=1)

    @wrap
    def step(x):
        (w * v * x).sum().backward()
        w.requires_grad = False

    found = []
    for s in range(3):
        step(numbers(4, seed=s))
        found.append(seen(w.grad, v.grad, w.requires_grad))
    return found


# Memory


@case
def two_arrays_on_one_bytearray(wrap):
    memory = bytearray(numbers(8).tobytes())
    a = gg.from_numpy(np.frombuffer(memory, np.float32, 6))
    b = gg.from_numpy(np.frombuffer(memory, np.float32, 6, 8))
    c = gg.from_dlpack(b.data)

    @wrap
    def step(x):
        before = a * x
        after = c * x
        b.__iadd__(1.0)
        return before, after, a * x, c * x

    return [seen(*step(numbers(6, seed=s)), a, b) for s in range(3)]


@case
def an_array_interface(wrap):
    class Reversed:
        def __init__(self, array):
            self.keep = array
            at = array.__array_interface__["data"][0] + array.nbytes - 4
            self.__array_interface__ = {
                "version": 3,
                "shape": array.shape,
                "strides": (-4,),
                "typestr": "<f4",
                "data": (at, False),
            }

    memory = numbers(5)
    a, b = gg.from_numpy(memory), gg.from_numpy(np.asarray(Reversed(memory)))

    @wrap
    def step(x):
        before = b * x
        a.__iadd__(x)
        return before, b * x, b[::2] * 1.0, a[::-1]

    return [seen(*step(numbers(5, seed=s)), a, b) for s in range(3)]


@case
def reversed_slices(wrap):
    w = leaf(3, 4)

    @wrap
    def step(x):
        y = (w[::-1] * x)[:, ::-2]
        y.sum().backward()
        return y, gg.flip(x, axis=1), gg.concat([x[::-1], x], axis=0), x.T[::-1, ::-1]

    return [seen(*step(numbers(3, 4, seed=s)), w.grad) for s in range(3)]


@case
def copies_of_tensors_from_outside(wrap):
    t = gg.tensor(numbers(4))
    n = gg.tensor([1, 2, 3, 4])

    @wrap
    def step(x):
        mine = gg.tensor(t)
        mine += x
        whole = t.astype("int64")
        return mine, whole, gg.tensor(n) + 1

    found = []
    for s in range(3):
        found.append(seen(*step(numbers(4, seed=s)), t))
        t += 1
        n += 1
    return found


@case
def parameters_that_are_not_contiguous(wrap):
    memory = numbers(4, 6)
    w = gg.Tensor(memory[:, ::2].T, requires_grad=True)
    v = gg.Tensor(np.asfortranarray(numbers(3, 4, seed=1)), requires_grad=True)
    step = wrap(lambda x: (w * v * x).sum().backward())
    found = []
    for s in range(3):
        step(numbers(3, 4, seed=s))
        found.append(seen(w.grad, v.grad))
        memory += 1
    return found


@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_a_step_in_every_call(function):
    assert function(gg.compile) == function(lambda f: f)
