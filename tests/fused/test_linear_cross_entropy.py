"""linear_cross_entropy without kernels: the composition it stands for, chunks, errors."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import testing
from gpugrad.fused import cross_entropy, linear_cross_entropy
from gpugrad.ops import linear

reductions = pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
IDS = np.array([[2, -100, 0], [4, 2, 2]])


def drawn(dtype="float64", *leading):
    rng = np.random.default_rng(0)
    shapes = (*(leading or (2, 3)), 4), (5, 4)
    return [gg.Tensor(rng.normal(size=s).astype(dtype), requires_grad=True) for s in shapes]


def gradients(loss, inputs):
    seed = gg.Tensor(np.cos(np.arange(loss.size)).reshape(loss.shape).astype(loss.dtype))
    return [loss.data, *(g.data for g in gg.grad(loss, inputs, seed))]


@reductions
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_it_is_its_parts_bit_for_bit(dtype, reduction):
    x, weight = (gg.Tensor(t.data, dtype, requires_grad=True) for t in drawn())
    statics = {"label_smoothing": 0.1, "reduction": reduction}
    parts = cross_entropy(linear(x, weight), IDS, **statics)
    whole = linear_cross_entropy(x, weight, IDS, **statics)
    for a, b in zip(gradients(whole, [x, weight]), gradients(parts, [x, weight]), strict=True):
        assert a.tobytes() == b.tobytes()


@reductions
@pytest.mark.parametrize("ignored", [-100, 2])
@pytest.mark.parametrize("chunk", [1, 2, 4, 5])
def test_chunks_change_nothing_but_the_order_of_sums(chunk, ignored, reduction):
    inputs, ids = drawn(), np.where(IDS < 0, ignored, IDS)
    statics = {"ignore_index": ignored, "reduction": reduction, "label_smoothing": 0.2}
    expected = gradients(linear_cross_entropy(*inputs, ids, **statics), inputs)
    found = gradients(linear_cross_entropy(*inputs, ids, chunk=chunk, **statics), inputs)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)


@reductions
@pytest.mark.parametrize("chunk", [None, 2])
def test_derivatives(chunk, reduction):
    def function(x, weight):
        return linear_cross_entropy(x, weight, IDS, reduction=reduction, chunk=chunk)

    testing.gradcheck(function, drawn())
    testing.gradgradcheck(function, drawn())


@pytest.mark.parametrize("chunk", [None, 2])
def test_all_ignored(chunk):
    inputs = drawn()
    ids = np.full((2, 3), -100)
    mean = linear_cross_entropy(*inputs, ids, chunk=chunk)
    total = linear_cross_entropy(*inputs, ids, reduction="sum", chunk=chunk)
    assert np.isnan(mean.data)
    assert total.data == 0
    assert not any(g.data.any() for g in gg.grad(total, inputs))


def test_no_rows():
    x = gg.zeros((0, 4), requires_grad=True)
    loss = linear_cross_entropy(x, drawn()[1], np.zeros(0, np.int64), reduction="sum", chunk=3)
    assert loss.data == 0


@pytest.mark.parametrize(
    ("arguments", "statics", "error", "message"),
    [
        (
            ((3, 4), (5, 3), [0, 1, 2]),
            {},
            ValueError,
            r"x float32\[3, 4\] and weight float32\[5, 3",
        ),
        (((3, 4), (4,), [0, 1, 2]), {}, ValueError, r"must be \(\.\.\., C\) and \(V, C\)"),
        (((), (5, 3), [0]), {}, ValueError, "do not fit"),
        (((3, 4), (0, 4), [0, 1, 2]), {}, ValueError, "do not fit"),
        (((3, 4), (5, 4), [0, 1]), {}, ValueError, r"target ids have shape \(2,\)"),
        (((3, 4), (5, 4), [0, 5, 1]), {}, IndexError, r"target\[1\] is 5"),
        (((3, 4), (5, 4), [0.0, 1.0, 2.0]), {}, TypeError, "must be integer ids"),
        (((3, 4), (5, 4), [0, 1, 2]), {"reduction": "max"}, ValueError, "reduction must be"),
        (((3, 4), (5, 4), [0, 1, 2]), {"label_smoothing": 2}, ValueError, "label_smoothing"),
        (((3, 4), (5, 4), [0, 1, 2]), {"chunk": 0}, ValueError, "chunk must be .* >= 1, got 0"),
        (((3, 4), (5, 4), [0, 1, 2]), {"chunk": 1.5}, ValueError, "chunk must be .* got 1.5"),
    ],
)
def test_errors_name_what_does_not_fit(arguments, statics, error, message):
    x, weight, ids = arguments
    with pytest.raises(error, match=message):
        linear_cross_entropy(gg.zeros(x), gg.zeros(weight), ids, **statics)
