"""gemm on NumPy arrays: every layout and epilogue against float64, and what does not fit."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backend, cuda, emulator, testing
from gpugrad.cuda._gemm_problem import Matrix, describe
from gpugrad.cuda.emulation import disabled

FLOATS = (backend.float32, backend.bfloat16, backend.float16)
floats = pytest.mark.parametrize("dtype", FLOATS, ids=str)
gemm = importlib.import_module("gpugrad.cuda.gemm")


def laid(seed: int, dtype: Any, shape: tuple[int, ...], layout: str) -> np.ndarray:
    """Return normal numbers by rows or columns, with gaps, or in a layout that has to be copied."""
    rng = np.random.default_rng(seed)
    *batch, rows, columns = shape
    if layout == "columns":
        return rng.normal(size=(*batch, columns, rows)).astype(dtype).swapaxes(-1, -2)
    if layout == "gaps":
        return rng.normal(size=(*batch, rows, columns + 3)).astype(dtype)[..., :columns]
    if layout == "every second":
        return rng.normal(size=(*batch, rows, 2 * columns)).astype(dtype)[..., ::2]
    if layout == "backwards":
        return rng.normal(size=shape).astype(dtype)[..., ::-1, :]
    return rng.normal(size=shape).astype(dtype)


LAYOUTS = ("rows", "columns", "gaps", "every second", "backwards")
SIZES = [(1, 1, 1), (5, 3, 7), (1, 9, 4), (6, 1, 2), (3, 4, 0), (0, 3, 2), (2, 0, 3)]


@floats
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "batches", [((), ()), ((3,), (3,)), ((2, 3), (3,)), ((3,), (2, 1))], ids=str
)
def test_products_of_every_layout(dtype, size, batches):
    m, n, k = size
    for left, right in itertools.product(LAYOUTS, LAYOUTS):
        a = laid(1, dtype, (*batches[0], m, k), left)
        b = laid(2, dtype, (*batches[1], k, n), right)
        exact = a.astype(np.float64) @ b.astype(np.float64)
        scale = float(np.abs(exact).max(initial=1))
        for kind in {None, np.dtype("float32")}:
            found = cuda.gemm(a, b, dtype=kind)
            rounded = exact.astype(kind or dtype)
            testing.assert_close(found, exact, rounded, scale=scale, name=f"{left} by {right}")
            with emulator.enabled():
                again = cuda.gemm(a, b, dtype=kind)
            testing.assert_close(again, exact, rounded, scale=scale, name=f"{left} by {right}")


@floats
def test_results_in_place(dtype):
    a, b = laid(1, dtype, (2, 5, 3), "rows"), laid(2, dtype, (3, 4), "columns")
    exact = a.astype(np.float64) @ b.astype(np.float64)
    for beta, alpha in ((0.0, 1.0), (1.0, 0.5), (1.0, np.array([0.5], np.float32))):
        memory = laid(3, dtype, (2, 5, 6), "rows")
        before = memory.copy()
        out = memory[..., :4]
        assert cuda.gemm(a, b, out, alpha=alpha, beta=beta) is out
        expected = float(np.asarray(alpha).item()) * exact
        expected = expected + beta * before[..., :4].astype(np.float64)
        testing.assert_close(out, expected, expected.astype(dtype), scale=8.0)
        np.testing.assert_array_equal(memory[..., 4:], before[..., 4:])


def test_plain_products_have_the_bits_of_numpy():
    for left, right in itertools.product(("rows", "columns", "gaps"), repeat=2):
        a, b = laid(1, "float32", (33, 65), left), laid(2, "float32", (65, 17), right)
        for mode in ("off", "plain"):
            with emulator.enabled() if mode == "plain" else disabled():
                np.testing.assert_array_equal(cuda.gemm(a, b), a @ b)
        x, y = a.astype(backend.bfloat16), b.astype(backend.bfloat16)
        wide = np.matmul(x.astype(np.float32), y.astype(np.float32))
        np.testing.assert_array_equal(cuda.gemm(x, y), wide.astype(backend.bfloat16))


# The problem


def problem_of(a: np.ndarray, b: np.ndarray, out: np.ndarray, *rest: Any, **named: Any) -> Any:
    return describe(a, b, out, *rest, **named)


def test_a_problem_tells_layouts():
    memory = np.zeros(4096, np.float32)
    memory = memory[-memory.ctypes.data // 4 % 4 :]  # at a multiple of 16 bytes
    a = memory[1 : 1 + 60].reshape(5, 12)[:, :7]
    b = memory[2 : 2 + 63].reshape(9, 7).T
    out = memory[4 : 4 + 50].reshape(5, 10)[:, :9]
    found = problem_of(a, b, out)
    assert found[:4] == (5, 9, 7, 1)
    assert found.a == Matrix(False, 12, 0, 4)
    assert found.b == Matrix(True, 7, 0, 8)
    assert found.out == Matrix(False, 10, 0, 16)
    assert (found.dtype, found.out_dtype, found.epilogue) == ("float32", "float32", None)


@pytest.mark.parametrize(
    ("a", "b", "m", "batch", "strides"),
    [
        ((2, 3, 4, 5), (5, 6), 24, 1, (0, 0, 0)),  # rows follow each other
        ((2, 1, 5), (5, 6), 2, 1, (0, 0, 0)),
        ((2, 3, 4, 5), (2, 3, 5, 6), 4, 6, (20, 30, 24)),  # one batch axis
        ((7, 4, 5), (1, 5, 6), 28, 1, (0, 0, 0)),
        ((4, 5), (7, 5, 6), 4, 7, (0, 30, 24)),
        ((1, 4, 5), (1, 1, 5, 6), 4, 1, (0, 0, 0)),
    ],
)
def test_batches(a, b, m, batch, strides):
    x, y = np.zeros(a, np.float32), np.zeros(b, np.float32)
    found = problem_of(x, y, np.matmul(x, y))
    assert (found.m, found.batch) == (m, batch)
    assert (found.a.stride, found.b.stride, found.out.stride) == strides


def test_batches_that_no_single_stride_describes():
    heads = np.zeros((2, 8, 3, 4), np.float32).transpose(0, 2, 1, 3)
    assert problem_of(heads, heads.mT, np.zeros((2, 3, 8, 8), np.float32)) is None
    by_columns = np.zeros((2, 5, 4), np.float32).mT  # a batch, but not of more rows
    found = problem_of(by_columns, np.zeros((5, 6), np.float32), np.zeros((2, 4, 6), np.float32))
    assert (found.m, found.batch, found.b.stride) == (4, 2, 0)


def test_matrices_with_rows_between_them_are_a_batch():
    b, out = np.zeros((5, 6), np.float32), np.zeros((2, 4, 6), np.float32)
    found = problem_of(np.zeros((2, 7, 5), np.float32)[:, :4], b, out)
    assert (found.m, found.batch, found.a.stride, found.b.stride) == (4, 2, 35, 0)
    found = problem_of(np.zeros((2, 4, 5), np.float32), b, np.zeros((2, 9, 6), np.float32)[:, :4])
    assert (found.m, found.batch, found.out.stride) == (4, 2, 54)


def test_a_row_may_be_any_distance_from_the_next():
    out = np.zeros((7, 2, 9), np.float32)[:, :1, :4]  # one row each, 18 apart
    a = np.zeros((7, 1, 5), np.float32)
    found = problem_of(a, np.zeros((5, 4), np.float32), out)
    assert (found.m, found.batch, found.out.leading) == (7, 1, 18)


# What does not fit


def test_what_does_not_fit_is_named():
    a, b = np.zeros((3, 4), np.float32), np.zeros((4, 5), np.float32)
    bias, aux = np.zeros(5, np.float32), np.zeros((3, 5), np.float32)
    x = a.astype(backend.bfloat16)
    y = b.astype(backend.bfloat16)
    for error, message, call in (
        (ValueError, r"a \(3, 4\) and b \(3, 4\) do not fit", lambda: cuda.gemm(a, a)),
        (ValueError, "do not fit", lambda: cuda.gemm(a[0], b)),
        (
            ValueError,
            "batches of a .* do not fit",
            lambda: cuda.gemm(a[None][[0, 0]], b[None][[0] * 3]),
        ),
        (TypeError, "got float32 and bfloat16", lambda: cuda.gemm(a, y)),
        (TypeError, "got float64", lambda: cuda.gemm(a.astype(float), b.astype(float))),
        (
            TypeError,
            "is bfloat16 or float32, not float16",
            lambda: cuda.gemm(x, y, dtype="float16"),
        ),
        (ValueError, r"out must be float32\[3, 5\]", lambda: cuda.gemm(a, b, aux[:2])),
        (
            ValueError,
            "rows of out must be contiguous",
            lambda: cuda.gemm(a, b, np.zeros((5, 3), "f").T),
        ),
        (ValueError, "must not overlap", lambda: cuda.gemm(a, b, np.broadcast_to(bias, (3, 5)))),
        (ValueError, "beta is 0, or 1", lambda: cuda.gemm(a, b, aux, beta=0.5)),
        (ValueError, "beta is 0, or 1", lambda: cuda.gemm(a, b, beta=1)),
        (
            ValueError,
            "does not overwrite",
            lambda: cuda.gemm(a, b, aux.copy(), epilogue="dgelu", aux=aux, beta=1),
        ),
        (ValueError, "'relu' is not one of bias, gelu", lambda: cuda.gemm(a, b, epilogue="relu")),
        (ValueError, "'bias' needs bias", lambda: cuda.gemm(a, b, epilogue="bias")),
        (ValueError, "None takes no bias", lambda: cuda.gemm(a, b, bias=bias)),
        (
            ValueError,
            "'dgelu' takes no bias",
            lambda: cuda.gemm(a, b, epilogue="dgelu", aux=aux, bias=bias),
        ),
        (ValueError, "'gelu' needs aux", lambda: cuda.gemm(a, b, epilogue="gelu")),
        (ValueError, "None takes no aux", lambda: cuda.gemm(a, b, aux=aux)),
        (ValueError, r"of shape \(5,\)", lambda: cuda.gemm(a, b, epilogue="bias", bias=bias[:4])),
        (ValueError, r"of shape \(3,\)", lambda: cuda.gemm(a, b, epilogue="bgrad", bias=bias)),
        (
            TypeError,
            "is float32, not float64",
            lambda: cuda.gemm(a, b, epilogue="bias", bias=bias.astype(float)),
        ),
        (TypeError, "alpha is a number or one float32", lambda: cuda.gemm(a, b, alpha=bias)),
        (
            ValueError,
            "takes no batch of matrices",
            lambda: cuda.gemm(
                np.zeros((2, 3, 4), "f"),
                np.zeros((2, 4, 5), "f"),
                epilogue="gelu",
                aux=np.zeros((2, 3, 5), "f"),
            ),
        ),
    ):
        with pytest.raises(error, match=message):
            call()


# Operations


@pytest.fixture
def problems(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list of all products from now on, as Problems."""
    seen: list[Any] = []
    run = gemm._run

    def recorded(problem: Any, *arrays: Any) -> None:
        seen.append(problem)
        run(problem, *arrays)

    monkeypatch.setattr(gemm, "_run", recorded)
    return seen


