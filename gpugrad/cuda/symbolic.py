"""Symbols: arrays without elements, which record what elementwise operations compute from them.

Rules and definitions are written over an array library ``xp``; called with symbols and the library
``xp`` below they yield an expression that cuda/elementwise.py turns into one kernel. A symbol's
device is "symbolic", so Tensors can hold symbols and whole functions be traced, gradients too.

Whatever is not elementwise (reductions, indexing, a look at a shape or a value) raises, mostly
Untraceable: the caller then computes without a kernel. Numbers stay weak, as NumPy's are.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from .. import backend

# How C writes what NumPy calls so; {0}, {1}, ... are the arguments. Functions that are not CUDA's
# are those of kernels/elementwise.cuh.
ARITHMETIC = {
    "negative": "-{0}",
    "abs": "fabsf({0})",
    "sign": "sign({0})",
    "floor": "floorf({0})",
    "ceil": "ceilf({0})",
    "trunc": "truncf({0})",
    "rint": "rintf({0})",
    "square": "{0} * {0}",
    "reciprocal": "1.0f / {0}",
    "sqrt": "sqrtf({0})",
    "exp": "expf({0})",
    "exp2": "exp2f({0})",
    "expm1": "expm1f({0})",
    "log": "logf({0})",
    "log1p": "log1pf({0})",
    "log2": "log2f({0})",
    "log10": "log10f({0})",
    "sin": "sinf({0})",
    "cos": "cosf({0})",
    "tan": "tanf({0})",
    "sinh": "sinhf({0})",
    "cosh": "coshf({0})",
    "tanh": "tanhf({0})",
    "arcsin": "asinf({0})",
    "arccos": "acosf({0})",
    "arctan": "atanf({0})",
    "arcsinh": "asinhf({0})",
    "arccosh": "acoshf({0})",
    "arctanh": "atanhf({0})",
    "erf": "erff({0})",
    "add": "{0} + {1}",
    "subtract": "{0} - {1}",
    "multiply": "{0} * {1}",
    "divide": "{0} / {1}",
    "power": "powf({0}, {1})",
    "maximum": "larger({0}, {1})",
    "minimum": "smaller({0}, {1})",
    "arctan2": "atan2f({0}, {1})",
    "hypot": "hypotf({0}, {1})",
    "logaddexp": "log_add_exp({0}, {1})",
    "remainder": "floored_remainder({0}, {1})",
    "fmod": "fmodf({0}, {1})",
    "floor_divide": "floored_quotient({0}, {1})",
}
COMPARISONS = {
    "equal": "{0} == {1}",
    "not_equal": "{0} != {1}",
    "less": "{0} < {1}",
    "less_equal": "{0} <= {1}",
    "greater": "{0} > {1}",
    "greater_equal": "{0} >= {1}",
    "isnan": "{0} != {0}",
    "isinf": "fabsf({0}) == INF",
    "isfinite": "fabsf({0}) < INF",
}
LOGIC = {
    "logical_not": "!{0}",
    "logical_and": "{0} && {1}",
    "logical_or": "{0} || {1}",
    "logical_xor": "{0} != {1}",
}
# on masks these are the same; on integers, which symbols never are, they are not
_OF_MASKS = {
    "invert": "logical_not",
    "bitwise_and": "logical_and",
    "bitwise_or": "logical_or",
    "bitwise_xor": "logical_xor",
}
TEMPLATES = {**ARITHMETIC, **COMPARISONS, **LOGIC, "where": "{0} ? {1} : {2}"}
DTYPES = (backend.float32, backend.bfloat16, backend.float16, backend.bool_)


class Untraceable(Exception):
    """What is computed is no expression of elements alone."""


class _Assumptions(threading.local):
    """Which pairs of shapes were taken for equal; None while nobody cares."""

    pairs: set[tuple[frozenset[int], frozenset[int]]] | None = None


_assumptions = _Assumptions()


@contextlib.contextmanager
def assuming() -> Iterator[set[tuple[frozenset[int], frozenset[int]]]]:
    """Collect the pairs of shapes that are compared inside, each as the inputs it comes from."""
    outer, _assumptions.pairs = _assumptions.pairs, set()
    try:
        yield _assumptions.pairs
    finally:
        _assumptions.pairs = outer


class Shape:
    """The shape of a symbol: that of some inputs broadcast with each other, whatever it is.

    Shapes count as equal, which ``assuming`` notes; nothing else can be asked.
    """

    __slots__ = ("inputs",)

    def __init__(self, inputs: frozenset[int]) -> None:
        self.inputs = inputs

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Shape):
            raise Untraceable("a shape is looked at")
        if self.inputs != other.inputs and _assumptions.pairs is not None:
            _assumptions.pairs.add((self.inputs, other.inputs))
        return True

    def __hash__(self) -> int:
        raise Untraceable("a shape is looked at")


class Symbol(backend.Symbolic):
    """One value of an expression: ``op`` applied to ``args``.

    ``op`` is a key of TEMPLATES, "input" (``value`` is its number), "constant" (``value`` is a
    Python number), or "cast" (to ``dtype``). A constant's dtype is None if it is a weak number.
    ``inputs`` are those whose shapes broadcast to the symbol's.
    """

    __slots__ = ("args", "dtype", "inputs", "op", "value")
    __array_ufunc__ = None  # NumPy's arrays and numbers leave operators to the symbol

    def __init__(
        self,
        op: str,
        args: tuple[Symbol, ...] = (),
        dtype: Any = None,
        value: Any = None,
        inputs: frozenset[int] | None = None,
    ) -> None:
        self.op = op
        self.args = args
        self.dtype = dtype
        self.value = value
        self.inputs: frozenset[int] = _united(args) if inputs is None else inputs

    @property
    def shape(self) -> Any:
        """What may be compared and handed to ``zeros``, and nothing else."""
        return Shape(self.inputs)

    @property
    def is_mask(self) -> bool:
        """Whether the values are true or false."""
        return self.dtype == backend.bool_

    def astype(self, dtype: Any, copy: bool = True) -> Symbol:
        """Return the values in another dtype; a narrower one rounds."""
        wanted = np.dtype(dtype)
        if wanted not in DTYPES:
            raise Untraceable(f"kernels do not compute with {wanted}")
        if wanted == self.dtype:
            return self
        if wanted == backend.bool_:
            return _recorded("not_equal", self, 0)
        if self.op == "constant":
            return Symbol("constant", (), wanted, self.value, self.inputs)
        return Symbol("cast", (self,), wanted)

    def copy(self) -> Symbol:
        """Return the symbol: nothing changes it."""
        return self

    def __repr__(self) -> str:
        if self.op in ("input", "constant"):
            return f"x{self.value}" if self.op == "input" else repr(self.value)
        return f"{self.op}({', '.join(map(repr, self.args))})"

    __hash__ = object.__hash__

    def __bool__(self) -> NoReturn:
        raise Untraceable("a value is looked at")

    def __neg__(self) -> Symbol:
        return _recorded("negative", self)

    def __pos__(self) -> Symbol:
        return self

    def __abs__(self) -> Symbol:
        return _recorded("abs", self)

    def __invert__(self) -> Symbol:
        return _recorded("invert", self)

    def __add__(self, other: Any) -> Symbol:
        return _recorded("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return _recorded("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return _recorded("subtract", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return _recorded("subtract", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return _recorded("multiply", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return _recorded("multiply", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return _recorded("divide", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return _recorded("divide", other, self)

    def __pow__(self, other: Any) -> Symbol:
        return _recorded("power", self, other)

    def __rpow__(self, other: Any) -> Symbol:
        return _recorded("power", other, self)

    def __and__(self, other: Any) -> Symbol:
        return _recorded("bitwise_and", self, other)

    def __or__(self, other: Any) -> Symbol:
        return _recorded("bitwise_or", self, other)

    def __xor__(self, other: Any) -> Symbol:
        return _recorded("bitwise_xor", self, other)

    def __eq__(self, other: object) -> Any:
        return _recorded("equal", self, other)

    def __ne__(self, other: object) -> Any:
        return _recorded("not_equal", self, other)

    def __lt__(self, other: Any) -> Symbol:
        return _recorded("less", self, other)

    def __le__(self, other: Any) -> Symbol:
        return _recorded("less_equal", self, other)

    def __gt__(self, other: Any) -> Symbol:
        return _recorded("greater", self, other)

    def __ge__(self, other: Any) -> Symbol:
        return _recorded("greater_equal", self, other)


def argument(number: int, dtype: np.dtype) -> Symbol:
    """Return the symbol of an input; Untraceable for a dtype that kernels do not compute with."""
    if dtype not in DTYPES:
        raise Untraceable(f"kernels do not compute with {dtype}")
    return Symbol("input", (), dtype, number, frozenset([number]))


def _united(args: tuple[Symbol, ...]) -> frozenset[int]:
    return frozenset[int]().union(*(a.inputs for a in args))


def _symbol(value: Any) -> Symbol:
    if isinstance(value, Symbol):
        return value
    if isinstance(value, (bool, np.bool_)):
        return Symbol("constant", (), backend.bool_, bool(value))
    if isinstance(value, (int, float, np.integer, np.floating)):
        return Symbol("constant", (), None, float(value))
    raise Untraceable(f"{type(value).__name__} is neither a symbol nor a number")


def _recorded(op: str, *values: Any) -> Symbol:
    """Return the symbol of an operation; constants are computed at once."""
    args = tuple(map(_symbol, values))
    if op in _OF_MASKS:
        if not all(a.is_mask for a in args):
            raise Untraceable(f"{op} of numbers")
        op = _OF_MASKS[op]
    if op in LOGIC:
        args = tuple(a.astype(backend.bool_) for a in args)
    if op in LOGIC or op in COMPARISONS:
        dtype = backend.bool_
    else:
        dtype = _common_dtype(op, args[1:] if op == "where" else args)
    if op == "where":
        args = (args[0].astype(backend.bool_), *args[1:])
    if all(a.op == "constant" for a in args):
        return _computed(op, args, dtype)
    if op == "where" and args[0].op == "constant":
        return args[1] if args[0].value else args[2]
    if op == "power" and args[1].op == "constant":
        return _power(args[0], args[1].value, args)
    return Symbol(op, args, dtype)


def _common_dtype(op: str, args: tuple[Symbol, ...]) -> Any:
    """Return the dtype of a result, None for that of numbers alone."""
    floats = [a.dtype for a in args if a.dtype is not None and not a.is_mask]
    if floats:
        return functools.reduce(backend.promote, floats)
    if any(a.is_mask for a in args) and not (op == "where" and all(a.is_mask for a in args)):
        raise Untraceable(f"{op} of masks")
    return args[0].dtype


def _computed(op: str, args: tuple[Symbol, ...], dtype: Any) -> Symbol:
    if op == "erf":
        value = math.erf(args[0].value)
    else:
        with np.errstate(all="ignore"):
            value = getattr(np, op)(*(a.value for a in args)).item()
    return Symbol("constant", (), dtype, value, _united(args))


def _power(x: Symbol, exponent: float, args: tuple[Symbol, ...]) -> Symbol:
    """Return x to a known power: without powf where products are as exact and far cheaper."""
    if exponent == -1:
        return 1 / x
    if exponent not in (1, 2, 3, 4):
        return Symbol("power", args, x.dtype)
    square = x * x
    return {1: x, 2: square, 3: square * x, 4: square * square}[int(exponent)]


class Library:
    """The array library of symbols; a name that kernels know nothing of raises Untraceable."""

    def __getattr__(self, name: str) -> Any:
        if name in TEMPLATES or name in _OF_MASKS:
            return functools.partial(_recorded, name)
        raise Untraceable(f"kernels compute no {name}")

    @staticmethod
    def positive(x: Symbol) -> Symbol:
        """Return x."""
        return x

    copy = positive

    @staticmethod
    def asarray(x: Any, dtype: Any = None) -> Symbol:
        """Return a symbol or number as a symbol; a NumPy number has the dtype NumPy gives it."""
        if dtype is None and isinstance(x, np.generic):
            dtype = x.dtype
        return _symbol(x) if dtype is None else _symbol(x).astype(dtype)

    @staticmethod
    def full(shape: Any, value: Any, dtype: Any) -> Symbol:
        """Return one number in a symbol's shape."""
        constant = _symbol(value).astype(dtype)
        if not isinstance(shape, Shape) or constant.op != "constant":
            raise Untraceable("a new array")
        return Symbol("constant", (), constant.dtype, constant.value, shape.inputs)

    def zeros(self, shape: Any, dtype: Any) -> Symbol:
        """Return zeros in a symbol's shape."""
        return self.full(shape, 0, dtype)

    def ones(self, shape: Any, dtype: Any) -> Symbol:
        """Return ones in a symbol's shape."""
        return self.full(shape, 1, dtype)

    def zeros_like(self, x: Symbol) -> Symbol:
        """Return zeros in the shape and dtype of x."""
        return self.full(x.shape, 0, x.dtype)

    def ones_like(self, x: Symbol) -> Symbol:
        """Return ones in the shape and dtype of x."""
        return self.full(x.shape, 1, x.dtype)


xp = backend.Symbolic.namespace = Library()
