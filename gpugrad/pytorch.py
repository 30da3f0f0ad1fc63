"""PyTorch's spellings, so that its listings run with only the import line changed.

    import gpugrad as torch
    from gpugrad import nn
    from gpugrad.nn import functional as F

Names that only PyTorch has (``cat``, ``randint``, ``multinomial``, ``gather``, ``long``, ...) are
found as ``gg.NAME`` and as methods of tensors. Where a name is NumPy's too, ``axis=`` means NumPy's
function and ``dim=``, ``keepdim=`` or ``unbiased=`` PyTorch's, where they differ:
``x.split(64, dim=2)`` makes parts of length 64 (``axis=2``: 64 parts), ``x.max(dim=1)``,
``x.max(-1, keepdim=True)`` and ``x.sort(dim=1)`` return (values, indices), and ``x.std(dim=1)``
divides by n - 1. Without these words a function is NumPy's, also where PyTorch's differs:

    written                 here                             in PyTorch
    x.max(1), x.sort(1)     values                           (values, indices)
    x.std(), x.var(1)       divide by n                      divide by n - 1
    x.split(2)              2 parts                          parts of length 2
    x.norm(1)               of rows, along axis 1            sum of all |x|
    x.repeat(2, 1)          each element of axis 1 twice     gg.tile(x, (2, 1))
    gg.equal(x, y)          element by element               one truth value
    gg.meshgrid(x, y)       indexing="xy"                    indexing="ij"
    x[0, :, [0, 1]]         the list's axis first            the list's axis last
    x.size                  the number of elements           x.shape
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import backend, ops
from .boundary import name_all, named
from .engine import no_grad
from .fused._ids import on_device_of
from .nn import functional
from .ops import random
from .ops._axes import integer, normalize_axis
from .tensor import Tensor


class Selected(NamedTuple):
    """Elements along an axis, and where they were."""

    values: Tensor
    indices: Tensor


def device(name: str) -> str:
    """Return the device of that name ("cpu", "cuda", "cuda:1"): a name is all that a device is."""
    if not backend.is_device(name):
        raise ValueError(f"device: {name!r} is none; it has to be 'cpu', 'cuda' or 'cuda:N'")
    return name


# Random numbers, whose arguments are lengths one by one


def _lengths(size: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(size[0]) if len(size) == 1 and isinstance(size[0], (tuple, list)) else size


def rand(*size: Any, **options: Any) -> Tensor:
    """Return uniform numbers in [0, 1): ``rand(2, 3)``; ``random.uniform`` in PyTorch's words."""
    return random.uniform(size=_lengths(size), **options)


def randn(*size: Any, **options: Any) -> Tensor:
    """Return normally distributed numbers: ``randn(2, 3)``; see ``random.normal``."""
    return random.normal(size=_lengths(size), **options)


def randint(low: int, high: Any = None, size: Any = None, **options: Any) -> Tensor:
    """Return integers of [low, high), or with two arguments, ``randint(high, size)``, of [0, high).

    int64; see ``random.integers``.
    """
    if size is None:
        high, size = None, high
    return random.integers(low, high, size=size, **options)


def randperm(n: int, **options: Any) -> Tensor:
    """Return 0, 1, ..., n - 1 in random order, int64."""
    return random.permutation(n, **options)


def randn_like(input: Any) -> Tensor:
    """Return normally distributed numbers in the shape, dtype and on the device of a tensor."""
    x = ops.asarray(input)
    return random.normal(size=x.shape, dtype=x.dtype, device=x.device)


def rand_like(input: Any) -> Tensor:
    """Return uniform numbers in [0, 1) in the shape, dtype and on the device of a tensor."""
    x = ops.asarray(input)
    return random.uniform(size=x.shape, dtype=x.dtype, device=x.device)


def bernoulli(input: Any) -> Tensor:
    """Return 1 with the probability each element of input gives, else 0."""
    x = ops.asarray(input)
    return ops.less(rand_like(x), x).astype(x.dtype)


