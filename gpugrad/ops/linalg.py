"""Matrix products. Reduced precision accumulates in float32.

On a GPU, in the emulator and in a recorded step they are ``cuda.gemm``, which multiplies bfloat16
and float16 as they are; NumPy multiplies them widened.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend, cuda, memory
from ..boundary import named
from ..cuda import recording
from ..cuda.column_sums import column_sums
from ..cuda.emulation import expected
from ..cuda.kernel import DTYPE_CODES
from ..cuda.symbolic import Symbol
from ..registry import OPS, Sample, prepare, primitive, state
from ..tensor import Tensor
from . import _products
from ._axes import normalize_axes, normalize_axis
from ._hot import binary_function
from .elementwise import multiply
from .indexing import diagonal
from .reduction import sum as sum_
from .shape import asarray, expand_dims, moveaxis, permute_dims, reshape, squeeze

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"  # that a subscript may be


def _times(x: Any, y: Any, xp: Any) -> Any:
    """Return the matrix product of arrays or of tensors."""
    if x.__class__ is y.__class__ is np.ndarray and x.dtype.itemsize != 2 and not expected():
        return _products.matmul(x, y)  # the common case, without a detour
    return xp.matmul(x, y) if isinstance(x, Tensor) else _matmul_arrays(xp, x, y)


def _takes_gemm(x: Any, y: Any) -> bool:
    """Return whether arrays are multiplied by cuda.gemm: not NumPy's unless they are emulated."""
    if backend.is_numpy(x) and backend.is_numpy(y):
        if not (expected() and cuda.emulated()):
            return False
    elif isinstance(x, Symbol) or isinstance(y, Symbol):
        return False
    return x.dtype == y.dtype and x.dtype in DTYPE_CODES


@primitive(
    [
        Sample((3, 4), (4, 2)),
        Sample((2, 3, 4), (4, 5)),
        Sample((2, 3, 4), (2, 4, 2)),
        Sample((3, 4), (2, 4, 2)),
        Sample((2, 1, 3, 4), (5, 4, 1)),
        Sample((3, 0), (0, 2)),
    ],
    name="matmul",
    broadcasts=True,
    method=False,
    x=lambda g, y, xp: _times(g, y.mT, xp),
    y=lambda g, x, xp: _times(x.mT, g, xp),
)
def _matmul(xp, x, y):
    return _matmul_arrays(xp, x, y)


def _matmul_arrays(xp: Any, x: Any, y: Any) -> Any:
    if _takes_gemm(x, y):
        return cuda.gemm(x, y)
    if x.dtype.itemsize == 2 and x.dtype in backend.NARROW:
        wide = _matmul_arrays(xp, x.astype(backend.float32), y.astype(backend.float32))
        return wide.astype(x.dtype)
    if backend.is_numpy(x) and backend.is_numpy(y):
        return _products.product(x, y)
    return xp.matmul(x, y)


_product = binary_function(OPS["matmul"], _products.matmul)
_factors = named(lambda x, y: (asarray(x), asarray(y)), "matmul")


def _by_gemm(x: Tensor, y: Tensor) -> Tensor:
    op = OPS["matmul"]
    return op(prepare(op, (x, y)), {})


