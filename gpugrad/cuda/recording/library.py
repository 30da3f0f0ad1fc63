"""The array library of Buffers, under NumPy's names."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import backend
from .. import symbolic
from ..column_sums import sums
from ..kernel import DTYPE_CODES
from .buffer import ARENA, META, Buffer, new
from .context import current, not_recordable
from .expressions import compute, expression
from .launches import copy_to, fill


def _elementwise(name: str, *args: Any, out: Any = None, casting: str = "same_kind") -> Buffer:
    """Return an expression; with ``out`` it is computed and stored there."""
    value = expression(name, *args)
    if out is None:
        return value
    if not np.can_cast(value.dtype, out.dtype, casting):  # type: ignore[arg-type]
        raise TypeError(f"{name}: {value.dtype} does not fit {out.dtype} by {casting} casting")
    copy_to(out, value)
    return out


class Library:
    """The array library of Buffers: NumPy's names; what no kernel computes raises NotRecordable."""

    float32, float64, bool_ = backend.float32, backend.float64, backend.bool_

    def __getattr__(self, name: str) -> Any:
        if (
            name in symbolic.TEMPLATES
            or hasattr(symbolic.Library, name)
            or name
            in (
                "invert",
                "bitwise_and",
                "bitwise_or",
                "bitwise_xor",
                "logical_not",
            )
        ):
            return functools.partial(_elementwise, name)
        if name.startswith("__"):
            raise AttributeError(name)
        raise not_recordable(f"{name}")

    # New arrays

    @staticmethod
    def empty(shape: Any, dtype: Any = backend.float32) -> Buffer:
        """Return memory for a kernel to fill; outside of a trace that of a model without any."""
        return new(META if current() is None else ARENA, shape, dtype)

    def full(self, shape: Any, value: Any, dtype: Any = backend.float32) -> Buffer:
        """Return one number everywhere."""
        out = self.empty(shape, dtype)
        if out.size:
            fill(out, value)
        return out

    def zeros(self, shape: Any, dtype: Any = backend.float32) -> Buffer:
        """Return zeros."""
        return self.full(shape, 0, dtype)

    def ones(self, shape: Any, dtype: Any = backend.float32) -> Buffer:
        """Return ones."""
        return self.full(shape, 1, dtype)

    def empty_like(self, x: Any, dtype: Any = None) -> Buffer:
        """Return memory of the shape of x."""
        return self.empty(x.shape, dtype or x.dtype)

    def zeros_like(self, x: Any, dtype: Any = None) -> Buffer:
        """Return zeros in the shape of x."""
        return self.zeros(x.shape, dtype or x.dtype)

    def ones_like(self, x: Any, dtype: Any = None) -> Buffer:
        """Return ones in the shape of x."""
        return self.ones(x.shape, dtype or x.dtype)

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        """Return x as a Buffer; a real array is lifted, a number becomes an array."""
        if not isinstance(x, Buffer):
            array = x if backend.is_array(x) else np.asarray(x, dtype)
            trace = current()
            x = new(META, array.shape, array.dtype) if trace is None else trace.lift(array)
        return x if dtype is None else x.astype(dtype)

    def ascontiguousarray(self, x: Any, dtype: Any = None) -> Buffer:
        """Return x with its elements in C order."""
        x = self.asarray(x, dtype)
        return x.settle() if x.flags.c_contiguous else x.copy()

    # Views

    @staticmethod
    def broadcast_to(x: Buffer, shape: Sequence[int]) -> Buffer:
        """Return x repeated along new axes and those of length 1, without a copy."""
        return x._view(np.broadcast_to(x._shadow, tuple(shape)))

    @staticmethod
    def reshape(x: Buffer, shape: Any) -> Buffer:
        """Return the elements in another shape."""
        return x.reshape(shape)

    @staticmethod
    def transpose(x: Buffer, axes: Any = None) -> Buffer:
        """Return the axes in another order."""
        return x.transpose(axes)

    permute_dims = transpose

    @staticmethod
    def swapaxes(x: Buffer, first: int, second: int) -> Buffer:
        """Return two axes in each other's place."""
        return x.swapaxes(first, second)

    @staticmethod
    def flip(x: Buffer, axis: Any = None) -> Buffer:
        """Return x with the elements along some axes in reverse order."""
        return x._view(np.flip(x._shadow, axis))

    @staticmethod
    def moveaxis(x: Buffer, source: Any, destination: Any) -> Buffer:
        """Return axes moved to other places."""
        return x._view(np.moveaxis(x._shadow, source, destination))

    @staticmethod
    def expand_dims(x: Buffer, axis: Any) -> Buffer:
        """Return x with new axes of length 1."""
        return x._view(np.expand_dims(x._shadow, axis))

    @staticmethod
    def squeeze(x: Buffer, axis: Any = None) -> Buffer:
        """Return x without axes of length 1."""
        return x.squeeze(axis)

    @staticmethod
    def copy(x: Buffer) -> Buffer:
        """Return the elements in memory of their own."""
        return x.copy()

    def concatenate(self, arrays: Sequence[Any], axis: int = 0) -> Buffer:
        """Return arrays one behind the other."""
        given = [self.asarray(a) for a in arrays]
        axis %= given[0].ndim
        shape = list(given[0].shape)
        shape[axis] = sum(a.shape[axis] for a in given)
        out, start = self.empty(shape, given[0].dtype), 0
        for a in given:
            stop = start + a.shape[axis]
            copy_to(out[(slice(None),) * axis + (slice(start, stop),)], a)
            start = stop
        return out

    concat = concatenate

    def stack(self, arrays: Sequence[Any], axis: int = 0) -> Buffer:
        """Return arrays along a new axis."""
        return self.concatenate([self.expand_dims(self.asarray(a), axis) for a in arrays], axis)

    # Products and sums

    @staticmethod
    def matmul(x: Any, y: Any) -> Buffer:
        """Return the matrix product over the last two axes."""
        gemm = importlib.import_module("gpugrad.cuda.gemm").gemm
        return gemm(xp.asarray(x), xp.asarray(y))

    def sum(self, x: Buffer, axis: Any = None, keepdims: bool = False, dtype: Any = None) -> Buffer:
        """Return sums over axes, accumulated in float32."""
        axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
        gone = [a % x.ndim for a in axes]
        wanted = np.dtype(dtype or x.dtype)
        if not x.size:
            out = self.zeros([1 if a in gone else n for a, n in enumerate(x.shape)], wanted)
        elif x.dtype not in DTYPE_CODES:
            raise not_recordable(f"sum of {x.dtype}")
        elif wanted in (x.dtype, backend.float32):
            out = sums(x, gone, wanted)
        else:
            out = sums(x, gone, backend.float32).astype(wanted)
        return out if keepdims else out.reshape([n for a, n in enumerate(x.shape) if a not in gone])

    def mean(
        self, x: Buffer, axis: Any = None, keepdims: bool = False, dtype: Any = None
    ) -> Buffer:
        """Return means over axes, accumulated in float32."""
        total = self.sum(x, axis, keepdims, backend.float32)
        return (total * (total.size / x.size)).astype(dtype or x.dtype)

    # What Buffers ask for

    compute = staticmethod(compute)
    copy_to = staticmethod(copy_to)
    fill = staticmethod(fill)
    not_recordable = staticmethod(not_recordable)

    @staticmethod
    def cast(x: Buffer, dtype: Any) -> Buffer:
        """Return x in another dtype."""
        return expression("astype", x, dtype)


xp = Buffer.namespace = Library()
