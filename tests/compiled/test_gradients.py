"""gg.compile: gradients that a step finds, leaves, changes and forgets."""

from __future__ import annotations

import numpy as np
import pytest
from plain_and_compiled import Cases, leaf, numbers, seen, state_of

import gpugrad as gg
from gpugrad import optim

case = Cases()


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
def gradients_that_are_swapped(wrap):
    a, b, c = (leaf(4, seed=s) for s in range(3))

    @wrap
    def step(x):
        a.grad, b.grad, c.grad = b.grad, c.grad[::-1], a.grad

    @wrap
    def hand_over(x):
        b.grad = a.grad
        a.grad = a.grad * 2

    found = []
    for s in range(4):
        (a * numbers(4, seed=s) + b * 2 + c * numbers(4) * 2).sum().backward()
        for one in (step, hand_over):
            one(numbers(4))
            found.append(seen(a.grad, b.grad, c.grad))
        b.grad = b.grad * 1  # no longer that of a
    return found


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
def one_step_adds_and_another_updates(wrap):
    w = leaf(4)
    optimizer = optim.SGD([w], lr=0.5, momentum=0.5)
    add = wrap(lambda x: (w * w * x).sum().backward())

    @wrap
    def update():
        norm = optimizer.step()
        optimizer.zero_grad()
        return norm

    for s in range(6):
        add(numbers(4, seed=s))
        if s % 2:
            update()
    assert getattr(add, "recordings", 2) == 2
    return seen(w), state_of(optimizer)


@case
def retained_gradients_and_graphs(wrap):
    w = leaf(4)

    @wrap
    def step(x):
        y = w * x
        y.retain_grad()
        loss = (y * y).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        return y.grad, w.grad

    found = []
    for s in range(3):
        found.append(seen(*step(numbers(4, seed=s))))
        w.grad = None
    return found


@case
def a_gradient_as_argument(wrap):
    w = leaf(4)

    @wrap
    def step(g, x):
        (w * x * 2).sum().backward()
        return g * 2

    w.grad = gg.ones(4)
    found = []
    for s in range(4):
        old = w.grad
        if s == 2:
            w.grad = gg.tensor(numbers(4, seed=8))
        found.append(seen(step(old, numbers(4, seed=s)), w.grad))
    return found


@case
def gradients_in_place(wrap):
    w = leaf(4)
    optimizer = optim.SGD([w], lr=0.5)

    @wrap
    def step(x):
        (w * x).sum().backward()
        with gg.no_grad():
            w.grad *= 0.5
            w.grad[0] = 1.0
            w.grad.data[1] = 2.0
        optimizer.step()

    found = []
    for s in range(4):
        step(numbers(4, seed=s))
        found.append(seen(w, w.grad))
        if s == 1:
            w.grad = gg.tensor(numbers(4, seed=8))
    return found


@case
def gradients_in_place_before_backward(wrap):
    w = leaf(4)

    @wrap
    def step(x):
        w.grad *= 0.5
        (w * x).sum().backward()

    found = []
    w.grad = gg.ones(4)
    for s in range(4):
        step(numbers(4, seed=s))
        found.append(seen(w, w.grad))
        if s == 1:
            w.grad = gg.tensor(numbers(4, seed=8))
    return found


@case
def only_the_norm_of_the_gradients(wrap):
    w = leaf(4)
    step = wrap(lambda: (w.grad * w.grad).sum())
    found = []
    for s in range(3):
        w.grad = gg.tensor(numbers(4, seed=s))
        kept = w.grad
        found.append(seen(step(), w.grad))
        assert w.grad is kept
    return found


@case
def whether_there_is_a_gradient(wrap):
    w, v = leaf(4), leaf(4, seed=1)

    @wrap
    def step(x):
        (w * x).sum().backward()
        return [p.grad is not None for p in (w, v)]

    found = []
    for s in range(4):
        v.grad = gg.ones(4) if s % 2 else None
        found.append(seen(step(numbers(4, seed=s)), w.grad))
    return found


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


@pytest.mark.parametrize("function", case.found, ids=lambda function: function.__name__)
def test_a_compiled_step_does_what_a_plain_one_does(function):
    case.agrees(function)
