"""Products in several launches: the kernels before and after a product, in the emulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backend, cuda, emulator, testing
from gpugrad.cuda.column_sums import column_sums

FLOATS = (backend.float32, backend.bfloat16, backend.float16)
# one row, one column, a prime number of both, several tiles and stripes, whole packs and not
SHAPES = [(1, 1, 1), (1, 8, 3), (5, 7, 0), (67, 3, 4), (33, 136, 5), (3, 530, 2)]
floats = pytest.mark.parametrize("dtype", FLOATS, ids=str)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def drawn(seed: int, dtype: Any, *shape: int, gap: int = 0) -> np.ndarray:
    """Return normal numbers; with a gap the rows lie apart."""
    rng = np.random.default_rng(seed)
    *batch, rows, columns = shape
    x = rng.normal(0, 2, (*batch, rows, columns + gap)).astype(dtype)
    return x[..., :columns]


def gelu(h: np.ndarray) -> np.ndarray:
    return h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))) / 2


def slope(h: np.ndarray) -> np.ndarray:
    t = np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))
    return (1 + t) / 2 + h * (1 - t * t) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * h**2) / 2


def check(found: np.ndarray, exact: np.ndarray, steps: int = 1) -> None:
    """Hold a result to what rounding it ``steps`` times would cost."""
    scale = steps * float(np.abs(exact).max(initial=1))
    testing.assert_close(found, exact, exact.astype(found.dtype), scale=scale)


def kernels(function: Any) -> list[str]:
    before = cuda.launches.copy()
    function()
    return sorted(cuda.launches - before)


@floats
@shapes
@pytest.mark.parametrize("gap", [0, 3])
def test_a_bias_of_another_dtype(dtype, shape, gap):
    m, n, k = shape
    a, b = drawn(1, dtype, m, k), drawn(2, dtype, k, n)
    z = a.astype(np.float64) @ b.astype(np.float64)
    for kind, out_kind in ((backend.float32, dtype), (dtype, backend.float32)):
        bias = drawn(3, kind, 1, n)[0].copy()
        for beta in (0.0, 1.0):
            start = drawn(4, out_kind, m, n, gap=gap)

            def run(bias=bias, beta=beta, start=start) -> np.ndarray:
                out = start.copy() if not gap else np.pad(start, ((0, 0), (0, gap)))[:, :n]
                return cuda.gemm(a, b, out, epilogue="bias", bias=bias, beta=beta)

            found = emulator.sweep(run)
            check(found, z + bias.astype(np.float64) + beta * start.astype(np.float64), 2)


@shapes
@pytest.mark.parametrize("gap", [0, 3])
@floats
def test_gelu_and_its_derivative(dtype, shape, gap):
    m, n, k = shape
    a, b = drawn(1, dtype, m, k), drawn(2, dtype, k, n)
    z = a.astype(np.float64) @ b.astype(np.float64)
    bias = drawn(3, dtype, 1, n)[0].copy()
    given = drawn(4, dtype, m, n, gap=gap)

    def run() -> list[np.ndarray]:
        out, aux = (np.zeros((m, n + gap), dtype)[:, :n] for _ in range(2))
        cuda.gemm(a, b, out, epilogue="gelu", bias=bias, aux=aux)
        back, sums = np.zeros((m, n + gap), dtype)[:, :n], np.zeros(n, dtype)
        cuda.gemm(a, b, back, epilogue="dgelu_bgrad", bias=sums, aux=given)
        plain = cuda.gemm(a, b, epilogue="dgelu", aux=given)
        np.testing.assert_array_equal(plain, back)
        return [out, aux, back, sums]

    out, aux, back, sums = emulator.sweep(run)
    check(aux, z + bias.astype(np.float64))
    check(out, gelu(aux.astype(np.float64)), 2)
    exact = z * slope(given.astype(np.float64))
    check(back, exact, 4)
    scale = 4 * max(1.0, float(np.abs(exact).sum(0).max()))
    total = exact.sum(0)
    testing.assert_close(sums, total, total.astype(dtype), scale=scale)


@shapes
@floats
def test_sums_of_rows(dtype, shape):
    m, n, k = shape
    for a in (drawn(1, dtype, m, k), drawn(1, dtype, k, m).T, drawn(1, dtype, k, m, gap=2).T):
        b, start = drawn(2, dtype, k, n), drawn(3, dtype, m, n)
        exact = a.astype(np.float64) @ b.astype(np.float64) + start.astype(np.float64)

        def run(a=a, b=b, start=start) -> list[np.ndarray]:
            out, bias = start.copy(), np.full(m, 7, backend.float32)
            cuda.gemm(a, b, out, epilogue="bgrad", bias=bias, beta=1.0)
            return [out, bias]

        out, bias = emulator.sweep(run)
        check(out, exact, 2)
        total = a.astype(np.float64).sum(1)
        scale = max(1.0, float(np.abs(a.astype(np.float64)).sum(1).max(initial=0)))
        testing.assert_close(bias, total, total.astype(np.float32), scale=scale)


def test_which_launches_there_are():
    a, b = np.ones((8, 8), np.float32), np.ones((8, 8), np.float32)
    h, bias = np.ones((8, 8), np.float32), np.ones(8, np.float32)
    narrow = backend.bfloat16
    x, y, aux, shift = (t.astype(narrow) for t in (a, b, h, bias))
    odd = np.ones((8, 9), narrow)[:, :8]
    shifted = np.ones(65, narrow)[1:].reshape(8, 8)  # at an address that is no multiple of 16
    with emulator.enabled():
        for run, expected in (
            (lambda: cuda.gemm(a, b), []),
            (lambda: cuda.gemm(a, b, epilogue="bias", bias=bias), []),
            (lambda: cuda.gemm(x, y, epilogue="bias", bias=bias), ["gemm_bias"]),
            (lambda: cuda.gemm(x, y, epilogue="gelu", bias=shift, aux=aux), []),
            (lambda: cuda.gemm(x, y, epilogue="gelu", bias=shift, aux=odd), ["gemm_gelu"]),
            (lambda: cuda.gemm(x, y, epilogue="gelu", bias=shift, aux=shifted), ["gemm_gelu"]),
            (lambda: cuda.gemm(a, b, epilogue="gelu", aux=h), ["gemm_gelu"]),
            (lambda: cuda.gemm(x, y, epilogue="dgelu", aux=aux), []),
            (lambda: cuda.gemm(a, b, epilogue="dgelu", aux=h), ["gemm_dgelu"]),
            (lambda: cuda.gemm(x, y, epilogue="bgrad", bias=shift), []),
            (lambda: cuda.gemm(a, b, epilogue="bgrad", bias=bias), ["column_sums"]),
            (lambda: cuda.gemm(a[:, :0], b[:0]), ["gemm_bias"]),
        ):
            assert kernels(run) == expected
    # without the emulator NumPy computes everything
    assert kernels(lambda: cuda.gemm(a, b, epilogue="gelu", aux=h)) == []


def test_huge_and_infinite():
    a = np.array([[np.inf], [-np.inf], [3e38], [-3e38], [np.nan], [-50.0], [50.0]], np.float32)
    b = np.ones((1, 2), np.float32)
    with emulator.enabled():
        aux = np.zeros((7, 2), np.float32)
        out = cuda.gemm(a, b, epilogue="gelu", aux=aux)
        expected = np.array([np.inf, 0, 3e38, 0, np.nan, 0, 50], np.float32)
        np.testing.assert_array_equal(out, np.stack([expected] * 2, 1))
        slopes = cuda.gemm(np.ones((7, 1), np.float32), b, epilogue="dgelu", aux=aux)
        expected = np.array([1, 0, 1, 0, np.nan, 0, 1], np.float32)
        np.testing.assert_array_equal(slopes, np.stack([expected] * 2, 1))


@pytest.mark.parametrize("batch", [(2,), (2, 3)])
def test_a_batch_with_a_wide_bias(batch):
    a = drawn(1, backend.bfloat16, *batch, 5, 4)
    b = drawn(2, backend.bfloat16, *batch, 4, 9)
    bias = drawn(3, backend.float32, 1, 9)[0].copy()
    exact = a.astype(np.float64) @ b.astype(np.float64) + bias

    def run(gap: int) -> np.ndarray:
        out = np.zeros((*batch, 5, 9 + gap), backend.bfloat16)[..., :9]
        return cuda.gemm(a, b, out, epilogue="bias", bias=bias)

    for gap in (0, 2):
        check(emulator.sweep(lambda gap=gap: run(gap)), exact, 2)


def test_results_of_numpy_count_as_written():
    """A kernel may read what a product wrote to memory from ``empty``, and no more than that."""
    a = np.ones((4, 4), backend.float32)
    with emulator.enabled("checked"):
        memory = cuda.empty((4, 8), backend.float32, like=a)
        out = cuda.gemm(a, a, memory[:, :4])
        assert cuda.gemm(out, a, epilogue="gelu", aux=cuda.empty((4, 4), a.dtype, a)).shape == (
            4,
            4,
        )
        with pytest.raises(emulator.Uninitialised):
            cuda.gemm(a, a, epilogue="dgelu", aux=memory[:, 4:])
        x = np.ones((8, 8), backend.bfloat16)
        for epilogue in ("gelu", "dgelu_bgrad", "bgrad"):  # in one launch
            sums, aux = cuda.empty((8,), x.dtype, like=x), cuda.empty((8, 8), x.dtype, like=x)
            written = [cuda.empty((8, 8), x.dtype, like=x)]
            given = {} if epilogue == "gelu" else {"bias": sums}
            written += [aux] if epilogue == "gelu" else [sums[None]]
            if epilogue != "bgrad":
                given["aux"] = aux if epilogue == "gelu" else x
            cuda.gemm(x, x, written[0], epilogue=epilogue, **given)
            for result in written:
                column_sums(result, backend.float32)


@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3)], ids=str)
def test_matmul_and_its_gradients_are_products(shape, products):
    x, y = (
        gg.Tensor(drawn(i, "float32", *s), requires_grad=True) for i, s in ((0, shape), (1, (3, 4)))
    )
    with emulator.enabled():
        out = x @ y
        assert len(products) == 1
        out.sum().backward()
    assert len(products) == 3
    check(out.data, np.matmul(x.data, y.data))
