"""Arrays without elements: a shape, a dtype, and a place in memory that is laid out later."""

from __future__ import annotations

import functools
import operator
import weakref
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from ... import backend
from .context import not_recordable
from .shadow import extent, lengths_of, merged, shadow_of

ARENA, INPUT, GRADIENT, CONSTANT = "arena", "input", "gradient", "constant"
REAL, META = "real", "meta"


class Storage:
    """Some bytes of memory that Buffers look at.

    ``kind``: "arena" for what lives within a step, "input" for an argument of the step, "gradient"
    for a gradient that a tensor comes with, "real" for an array that was there before (``array``,
    whose bytes begin at the address ``start``), "constant" for what is filled once when addresses
    are known (``build``), "meta" for parameters without elements.
    """

    __slots__ = ("__weakref__", "array", "build", "kind", "nbytes", "readers", "start")

    def __init__(self, kind: str, nbytes: int, array: Any = None, start: int = 0) -> None:
        self.kind = kind
        self.nbytes = nbytes
        self.array = array
        self.start = start
        self.build: Any = None
        self.readers: list[weakref.ref[Buffer]] = []  # expressions that wait and will read it


def new(
    kind: str,
    shape: Sequence[int],
    dtype: Any,
    buffer: type[Buffer] | None = None,
    strides: Sequence[int] | None = None,
) -> Buffer:
    """Return a Buffer of a new storage; ``buffer`` is its class.

    It is C-contiguous; for NumPy it may have other ``strides``.
    """
    buffer = buffer or Buffer
    shadow = shadow_of(shape, dtype, strides if buffer.by_numpy else None)
    low, high = extent(shadow.shape, shadow.strides, shadow.itemsize)
    return buffer(Storage(kind, high - low), -low, shadow)


