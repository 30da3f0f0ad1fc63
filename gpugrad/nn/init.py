"""Initial values of parameters, written in place and drawn from ``gg.random``.

One seed gives the same values, to the last bit, with NumPy, in the emulator and on a GPU.

PyTorch's names, arguments and formulas. A weight is (out, in, ...), so its fan-in is the number of
inputs of one output, its fan-out the number of outputs of one input. Every function returns the
tensor it has filled; ``by_name("xavier_uniform")`` finds one from a configuration file.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import backend, ops
from ..boundary import name_all, named
from ..cuda.emulation import disabled
from ..engine import no_grad
from ..ops import philox, random
from ..registry import describe
from ..tensor import Tensor

_skipping: contextvars.ContextVar[bool] = contextvars.ContextVar("skipping", default=False)


@named
def skip_init(build: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return build(*args, **kwargs), but leave unwritten what that would draw.

    For values that are set later: drawing takes most of the time in which a model is built. The
    generator advances as if numbers were drawn, so that what is drawn next is the same. Constants
    are written::

        model = nn.utils.skip_init(GPT, config)
        model.load_state_dict(weights)
    """

    def run() -> Any:
        _skipping.set(True)
        return build(*args, **kwargs)

    # a copy, which nothing can interrupt on the way out of it, and which nobody else sees
    return contextvars.copy_context().run(run)


def _checked(tensor: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"takes a tensor, got {type(tensor).__name__} {describe(tensor)}; the .data of a "
            "parameter is its raw array: pass the parameter itself"
        )
    return tensor


def _drawn(
    tensor: Tensor, draw: Callable[..., Tensor], *numbers: float, dtype: Any = None
) -> Tensor:
    """Fill a tensor with random numbers, drawing none for one that cannot be filled.

    NumPy draws them wherever the tensor is: logarithms and cosines of a GPU differ in their last
    bits, and a seed should give a model the same weights everywhere. ``dtype`` is that of the
    numbers which the generator gives, by default the tensor's.
    """
    if isinstance(_checked(tensor)._data, np.ndarray) and not tensor._data.flags.writeable:
        raise ValueError(f"{draw.__name__}_: the tensor is read-only; give it memory by .copy()")
    if isinstance(tensor._data, backend.Symbolic) or random.reserve(0).state is not None:
        values = draw(
            *numbers, tensor.shape, tensor.dtype, tensor.device
        )  # while a step is recorded
    elif _skipping.get():
        words = 2 if (dtype or tensor.dtype) == backend.float64 else 1
        random.reserve(philox.blocks_used(tensor.size, words))
        return tensor
    else:
        with disabled():
            values = draw(*numbers, tensor.shape, tensor.dtype, "cpu").to(tensor.device)
    return _filled(tensor, values)


def _filled(tensor: Tensor, values: Any) -> Tensor:
    with no_grad():
        return _checked(tensor).copy_(values)


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Fill with numbers spread evenly over [a, b)."""
    return _drawn(tensor, random.uniform, a, b)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Fill with normally distributed numbers."""
    return _drawn(tensor, random.normal, mean, std)


