"""What a launch passes: numbers and numpy arrays, checked against the kernel's parameters."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ..cuda.source import SCALARS, Parameter

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


class Arguments(NamedTuple):
    """C values in the order of the parameters, and the arrays behind the pointers."""

    values: list[Any]
    arrays: list[np.ndarray]
    names: list[str]  # of the arrays' parameters


def convert(
    kernel: str,
    parameters: Sequence[Parameter],
    args: Sequence[Any],
    defines: Mapping[str, object],
) -> Arguments:
    """Return the arguments as C values.

    Raises TypeError for a wrong number or type, ValueError for an array that is not C-contiguous,
    OverflowError for a number that its parameter cannot hold.
    """
    if len(args) != len(parameters):
        names = ", ".join(p.name for p in parameters)
        raise TypeError(
            f"kernel {kernel!r} takes {len(parameters)} arguments ({names}), not {len(args)}"
        )
    converted = Arguments([], [], [])
    for parameter, value in zip(parameters, args, strict=True):
        where = f"kernel {kernel!r}, argument {parameter.name!r}"
        if parameter.dtype is not None:
            converted.values.append(_scalar(where, parameter.type, parameter.dtype, value))
        elif value is None:
            converted.values.append(ctypes.c_void_p(None))
        else:
            _check_array(where, _element(parameter, defines), value)
            converted.values.append(ctypes.c_void_p(value.ctypes.data))
            converted.arrays.append(value)
            converted.names.append(parameter.name)
    return converted


def _element(parameter: Parameter, defines: Mapping[str, object]) -> np.dtype | None:
    """Return the dtype of what a pointer points to; None if any will do."""
    if parameter.type.count("*") > 1:
        return np.dtype("uint64")  # addresses
    name = parameter.type.replace("*", "").strip()
    if name == "T":
        name = _T.get(str(defines.get("GPUGRAD_DTYPE", 0)), "")
    return _ELEMENTS.get(name)


def _check_array(where: str, wanted: np.dtype | None, value: Any) -> None:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{where}: a numpy array or None is needed, not {type(value).__name__}")
    if wanted is not None and not _compatible(value.dtype, wanted):
        raise TypeError(f"{where}: {wanted} is needed, not {value.dtype}")
    if not value.flags.c_contiguous:
        raise ValueError(
            f"{where}: the array of shape {value.shape} and strides {value.strides} is not "
            "C-contiguous and a kernel sees no strides; pass numpy.ascontiguousarray(...)"
        )


def _compatible(given: np.dtype, wanted: np.dtype) -> bool:
    """Return whether an array's elements fit a pointer: the sign of integers is free."""
    if given == wanted:
        return True
    if given.itemsize != wanted.itemsize:
        return False
    bits_of_narrow_float = given.kind == "u" and wanted.itemsize == 2
    return given.kind in "iub" and (wanted.kind in "iub" or bits_of_narrow_float)


def _scalar(where: str, name: str, dtype: np.dtype, value: Any) -> Any:
    allowed: tuple[type, ...] = (bool, np.bool_)
    if dtype.kind in "iuf":
        allowed = (int, np.integer)
    if dtype.kind == "f":
        allowed = (*allowed, float, np.floating)
    if not isinstance(value, allowed) or (dtype.kind != "b" and isinstance(value, bool)):
        raise TypeError(f"{where}: {name} is needed, not {type(value).__name__} {value!r}")
    number: Any = value
    if dtype.kind in "iu" and not np.iinfo(dtype).min <= number <= np.iinfo(dtype).max:
        raise OverflowError(f"{where}: {value} does not fit {name}")
    return np.ctypeslib.as_ctypes_type(dtype)(number)