class Buffer(backend.Symbolic):
    """An array without elements: its bytes will lie ``offset`` into ``storage``.

    A result of elementwise operations has no storage yet: it is an expression that becomes part of
    its reader's kernel if that is elementwise too, and a launch of its own otherwise. ``original``
    is the array that it stands for, if it stands for one from outside of the step.
    """

    __slots__ = (
        "__weakref__",
        "_expression",
        "_offset",
        "_operations",
        "_shadow",
        "_storage",
        "original",
    )
    __array_ufunc__: Any = None  # NumPy's arrays and numbers leave operators to the Buffer
    device = "meta"
    by_numpy = False  # whether what is computed of it is recorded as calls of NumPy

    namespace: Any  # the array library that records: library.py sets it

    def __init__(
        self, storage: Storage | None, offset: int, shadow: np.ndarray, expression: Any = None
    ) -> None:
        self._storage = storage
        self._offset = offset
        self._shadow = shadow
        self._expression: tuple[str, tuple] | None = expression
        self._operations = 0
        self.original: Any = None
        if expression is not None:
            args = [a for a in expression[1] if isinstance(a, Buffer)]
            self._operations = 1 + sum(a._operations for a in args)

    def settle(self) -> Buffer:
        """Append the launch that computes this expression, if it still waits; return self."""
        if self._storage is None:
            self.namespace.compute(self)
        return self

    @property
    def storage(self) -> Storage:
        """The memory it looks at; an expression that waited gets some."""
        self.settle()
        assert self._storage is not None
        return self._storage

    @property
    def offset(self) -> int:
        """Where it begins in its storage, in bytes."""
        self.settle()
        return self._offset

    shape = property(lambda self: self._shadow.shape)
    dtype = property(lambda self: self._shadow.dtype)
    strides = property(lambda self: self._shadow.strides)
    ndim = property(lambda self: self._shadow.ndim)
    size = property(lambda self: self._shadow.size)
    itemsize = property(lambda self: self._shadow.itemsize)
    nbytes = property(lambda self: self._shadow.nbytes)
    flags = property(lambda self: self._shadow.flags)
    base: Any = None  # nothing but the trace changes it in place

    def __len__(self) -> int:
        return len(self._shadow)

    def __repr__(self) -> str:
        return f"<recorded {self.dtype}{list(self.shape)}>"

    def overlaps(self, other: Buffer) -> bool:
        """Return whether this and another Buffer may lie on common bytes."""
        mine, its = self._storage, other._storage
        if mine is None or its is None:
            return False  # what waits to be computed will have memory of its own
        if mine is not its and not mine.kind == its.kind == REAL:
            return False
        (first, last), (start, stop) = (self._extent(), other._extent())
        return first < stop and start < last

    def _extent(self) -> tuple[int, int]:
        begin = self.storage.start + self.offset
        low, high = extent(self.shape, self.strides, self.itemsize)
        return begin + low, begin + high

    # Views

    def at(self, offset: int, shadow: np.ndarray) -> Buffer:
        """Return a view that begins so many bytes after this one."""
        return type(self)(self.storage, self._offset + offset, shadow)

    def _view(self, shadow: np.ndarray) -> Buffer:
        self.settle()
        return self.at(shadow.ctypes.data - self._shadow.ctypes.data, shadow)

    @property
    def T(self) -> Buffer:
        """The axes in reverse order."""
        return self._view(self._shadow.T)

    @property
    def mT(self) -> Buffer:
        """The last two axes swapped."""
        return self._view(self._shadow.swapaxes(-1, -2))

    def transpose(self, *axes: Any) -> Buffer:
        """Return the axes in another order."""
        return self._view(self._shadow.transpose(*axes))

    def swapaxes(self, first: int, second: int) -> Buffer:
        """Return two axes in each other's place."""
        return self._view(self._shadow.swapaxes(first, second))

    def squeeze(self, axis: Any = None) -> Buffer:
        """Return it without axes of length 1."""
        return self._view(self._shadow.squeeze(axis))

    def reshape(self, *shape: Any) -> Buffer:
        """Return the elements in another shape, copied where no view will do."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        lengths = lengths_of(self.size, tuple(map(operator.index, wanted)))
        if lengths == self.shape:
            return self
        if self.flags.c_contiguous:
            return self.at(0, shadow_of(lengths, self.dtype))
        strides = merged(self._shadow, lengths)
        if strides is None:
            return self.copy().reshape(lengths)
        return self.at(0, shadow_of(lengths, self.dtype, strides))

    def ravel(self) -> Buffer:
        """Return the elements in one axis."""
        return self.reshape(-1)

    def __getitem__(self, index: Any) -> Buffer:
        items = index if isinstance(index, tuple) else (index,)
        for item in items:
            if not (item is None or item is Ellipsis or isinstance(item, (int, np.integer, slice))):
                raise not_recordable(f"indexing with {type(item).__name__}")
        if Ellipsis not in items:
            items = (*items, Ellipsis)  # a view of no dimension, where NumPy would read an element
        return self._view(self._shadow[items])

    def __setitem__(self, index: Any, value: Any) -> None:
        if hasattr(value, "_requires_grad"):  # a tensor: NumPy would take its elements
            value = value._data
        self.namespace.copy_to(self if index is Ellipsis else self[index], value)

    # Copies

    def astype(self, dtype: Any, copy: bool = True) -> Buffer:
        """Return the values in another dtype."""
        wanted = np.dtype(dtype)
        return self if wanted == self.dtype else self.namespace.cast(self, wanted)

    def copy(self, order: str = "C") -> Buffer:
        """Return the elements in C order in memory of their own."""
        if order != "C":
            raise not_recordable(f"a copy in order {order!r}")
        out = self.namespace.empty(self.shape, self.dtype)
        self.namespace.copy_to(out, self)
        return out

    def fill(self, value: float) -> None:
        """Overwrite every element with a number."""
        self.namespace.fill(self, value)

    # What cannot be known

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise not_recordable(
            f"reading the values of {self.dtype}{list(self.shape)} (print, float, item, numpy, if)"
        )

    item = tolist = __float__ = __int__ = __index__ = __bool__ = __array__ = _refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if hasattr(np.ndarray, name):
            return functools.partial(getattr(self.namespace, name), self)
        raise AttributeError(f"an array has no {name!r}")

    __hash__ = object.__hash__

    def __neg__(self) -> Buffer:
        return self.namespace.negative(self)

    def __pos__(self) -> Buffer:
        return self

    def __abs__(self) -> Buffer:
        return self.namespace.abs(self)

    def __invert__(self) -> Buffer:
        return self.namespace.invert(self)

    def __eq__(self, other: object) -> Any:
        return self.namespace.equal(self, other)

    def __ne__(self, other: object) -> Any:
        return self.namespace.not_equal(self, other)


def _operators(symbol: str, name: str, reflected: bool) -> None:
    def forward(self: Buffer, other: Any) -> Buffer:
        return getattr(self.namespace, name)(self, other)

    def backward(self: Buffer, other: Any) -> Buffer:
        return getattr(self.namespace, name)(other, self)

    def in_place(self: Buffer, other: Any) -> Buffer:
        value = getattr(self.namespace, name)(self, other)
        self.namespace.copy_to(self, value.astype(self.dtype))
        return self

    setattr(Buffer, f"__{symbol}__", forward)
    if reflected:
        setattr(Buffer, f"__r{symbol}__", backward)
        setattr(Buffer, f"__i{symbol}__", in_place)


for _symbol, _name in {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "divide",
    "pow": "power",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "mod": "remainder",
    "floordiv": "floor_divide",
}.items():
    _operators(_symbol, _name, True)
for _symbol in ("lt", "le", "gt", "ge"):
    _word = {"l": "less", "g": "greater"}[_symbol[0]]
    _operators(_symbol, _word + "_equal" * (_symbol[1] == "e"), False)


def address(buffer: Buffer) -> int:
    """Return what the address of a Buffer is sure to be a multiple of, as if it were that."""
    return buffer.storage.start + buffer.offset