def gradients(function: Any, *shapes: tuple[int, ...], dtype: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    given = [gg.tensor(rng.normal(size=s), dtype, requires_grad=True) for s in shapes]
    out = function(*given)
    upstream = np.cos(np.arange(out.size)).reshape(out.shape).astype(dtype)
    return [t.data for t in (out, *gg.grad(out, given, gg.Tensor(upstream)))]


@floats
@pytest.mark.parametrize(
    ("function", "shapes", "products"),
    [
        (gg.matmul, ((5, 4), (4, 3)), 3),
        (gg.matmul, ((2, 5, 4), (4, 3)), 3),
        (gg.matmul, ((2, 5, 4), (2, 4, 3)), 3),
        (gg.ops.linear, ((2, 5, 4), (3, 4)), 3),
        (gg.ops.linear, ((2, 5, 4), (3, 4), (3,)), 3),
    ],
)
def test_operations_multiply_narrow_arrays_as_they_are(function, shapes, products, dtype, problems):
    expected = gradients(function, *shapes, dtype=dtype)
    assert not problems  # NumPy's own
    with emulator.enabled():
        found = gradients(function, *shapes, dtype=dtype)
    assert len(problems) == products
    assert {p.dtype for p in problems} == {p.out_dtype for p in problems} == {dtype.name}
    exact = gradients(function, *shapes, dtype=backend.float64)
    for a, b, c in zip(found, exact, expected, strict=True):
        testing.assert_close(a, b, c, factor=3.0, scale=10.0)  # ten terms that cancel


def test_what_gemm_does_not_take_stays_with_numpy(problems):
    with emulator.enabled():
        for dtype in (backend.float64, backend.int64):
            x = gg.tensor(np.arange(6).reshape(2, 3), dtype)
            assert (x @ x.T).tolist() == [[5, 14], [14, 50]]
        narrow, wide = gg.ones((2, 3), dtype=backend.bfloat16), gg.ones((3, 2))
        assert not problems
        assert (narrow @ wide).dtype == backend.float32  # promoted, then a product of float32
    assert [p.dtype for p in problems] == ["float32"]


# On a GPU


@pytest.fixture
def cupy() -> Any:
    return backend.cupy_module()


@pytest.mark.gpu
@floats
@pytest.mark.parametrize("left", ["rows", "columns", "gaps"])
@pytest.mark.parametrize("right", ["rows", "columns", "gaps"])
@pytest.mark.parametrize("shape", [(64, 48, 32), (33, 17, 9), (1, 8, 5)], ids=str)
def test_on_a_gpu(dtype, left, right, shape, cupy):
    m, n, k = shape
    for batch in ((), (3,)):
        a, b = laid(1, dtype, (*batch, m, k), left), laid(2, dtype, (*batch, k, n), right)
        for kind in {dtype, backend.float32}:
            exact = a.astype(np.float64) @ b.astype(np.float64)
            scale = float(np.abs(a.astype(np.float64)).sum(-1).max())
            out = cuda.gemm(on_gpu(cupy, a), on_gpu(cupy, b), dtype=kind)
            testing.assert_close(cupy.asnumpy(out), exact, exact.astype(kind), scale=scale)
            cuda.gemm(on_gpu(cupy, a), on_gpu(cupy, b), out, beta=1, alpha=cupy.ones(1, "f"))
            twice = 2 * exact
            testing.assert_close(cupy.asnumpy(out), twice, twice.astype(kind), 3, 2 * scale)


@pytest.mark.gpu
@floats
@pytest.mark.parametrize("shape", [(64, 48, 32), (33, 17, 9), (256, 768, 128)], ids=str)
@pytest.mark.parametrize("epilogue", ["bias", "gelu", "dgelu", "dgelu_bgrad", "bgrad"])
def test_epilogues_on_a_gpu(dtype, shape, epilogue, cupy):
    m, n, k = shape
    for turned in (False, True):
        a = laid(1, dtype, (m, k), "columns" if turned else "rows")
        b = laid(2, dtype, (k, n), "columns" if turned else "rows")
        bias = laid(3, dtype, (1, m if epilogue == "bgrad" else n), "rows")[0].copy()
        aux = laid(4, dtype, (m, n), "rows")
        given = {} if epilogue == "dgelu" else {"bias": bias}
        if epilogue not in ("bias", "bgrad"):
            given["aux"] = aux
        here = {name: x.copy() for name, x in given.items()}
        exact = {name: x.astype(np.float64) for name, x in given.items()}
        there = {name: cupy.asarray(x) for name, x in given.items()}
        out = cuda.gemm(a, b, epilogue=epilogue, **here)
        found = cuda.gemm(on_gpu(cupy, a), on_gpu(cupy, b), epilogue=epilogue, **there)
        wide = [x.astype(np.float32) for x in (a, b)]
        exact = {name: x.astype(np.float32) for name, x in given.items()}
        reference = cuda.gemm(*wide, epilogue=epilogue, **exact)
        pairs = [(found, out, reference)]
        pairs += [(there[name], here[name], exact[name]) for name in given]
        for x, spec, y in pairs:
            scale = 4 * float(np.abs(y).max()) if dtype != backend.float32 else 64.0
            testing.assert_close(cupy.asnumpy(x), y, spec, 3, scale=scale)


@pytest.mark.gpu
def test_products_are_captured(cupy):
    a, b = (on_gpu(cupy, laid(i, backend.bfloat16, (64, 64), "rows")) for i in (1, 2))
    out, aux, bias = cupy.zeros_like(a), cupy.zeros_like(a), cupy.zeros_like(a[0])
    stream = cupy.cuda.Stream(non_blocking=True)

    def run() -> None:
        cuda.gemm(a, b, out)
        cuda.gemm(a, b, out, beta=1)
        cuda.gemm(out, b, epilogue="gelu", bias=bias, aux=aux, out=a)

    with stream:
        run()
        stream.synchronize()
        stream.begin_capture()
        run()
        graph = stream.end_capture()
        inputs = cupy.asarray(laid(1, backend.bfloat16, (64, 64), "rows"))
        a[...] = inputs
        run()
        expected = [cupy.asnumpy(x) for x in (out, aux, a)]
        a[...] = inputs
        graph.launch(stream)
        stream.synchronize()
    for x, y in zip((out, aux, a), expected, strict=True):
        np.testing.assert_array_equal(cupy.asnumpy(x), y)


def on_gpu(cupy: Any, x: np.ndarray) -> Any:
    """Return a copy on the GPU with the same strides."""
    owner = x if x.base is None else backend.memory_base(x)
    memory = cupy.asarray(owner)
    start = x.ctypes.data - owner.ctypes.data
    return cupy.ndarray(x.shape, x.dtype, memory.data + start, x.strides)