def matmul(x: Any, y: Any) -> Any:
    """Return the matrix product over the last two axes, other axes broadcast.

    x is (..., N, K), y (..., K, M), the result (..., N, M). A vector x counts as (1, K), a vector
    y as (K, 1), and that axis is dropped from the result. Raises ValueError naming both shapes.
    """
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        x, y = _factors(x, y)
    xd, yd = x._data, y._data
    xs, ys = xd.shape, yd.shape
    if len(xs) > 1 and len(ys) > 1 and xs[-1] == ys[-2]:
        product: Any = _product
        if (xd.__class__ is not np.ndarray or expected()) and _takes_gemm(xd, yd):
            product = _by_gemm
        elif xd.itemsize == 2 or yd.itemsize == 2:
            narrow = backend.promote(x.dtype, y.dtype)
            if narrow in backend.NARROW:
                wide = matmul(x.astype(backend.float32), y.astype(backend.float32))
                return wide.astype(narrow)
        if len(xs) == len(ys) or len(ys) > 2:
            return product(x, y)
        return reshape(product(reshape(x, (math.prod(xs[:-1]), xs[-1])), y), (*xs[:-1], ys[-1]))
    if not xs or not ys:
        raise ValueError(f"matmul: needs at least one dimension, got {xs} and {ys}")
    inner = ys[-2] if len(ys) > 1 else ys[0]
    if xs[-1] != inner:
        raise ValueError(
            f"matmul: x {xs} and y {ys} do not fit: the last axis of x is {xs[-1]} long, "
            f"the {'second to last' if len(ys) > 1 else 'only'} of y {inner}"
        )
    a = expand_dims(x, 0) if x.ndim == 1 else x
    b = expand_dims(y, 1) if y.ndim == 1 else y
    out = matmul(a, b)
    gone = [-2] * (x.ndim == 1) + [-1] * (y.ndim == 1)
    return squeeze(out, tuple(gone))


OPS["matmul"].function = matmul


def _flat(x: Any) -> Any:
    """Return an array (..., C) as a matrix (N, C)."""
    shape = x.shape
    return x if len(shape) == 2 else x.reshape((math.prod(shape[:-1]), shape[-1]))


def _sum_of_rows(g: Any, xp: Any) -> Any:
    """Return the sums over the rows of a matrix; on a GPU by our own kernel where it can."""
    if isinstance(g, Tensor) or not (g.size and _takes_gemm(g, g) and cuda.fits(g)):
        return backend.total(xp, g, 0)
    return column_sums(g, g.dtype)


@primitive(
    [
        Sample((3, 4), (5, 4), (5,)),
        Sample((2, 3, 4), (5, 4), None),
        Sample((4,), (2, 4), (2,)),
        Sample((0, 4), (2, 4), (2,)),
    ],
    name="linear",
    arguments=3,
    method=False,
    x=lambda g, weight, x_shape, xp: _times(_flat(g), weight, xp).reshape(x_shape),
    weight=lambda g, x, xp: _times(_flat(g).mT, _flat(x), xp),
    bias=lambda g, xp: _sum_of_rows(_flat(g), xp),
)
def _linear(xp, x, weight, bias):
    if bias is not None and _takes_gemm(x, weight) and bias.dtype == x.dtype:
        flat = _flat(x)
        out = cuda.gemm(flat, weight.T, epilogue="bias", bias=cuda.contiguous(bias))
        return out.reshape(*x.shape[:-1], weight.shape[0])
    if bias is not None and xp is np and x.dtype.itemsize != 2:
        out = recording.as_one(_products.affine, _flat(x), weight.T, bias)
    else:
        out = _matmul_arrays(xp, _flat(x), weight.T)
        if bias is not None:
            out += bias
    return out.reshape(*x.shape[:-1], weight.shape[0])


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """Return x @ weight.T + bias: x (..., in), weight (out, in), bias (out), result (..., out).

    Raises ValueError naming the shapes that do not fit.
    """
    x, weight = asarray(x), asarray(weight)
    xd, wd = x._data, weight._data
    xs, ws = xd.shape, wd.shape
    if len(ws) != 2 or xs[-1:] != ws[1:]:
        raise ValueError(
            f"linear: input {xs} and weight {ws} do not fit: the last axis of the input must be as "
            "long as the last of the weight, which is (out, in)"
        )
    if bias is not None:
        bias = asarray(bias)
        if bias._data.shape != ws[:1]:
            raise ValueError(
                f"linear: bias {bias.shape} and weight {ws} do not fit: the bias must have shape "
                f"{ws[:1]}"
            )
    if (
        state.make_node is None
        and xd.__class__ is wd.__class__ is np.ndarray
        and xd.size * ws[0] <= _products.SINGLE
        and xd.dtype is wd.dtype
        and xd.dtype.char in "fd"
        and (bias is None or bias._data.dtype is xd.dtype)
        and memory.is_plain()
        and not expected()
    ):  # some rows without a gradient: the same products, without a detour
        out = np.matmul(_flat(xd), wd.T)
        if bias is not None:
            out += bias._data
        return Tensor._wrap(out.reshape(*xs[:-1], ws[0]), None)
    return _linear(x, weight, bias)


