"""Products in pieces: the values of NumPy, the same bits for any number of threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import openblas
from gpugrad.ops import _products
from gpugrad.threads import num_threads

SHAPES = [
    ((700, 90), (90, 131)),  # rows
    ((67, 800), (800, 151)),  # columns
    ((1023, 65), (65, 1023)),
    ((1600, 53), (53, 129)),  # four pieces
    ((7, 130, 71), (7, 71, 127)),  # matrices
    ((2, 5, 100, 64), (2, 5, 64, 101)),
    ((3, 200, 64), (64, 200)),  # broadcast: not cut
    ((60, 64), (64, 90)),  # one thread, one piece
    ((3, 4), (4, 2)),
    ((0, 4), (4, 2)),
    ((3, 0), (0, 2)),
]


def _operands(shapes, dtype, turned):
    rng = np.random.default_rng(3)
    for shape in shapes:
        x = rng.standard_normal(shape).astype(dtype)
        yield np.ascontiguousarray(x.mT).mT if turned else x


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_values_and_bits(shapes, dtype, turned):
    x, y = _operands(shapes, dtype, turned)
    results = []
    for number in (1, 2, 3):
        with num_threads(number):
            results.append(_products.matmul(x, y))
    wide = np.matmul(x.astype(float), y.astype(float))
    assert results[0].dtype == x.dtype
    bound = 4 * np.finfo(x.dtype).eps * x.shape[-1] if x.dtype.kind == "f" else 0.5
    assert np.allclose(results[0], wide, rtol=0, atol=bound * max(1, abs(wide).max(initial=0)))
    assert all(out.tobytes() == results[0].tobytes() for out in results)


def test_operands_of_two_dtypes_give_the_wider():
    x, y = _operands(SHAPES[0], "float64", False)
    narrow = x.astype(np.float32)
    assert _products.matmul(narrow, y).tobytes() == np.matmul(narrow, y).tobytes()


@pytest.mark.parametrize("shapes", SHAPES[:5], ids=str)
def test_a_given_array_is_written(shapes):
    x, y = _operands(shapes, "float32", False)
    made = np.empty((*x.shape[:-1], 2 * y.shape[-1]), x.dtype)[..., ::2]  # with gaps
    assert _products.matmul(x, y, made) is made
    assert made.tobytes() == _products.matmul(x, y).tobytes()


@pytest.mark.parametrize("shapes", [s for s in SHAPES if len(s[0]) == len(s[1]) == 2], ids=str)
def test_a_bias_is_added_to_every_row(shapes):
    x, y = _operands(shapes, "float32", False)
    bias = np.random.default_rng(4).standard_normal(y.shape[1], np.float32)
    made = []
    for number in (1, 2, 3):
        with num_threads(number):
            made.append(_products.affine(x, y, bias).tobytes())
    assert made == [(_products.matmul(x, y) + bias).tobytes()] * 3


@pytest.mark.skipif(not openblas.available(), reason="NumPy has another BLAS here")
@pytest.mark.parametrize("shapes", SHAPES[:3] + SHAPES[4:6], ids=str)
def test_pieces_are_shared(shapes, monkeypatch):
    x, y = _operands(shapes, "float32", False)
    seen = []

    def watched(a, b, out=None):
        seen.append((threading.get_ident(), out.size))
        return matmul(a, b, out=out)

    matmul = np.matmul
    monkeypatch.setattr(np, "matmul", watched)
    with num_threads(2):
        out = _products.matmul(x, y)
    assert sum(size for _, size in seen) == out.size
    assert len(seen) > 1


def test_gradients_of_a_layer_do_not_depend_on_the_threads():
    rng = np.random.default_rng(5)
    values = [rng.standard_normal(s, np.float32) for s in ((4, 201, 96), (288, 96), (288,))]
    bits = set()
    for number in (1, 2, 3):
        x, weight, bias = (gg.tensor(v, requires_grad=True) for v in values)
        with num_threads(number):
            out = gg.nn.functional.linear(x, weight, bias)
            (out * out).sum().backward()
        bits.add(b"".join(t.numpy().tobytes() for t in (out, x.grad, weight.grad, bias.grad)))
    assert len(bits) == 1
