"""What gemm is asked to compute, as numbers: layouts of operands, and what fits what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from .kernel import DTYPE_CODES, address

EPILOGUES = ("bias", "gelu", "dgelu", "dgelu_bgrad", "bgrad")
_TAKES_AUX = ("gelu", "dgelu", "dgelu_bgrad")


class Matrix(NamedTuple):
    """How a matrix, or a batch of them, lies in memory.

    ``leading`` is the distance of its rows, or of its columns if it is ``transposed``, in elements;
    neighbours within them touch. ``stride`` is the distance of matrices in a batch, in elements.
    ``alignment`` is the largest power of two, at most 16, that divides the address in bytes.
    """

    transposed: bool
    leading: int
    stride: int
    alignment: int


class Problem(NamedTuple):
    """One product (M, K) @ (K, N), ``batch`` times, without addresses and values.

    ``dtype`` is that of the operands, ``bias_dtype`` and ``aux`` are None where there is none.
    ``device_alpha`` tells that alpha is read from device memory.
    """

    m: int
    n: int
    k: int
    batch: int
    a: Matrix
    b: Matrix
    out: Matrix
    dtype: str
    out_dtype: str
    epilogue: str | None = None
    bias_dtype: str | None = None
    bias_alignment: int = 16
    aux: Matrix | None = None
    beta: float = 0.0
    device_alpha: bool = False


def describe(
    a: Any,
    b: Any,
    out: Any,
    epilogue: str | None = None,
    bias: Any = None,
    aux: Any = None,
    alpha: Any = 1.0,
    beta: float = 0.0,
) -> Problem | None:
    """Return the Problem of arrays that fit each other; None if no single batch stride will do.

    It looks at shapes, strides, dtypes and addresses modulo 16 only. A batch of a with the same b
    is one product of more rows where the rows of a and out allow it.
    """
    arrays = [a, b, out, *(() if aux is None else (aux,))]
    (m, k), n = a.shape[-2:], b.shape[-1]
    axes = _batch_axes(arrays, out.shape[:-2])
    steps = [_step(x) for x in arrays]
    while axes and axes[-1][1][1] == 0 and epilogue != "bgrad":  # b is the same for all
        taller = _taller(axes[-1], m, [k, n, n, n], steps)
        if taller is None:
            break
        steps = taller
        m *= axes.pop()[0]
    if len(axes) > 1:
        return None
    batch, strides = axes[0] if axes else (1, (0,) * len(arrays))
    sizes = [(m, k), (k, n), (m, n), (m, n)]
    found = [
        _matrix(x, size, step, stride)
        for x, size, step, stride in zip(arrays, sizes, steps, strides, strict=False)
    ]
    return Problem(
        m=m,
        n=n,
        k=k,
        batch=batch,
        a=found[0],
        b=found[1],
        out=found[2],
        dtype=a.dtype.name,
        out_dtype=out.dtype.name,
        epilogue=epilogue,
        bias_dtype=None if bias is None else bias.dtype.name,
        bias_alignment=16 if bias is None else _alignment(bias),
        aux=None if aux is None else found[3],
        beta=beta,
        device_alpha=backend.is_array(alpha),
    )


def is_fused(problem: Problem) -> bool:
    """Return whether cublasLt is asked to do a whole problem in one launch.

    It reads and writes aux in packs, wants a bias in the dtype of the result, and is asked for no
    more than a bias where it multiplies float32 without tensor cores.
    """
    if not problem.m * problem.n * problem.k:
        return False
    if problem.epilogue is None:
        return True
    if problem.bias_dtype not in (None, problem.out_dtype):
        return False
    if problem.epilogue == "bias":
        return True
    aux = problem.aux
    return (
        problem.dtype != "float32"
        and problem.batch == 1
        and (aux is None or (aux.leading % 8 == 0 and aux.alignment == 16))
    )


# Layouts

_Axis = tuple[int, tuple[int, ...]]  # the length of a batch's axis, its stride in each array


def _batch_axes(arrays: list[Any], batch: tuple[int, ...]) -> list[_Axis]:
    """Return the axes of a batch as lengths and strides in elements, merged where possible."""
    axes: list[_Axis] = []
    for i, length in enumerate(batch):
        if length == 1:
            continue
        strides = tuple([_batch_stride(x, i - len(batch) - 2) for x in arrays])
        if axes and all(o == length * s for o, s in zip(axes[-1][1], strides, strict=True)):
            length *= axes.pop()[0]
        axes.append((length, strides))
    return axes


def _taller(
    axis: _Axis, m: int, columns: Sequence[int], steps: list[tuple[int, int]]
) -> list[tuple[int, int]] | None:
    """Return the strides of matrices to which an axis of a batch adds rows; None if it cannot.

    b, the second, is not concerned.
    """
    length, strides = axis
    found = list(steps)
    for i, (stride, (row, column)) in enumerate(zip(strides, steps, strict=True)):
        if i == 1:
            continue
        if m > 1 and stride != m * row:
            return None
        found[i] = (stride if m == 1 else row, column)
        if _layout((m * length, columns[i]), found[i]) is None:
            return None
    return found


def _step(x: Any) -> tuple[int, int]:
    """Return the strides of the last two axes in elements."""
    row, column = x.strides[-2:]
    return int(row) // int(x.itemsize), int(column) // int(x.itemsize)


def _batch_stride(x: Any, axis: int) -> int:
    if x.ndim < -axis or x.shape[axis] == 1:
        return 0
    return int(x.strides[axis]) // int(x.itemsize)


def _layout(size: tuple[int, ...], step: tuple[int, int]) -> tuple[bool, int] | None:
    """Return whether a matrix is transposed, and its leading dimension; None if it is neither.

    Strides of axes of one element, which may be anything, are not looked at.
    """
    (rows, columns), (row, column) = size, step
    if column == 1 or columns <= 1:
        leading = row if rows > 1 else max(columns, 1)
        if leading >= max(columns, 1):
            return False, leading
    if row == 1 or rows <= 1:
        leading = column if columns > 1 else max(rows, 1)
        if leading >= max(rows, 1):
            return True, leading
    return None


def _matrix(x: Any, size: tuple[int, int], step: tuple[int, int], stride: int) -> Matrix:
    found = _layout(size, step) if size[0] * size[1] else (False, max(size[1], 1))
    assert found is not None
    return Matrix(*found, stride, _alignment(x))


def _alignment(x: Any) -> int:
    rest = address(x) % 16
    return rest & -rest if rest else 16


def readable(x: Any) -> Any:
    """Return a matrix that can be read in place, or a copy."""
    negative = any(s < 0 for s in x.strides)
    if x.size and (negative or _layout(x.shape[-2:], _step(x)) is None):
        return backend.xp_of(x).ascontiguousarray(x)
    return x


# Checks


def checked(
    a: Any,
    b: Any,
    out: Any,
    epilogue: str | None,
    bias: Any,
    aux: Any,
    alpha: Any,
    beta: float,
    dtype: Any,
) -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape and dtype of the result, or raise for what does not fit."""
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"gemm: a {a.shape} and b {b.shape} do not fit: (..., M, K) @ (..., K, N)")
    if a.dtype != b.dtype or a.dtype not in DTYPE_CODES:
        names = ", ".join(d.name for d in DTYPE_CODES)
        raise TypeError(f"gemm: a and b must share one of {names}, got {a.dtype} and {b.dtype}")
    m, n = a.shape[-2], b.shape[-1]
    batch = a.shape[:-2]
    if b.ndim > 2 and b.shape[:-2] != batch:
        try:
            batch = np.broadcast_shapes(batch, b.shape[:-2])
        except ValueError:
            raise ValueError(f"gemm: batches of a {a.shape} and b {b.shape} do not fit") from None
    shape = (*batch, m, n)
    kind = np.dtype(dtype) if dtype is not None else a.dtype if out is None else out.dtype
    if kind not in (a.dtype, backend.float32):
        raise TypeError(f"gemm: the result of {a.dtype} is {a.dtype} or float32, not {kind}")
    if beta not in (0, 1) or (beta and (out is None or epilogue in _TAKES_AUX)):
        raise ValueError(
            f"gemm: beta is 0, or 1 to add to an out that is given and that epilogue {epilogue!r} "
            f"does not overwrite; got {beta!r}"
        )
    if out is not None:
        _check_result("out", out, shape, kind)
    if backend.is_array(alpha) and (alpha.size != 1 or alpha.dtype != backend.float32):
        raise TypeError(
            f"gemm: alpha is a number or one float32, not {alpha.dtype}{list(alpha.shape)}"
        )
    if epilogue is not None and epilogue not in EPILOGUES:
        raise ValueError(f"gemm: epilogue {epilogue!r} is not one of {', '.join(EPILOGUES)}")
    takes_aux = epilogue in _TAKES_AUX
    if takes_aux != (aux is not None):
        needs = "needs" if takes_aux else "takes no"
        raise ValueError(f"gemm: epilogue {epilogue!r} {needs} aux")
    if aux is not None:
        _check_result("aux", aux, shape, kind)
    optional = epilogue == "gelu" and bias is None
    if not optional and (epilogue in (None, "dgelu")) == (bias is not None):
        needs = "takes no" if bias is not None else "needs"
        raise ValueError(f"gemm: epilogue {epilogue!r} {needs} bias")
    if bias is not None:
        length = m if epilogue == "bgrad" else n
        if bias.shape != (length,) or not bias.flags.c_contiguous:
            raise ValueError(
                f"gemm: bias of epilogue {epilogue!r} must be contiguous and of shape "
                f"({length},), got {bias.shape} with strides {bias.strides}"
            )
        allowed = {backend.float32, a.dtype if epilogue in ("bgrad", "bias", "gelu") else kind}
        if bias.dtype not in allowed:
            names = " or ".join(sorted(d.name for d in allowed))
            raise TypeError(f"gemm: bias of epilogue {epilogue!r} is {names}, not {bias.dtype}")
    return shape, kind


def _check_result(name: str, x: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if x.shape != shape or x.dtype != dtype:
        raise ValueError(f"gemm: {name} must be {dtype}{list(shape)}, got {x.dtype}{list(x.shape)}")
    found = _layout(shape[-2:], _step(x)) if x.size else (False, 0)
    # a stride of 0 would make elements of one
    overlaps = any(
        s <= 0 for s, length in zip(x.strides[:-2], shape[:-2], strict=True) if length > 1
    )
    if found is None or (found[0] and shape[-1] > 1) or (overlaps and x.size):
        raise ValueError(
            f"gemm: the rows of {name} must be contiguous and must not overlap, got strides "
            f"{x.strides} for {x.dtype}{list(shape)}"
        )
