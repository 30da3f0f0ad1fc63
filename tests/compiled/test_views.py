"""gg.compile: views, joins and sums, and what is read before it changes."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda
from gpugrad.cuda import recording

pytestmark = pytest.mark.usefixtures("launched")


def random_view(rng, x):
    """Return a function that makes a view or copy of an array, of random kind."""
    kind = rng.integers(6)
    if kind == 0 and x.ndim:
        axes = tuple(map(int, rng.permutation(x.ndim)))
        return lambda a: a.transpose(axes)
    if kind == 1 and x.ndim:
        axis = int(rng.integers(x.ndim))
        start = int(rng.integers(x.shape[axis]))
        stop = int(rng.integers(start, x.shape[axis])) + 1
        step = int(rng.integers(1, 3))
        if rng.integers(2):
            start, stop, step = None, None, -step
        index = (slice(None),) * axis + (slice(start, stop, step),)
        return lambda a: a[index]
    if kind == 2 and x.ndim > 1:
        index = int(rng.integers(x.shape[0]))
        return lambda a: a[index]
    if kind == 3:
        return lambda a: a.reshape(-1)
    if kind == 4:
        factors = [n for n in range(1, x.size + 1) if x.size % n == 0]
        first = int(rng.choice(factors))
        rest = x.size // first
        second = int(rng.choice([n for n in range(1, rest + 1) if rest % n == 0]))
        return lambda a: a.reshape(first, second, rest // second)
    return lambda a: a[None]


def test_views_are_those_of_numpy(rng):
    for _ in range(60):
        x = rng.standard_normal(tuple(rng.integers(1, 5, 3))).astype("f")
        steps, y = [], x
        for _ in range(rng.integers(1, 6)):
            view = random_view(rng, y)
            steps.append(view)
            y = view(y)

        def run(a, steps=tuple(steps)):
            data = a._data
            for view in steps:
                data = view(data)
            return data * 1.0 if data.flags.c_contiguous else data

        trace = recording.Trace(cuda.EMULATED)
        got = gg.compile(run)(x)
        np.testing.assert_array_equal(got.numpy(), y)
        assert got.shape == y.shape
        assert not trace.launches


def test_constants_made_inside():
    @gg.compile
    def lower(x):
        seen = np.arange(4) <= np.arange(4)[:, None]
        return gg.where(seen, x, -1.0) + np.ones(4, np.float32)

    x = np.full((4, 4), 7, np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(lower(x).numpy(), np.where(np.tri(4) > 0, x, -1) + 1)


def test_sums_and_joins(rng):
    x = rng.standard_normal((3, 4, 5)).astype("f")

    @gg.compile
    def run(x):
        joined = gg.concat([x, x * 2], axis=1)
        return [gg.sum(joined, axis=axis) for axis in (0, 1, 2, (0, 2))] + [
            gg.mean(joined, axis=1, keepdims=True),
            gg.stack([x, -x], axis=2),
            joined.sum(),
        ]

    both = np.concatenate([x, x * 2], axis=1)
    expected = [both.sum(axis=axis) for axis in (0, 1, 2, (0, 2))]
    expected += [both.mean(axis=1, keepdims=True), np.stack([x, -x], axis=2), both.sum()]
    for got, wanted in zip(run(x), expected, strict=True):
        np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-5, atol=1e-5)


@gg.no_grad()
def test_an_expression_is_computed_before_what_it_reads_changes(rng):
    w = gg.tensor(rng.standard_normal(64).astype("f"), requires_grad=True)

    @gg.compile
    def step(x):
        before = w * x  # nobody has read it when w changes
        with gg.no_grad():
            w.__isub__(0.5 * x)
        return before, w * 1.0

    for _ in range(2):
        x, old = rng.standard_normal(64).astype("f"), w.numpy().copy()
        before, after = step(x)
        np.testing.assert_array_equal(before.numpy(), old * x)
        np.testing.assert_array_equal(after.numpy(), old - np.float32(0.5) * x)
        np.testing.assert_array_equal(w.numpy(), old - np.float32(0.5) * x)


def test_a_plain_tensor_that_a_step_changes():
    total = gg.zeros(3)

    @gg.compile
    def add(x):
        with gg.no_grad():
            total.__iadd__(x)
            total[:1] = x[:1] * 100

    for _ in range(3):
        add(np.ones(3, np.float32))
    assert total.tolist() == [100, 3, 3]


def test_a_view_from_outside_is_read_before_its_memory_changes(rng):
    w = gg.tensor(rng.standard_normal(8).astype("f"), requires_grad=True)
    part = gg.Tensor(w.data[2:6])

    @gg.compile
    def step(x):
        before = part * x  # nobody has read it when w changes
        with gg.no_grad():
            w.__isub__(1.0)
        return before, part * x

    for _ in range(2):
        old = w.numpy().copy()
        before, after = step(np.full(4, 3, np.float32))
        np.testing.assert_array_equal(before.numpy(), old[2:6] * 3)
        np.testing.assert_array_equal(after.numpy(), (old - np.float32(1))[2:6] * 3)


def test_tensors_made_inside_and_changed_there(rng):
    @gg.compile
    def total(x):
        out, count = gg.zeros(4), gg.tensor(0.0)
        for i in range(2):
            out += x[i]
            count += 1.0
        out[2] = -1.0
        return out, count

    x = rng.standard_normal((2, 4)).astype("f")
    for _ in range(3):
        out, count = total(x)
        expected = x.sum(axis=0)
        expected[2] = -1
        np.testing.assert_allclose(out.numpy(), expected, rtol=1e-6)
        assert count.item() == 2


def test_a_view_of_what_is_made_inside_may_change():
    @gg.compile
    def total(x):
        out = gg.zeros((2, 2)).reshape(4)
        out += x
        return out

    for number in range(3):
        assert total(np.full(4, number, np.float32)).tolist() == [number] * 4


def test_tensors_made_inside_and_read_before_they_change():
    @gg.compile
    def step(x):
        z = gg.zeros(4)
        first = z + x
        z += 1.0
        table = gg.zeros((2, 4))
        row = table[0]
        row += x
        d = z.detach()
        d += x
        return first, z, table

    x = np.arange(4, dtype=np.float32)
    for _ in range(3):
        first, z, table = step(x)
        np.testing.assert_array_equal(first.numpy(), x)
        np.testing.assert_array_equal(z.numpy(), 1 + x)
        np.testing.assert_array_equal(table.numpy(), [x, 0 * x])