@no_grad()
def multinomial(input: Any, num_samples: int, replacement: bool = False) -> Tensor:
    """Draw indices in proportion to the weights in each row: (V,) or (N, V) to (..., num_samples).

    Weights need not sum to one. int64. Without replacement no index comes twice in a row; drawn
    by the exponential race (the smallest e_i / w_i wins, e_i exponential). ValueError for a weight
    that is negative or not finite, or for too few that are positive.
    """
    weights = ops.asarray(input)
    if weights.ndim not in (1, 2) or not weights.shape[-1]:
        raise ValueError(f"multinomial: input has shape {weights.shape}; give (V,) or (N, V)")
    if not bool((ops.isfinite(weights) & (weights >= 0)).all()):
        raise ValueError("multinomial: input holds weights that are negative or not finite")
    possible = ops.count_nonzero(weights, axis=-1)
    needed = 1 if replacement else num_samples
    if num_samples < 1 or (possible.size and int(possible.min()) < needed):
        raise ValueError(
            f"multinomial: cannot draw num_samples={num_samples} with replacement={replacement} "
            f"where a row has {int(possible.min())} weights above zero"
        )
    draws = num_samples if replacement else 1
    shape = (*weights.shape[:-1], draws, weights.shape[-1])
    uniform = random.uniform(size=shape, dtype=backend.float64, device=weights.device)
    wide = ops.expand_dims(weights.astype(backend.float64), -2)
    # log(1 - u) / w: minus the times at which the indices arrive, -inf where there is no weight
    keys = ops.where(wide > 0, ops.log1p(-uniform) / ops.where(wide > 0, wide, 1.0), -np.inf)
    if replacement:
        return ops.argmax(keys, axis=-1)
    return ops.topk(ops.squeeze(keys, -2), num_samples)[1]


# Shapes and choices


