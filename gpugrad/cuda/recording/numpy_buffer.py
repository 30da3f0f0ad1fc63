"""Arrays without elements whose operations are recorded as calls of NumPy.

NumPy asks such an array what its functions shall do with it (``__array_ufunc__`` of NEP 13 and
``__array_function__`` of NEP 18), so the array library of these Buffers is NumPy itself: rules,
fused operations and the user's code do what they do on arrays.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ... import backend
from .buffer import Buffer, Storage
from .context import not_recordable
from .dry_run import Place, arrays_in, layout_of, outcome, replaced, zeros_like
from .numpy_calls import as_one, changing, laid_out
from .shadow import lengths_of
from .trace import Trace, active

# functions whose results have shapes that do not depend on values, and that take `out`
_INTO = {
    np.all,
    np.any,
    np.argmax,
    np.argmin,
    np.clip,
    np.concatenate,
    np.cumprod,
    np.cumsum,
    np.dot,
    np.max,
    np.min,
    np.prod,
    np.stack,
    np.sum,
}
# the same, without `out`
_STATIC = {
    np.argsort,
    np.count_nonzero,
    np.copy,
    np.diff,
    np.einsum,
    np.full_like,
    np.mean,
    np.median,
    np.nan_to_num,
    np.ones_like,
    np.outer,
    np.pad,
    np.roll,
    np.sort,
    np.std,
    np.take,
    np.take_along_axis,
    np.tensordot,
    np.tile,
    np.trace,
    np.tril,
    np.triu,
    np.var,
    np.where,
    np.zeros_like,
}
_VIEWS = {
    np.atleast_1d,
    np.atleast_2d,
    np.broadcast_to,
    np.diagonal,
    np.expand_dims,
    np.flip,
    np.moveaxis,
    np.ravel,
    np.reshape,
    np.rollaxis,
    np.split,
    np.array_split,
    np.squeeze,
    np.swapaxes,
    np.transpose,
}
# what NumPy computes instead of a power with such an exponent
_POWERS = {2: np.square, 0.5: np.sqrt, -1: np.reciprocal}


class NumpyBuffer(Buffer):
    """A Buffer on the CPU. ``base`` is None for an array that owns its memory, as NumPy's is."""

    __slots__ = ("base",)
    device = "cpu"
    by_numpy = True
    namespace = np

    def __init__(self, storage: Storage, offset: int, shadow: np.ndarray) -> None:
        super().__init__(storage, offset, shadow)
        self.base: Any = None

    def at(self, offset: int, shadow: np.ndarray) -> NumpyBuffer:
        """Return a view that begins so many bytes after this one."""
        view = NumpyBuffer(self.storage, self._offset + offset, shadow)
        view.base = self
        return view

    # NumPy's functions

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if any(hasattr(a, "_requires_grad") for a in inputs):
            return NotImplemented  # a tensor's operation
        if method == "at":
            changing([inputs[0]], ufunc.at, *inputs)
            return None
        function = ufunc if method == "__call__" else getattr(ufunc, method)
        (out,) = kwargs.pop("out", (None,))
        return _recorded(function, inputs, kwargs, out)

    def __array_function__(
        self, function: Callable, types: Sequence[type], args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        if function in _INTO:
            return _recorded(function, args, kwargs, kwargs.pop("out", None))
        if function is np.copyto:
            _copy_into(*args, **kwargs)
            return None
        if function not in _STATIC and function not in _VIEWS:
            raise not_recordable(f"numpy.{function.__name__}")
        return as_one(function, *args, **kwargs)

    # Views and copies

    def reshape(self, *shape: Any) -> Buffer:
        """Return the elements in another shape, copied where no view will do."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        lengths = lengths_of(self.size, tuple(map(operator.index, wanted)))
        return self._view(self._shadow) if lengths == self.shape else super().reshape(lengths)

    def astype(self, dtype: Any, copy: bool = True) -> Buffer:
        """Return the values in another dtype, copied unless ``copy`` is False."""
        wanted = np.dtype(dtype)
        if wanted == self.dtype and not copy:
            return self
        out = laid_out(layout_of(zeros_like(self).astype(wanted)))
        _copy_into(out, self, casting="unsafe")
        return out

    def copy(self, order: Any = "C") -> Buffer:
        """Return the elements in memory of their own."""
        out = laid_out(layout_of(zeros_like(self).copy(order)))
        _copy_into(out, self)
        return out

    def fill(self, value: float) -> None:
        """Overwrite every element with a number."""
        active(self).record(np.ndarray.fill, (self, value), writes=[self], name="fill")

    def flatten(self) -> Buffer:
        """Return a copy of the elements in one axis."""
        return self.copy().reshape(-1)

    def __getitem__(self, index: Any) -> Buffer:
        if _is_basic(index):
            return super().__getitem__(index)
        if any(a.dtype == backend.bool_ for a in arrays_in(index)):
            raise not_recordable("indexing with a mask, which takes as many elements as are true,")
        return as_one(operator.getitem, self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        if hasattr(value, "_requires_grad"):  # a tensor: NumPy would take its elements
            value = value._data
        if _is_basic(index):
            target = self if index is Ellipsis else super().__getitem__(index)
            _copy_into(target, value, casting="unsafe")
        else:
            changing([self], operator.setitem, self, index, value)

    def __matmul__(self, other: Any) -> Any:
        return np.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return np.matmul(other, self)

    def __ipow__(self, other: Any) -> NumpyBuffer:
        _copy_into(self, self**other)
        return self

    def __pow__(self, other: Any) -> Any:
        is_plain = type(other) in (int, float) and backend.is_float(self.dtype)
        return _POWERS[other](self) if is_plain and other in _POWERS else np.power(self, other)


class NumpyTrace(Trace):
    """A trace of what NumPy computes: no kernel is launched."""

    buffer = NumpyBuffer

    def __init__(self) -> None:
        super().__init__(capability=0)


def _recorded(function: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> Any:
    """Record a function that writes to ``out``: to a new array if that is None."""
    trace = active(*arrays_in((args, out)))
    args, kwargs = replaced((args, kwargs), lambda a: a if isinstance(a, Buffer) else trace.lift(a))
    if out is None:
        made = outcome(function, args, kwargs, trace.known).result
        if not isinstance(made, Place):
            raise not_recordable(f"{function.__name__}, which has several results,")
        out = laid_out(made.layout)
    elif not isinstance(out, Buffer):
        out = trace.lift(out)
    reads = [a for a in arrays_in((args, kwargs)) if isinstance(a, Buffer)]
    if isinstance(function, np.ufunc) and function not in (np.maximum, np.minimum):
        args = (*args, out)  # half as expensive as by its name, which those two insist on
    else:
        kwargs = {**kwargs, "out": out}
    trace.record(function, args, kwargs, reads=reads, writes=[out])
    return out


def _copy_into(out: Any, value: Any, casting: str = "same_kind", where: Any = True) -> None:
    """Record ``np.copyto``."""
    trace = active(*arrays_in((out, value, where)))
    out, value, where = replaced(
        (out, value, where), lambda a: a if isinstance(a, Buffer) else trace.lift(a)
    )
    reads = arrays_in((value, where))
    trace.record(
        np.copyto,
        (out, value),
        {"casting": casting, "where": where},
        reads=[a for a in reads if isinstance(a, Buffer)],
        writes=[out],
    )


def _is_basic(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return not any(backend.is_array(p) or isinstance(p, (bool, list)) for p in parts)


def _in_place(name: str) -> Callable[[NumpyBuffer, Any], NumpyBuffer]:
    ufunc = getattr(np, name)

    def change(self: NumpyBuffer, other: Any) -> NumpyBuffer:
        ufunc(self, other, out=self)
        return self

    return change


for _symbol, _name in {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "divide",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "mod": "remainder",
    "floordiv": "floor_divide",
}.items():
    setattr(NumpyBuffer, f"__i{_symbol}__", _in_place(_name))
