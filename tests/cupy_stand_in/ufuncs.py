"""CuPy's ufuncs: NumPy computes them, with the loops of the installed CuPy's tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import cuda
from .arrays import array_of, bfloat16, checked_index, ndarray, values_of

_NUMBERS = (bool, int, float, complex)
_AT = {"add", "subtract", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor"}
_ATOMIC_SUMS = frozenset("iIlLqQefdFD") - frozenset("lq")  # there is none of int64


def operand(x: Any) -> None:
    """Raise TypeError for what is no operand: CuPy takes its arrays and numbers."""
    if not isinstance(x, (ndarray, np.generic, *_NUMBERS)):
        raise TypeError(f"Unsupported type {type(x)}")


def dtypes_of(operands: Sequence[Any]) -> list[np.dtype]:
    """Return the dtypes with which operands look for a loop: Python's numbers follow the others."""
    strong = [x.dtype for x in operands if isinstance(x, (ndarray, np.generic))]
    floats = [d for d in strong if d.kind in "fc" or d == bfloat16]
    integers = [d for d in strong if d.kind in "iu"]
    found = []
    for x in operands:
        if isinstance(x, (ndarray, np.generic)):
            found.append(x.dtype)
        elif isinstance(x, bool):
            found.append(np.dtype(bool))
        else:
            likes = floats or (integers if isinstance(x, int) else [])
            found.append(likes[0] if likes else np.dtype(type(x)))
    return found


def characters(text: str) -> list[np.dtype]:
    """Return the dtypes of a loop's side, as in ``"Ef"``; E is bfloat16."""
    return [bfloat16 if c == "E" else np.dtype(c) for c in text]


def loop(types: Sequence[str], dtypes: Sequence[np.dtype]) -> tuple[list, list] | None:
    """Return the dtypes of operands and results of the first loop that dtypes can be cast to."""
    for each in types:
        given, made = map(characters, each.split("->"))
        if all(map(np.can_cast, dtypes, given)):
            return given, made
    return None


class Ufunc:
    """One of CuPy's ufuncs, ``theirs``; NumPy has one of the same name."""

    def __init__(self, theirs: Any, name: str) -> None:
        self.__name__ = self.name = name
        self.types: list[str] = theirs.types
        self.nin, self.nout = theirs.nin, theirs.nout

    def __call__(
        self, *args: Any, out: Any = None, dtype: Any = None, casting: Any = "same_kind"
    ) -> Any:
        if len(args) == self.nin + 1 and out is None:
            *args, out = args  # type: ignore[assignment]
        if len(args) != self.nin:
            raise TypeError(f"Wrong number of arguments for {self.name!r}")
        for x in args:
            operand(x)
        out = out[0] if isinstance(out, tuple) and len(out) == 1 else out
        if out is not None and not isinstance(out, ndarray):
            raise TypeError(f"Output arguments type must be cupy.ndarray, not {type(out)}")
        given, made = self._loop(args, dtype)
        if out is None:
            cuda.wait(self.name)
            results = self._computed(args, given, made)
            return array_of(results if self.nout > 1 else results[0])
        if not np.can_cast(made[0], out.dtype, casting):
            raise TypeError(f"{self.name}: output (of {made[0]}) could not be cast to {out.dtype}")
        if np.broadcast_shapes(*(np.shape(values_of(x)) for x in args), out.shape) != out.shape:
            raise ValueError(f"{self.name}: out of shape {out.shape} is too small")
        cuda.queue(
            lambda: np.copyto(out._values, self._computed(args, given, made)[0], casting="unsafe")
        )
        return out

    def _loop(self, args: Sequence[Any], dtype: Any) -> tuple[list, list]:
        if dtype is None:
            dtypes = dtypes_of(args)
            found = loop(self.types, dtypes)
        else:
            dtypes = [np.dtype(dtype)]
            made = [each for each in self.types if characters(each[-1]) == dtypes]
            found = loop(made, characters(made[0][: self.nin])) if made else None
        if found is None:
            raise TypeError(f"Wrong type ({[d.name for d in dtypes]}) of arguments for {self.name}")
        return found

    def _computed(self, args: Sequence[Any], given: list, made: list) -> tuple:
        with np.errstate(all="ignore"):
            cast = [np.asarray(values_of(x)).astype(d) for x, d in zip(args, given, strict=True)]
            wide = [x.astype(np.float32) if x.dtype == bfloat16 else x for x in cast]
            results = getattr(np, self.name)(*wide)
            results = results if isinstance(results, tuple) else (results,)
            return tuple(np.asarray(x).astype(d) for x, d in zip(results, made, strict=True))

    def at(self, a: ndarray, indices: Any, b: Any = None) -> None:
        """Change elements at indices one after the other."""
        if self.name not in _AT:
            raise NotImplementedError(f"{self.name}.at is not supported by CuPy")
        index, by_arrays = checked_index(indices)
        if self.name == "add" and by_arrays and a.dtype.char not in _ATOMIC_SUMS:
            raise TypeError(f"scatter_add does not support {a.dtype}")
        value = values_of(b) if isinstance(b, ndarray) else np.asarray(b)
        cuda.wait(f"{self.name}.at")
        try:
            getattr(np, self.name).at(a._values, index, value.astype(a.dtype))
        except IndexError as error:
            raise cuda.Unnoticed(f"{error}: CuPy goes on at another place") from error


_BINARY = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "true_divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "power",
    "matmul": "matmul",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "lshift": "left_shift",
    "rshift": "right_shift",
}
_COMPARISONS = {
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "eq": "equal",
    "ne": "not_equal",
}
_UNARY = {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}


def add_operators(functions: dict[str, Any]) -> None:
    """Give arrays Python's operators, by functions of the namespace."""

    def taken(x: Any) -> bool:
        if isinstance(x, np.ndarray):
            raise TypeError(f"Unsupported type {type(x)}")
        return isinstance(x, (ndarray, np.generic, *_NUMBERS))

    def method(function: Any, kind: str) -> Any:
        if kind == "unary":
            return lambda x: function(x)
        if kind == "reflected":
            return lambda x, y: function(y, x) if taken(y) else NotImplemented
        if kind == "in place":
            return lambda x, y: function(x, y, out=x) if taken(y) else NotImplemented
        return lambda x, y: function(x, y) if taken(y) else NotImplemented

    for symbol, name in (_BINARY | _COMPARISONS).items():
        setattr(ndarray, f"__{symbol}__", method(functions[name], "binary"))
    for symbol, name in _BINARY.items():
        setattr(ndarray, f"__r{symbol}__", method(functions[name], "reflected"))
        setattr(ndarray, f"__i{symbol}__", method(functions[name], "in place"))
    for symbol, name in _UNARY.items():
        setattr(ndarray, f"__{symbol}__", method(functions[name], "unary"))
