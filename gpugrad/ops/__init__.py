"""Every operation as a row of the registry; this module is the namespace ``xp`` of recorded rules.

Importing it also attaches operators and methods to Tensor.
"""

from __future__ import annotations

import sys
from typing import Any

from .. import registry
from ..boundary import name_all, name_methods, named
from ..tensor import Tensor
from . import random
from .creation import (
    arange,
    as_tensor,
    asarray,
    empty,
    empty_like,
    eye,
    from_dlpack,
    from_numpy,
    full,
    full_like,
    linspace,
    ones,
    ones_like,
    tensor,
    zeros,
    zeros_like,
)
from .elementwise import (
    abs,
    acos,
    acosh,
    add,
    asin,
    asinh,
    atan,
    atan2,
    atanh,
    bitwise_and,
    bitwise_invert,
    bitwise_or,
    bitwise_xor,
    ceil,
    clip,
    cos,
    cosh,
    divide,
    equal,
    erf,
    exp,
    exp2,
    expm1,
    floor,
    floor_divide,
    fmod,
    greater,
    greater_equal,
    hypot,
    isfinite,
    isinf,
    isnan,
    less,
    less_equal,
    log,
    log1p,
    log2,
    log10,
    logaddexp,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    maximum,
    minimum,
    multiply,
    nan_to_num,
    negative,
    not_equal,
    positive,
    power,
    reciprocal,
    relu,
    remainder,
    round,
    rsqrt,
    sigmoid,
    sign,
    sin,
    sinh,
    softplus,
    sqrt,
    square,
    subtract,
    tan,
    tanh,
    trunc,
    where,
)
from .indexing import (
    argsort,
    diag,
    diagonal,
    getitem,
    index_add,
    masked_fill,
    nonzero,
    put,
    raw_index,
    raw_put,
    repeat,
    sort,
    take,
    take_along_axis,
    topk,
)
from .linalg import einsum, linear, matmul, outer, tensordot, trace, vecdot
from .reduction import (
    all,
    any,
    argmax,
    argmin,
    count_nonzero,
    cumulative_prod,
    cumulative_sum,
    logsumexp,
    max,
    mean,
    min,
    norm,
    prod,
    std,
    sum,
    var,
)
from .shape import (
    astype,
    broadcast_arrays,
    broadcast_to,
    concat,
    copy,
    expand_dims,
    flatten,
    flip,
    matrix_transpose,
    meshgrid,
    moveaxis,
    pad,
    permute_dims,
    ravel,
    reshape,
    roll,
    split,
    squeeze,
    stack,
    swapaxes,
    tile,
    transpose,
    tril,
    triu,
    unstack,
)

# NumPy's and the Array API's other names, where people's fingers expect them
absolute = abs
arccos, arccosh, arcsin, arcsinh = acos, acosh, asin, asinh
arctan, arctan2, arctanh = atan, atan2, atanh
concatenate = concat
cumsum, cumprod = cumulative_sum, cumulative_prod
invert = bitwise_invert
mod = remainder
true_divide = divide


def pow(x: Any, y: Any) -> Any:
    """Return x to the power y, by products if y is the number 2, 3 or 4."""
    if y.__class__ is int or y.__class__ is float:  # NumPy's power is slow for the common ones
        if y == 2 and (y.__class__ is int or asarray(x).dtype.kind not in "iub"):
            return square(x)
        if y == 0.5:
            return sqrt(x)
        if y == -1:
            return reciprocal(x)
        if y == 3 or y == 4:
            x = asarray(x)
            if (y.__class__ is int or x.dtype.kind not in "iub") and x.dtype.itemsize > 2:
                return x * square(x) if y == 3 else square(square(x))  # of two bytes: rounded twice
    return power(x, y)


name_all(vars(random), random.__name__, respelt=True)
_NAMED = ("asarray", "getitem", "matmul", "pow", "raw_index", "raw_put", "reshape", "sum")
name_all(globals(), "gpugrad.ops.", "gpugrad.ops._hot", *_NAMED)
registry.recorded = sys.modules[__name__]


def _transposed(x: Any, *axes: Any) -> Any:
    """Return x with its axes reversed, in the order given, or exchanged: two numbers, as torch."""
    if len(axes) == 1 and isinstance(axes[0], (tuple, list)):
        axes = tuple(axes[0])
    elif len(axes) == 2:
        return swapaxes(x, *axes)
    return transpose(x, axes or None)


def _permuted(x: Any, *axes: Any) -> Any:
    """Return x with its axes in the order given."""
    return permute_dims(x, axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes)


def _swapped(function: Any) -> Any:
    return lambda x, y: function(y, x)


