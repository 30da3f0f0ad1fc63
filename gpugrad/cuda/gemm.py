"""Matrix products with what surrounds them: cublasLt on a GPU, NumPy elsewhere.

    out = gemm(a, b)                                           a @ b
    gemm(a, b, out, beta=1.0)                                  out += a @ b
    gemm(x, w.mT, out, epilogue="gelu", bias=bias, aux=h)      h = x @ w.mT + bias, out = gelu(h)
    gemm(g.mT, x, dw, epilogue="bgrad", bias=db)               dw = g.mT @ x, db = g.sum(0)

One call becomes one Problem: sizes, strides, dtypes and alignments, no addresses and no values.
What cublasLt cannot do in one launch becomes several (``_composed``): a plain product and our own
kernels. That choice depends on the Problem alone, so it is the same in the emulator, while a step
is recorded and on a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import backend
from . import _gemm_numpy
from ._gemm_problem import Problem, checked, describe, is_fused, readable
from .column_sums import column_sums
from .kernel import (
    Source,
    contiguous,
    dtype_code,
    empty,
    emulated,
    strided,
    variants,
)

SOURCE = Source("gemm.cu", variants(GPUGRAD_DTYPE=(0, 1, 2)), large=True)

_THREADS = 256  # as in the kernels: 8 warps, a row of a tile each, 4 times
_ROWS = 32
_LANES = 32


def gemm(
    a: Any,
    b: Any,
    out: Any = None,
    *,
    epilogue: str | None = None,
    bias: Any = None,
    aux: Any = None,
    alpha: Any = 1.0,
    beta: float = 0.0,
    dtype: Any = None,
) -> Any:
    """Return alpha * a @ b + beta * out, computed in float32 and rounded once: (..., M, N).

    a is (..., M, K), b (..., K, N), both float32, bfloat16 or float16; leading axes broadcast.
    Either may be transposed by its strides, with gaps between rows; other layouts are copied. A
    new ``out`` has the dtype of the operands or ``dtype``, which may be float32; one that is given
    is written in place, its rows may lie apart. alpha is a number or an array with one float32 on
    the device of a; beta is 0 or 1. float32 is multiplied as float32.

    epilogue, where z = alpha * a @ b:

    - "bias": out = z + beta * out + bias, bias (N,);
    - "gelu": aux = z + bias, out = gelu(z + bias) by tanh; aux is written, like out; bias (N,) may
      be None;
    - "dgelu": out = z * gelu'(aux);
    - "dgelu_bgrad": the same, and bias (N,) is overwritten with the column sums of out;
    - "bgrad": out = z + beta * out, and bias (M,) is overwritten with the row sums of a.

    Numpy arrays are multiplied by NumPy, cupy arrays by cublasLt on the current stream. Raises
    TypeError and ValueError naming shapes and dtypes that do not fit.
    """
    shape, kind = checked(a, b, out, epilogue, bias, aux, alpha, beta, dtype)
    if out is None:
        out = _new(shape, kind, a, b)
    _product(readable(a), readable(b), out, epilogue, bias, aux, alpha, float(beta))
    return out


def _product(
    a: Any, b: Any, out: Any, epilogue: str | None, bias: Any, aux: Any, alpha: Any, beta: float
) -> None:
    """Run a product of readable operands: in one launch if possible, in several otherwise."""
    problem = describe(a, b, out, epilogue, bias, aux, alpha, beta)
    if epilogue not in (None, "bias") and (problem is None or problem.batch > 1):
        raise ValueError(
            f"gemm: epilogue {epilogue!r} takes no batch of matrices, got a {a.shape}, b {b.shape} "
            f"and out {out.shape} with strides {a.strides}, {b.strides} and {out.strides}"
        )
    if problem is None:  # one call per element of the first axis of the batch
        axis = next(i for i, length in enumerate(out.shape[:-2]) if length > 1)
        for i in range(out.shape[axis]):
            x, y, z = (_part(array, i, axis - out.ndim) for array in (a, b, out))
            _product(x, y, z, epilogue, bias, aux, alpha, beta)
    elif (isinstance(out, np.ndarray) and not emulated()) or _is_one_launch(problem, out):
        _run(problem, a, b, out, bias, aux, alpha)
    else:
        _composed(problem, a, b, out, bias, aux, alpha)


def _is_one_launch(problem: Problem, out: Any) -> bool:
    """Return whether one launch computes a problem; on a GPU cublasLt itself has the last word."""
    if not is_fused(problem):
        return False
    if isinstance(out, backend.Symbolic):
        trace = importlib.import_module("gpugrad.cuda.recording").current()
        on_gpu = trace is not None and trace.on_gpu
    else:
        on_gpu = not isinstance(out, np.ndarray)
    return not on_gpu or _plans().supports(problem)


def _plans() -> Any:
    return importlib.import_module("gpugrad.cuda.gemm_plans")  # which only GPUs need


def _run(problem: Problem, a: Any, b: Any, out: Any, bias: Any, aux: Any, alpha: Any) -> None:
    """Compute one problem; the only place where products are computed."""
    if any(isinstance(x, backend.Symbolic) for x in (a, b, out, bias, aux, alpha)):
        importlib.import_module("gpugrad.cuda.recording").product(
            _run, problem, a, b, out, bias, aux, alpha
        )
    elif isinstance(out, np.ndarray):
        _gemm_numpy.run(a, b, out, problem.epilogue, bias, aux, alpha, problem.beta)
    else:
        _plans().run(problem, a, b, out, bias, aux, alpha)


def _composed(problem: Problem, a: Any, b: Any, out: Any, bias: Any, aux: Any, alpha: Any) -> None:
    """Compute a problem in several launches."""
    epilogue, beta = problem.epilogue, problem.beta
    if epilogue is None:  # nothing to multiply
        _add_bias(out, None, beta)
    elif epilogue == "bias":  # first, so that the sum is rounded once
        _add_bias(out, bias, beta)
        _product(a, b, out, None, None, None, alpha, 1.0)
    elif epilogue == "bgrad":
        _product(a, b, out, None, None, None, alpha, beta)
        _column_sums(a.reshape(a.shape[-2:]).T, bias)
    elif epilogue == "gelu":
        _product(a, b, aux, None if bias is None else "bias", bias, None, alpha, 0.0)
        _launch("gemm_gelu", aux, out)
    else:
        _product(a, b, out, None, None, None, alpha, 0.0)
        _launch("gemm_dgelu", aux, out)
        if epilogue == "dgelu_bgrad":
            _column_sums(contiguous(out).reshape(-1, problem.n), bias)


def _column_sums(x: Any, out: Any) -> None:
    if x.size:
        column_sums(x, out.dtype, out)
    else:
        _add_bias(out.reshape(1, -1), None, 0.0)


def _add_bias(out: Any, bias: Any, beta: float) -> None:
    """Let out be beta * out + bias, a bias of None being 0."""
    if not out.size or (beta and bias is None):
        return
    if bias is None or bias.dtype == backend.float32:
        code, biases = dtype_code(out.dtype), (bias, None)
    else:
        code, biases = dtype_code(bias.dtype), (None, bias)
    for (rows,) in _matrices(out):
        memory = strided(rows)
        wide = rows.dtype == backend.float32
        outs = (memory, None) if wide else (None, memory)
        args = (*biases, *outs, *rows.shape, rows.strides[0] // rows.itemsize, int(beta))
        SOURCE.launch("gemm_bias", _grid(rows, code), (_THREADS,), args, GPUGRAD_DTYPE=code)


def _launch(kernel: str, aux: Any, out: Any) -> None:
    """Run a kernel from aux to out, matrix by matrix."""
    code = dtype_code(out.dtype)
    for x, y in _matrices(aux, out) if out.size else ():
        steps = [z.strides[0] // z.itemsize for z in (x, y)]
        args = (strided(x), strided(y), *y.shape, *steps)
        SOURCE.launch(kernel, _grid(y, code), (_THREADS,), args, GPUGRAD_DTYPE=code)


def _grid(x: Any, code: int) -> tuple[int]:
    width = _LANES * (8 if code else 4)
    return (-(-x.shape[0] // _ROWS) * -(-x.shape[1] // width),)


def _matrices(*arrays: Any) -> Iterator[tuple[Any, ...]]:
    """Yield arrays of the same shape as matrices, in one piece where rows follow each other."""
    if arrays[0].ndim == 2:
        yield arrays
    elif all(x.flags.c_contiguous for x in arrays):
        yield tuple(x.reshape(-1, x.shape[-1]) for x in arrays)
    else:
        for i in range(arrays[0].shape[0]):
            yield from _matrices(*(x[i] for x in arrays))


def _new(shape: tuple[int, ...], dtype: Any, a: Any, b: Any) -> Any:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.empty(shape, dtype)  # NumPy fills it, which the checked emulator would not see
    return empty(shape, dtype, like=b if isinstance(b, backend.Symbolic) else a)


def _part(x: Any, i: int, axis: int) -> Any:
    """Return one index of an axis of a batch, which may be missing or 1 long."""
    if x.ndim < -axis:
        return x
    return x[(slice(None),) * (x.ndim + axis) + (i if x.shape[axis] > 1 else 0,)]
