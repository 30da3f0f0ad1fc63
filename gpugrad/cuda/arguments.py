"""What a launch passes: numbers and arrays, checked against the kernel's declared parameters."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from .. import backend
from . import tensor_map

LARGEST = 2**31 - 1  # elements of an array: what a 32-bit index reaches
MAX_THREADS = 1024
MAX_SHARED = 227 << 10  # bytes a block can have on sm_90, the most of any architecture
GRID_LIMITS = (2**31 - 1, 65535, 65535)
BLOCK_LIMITS = (1024, 1024, 64)

# what a kernel's scalar parameters are cast to, by their declared type; long has 64 bits, as on
# every system with CUDA but Windows
SCALARS = {
    "bool": np.dtype("bool"),
    "int": np.dtype("int32"),
    "int32_t": np.dtype("int32"),
    "unsigned": np.dtype("uint32"),
    "unsigned int": np.dtype("uint32"),
    "uint32_t": np.dtype("uint32"),
    "long": np.dtype("int64"),
    "long long": np.dtype("int64"),
    "int64_t": np.dtype("int64"),
    "unsigned long": np.dtype("uint64"),
    "unsigned long long": np.dtype("uint64"),
    "size_t": np.dtype("uint64"),
    "uint64_t": np.dtype("uint64"),
    "float": np.dtype("float32"),
    "double": np.dtype("float64"),
}


class Parameter(NamedTuple):
    """One parameter of a kernel: a scalar of a dtype; a pointer or a TensorMap (dtype None).

    ``constant`` tells that the kernel only reads what is pointed to.
    """

    name: str
    type: str
    dtype: np.dtype | None
    constant: bool = False


# the dtype of the array that a pointer to this C type wants
_ELEMENTS = {
    **SCALARS,
    "char": np.dtype("int8"),
    "int8_t": np.dtype("int8"),
    "uint8_t": np.dtype("uint8"),
    "unsigned char": np.dtype("uint8"),
    "short": np.dtype("int16"),
    "int16_t": np.dtype("int16"),
    "uint16_t": np.dtype("uint16"),
    "unsigned short": np.dtype("uint16"),
    "__half": np.dtype("float16"),
    "half": np.dtype("float16"),
    "__nv_bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_T = {"0": "float", "1": "__nv_bfloat16", "2": "__half"}  # by GPUGRAD_DTYPE, as in common.cuh


class Strided(NamedTuple):
    """An array passed by its first element alone: the kernel gets the strides as numbers.

    To a parameter that is a TensorMap: all of it, with ``box`` for copies of boxes of that shape.
    """

    array: Any
    box: tuple[int, ...] | None = None


def checked_sizes(
    kernel: str, grid: int | Sequence[int], block: int | Sequence[int], shared_mem: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return grid and block with three axes; ValueError where no GPU would launch them."""
    if not 0 <= shared_mem <= MAX_SHARED:
        raise ValueError(
            f"kernel {kernel!r}: {shared_mem} bytes of dynamic shared memory; "
            f"a block has 0 to {MAX_SHARED}"
        )
    return _size(kernel, "grid", grid, GRID_LIMITS), _size(kernel, "block", block, BLOCK_LIMITS)


def _size(
    kernel: str, what: str, size: int | Sequence[int], limits: Sequence[int]
) -> tuple[int, ...]:
    given = tuple(int(n) for n in ((size,) if isinstance(size, int) else size))
    full = given + (1,) * (3 - len(given))
    good = 1 <= len(given) <= 3 and all(
        1 <= n <= limit for n, limit in zip(full, limits, strict=True)
    )
    if not good or (what == "block" and full[0] * full[1] * full[2] > MAX_THREADS):
        total = f", {MAX_THREADS} in all" if what == "block" else ""
        raise ValueError(
            f"kernel {kernel!r}: {what} {given} is not possible; "
            f"the limits are {tuple(limits)}{total}, the least is 1"
        )
    return full