OPS["linear"].function = linear


def outer(x: Any, y: Any) -> Any:
    """Return the products of all elements of x (N) with all of y (M): (N, M)."""
    return multiply(reshape(x, (-1, 1)), reshape(y, (1, -1)))


def vecdot(x: Any, y: Any, axis: int = -1) -> Any:
    """Return the sums of x*y along an axis of both, as long in x as in y; other axes broadcast.

    Raises ValueError where these lengths differ.
    """
    x, y = asarray(x), asarray(y)
    of_x, of_y = normalize_axis(axis, x.ndim), normalize_axis(axis, y.ndim)
    if x.shape[of_x] != y.shape[of_y]:
        raise ValueError(f"vecdot: x {x.shape} and y {y.shape} differ in length along axis {axis}")
    if x.ndim != y.ndim:  # counted from the front an axis is not the same of both
        x, y, axis = moveaxis(x, of_x, -1), moveaxis(y, of_y, -1), -1
    return sum_(multiply(x, y), axis=axis)


def trace(x: Any, offset: int = 0) -> Any:
    """Return the sum of the diagonal of the last two axes."""
    return sum_(diagonal(x, offset, -2, -1), axis=-1)


def tensordot(x: Any, y: Any, axes: int | Sequence[Sequence[int]] = 2) -> Any:
    """Return the products of x and y summed over pairs of axes.

    ``axes`` is a number n (the last n of x with the first n of y) or a pair of lists of axes.
    Raises IndexError for axes that x or y does not have, ValueError where lengths differ.
    """
    x, y = asarray(x), asarray(y)
    if isinstance(axes, (int, np.integer)):
        if not 0 <= axes <= min(x.ndim, y.ndim):
            raise IndexError(f"tensordot: axes={axes}, but x has shape {x.shape}, y {y.shape}")
        pairs = (list(range(x.ndim - axes, x.ndim)), list(range(axes)))
    else:
        of_x, of_y = axes
        pairs = (list(normalize_axes(of_x, x.ndim)), list(normalize_axes(of_y, y.ndim)))
    if [x.shape[a] for a in pairs[0]] != [y.shape[a] for a in pairs[1]]:
        raise ValueError(f"tensordot: x {x.shape} and y {y.shape} do not fit along axes {axes}")
    x_rest = [i for i in range(x.ndim) if i not in pairs[0]]
    y_rest = [i for i in range(y.ndim) if i not in pairs[1]]
    inner = math.prod(x.shape[a] for a in pairs[0])
    rows = math.prod(x.shape[i] for i in x_rest)
    columns = math.prod(y.shape[i] for i in y_rest)
    out = matmul(
        reshape(permute_dims(x, x_rest + pairs[0]), (rows, inner)),
        reshape(permute_dims(y, pairs[1] + y_rest), (inner, columns)),
    )
    return reshape(out, [x.shape[i] for i in x_rest] + [y.shape[i] for i in y_rest])


def einsum(subscripts: str, *operands: Any) -> Any:
    """Return the sum of products that Einstein's notation describes, as numpy.einsum.

    Letters repeated between operands are multiplied, letters missing in the output summed;
    ``...`` stands for leading axes that broadcast. Operands are contracted from left to right,
    each step as one matrix product. Raises ValueError where the axes of one letter do not fit:
    those of one operand are as long as each other, between operands length 1 broadcasts.
    """
    tensors = [asarray(x) for x in operands]
    inputs, output = _parse(subscripts, [t.ndim for t in tensors])
    sizes: dict[str, int] = {}
    for labels, t in zip(inputs, tensors, strict=True):
        for label, n in zip(labels, t.shape, strict=True):
            first = t.shape[labels.index(label)]
            if n != first:
                raise ValueError(
                    f"einsum: {label!r} is {first} and {n} long in one operand of {subscripts!r}, "
                    f"which has shape {t.shape}"
                )
            if sizes.setdefault(label, n) != n and 1 not in (n, sizes[label]):
                raise ValueError(
                    f"einsum: {label!r} is {sizes[label]} and {n} long in {subscripts!r} with "
                    f"shapes {[t.shape for t in tensors]}"
                )
            sizes[label] = n if sizes[label] == 1 else sizes[label]
    terms = [_simplified(t, labels, sizes) for t, labels in zip(tensors, inputs, strict=True)]
    while len(terms) > 1:
        rest = {label for _, labels in terms[2:] for label in labels} | set(output)
        terms[:2] = [_contract(*terms[0], *terms[1], rest)]
    out, labels = _summed(*terms[0], set(output))
    return permute_dims(out, [labels.index(label) for label in output])