def trunc_normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
) -> Tensor:
    """Fill with normally distributed numbers conditioned on lying in [a, b].

    ``a`` and ``b`` are values, not multiples of std. The distribution function is inverted, one
    uniform number per element, starting from Winitzki's closed form ("A handy approximation for
    the error function and its inverse", 2008) and refined by Newton's method in float64.
    """
    if not (std > 0 and a < b):
        raise ValueError(f"trunc_normal_: needs std > 0 and a < b, got std={std}, a={a}, b={b}")
    low, high = (math.erf((bound - mean) / (std * math.sqrt(2))) for bound in (a, b))
    if low == high:
        raise ValueError(f"trunc_normal_: [{a}, {b}] holds no part of mean {mean}, std {std}")

    def trunc_normal(size: Any, dtype: Any, device: str) -> Tensor:
        with no_grad():
            p = random.uniform(low, high, size, "float64", device)
            p = ops.clip(p, -1 + 1e-15, 1 - 1e-15)
            tail = ops.log1p(-p * p)
            half = 2 / (math.pi * 0.147) + tail / 2
            z = ops.sign(p) * ops.sqrt(ops.sqrt(half * half - tail / 0.147) - half)
            for _ in range(3):  # 2e-3, then 1e-5, 1e-10 and rounding
                z = z - (ops.erf(z) - p) * ops.exp(z * z) * (math.sqrt(math.pi) / 2)
            return ops.clip(z * (std * math.sqrt(2)) + mean, a, b).astype(dtype)

    return _drawn(tensor, trunc_normal, dtype=backend.float64)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill with one number."""
    return _filled(tensor, val)


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with zeros."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Fill with ones."""
    return constant_(tensor, 1.0)


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Return the factor that keeps the variance through a nonlinearity; param is its slope."""
    gains = {
        "linear": 1.0,
        "sigmoid": 1.0,
        "tanh": 5 / 3,
        "relu": math.sqrt(2),
        "leaky_relu": math.sqrt(2 / (1 + (0.01 if param is None else param) ** 2)),
        "selu": 3 / 4,
    }
    if nonlinearity not in gains:
        raise ValueError(f"calculate_gain: {nonlinearity!r} is none of {', '.join(gains)}")
    return gains[nonlinearity]


def _fans(tensor: Tensor, name: str) -> tuple[int, int]:
    """Return (fan-in, fan-out) of a weight (out, in, ...)."""
    if _checked(tensor).ndim < 2:
        raise ValueError(
            f"{name}: fan-in and fan-out need a weight (out, in, ...), got shape {tensor.shape}"
        )
    field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field


def _xavier_std(tensor: Tensor, gain: float, name: str) -> float:
    return gain * math.sqrt(2 / max(1, sum(_fans(tensor, name))))


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Fill from [-b, b), b = gain sqrt(6 / (fan_in + fan_out)): Glorot and Bengio (2010)."""
    bound = math.sqrt(3) * _xavier_std(tensor, gain, "xavier_uniform_")
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Fill with std = gain sqrt(2 / (fan_in + fan_out)): Glorot and Bengio (2010)."""
    return normal_(tensor, 0.0, _xavier_std(tensor, gain, "xavier_normal_"))


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str, name: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"{name}: mode must be 'fan_in' or 'fan_out', got {mode!r}")
    fan = _fans(tensor, name)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(max(1, fan))


def kaiming_uniform_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """Fill from [-b, b), b = gain sqrt(3 / fan): He et al. (2015); a is leaky_relu's slope."""
    bound = math.sqrt(3) * _kaiming_std(tensor, a, mode, nonlinearity, "kaiming_uniform_")
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """Fill with std = gain / sqrt(fan): He et al. (2015); a is leaky_relu's slope."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity, "kaiming_normal_"))


def scaled_residual_(tensor: Tensor, n_layer: int, std: float = 0.02) -> Tensor:
    """Fill with std / sqrt(2 n_layer), for weights that add to the residual stream.

    A transformer of n_layer blocks adds to it 2 n_layer times: Radford et al. (GPT-2, 2019).
    """
    if n_layer < 1:
        raise ValueError(f"scaled_residual_: n_layer must be positive, got {n_layer}")
    return normal_(tensor, 0.0, std / math.sqrt(2 * n_layer))


name_all(globals(), __name__, "skip_init", respelt=True)
_BY_NAME: dict[str, Callable[..., Tensor]] = {
    function.__name__.rstrip("_"): function
    for function in (
        uniform_,
        normal_,
        trunc_normal_,
        constant_,
        zeros_,
        ones_,
        xavier_uniform_,
        xavier_normal_,
        kaiming_uniform_,
        kaiming_normal_,
        scaled_residual_,
    )
}


@named
def by_name(name: str) -> Callable[..., Tensor]:
    """Return an initialiser by name, with or without the underscore it ends in."""
    found = _BY_NAME.get(name.rstrip("_"))
    if found is None:
        raise ValueError(f"initialiser {name!r} is none of {', '.join(_BY_NAME)}")
    return found
