"""``cupy.ndarray``: a NumPy array that only the stand-in's functions may look into."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from . import cuda

bfloat16 = np.dtype(ml_dtypes.bfloat16)
_CHARACTERS = frozenset("?bhilqBHILQefdFD")  # of the dtypes that CuPy has beside bfloat16


def known(dtype: Any) -> np.dtype:
    """Return a dtype; ValueError for one that CuPy's arrays cannot have."""
    dtype = np.dtype(dtype)
    if dtype != bfloat16 and dtype.char not in _CHARACTERS:
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


def unset(values: np.ndarray) -> np.ndarray:
    """Return new memory as nobody would want to read it: bytes of ones, NaN as a float."""
    flat = values.reshape(-1, order="A")
    if values.dtype == bool:
        flat.fill(True)
    else:
        flat.view(np.uint8).fill(0xFF)
    return values


def values_of(x: Any) -> Any:
    """Return NumPy's array of an array; within tuples and lists too, everything else as it is."""
    if isinstance(x, ndarray):
        return x._values
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if type(x) in (tuple, list):
        return type(x)(map(values_of, x))
    return x


def array_of(x: Any, base: ndarray | None = None) -> Any:
    """Return the array on the memory of one of NumPy's; within tuples and lists too."""
    if type(x) in (tuple, list):
        return type(x)(array_of(each, base) for each in x)
    if not isinstance(x, (np.ndarray, np.generic)):
        return x
    values = np.asarray(x)
    known(values.dtype)
    out = object.__new__(ndarray)
    out._values, out._base = values, base
    return out


class _Flags:
    def __init__(self, array: ndarray) -> None:
        self.c_contiguous = array._values.flags.c_contiguous
        self.f_contiguous = array._values.flags.f_contiguous
        self.owndata = array._base is None

    def __getitem__(self, name: str) -> bool:
        return bool(getattr(self, name.lower()))


