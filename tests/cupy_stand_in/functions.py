"""The namespace ``cupy``: its functions with the parameters of the installed CuPy, by NumPy."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import cupy as real
import numpy as np

from . import cuda
from .arrays import array_of, bfloat16, known, ndarray, unset, values_of
from .ufuncs import Ufunc, add_operators, dtypes_of, loop, operand

_REDUCTIONS = {
    *("sum", "prod", "max", "min", "amax", "amin", "argmax", "argmin", "any", "all"),
    *("cumsum", "cumprod", "mean", "var", "std"),
}
_KEEPS_DTYPE = {"sum", "prod", "max", "min", "amax", "amin", "cumsum", "cumprod"}
_SORTS = {"sort", "argsort", "partition", "argpartition"}
_JOINS = {"concatenate", "stack", "hstack", "vstack"}
_CREATE = {  # what needs no array as its first argument
    *("zeros", "ones", "full", "arange", "linspace", "eye", "identity", "indices", "tri"),
    *("tril_indices", "triu_indices", "meshgrid", "einsum", "broadcast_arrays"),
    *("broadcast_shapes", "result_type", "can_cast", "promote_types", "issubdtype", "isscalar"),
    *("iinfo", "finfo", "ndim", "shape", "size", "unravel_index"),
}
_WAITS = {"nonzero", "argwhere", "flatnonzero", "unique", "array_equal", "allclose"}


def _asarray(obj: Any, dtype: Any = None, copy: bool = False, **kwargs: Any) -> Any:
    if isinstance(obj, ndarray):
        same = dtype is None or np.dtype(dtype) == obj.dtype
        return (obj.copy("K") if copy else obj) if same else obj.astype(dtype)
    if isinstance(obj, (list, tuple)) and any(isinstance(x, ndarray) for x in obj):
        obj = values_of(obj)
    cuda.wait("a copy from the host")
    values = np.array(obj, dtype)
    known(values.dtype)
    return array_of(values)


def _array(obj: Any, dtype: Any = None, copy: bool = True, **kwargs: Any) -> Any:
    return _asarray(obj, dtype, copy)


def _ascontiguousarray(a: Any, dtype: Any = None) -> Any:
    out = _asarray(a, dtype)
    return out if out.flags.c_contiguous else out.copy()


def _empty(shape: Any, dtype: Any = float, order: Any = "C") -> Any:
    return ndarray(shape, dtype, order=order)


def _empty_like(a: Any, dtype: Any = None, **kwargs: Any) -> Any:
    return array_of(unset(np.empty_like(a._values, None if dtype is None else known(dtype))))


def _where(condition: Any, x: Any = None, y: Any = None) -> Any:
    if x is None and y is None:
        cuda.wait("where")
        return array_of(np.where(values_of(condition)))
    for each in (condition, x, y):
        operand(each)
    # of the installed CuPy's table; its bfloat16 goes by way of float32
    types = [t[1:] for t in real._sorting.search._where_ufunc.types]
    found = loop(types, dtypes_of([x, y]))
    if found is None:
        raise TypeError(f"Wrong type of arguments for where: {dtypes_of([x, y])}")
    cuda.wait("where")
    chosen = [np.asarray(values_of(each)).astype(found[1][0]) for each in (x, y)]
    return array_of(np.where(np.asarray(values_of(condition)).astype(bool), *chosen))


def _triangle(ours: Callable[..., Any], m: ndarray, k: int = 0) -> Any:
    return _where(array_of(ours(np.ones(m.shape, bool), k)), m, m.dtype.type(0))


def _copyto(dst: Any, src: Any, casting: Any = "same_kind", where: Any = None) -> None:
    if not isinstance(dst, ndarray):
        raise TypeError(f"copyto: dst must be cupy.ndarray, not {type(dst)}")
    if isinstance(src, np.ndarray) and src.size != 1:
        raise ValueError("non-scalar numpy.ndarray cannot be used for copyto")
    if where is not None:
        operand(where)
    given = src._values if isinstance(src, ndarray) else src
    mask = True if where is None else values_of(where)
    cuda.queue(lambda: np.copyto(dst._values, given, casting, mask))


def _matmul(x1: Any, x2: Any, out: Any = None, **kwargs: Any) -> Any:
    for x in (x1, x2):
        if not isinstance(x, ndarray):
            raise TypeError(f"matmul: cupy.ndarray is needed, not {type(x)}")
    cuda.wait("matmul")
    with np.errstate(all="ignore"):
        if bfloat16 not in (x1.dtype, x2.dtype):
            result = np.matmul(x1._values, x2._values)
        else:
            wide = [x._values.astype(np.float32) for x in (x1, x2)]
            result = np.asarray(np.matmul(*wide)).astype(bfloat16)
    if out is None:
        return array_of(result)
    out[...] = array_of(result)
    return out


def _asnumpy(a: Any, *args: Any, **kwargs: Any) -> np.ndarray:
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


_OWN: dict[str, Callable[..., Any]] = {
    "asarray": _asarray,
    "array": _array,
    "ascontiguousarray": _ascontiguousarray,
    "empty": _empty,
    "empty_like": _empty_like,
    "where": _where,
    "tril": functools.partial(_triangle, np.tril),
    "triu": functools.partial(_triangle, np.triu),
    "copyto": _copyto,
    "matmul": _matmul,
    "asnumpy": _asnumpy,
}


def _reduced(name: str, a: ndarray, *args: Any, out: Any = None, **kwargs: Any) -> Any:
    if a.dtype != bfloat16:
        result = getattr(np, name)(a._values, *args, **kwargs)
    else:
        result = getattr(np, name)(a._values.astype(np.float32), *args, **kwargs)
        if name in _KEEPS_DTYPE and kwargs.get("dtype") is None:
            result = np.asarray(result).astype(bfloat16)
    if out is None:
        return array_of(result)
    out[...] = array_of(result)
    return out


def _function(name: str) -> Callable[..., Any]:
    """Return CuPy's function of that name: its parameters, its refusals, NumPy's values."""
    check = None
    with contextlib.suppress(ValueError):  # a compiled function that does not tell
        check = inspect.signature(getattr(real, name)).bind
    own = _OWN.get(name)
    ours = getattr(np, name, None)

    def function(*args: Any, **kwargs: Any) -> Any:
        if check is not None:
            check(*args, **kwargs)
        if own is not None:
            return own(*args, **kwargs)
        if name in _JOINS:
            if not all(isinstance(x, ndarray) for x in args[0]):
                raise TypeError("Only cupy arrays can be concatenated")
        elif name not in _CREATE and not isinstance(args[0], ndarray):
            raise TypeError(f"{name}: cupy.ndarray is needed, not {type(args[0])}")
        if name in _SORTS and args[0].dtype == bfloat16:
            raise TypeError(f"{name}: bfloat16 is not supported")
        if name in _WAITS:
            cuda.wait(name)
        with np.errstate(all="ignore"):
            if name in _REDUCTIONS:
                cuda.wait(name)
                return _reduced(name, *args, **kwargs)
            plain = {key: values_of(value) for key, value in kwargs.items()}
            try:
                result = ours(*map(values_of, args), **plain)  # type: ignore[misc]
            except IndexError as error:
                if "out of bounds" in str(error):
                    raise cuda.Unnoticed(f"{error}: CuPy goes on at another place") from error
                raise
        first = args[0] if args and isinstance(args[0], ndarray) else None
        if isinstance(result, np.ndarray) and first is not None:
            return first._view(result)
        return array_of(result)

    function.__name__ = name
    return function


def module() -> ModuleType:
    """Return what stands for ``cupy``."""
    out = ModuleType("cupy", "A stand-in of CuPy on NumPy's memory.")
    out.__version__, out.__path__ = real.__version__, []  # type: ignore[attr-defined]
    for name in dir(real):
        theirs = getattr(real, name)
        if name.startswith("_"):
            continue
        if isinstance(theirs, real.ufunc):
            setattr(out, name, Ufunc(theirs, name if hasattr(np, name) else theirs.name))
        elif isinstance(theirs, (type, float, int, type(None))):
            setattr(out, name, theirs)  # dtypes and constants
        elif callable(theirs) and (name in _OWN or hasattr(np, name)):
            setattr(out, name, _function(name))
    out.ndarray, out.cuda = ndarray, cuda.namespace()  # type: ignore[attr-defined]
    for name in dir(real.ndarray):
        if not hasattr(ndarray, name) and hasattr(out, name):
            setattr(ndarray, name, _method(getattr(out, name)))
    add_operators(vars(out))
    return out


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: function(self, *args, **kwargs)


def special() -> ModuleType:
    """Return what stands for ``cupyx.scipy.special``."""

    def erf(x: ndarray) -> Any:
        if not isinstance(x, ndarray) or x.dtype == bfloat16:
            raise TypeError("erf: cupy.ndarray of float16, float32 or float64 is needed")
        cuda.wait("erf")
        return array_of(np.vectorize(math.erf, otypes=[x.dtype])(x._values))

    out = ModuleType("cupyx.scipy.special")
    out.erf = erf  # type: ignore[attr-defined]
    return out