def checked(
    kernel: str,
    parameters: Sequence[Parameter],
    args: Sequence[Any],
    defines: Mapping[str, object],
) -> list[Any]:
    """Return the arguments as NumPy scalars of the declared types, arrays, Strided and None.

    Raises TypeError for a wrong number or type, ValueError for an array that is not C-contiguous,
    OverflowError for a number that its parameter cannot hold.
    """
    if len(args) != len(parameters):
        names = ", ".join(p.name for p in parameters)
        raise TypeError(
            f"kernel {kernel!r} takes {len(parameters)} arguments ({names}), not {len(args)}"
        )
    values = []
    for parameter, value in zip(parameters, args, strict=True):
        where = f"kernel {kernel!r}, argument {parameter.name!r}"
        if parameter.dtype is not None:
            value = _scalar(where, parameter.type, parameter.dtype, value)
        elif parameter.type == tensor_map.NAME:
            _check_map(where, value)
        elif value is not None:
            _check_array(where, _element(parameter, defines), value)
        values.append(value)
    return values


def _element(parameter: Parameter, defines: Mapping[str, object]) -> np.dtype | None:
    """Return the dtype of what a pointer points to; None if any will do."""
    if parameter.type.count("*") > 1:
        return np.dtype("uint64")  # addresses
    name = parameter.type.replace("*", "").strip()
    if name == "T":
        name = _T.get(str(defines.get("GPUGRAD_DTYPE", 0)), "")
    return _ELEMENTS.get(name)


def _check_array(where: str, wanted: np.dtype | None, value: Any) -> None:
    strided = isinstance(value, Strided)
    array = value.array if strided else value
    if not backend.is_array(array):
        hint = "; pass its .data" if backend.is_array(getattr(array, "data", None)) else ""
        raise TypeError(f"{where}: an array or None is needed, not {type(array).__name__}{hint}")
    if wanted is not None and not _compatible(array.dtype, wanted):
        raise TypeError(f"{where}: {wanted} is needed, not {array.dtype}")
    if not strided and not array.flags.c_contiguous:
        raise ValueError(
            f"{where}: the array of shape {array.shape} and strides {array.strides} is not "
            "C-contiguous and a kernel sees no strides; pass numpy.ascontiguousarray(...), or "
            "strided(...) to a kernel that is told the strides"
        )


def _check_map(where: str, value: Any) -> None:
    if not isinstance(value, Strided) or not backend.is_array(value.array):
        raise TypeError(
            f"{where}: a {tensor_map.NAME} is made of strided(array), not of {type(value).__name__}"
        )
    refused = None if value.box is None else tensor_map.refusal(value.array, value.box)
    if refused:
        raise ValueError(f"{where}: no {tensor_map.NAME} can describe {refused}")


def _compatible(given: np.dtype, wanted: np.dtype) -> bool:
    """Return whether an array's elements fit a pointer: the sign of integers is free."""
    if given == wanted:
        return True
    if given.itemsize != wanted.itemsize:
        return False
    bits_of_narrow_float = given.kind == "u" and wanted.itemsize == 2
    return given.kind in "iub" and (wanted.kind in "iub" or bits_of_narrow_float)


@functools.cache
def _integers(dtype: np.dtype) -> range:
    """Return the numbers that an integer dtype holds."""
    limits = np.iinfo(dtype)
    return range(int(limits.min), int(limits.max) + 1)


def _scalar(where: str, name: str, dtype: np.dtype, value: Any) -> Any:
    allowed: tuple[type, ...] = (bool, np.bool_)
    if dtype.kind in "iuf":
        allowed = (int, np.integer)
    if dtype.kind == "f":
        allowed = (*allowed, float, np.floating)
    if not isinstance(value, allowed) or (dtype.kind != "b" and isinstance(value, bool)):
        raise TypeError(f"{where}: {name} is needed, not {type(value).__name__} {value!r}")
    number: Any = value
    if dtype.kind in "iu" and int(number) not in _integers(dtype):
        raise OverflowError(f"{where}: {value} does not fit {name}")
    with np.errstate(over="ignore"):  # a huge double is inf, as in C
        return dtype.type(value)