def _parse(subscripts: str, ndims: Sequence[int]) -> tuple[list[str], str]:
    """Return the labels of each operand and of the output, ellipses written out."""
    left, arrow, right = subscripts.replace(" ", "").partition("->")
    inputs = left.split(",")
    if len(inputs) != len(ndims):
        raise ValueError(f"einsum: {subscripts!r} names {len(inputs)} operands, got {len(ndims)}")
    free = [c for c in _LETTERS if c not in subscripts]
    longest = 0
    written = []
    for labels, ndim in zip(inputs, ndims, strict=True):
        extra = ndim - len(labels.replace("...", ""))
        if extra < 0 or (extra and "..." not in labels):
            raise ValueError(f"einsum: {labels!r} does not fit an operand of {ndim} dimensions")
        longest = max(longest, extra if "..." in labels else 0)
        written.append(labels.replace("...", "".join(reversed(free[:extra]))))
    ellipsis = "".join(reversed(free[:longest]))
    if arrow:
        output = right.replace("...", ellipsis)
    else:
        together = "".join(inputs).replace("...", "")
        output = ellipsis + "".join(sorted(c for c in set(together) if together.count(c) == 1))
    for label in output:
        if output.count(label) > 1 or not any(label in labels for labels in written):
            raise ValueError(f"einsum: output label {label!r} of {subscripts!r} is repeated or new")
    letters = "".join([*written, output])
    if letters and not letters.isalpha():
        raise ValueError(f"einsum: {subscripts!r} may hold letters, ',', '->' and '...' only")
    return written, output


def _simplified(x: Any, labels: str, sizes: dict[str, int]) -> tuple[Any, str]:
    """Return x with repeated labels reduced to their diagonal and broadcast axes dropped."""
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            i = labels.index(label)
            j = labels.index(label, i + 1)
            x = diagonal(x, 0, i, j)
            labels = labels[:i] + labels[i + 1 : j] + labels[j + 1 :] + label
    gone = tuple(i for i, c in enumerate(labels) if x.shape[i] == 1 and sizes[c] != 1)
    x = squeeze(x, gone) if gone else x
    return x, "".join(c for i, c in enumerate(labels) if i not in gone)


def _summed(x: Any, labels: str, wanted: set[str]) -> tuple[Any, str]:
    axes = tuple(i for i, label in enumerate(labels) if label not in wanted)
    x = sum_(x, axis=axes) if axes else x
    return x, "".join(label for label in labels if label in wanted)


def _contract(x: Any, a: str, y: Any, b: str, rest: set[str]) -> tuple[Any, str]:
    """Return the product of two terms, summed over the labels nobody else uses."""
    x, a = _summed(x, a, rest | set(b))
    y, b = _summed(y, b, rest | set(a))
    batch = [c for c in a if c in b and c in rest]
    inner = [c for c in a if c in b and c not in rest]
    left, right = [c for c in a if c not in b], [c for c in b if c not in a]
    size = dict(zip(a + b, x.shape + y.shape, strict=True))

    def matrix(t: Any, labels: str, *groups: list[str]) -> Any:
        order = [labels.index(c) for group in groups for c in group]
        shape = [size[c] for c in groups[0]] + [math.prod(size[c] for c in g) for g in groups[1:]]
        return reshape(permute_dims(t, order), shape)

    out = matmul(matrix(x, a, batch, left, inner), matrix(y, b, batch, inner, right))
    labels = batch + left + right
    return reshape(out, [size[c] for c in labels]), "".join(labels)