class ndarray:
    """An array. Methods that are functions of the namespace too are added by ``functions``."""

    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    _values: np.ndarray
    _base: ndarray | None

    def __new__(
        cls,
        shape: Any,
        dtype: Any = float,
        memptr: cuda.MemoryPointer | None = None,
        strides: Any = None,
        order: Any = "C",
    ) -> ndarray:
        if memptr is None:
            return array_of(unset(np.empty(shape, known(dtype), order)))
        memory = memptr.mem.bytes
        out = array_of(np.ndarray(shape, known(dtype), memory, memptr.offset, strides))
        out._memory = memptr.mem  # kept as long as the array
        return out

    shape = property(lambda self: self._values.shape)
    strides = property(lambda self: self._values.strides)
    dtype = property(lambda self: self._values.dtype)
    ndim = property(lambda self: self._values.ndim)
    size = property(lambda self: self._values.size)
    itemsize = property(lambda self: self._values.itemsize)
    nbytes = property(lambda self: self._values.nbytes)
    base = property(lambda self: self._base)
    flags = property(_Flags)
    device = property(lambda self: cuda.Device())
    T = property(lambda self: self._view(self._values.T))
    mT = property(lambda self: self._view(self._values.mT))

    @property
    def data(self) -> cuda.MemoryPointer:
        owner = self._values
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        begin = owner.ctypes.data
        memory = cuda.UnownedMemory(begin, owner.nbytes, self)
        return cuda.MemoryPointer(memory, self._values.ctypes.data - begin)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.data.ptr, False),
            "strides": self.strides,
            "version": 3,
        }

    def _view(self, values: np.ndarray) -> Any:
        """Return the array of what NumPy made of this one's, which may be a view of it."""
        owner = self if self._base is None else self._base
        return array_of(values, owner if np.may_share_memory(values, self._values) else None)

    # To the host

    def __array__(self, *args: object, **kwargs: object) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct "
            "a NumPy array explicitly."
        )

    def get(self, *args: object, **kwargs: object) -> np.ndarray:
        cuda.wait("get")
        return self._values.copy()

    def item(self, *args: Any) -> Any:
        return self.get().item(*args)

    def tolist(self) -> Any:
        return self.get().tolist()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __index__(self) -> int:
        return self.get().__index__()

    def __repr__(self) -> str:
        return repr(self.get())

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[ndarray]:
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    # Copies and views

    def copy(self, order: Any = "C") -> Any:
        cuda.wait("copy")
        return array_of(self._values.copy(order))

    def __copy__(self) -> Any:
        return self.copy()

    def __deepcopy__(self, memo: object) -> Any:
        return self.copy()

    def astype(
        self,
        dtype: Any,
        order: Any = "K",
        casting: Any = None,
        subok: Any = None,
        copy: bool = True,
    ) -> Any:
        if subok is not None:
            raise TypeError("subok is not supported yet")
        cuda.wait("astype")
        if not copy and known(dtype) == self.dtype:
            return self
        with np.errstate(all="ignore"):
            return array_of(self._values.astype(known(dtype), order))

    def reshape(self, *shape: Any, order: Any = "C") -> Any:
        return self._view(self._values.reshape(*shape, order=order))

    def transpose(self, *axes: Any) -> Any:
        return self._view(self._values.transpose(*axes))

    def ravel(self, order: Any = "C") -> Any:
        return self._view(self._values.ravel(order))

    def flatten(self, order: Any = "C") -> Any:
        return array_of(self._values.flatten(order))

    def view(self, dtype: Any = None) -> Any:
        return self._view(self._values.view() if dtype is None else self._values.view(known(dtype)))

    # Changes

    def fill(self, value: Any) -> None:
        self[...] = value

    def set(self, arr: np.ndarray, stream: cuda.Stream | None = None) -> None:
        if not isinstance(arr, np.ndarray) or arr.shape != self.shape or arr.dtype != self.dtype:
            raise ValueError("set: a NumPy array of the same shape and dtype is needed")
        self._values[...] = arr

    def __getitem__(self, index: Any) -> Any:
        found, by_arrays = checked_index(index)
        if by_arrays:
            cuda.wait("an index with arrays")
            return array_of(_at(self._values, found).copy())
        return self._view(self._values[(*found, Ellipsis) if ... not in found else found])

    def __setitem__(self, index: Any, value: Any) -> None:
        found, by_arrays = checked_index(index)
        if isinstance(value, np.ndarray) and value.ndim and not by_arrays:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        given = value._values if isinstance(value, ndarray) else np.asarray(value)
        if by_arrays:
            cuda.wait("an index with arrays")
            _at(self._values, found)  # raises what it has to
            with np.errstate(all="ignore"):
                self._values[found] = given.astype(self.dtype)
            return
        place = self._values[(*found, Ellipsis) if ... not in found else found]
        if given.ndim > place.ndim:
            raise ValueError(f"operands could not be broadcast: {given.shape} to {place.shape}")
        np.broadcast_to(given, place.shape)  # raises where it cannot be
        cuda.queue(lambda: _copied(place, given))

    # What NumPy makes of it

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Compute for NumPy's ufunc, as CuPy does, where no operand is an array of NumPy's."""
        import cupy

        ours = getattr(cupy, ufunc.__name__, None)
        arrays = (*inputs, *kwargs.get("out", ()))
        if method != "__call__" or ours is None or any(isinstance(x, np.ndarray) for x in arrays):
            return NotImplemented
        return ours(*inputs, **kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        import cupy

        ours = getattr(cupy, function.__name__, None)
        if ours is None or any(t is not ndarray for t in types):
            return NotImplemented
        return ours(*args, **kwargs)


def _copied(place: np.ndarray, given: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        np.copyto(place, given, casting="unsafe")


def checked_index(index: Any) -> tuple[tuple, bool]:
    """Return an index for NumPy's array, always a tuple, and whether arrays are in it.

    Raises IndexError, TypeError and ValueError for what CuPy takes in no index.
    """
    parts = index if isinstance(index, tuple) else (index,)
    by_arrays = any(isinstance(p, (ndarray, np.ndarray, list, bool)) for p in parts)
    found: list[Any] = []
    masks = 0
    for part in parts:
        if isinstance(part, (ndarray, np.ndarray, list, bool)):
            part = part._values if isinstance(part, ndarray) else np.asarray(part)
            if isinstance(part, np.ndarray) and part.dtype == float and not part.size:
                part = part.astype(int)  # []
            if part.dtype.kind not in "iub":
                raise IndexError("arrays used as indices must be of integer or boolean type")
            masks += part.dtype.kind == "b"
        elif by_arrays and not (part is None or part is Ellipsis or isinstance(part, (slice, int))):
            raise IndexError(f"only integers, slices and arrays are valid indices: {type(part)}")
        elif isinstance(part, slice) and any(
            isinstance(end, ndarray) for end in (part.start, part.stop, part.step)
        ):
            raise TypeError("slice indices must be integers or None, not arrays")
        found.append(part)
    if masks and sum(isinstance(p, np.ndarray) for p in found) > 1:
        raise ValueError("CuPy only supports slices that consist of one boolean array.")
    return tuple(found), by_arrays


def _at(values: np.ndarray, index: tuple) -> np.ndarray:
    """Return NumPy's elements at an index with arrays; a GPU notices none that is out of bounds."""
    try:
        return values[index]
    except IndexError as error:
        if "out of bounds" in str(error):
            raise cuda.Unnoticed(f"{error}: CuPy goes on at another place") from error
        raise
