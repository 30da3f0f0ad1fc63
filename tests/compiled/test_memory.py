"""gg.compile: arrays that share memory, integers, and what a step makes and changes in place."""

from __future__ import annotations

import numpy as np
import pytest
from plain_and_compiled import Cases, leaf, numbers, seen

import gpugrad as gg
from gpugrad import nn, optim

case = Cases()


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


@case
def swapped_data(wrap):
    a, b = leaf(4), leaf(4, seed=1)

    @wrap
    def step(x):
        before = a * x
        a.data, b.data = b.data, a.data
        (a * b * b * x).sum().backward()
        b.data = b.data + 1
        return before, a * x, b * x

    found = []
    for s in range(3):
        found.append(seen(*step(numbers(4, seed=s)), a, b, a.grad, b.grad))
    return found


@case
def values_that_change_within_the_step(wrap):
    w, t = leaf(4), gg.tensor(numbers(4, seed=7))

    @wrap
    def step(x):
        y = w * x
        y += 1
        y[1] = 3.0
        z = gg.zeros(4)
        z[:2] = y[2:]
        z *= t
        z.sum().backward()
        with gg.no_grad():
            old = t * 1
            t[::2] += 1
            t.data[1] = 5.0
        return y, z, old, t

    found = []
    for s in range(3):
        found.append(seen(*step(numbers(4, seed=s)), w.grad, t))
        w.grad = None
    return found


@case
def buffers_of_float_and_int_in_a_batch_norm(wrap):
    class Count(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", gg.zeros(3, dtype="int32"))
            self.register_buffer("any", gg.zeros(3, dtype="bool"))

        def forward(self, ids):
            with gg.no_grad():
                self.seen += ids
                self.any[...] = self.any | (ids > 2)
                self.seen[0] = 7
            return gg.where(self.any, self.seen, ids.astype("int32"))

    count = Count()
    step = wrap(lambda ids: count(ids))
    return [seen(step(np.arange(3) * s), count.seen, count.any) for s in range(4)]


@case
def the_same_array_as_two_arguments(wrap):
    w = leaf(4)
    step = wrap(lambda x, y: (x * w - y).sum().backward())
    for s in range(3):
        x = numbers(4, seed=s)
        step(x, x)
    return seen(w.grad)


@pytest.mark.parametrize("function", case.found, ids=lambda function: function.__name__)
def test_a_compiled_step_does_what_a_plain_one_does(function):
    case.agrees(function)