_OPERATORS = {
    "add": add,
    "sub": subtract,
    "mul": multiply,
    "truediv": divide,
    "floordiv": floor_divide,
    "mod": remainder,
    "pow": pow,
    "matmul": matmul,
    "and": bitwise_and,
    "or": bitwise_or,
    "xor": bitwise_xor,
}
_COMPARISONS = {
    "lt": less,
    "le": less_equal,
    "gt": greater,
    "ge": greater_equal,
    "eq": equal,
    "ne": not_equal,
}
_IN_PLACE = {
    "iadd": "add",
    "isub": "subtract",
    "imul": "multiply",
    "itruediv": "divide",
    "ifloordiv": "floor_divide",
    "imod": "remainder",
    "ipow": "power",
}
_METHODS = {
    "copy": copy,
    "cumprod": cumulative_prod,
    "cumsum": cumulative_sum,
    "cumulative_prod": cumulative_prod,
    "cumulative_sum": cumulative_sum,
    "diagonal": diagonal,
    "dot": matmul,
    "expand_dims": expand_dims,
    "flatten": flatten,
    "masked_fill": masked_fill,
    "matmul": matmul,
    "moveaxis": moveaxis,
    "norm": norm,
    "permute_dims": _permuted,
    "pow": pow,
    "ravel": ravel,
    "repeat": repeat,
    "reshape": reshape,
    "sort": sort,
    "split": split,
    "squeeze": squeeze,
    "sum": sum,
    "swapaxes": swapaxes,
    "take": take,
    "topk": topk,
    "transpose": named(_transposed, "transpose"),
}


def _attach() -> None:
    """Give Tensor its operators, and a method for every row and name that reads well as one."""
    name_methods(registry.Sample, "gpugrad.registry", "__init__")
    for op in registry.OPS.values():
        if op.method and op.name in globals():
            setattr(Tensor, op.name, globals()[op.name])
    for name, function in _METHODS.items():
        setattr(Tensor, name, function)
    for name, function in _OPERATORS.items():
        setattr(Tensor, f"__{name}__", function)
        setattr(Tensor, f"__r{name}__", _swapped(function))
    for name, function in _COMPARISONS.items():  # __hash__ was set by Tensor and stays
        setattr(Tensor, f"__{name}__", function)
    for name, op_name in _IN_PLACE.items():
        setattr(Tensor, f"__{name}__", lambda x, y, op_name=op_name: x._in_place(op_name, y))
    for name, function in (
        ("__neg__", negative),
        ("__pos__", positive),
        ("__abs__", abs),
        ("__invert__", bitwise_invert),
        ("__getitem__", getitem),
    ):
        setattr(Tensor, name, function)
    for name, function, doc in (
        ("T", transpose, "The tensor with its axes reversed, a view."),
        ("mT", matrix_transpose, "The tensor with its last two axes exchanged, a view."),
    ):
        setattr(Tensor, name, property(function, doc=doc))
    name_methods(
        Tensor,
        "gpugrad.tensor",
        *("__init__", "__setitem__", "astype", "backward", "copy_", "fill_", "item", "numpy"),
        *("register_hook", "requires_grad_", "retain_grad", "to", "tolist", "zero_"),
    )


_attach()

__all__ = [
    "abs",
    "absolute",
    "acos",
    "acosh",
    "add",
    "all",
    "any",
    "arange",
    "arccos",
    "arccosh",
    "arcsin",
    "arcsinh",
    "arctan",
    "arctan2",
    "arctanh",
    "argmax",
    "argmin",
    "argsort",
    "as_tensor",
    "asarray",
    "asin",
    "asinh",
    "astype",
    "atan",
    "atan2",
    "atanh",
    "bitwise_and",
    "bitwise_invert",
    "bitwise_or",
    "bitwise_xor",
    "broadcast_arrays",
    "broadcast_to",
    "ceil",
    "clip",
    "concat",
    "concatenate",
    "copy",
    "cos",
    "cosh",
    "count_nonzero",
    "cumprod",
    "cumsum",
    "cumulative_prod",
    "cumulative_sum",
    "diag",
    "diagonal",
    "divide",
    "einsum",
    "empty",
    "empty_like",
    "equal",
    "erf",
    "exp",
    "exp2",
    "expand_dims",
    "expm1",
    "eye",
    "flatten",
    "flip",
    "floor",
    "floor_divide",
    "fmod",
    "from_dlpack",
    "from_numpy",
    "full",
    "full_like",
    "getitem",
    "greater",
    "greater_equal",
    "hypot",
    "index_add",
    "invert",
    "isfinite",
    "isinf",
    "isnan",
    "less",
    "less_equal",
    "linear",
    "linspace",
    "log",
    "log1p",
    "log2",
    "log10",
    "logaddexp",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "logsumexp",
    "masked_fill",
    "matmul",
    "matrix_transpose",
    "max",
    "maximum",
    "mean",
    "meshgrid",
    "min",
    "minimum",
    "mod",
    "moveaxis",
    "multiply",
    "nan_to_num",
    "negative",
    "nonzero",
    "norm",
    "not_equal",
    "ones",
    "ones_like",
    "outer",
    "pad",
    "permute_dims",
    "positive",
    "pow",
    "power",
    "prod",
    "put",
    "ravel",
    "raw_index",
    "raw_put",
    "reciprocal",
    "relu",
    "remainder",
    "repeat",
    "reshape",
    "roll",
    "round",
    "rsqrt",
    "sigmoid",
    "sign",
    "sin",
    "sinh",
    "softplus",
    "sort",
    "split",
    "sqrt",
    "square",
    "squeeze",
    "stack",
    "std",
    "subtract",
    "sum",
    "swapaxes",
    "take",
    "take_along_axis",
    "tan",
    "tanh",
    "tensor",
    "tensordot",
    "tile",
    "topk",
    "trace",
    "transpose",
    "tril",
    "triu",
    "true_divide",
    "trunc",
    "unstack",
    "var",
    "vecdot",
    "where",
    "zeros",
    "zeros_like",
]
