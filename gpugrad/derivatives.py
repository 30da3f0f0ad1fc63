"""Whole matrices of derivatives, for functions small enough to look at: Jacobian and Hessian.

    gg.jacobian(lambda x: gg.nn.functional.softmax(x), x)    # diag(s) - s s'
    gg.hessian(lambda x: (x**3).sum(), x)                    # diag(6 x)

Products with them that never hold the matrix are ``gg.vjp``, ``gg.jvp`` and ``gg.hvp``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import registry
from .registry import describe
from .tensor import Tensor
from .transforms import value_and_grad, vjp


def jacobian(f: Callable[[Tensor], Tensor], x: Any) -> Tensor:
    """Return every derivative of f at x: element [i, j] is d f(x)[i] / d x[j].

    Of shape ``f(x).shape + x.shape`` and the dtype of x; x is a floating tensor, array or number.
    Takes one backward sweep per element of f(x), over a graph that is recorded once; can itself be
    differentiated. Raises TypeError if x is not floating or f returns something else than a tensor.
    """
    xp = registry.recorded
    out, pullback = vjp(f, x)
    if not isinstance(out, Tensor):
        raise TypeError(f"jacobian: the function must return one tensor, got {describe(out)}")
    shape = (*out.shape, *np.shape(x))
    if not out.size:
        return xp.zeros(shape, dtype=out.dtype, device=out.device)
    units = np.eye(out.size).reshape(out.size, *out.shape)
    rows = [pullback(xp.asarray(unit, dtype=out.dtype, device=out.device))[0] for unit in units]
    return xp.reshape(xp.stack(rows), shape)


def hessian(f: Callable[[Tensor], Tensor], x: Any) -> Tensor:
    """Return the second derivatives of a scalar function at x: [i, j] is d2 f / d x[i] d x[j].

    Of shape ``x.shape + x.shape``; arguments and errors as in ``jacobian``, and ValueError if f
    returns more than one element. The Jacobian of the gradient: a sweep per element of x.
    """
    gradient = value_and_grad(f)
    return jacobian(lambda x: gradient(x)[1], x)