def cat(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    """Return the tensors joined along an axis: ``concat``."""
    return ops.concat(tensors, axis=dim)


def unsqueeze(input: Any, dim: int) -> Tensor:
    """Return the tensor with an axis of length 1 inserted: ``expand_dims``."""
    return ops.expand_dims(input, dim)


def unbind(input: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Return the slices of input along an axis, without it, as views: ``unstack``."""
    return ops.unstack(input, axis=dim)


def permute(input: Any, dims: Sequence[int]) -> Tensor:
    """Return the tensor with its axes in the order given: ``permute_dims``."""
    return ops.permute_dims(input, dims)


def t(input: Any) -> Tensor:
    """Return a matrix transposed; a vector or number as it is."""
    x = ops.asarray(input)
    if x.ndim > 2:
        raise ValueError(f"t: input has shape {x.shape}; it takes two dimensions at most")
    return ops.transpose(x)


def expand(input: Any, *sizes: Any) -> Tensor:
    """Return the tensor broadcast to the sizes, -1 for a length that stays: a read-only view."""
    x, wanted = ops.asarray(input), _lengths(sizes)
    first = len(wanted) - x.ndim
    if first < 0 or any(n == -1 for n in wanted[:first]):
        raise ValueError(f"expand: sizes {wanted} do not fit a tensor of shape {x.shape}")
    shape = tuple(x.shape[i - first] if n == -1 else n for i, n in enumerate(wanted))
    return ops.broadcast_to(x, shape=shape)


def chunk(input: Any, chunks: int, dim: int = 0) -> list[Tensor]:
    """Return the tensor cut along an axis into ``chunks`` parts, the last of which may be shorter.

    All but the last have ceil(n / chunks), so that there may be fewer.
    """
    x = ops.asarray(input)
    if chunks < 1:
        raise ValueError(f"chunk: chunks must be positive, got {chunks}")
    length = x.shape[normalize_axis(dim, x.ndim, "dim")]
    return _split_by_length(x, max(1, -(-length // chunks)), dim)


def gather(input: Any, dim: int, index: Any) -> Tensor:
    """Return input[..., index, ...] along dim, other axes walked in step: ``take_along_axis``.

    Along other axes, index may be shorter than input, whose rest is left out.
    """
    x, index = ops.asarray(input), ops.asarray(index)
    axis = normalize_axis(dim, x.ndim, "dim")
    if index.ndim != x.ndim or any(
        n > m for i, (n, m) in enumerate(zip(index.shape, x.shape, strict=True)) if i != axis
    ):
        raise ValueError(
            f"gather: index of shape {index.shape} does not fit input of shape {x.shape} along "
            f"dim {dim}; it needs as many dimensions, none of the others longer"
        )
    part = tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(index.shape))
    return ops.take_along_axis(x[part], index, axis)


def index_select(input: Any, dim: int, index: Any) -> Tensor:
    """Return the slices of input at integer indices along dim: ``take``."""
    return ops.take(input, index, axis=dim)


def mm(input: Any, mat2: Any) -> Tensor:
    """Return the product of two matrices: ``matmul``, which this is but for the check."""
    return _product("mm", input, mat2, 2)


def bmm(input: Any, mat2: Any) -> Tensor:
    """Return the products of two batches of matrices, (B, n, m) and (B, m, p): ``matmul``."""
    return _product("bmm", input, mat2, 3)


def _product(name: str, x: Any, y: Any, ndim: int) -> Tensor:
    x, y = ops.asarray(x), ops.asarray(y)
    if x.ndim != ndim or y.ndim != ndim or x.shape[:-2] != y.shape[:-2]:
        raise ValueError(
            f"{name}: takes two tensors of {ndim} dimensions{' and one batch' * (ndim == 3)}, "
            f"got shapes {x.shape} and {y.shape}; matmul broadcasts"
        )
    return ops.matmul(x, y)


def clamp(input: Any, min: Any = None, max: Any = None) -> Tensor:
    """Return the tensor with elements below min raised to it and those above max lowered."""
    return ops.clip(input, min, max)


def lerp(input: Any, end: Any, weight: Any) -> Tensor:
    """Return input + weight (end - input): on the way from input to end, there at weight 1."""
    x = ops.asarray(input)
    return x + weight * (end - x)


def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Tensor:
    """Return input + value tensor1 tensor2, element by element."""
    return ops.add(input, _times(ops.multiply(tensor1, tensor2), value))


def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Tensor:
    """Return input + value tensor1 / tensor2, element by element."""
    return ops.add(input, _times(ops.divide(tensor1, tensor2), value))


def _times(x: Any, factor: Any) -> Any:
    return x if factor.__class__ is int and factor == 1 else ops.multiply(x, factor)


def allclose(
    input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> bool:
    """Return whether |input - other| <= atol + rtol |other| everywhere, computed in float64.

    An infinity is close to itself only, NaN to nothing, or with ``equal_nan`` to NaN. Dtypes may
    differ.
    """
    if not (rtol >= 0 and atol >= 0):
        raise ValueError(f"allclose: rtol={rtol} and atol={atol} must not be negative")
    x, y = ops.asarray(input).detach(), ops.asarray(other).detach()
    close = x == y
    if equal_nan:
        close = close | (ops.isnan(x) & ops.isnan(y))
    x, y = x.astype(backend.float64), y.astype(backend.float64)
    with np.errstate(all="ignore"):  # infinities
        error, allowed = ops.abs(x - y), atol + rtol * ops.abs(y)
    return bool((close | (ops.isfinite(error) & (error <= allowed))).all())


# Where PyTorch means something else by the same name


def _split_by_length(x: Any, split_size_or_sections: Any, dim: int) -> list[Tensor]:
    x = ops.asarray(x)
    n = x.shape[normalize_axis(dim, x.ndim, "dim")]
    size = integer(split_size_or_sections)
    if size is not None:
        if size < 1:
            raise ValueError(f"split: parts of length {size} along dim {dim} are not possible")
        return ops.split(x, range(size, n, size), axis=dim)
    lengths = list(split_size_or_sections)
    if sum(lengths) != n or min(lengths, default=0) < 0:
        raise ValueError(
            f"split: lengths {lengths} do not add up to {n}, the length of dim {dim} of a tensor "
            f"of shape {x.shape}"
        )
    return ops.split(x, np.cumsum(lengths)[:-1].tolist(), axis=dim)


def _extremum(name: str) -> Callable[..., Selected | Tensor]:
    of_all, place_of = getattr(ops, name), getattr(ops, f"arg{name}")

    def extremum(x: Any, dim: int | None = None, keepdim: bool = False) -> Selected | Tensor:
        if dim is None:
            return of_all(x, keepdims=keepdim)
        places = place_of(x, axis=dim, keepdims=True)
        values = ops.take_along_axis(x, places, dim)
        if not keepdim:
            values, places = ops.squeeze(values, dim), ops.squeeze(places, dim)
        return Selected(values, places)

    return extremum


def _sorted(x: Any, dim: int = -1, descending: bool = False, stable: bool = True) -> Selected:
    places = ops.argsort(x, axis=dim, descending=descending)
    return Selected(ops.take_along_axis(x, places, dim), places)


def _topk(x: Any, k: int, dim: int = -1) -> Selected:
    return Selected(*ops.topk(x, k, axis=dim))


def _squeezed(x: Any, dim: int) -> Tensor:
    x = ops.asarray(x)
    return ops.squeeze(x, dim) if x.shape[normalize_axis(dim, x.ndim, "dim")] == 1 else x


def _unbiased(name: str) -> Callable[..., Tensor]:
    function = getattr(ops, name)

    def spread(
        x: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, **options: Any
    ) -> Tensor:
        given = {"correction": int(unbiased), **options}
        return function(x, axis=dim, keepdims=keepdim, **given)

    return spread


def _renamed(name: str) -> Callable[..., Any]:
    """Return the function with ``dim`` and ``keepdim`` for ``axis`` and ``keepdims``."""
    function = getattr(ops, name)

    def renamed(*args: Any, **options: Any) -> Any:
        words = (("dim", "axis"), ("keepdim", "keepdims"))
        given = {ours: options.pop(theirs) for theirs, ours in words if theirs in options}
        return function(*args, **given, **options)

    return renamed


_BY_DIM: dict[str, Callable[..., Any]] = {
    "split": _split_by_length,
    "max": _extremum("max"),
    "min": _extremum("min"),
    "sort": _sorted,
    "topk": _topk,
    "squeeze": _squeezed,
    "std": _unbiased("std"),
    "var": _unbiased("var"),
    **{
        name: _renamed(name)
        for name in ("concat", "cumprod", "cumsum", "expand_dims", "norm", "stack")
    },
}


_WORDS = {"dim", "keepdim", "unbiased"}  # that NumPy has not


def _either(name: str) -> Callable[..., Any]:
    """Return NumPy's function of that name, which with PyTorch's words becomes PyTorch's."""
    by_axis, by_dim = getattr(ops, name), named(_BY_DIM[name], name, respelt=True)

    @functools.wraps(by_axis)
    def either(*args: Any, **options: Any) -> Any:
        is_numpys = _WORDS.isdisjoint(options) or "axis" in options
        return (by_axis if is_numpys else by_dim)(*args, **options)

    return either


def _cast(dtype: Any) -> Callable[[Tensor], Tensor]:
    def cast(x: Tensor) -> Tensor:
        return x.astype(dtype)

    cast.__doc__ = f"Return the tensor in {dtype}: ``astype``."
    return cast


def _changed(operation: str) -> Callable[[Tensor, Any], Tensor]:
    def changed(x: Tensor, other: Any) -> Tensor:
        return x._in_place(operation, other)

    changed.__doc__ = f"Change the tensor in place to ``{operation}`` of it and other; return it."
    return changed


def _add(x: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    """Return x + alpha other."""
    return ops.add(x, _times(other, alpha))


def _sub(x: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    """Return x - alpha other."""
    return ops.subtract(x, _times(other, alpha))


def _add_(x: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    """Add alpha other to the tensor in place; return it."""
    return x._in_place("add", _times(other, alpha))


def _sub_(x: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    """Subtract alpha other from the tensor in place; return it."""
    return x._in_place("subtract", _times(other, alpha))


def _addcmul_(x: Tensor, tensor1: Any, tensor2: Any, *, value: float = 1) -> Tensor:
    """Add value tensor1 tensor2 to the tensor in place; return it."""
    return x._in_place("add", _times(ops.multiply(tensor1, tensor2), value))


def _addcdiv_(x: Tensor, tensor1: Any, tensor2: Any, *, value: float = 1) -> Tensor:
    """Add value tensor1 / tensor2 to the tensor in place; return it."""
    return x._in_place("add", _times(ops.divide(tensor1, tensor2), value))


def _lerp_(x: Tensor, end: Any, weight: Any) -> Tensor:
    """Move the tensor in place towards end, to be there at weight 1; return it."""
    return x._in_place("add", weight * (end - x))


def _clamp_(x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """Raise elements below min to it and lower those above max, in place; return the tensor."""
    return x.copy_(clamp(x, min, max))


def _dim(x: Tensor) -> int:
    """Return the number of axes."""
    return x.ndim


def _permute(x: Tensor, *dims: Any) -> Any:
    """Return x with its axes in the order given, a view: ``permute_dims``."""
    return x.permute_dims(*dims)


def _numel(x: Tensor) -> int:
    """Return the number of elements."""
    return x.size


def _type_as(x: Tensor, other: Tensor) -> Tensor:
    """Return the tensor in the dtype and on the device of another."""
    return x.to(other)


def _uniform_(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Overwrite the elements with uniform numbers in [low, high) and return the tensor."""
    x.copy_(x.detach())  # refuses what cannot be filled, before anything is drawn
    return x.copy_(random.uniform(low, high, x.shape, x.dtype, x.device))


def _normal_(x: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Overwrite the elements with normally distributed numbers and return the tensor."""
    x.copy_(x.detach())
    return x.copy_(random.normal(mean, std, x.shape, x.dtype, x.device))


def _contiguous(x: Tensor) -> Tensor:
    """Return x if its elements lie in C order, else a copy whose elements do."""
    return x if x._data.flags.c_contiguous else ops.copy(x)


def _masked_fill_(x: Tensor, mask: Any, value: float) -> Tensor:
    """Overwrite the elements where mask (broadcast) is true; return the tensor."""
    mask = on_device_of(mask, x).astype(backend.bool_)  # integers would be indices
    x[ops.broadcast_to(mask, x.shape)] = value
    return x


name_all(globals(), __name__, respelt=True)
SHARED = {name: _either(name) for name in _BY_DIM}  # what takes axis= and dim=
FUNCTIONS = {
    function.__name__: function
    for function in (
        *(addcdiv, addcmul, allclose, bernoulli, bmm, cat, chunk, clamp, device, gather),
        *(
            index_select,
            lerp,
            mm,
            multinomial,
            permute,
            rand,
            rand_like,
            randint,
            randn,
            randn_like,
            randperm,
            t,
        ),
        *(unbind, unsqueeze, functional.softmax, functional.log_softmax),
    )
}
DTYPES = {
    "double": backend.float64,
    "float": backend.float32,
    "half": backend.float16,
    "int": backend.int32,
    "long": backend.int64,
    "short": backend.int16,
}
NAMES = {**FUNCTIONS, **DTYPES, "inference_mode": no_grad}
_METHODS = {
    **SHARED,
    **{name: _cast(dtype) for name, dtype in (*DTYPES.items(), ("bool", backend.bool_))},
    **{name: FUNCTIONS[name] for name in ("addcdiv", "addcmul", "allclose", "bmm")},
    **{name: FUNCTIONS[name] for name in ("chunk", "clamp", "gather", "index_select")},
    **{name: FUNCTIONS[name] for name in ("lerp", "mm", "multinomial", "t")},
    "add": _add,
    "add_": _add_,
    "addcdiv_": _addcdiv_,
    "addcmul_": _addcmul_,
    "bernoulli": bernoulli,
    "clamp_": _clamp_,
    "clone": ops.copy,
    "contiguous": named(_contiguous, "contiguous"),
    "dim": _dim,
    "div": ops.divide,
    "div_": _changed("divide"),
    "eq": ops.equal,
    "expand": expand,
    "ge": ops.greater_equal,
    "gt": ops.greater,
    "le": ops.less_equal,
    "lerp_": _lerp_,
    "log_softmax": functional.log_softmax,
    "lt": ops.less,
    "masked_fill_": _masked_fill_,
    "mul": ops.multiply,
    "mul_": _changed("multiply"),
    "ne": ops.not_equal,
    "normal_": _normal_,
    "numel": _numel,
    "permute": _permute,
    "softmax": functional.softmax,
    "sub": _sub,
    "sub_": _sub_,
    "type_as": _type_as,
    "unbind": unbind,
    "uniform_": _uniform_,
    "unsqueeze": unsqueeze,
    "view": ops.reshape,
}


def _attach() -> None:
    for name, function in _METHODS.items():
        if function.__module__ == __name__ and function.__name__ != name:
            function.__qualname__ = name  # what Python calls it in errors
            function = named(function, name, respelt=True)
            function.__name__ = name
        setattr(Tensor, name, function)


_attach()
