"""A simple recurrent layer over a whole sequence: Elman, "Finding structure in time" (1990).

    h_t = tanh(x_t + h_(t-1) @ weight.T),   or relu

where x_t holds the input's part, biases included. Backward, with a_t what tanh was given:
da_t = dh_t (1 - h_t^2), dh_(t-1) = g_(t-1) + da_t @ weight, and dweight is one product for all t.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import ops
from ..memory import empty, zeros
from ..registry import Sample
from ..tensor import Tensor
from ._recurrent import checked, fits, weight_gradient
from .base import Implementation, fused

# NumPy


@np.errstate(all="ignore")
def _forward(
    x: np.ndarray, weight: np.ndarray, h: np.ndarray, nonlinearity: str
) -> tuple[np.ndarray, tuple]:
    out = empty(x.shape, x.dtype)
    transposed = np.ascontiguousarray(weight.T)
    for t in range(len(x)):
        now = out[t]
        np.matmul(h, transposed, out=now)
        now += x[t]
        if nonlinearity == "tanh":
            np.tanh(now, out=now)
        else:
            np.maximum(now, 0, out=now)
        h = now
    return out, (out,)


@np.errstate(all="ignore")
def _backward(
    wanted: tuple[bool, ...],
    g: np.ndarray,
    arrays: Sequence[Any],
    residuals: tuple,
    nonlinearity: str,
) -> Sequence[Any]:
    x, weight, h = arrays
    (out,) = residuals
    d = 1 - out * out if nonlinearity == "tanh" else (out > 0).astype(x.dtype)
    dh = zeros(h.shape, x.dtype)
    for t in range(len(x) - 1, -1, -1):
        dh += g[t]
        d[t] *= dh
        np.matmul(d[t], weight, out=dh)
    return d, weight_gradient(d, h, out) if wanted[1] else None, dh


# The definition


@fused(
    [
        Sample((3, 2, 4), (4, 4), (2, 4), nonlinearity="tanh"),
        Sample((2, 1, 3), (3, 3), (1, 3), nonlinearity="relu"),
    ],
    arguments=("x", "weight", "h"),
    numpy=Implementation(_forward, _backward, fits),
)
def _rnn(x, weight, h, nonlinearity):
    outs = []
    for part in ops.unstack(x):
        h = part + ops.matmul(h, weight.T)
        h = ops.tanh(h) if nonlinearity == "tanh" else ops.relu(h)
        outs.append(h)
    return ops.stack(outs)


def rnn(x: Any, weight: Any, h: Any, nonlinearity: str = "tanh") -> Tensor:
    """Return h_1, ..., h_T, (T, N, H), of a recurrent layer that starts from h (N, H).

    x (T, N, H), T at least 1: the input's part, biases included; weight (H, H). nonlinearity is
    "tanh" or "relu". Raises ValueError where shapes or the nonlinearity do not fit.
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"rnn: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
    x, weight, h = checked("rnn", 1, x, weight, h)
    return _rnn(x, weight, h, nonlinearity=nonlinearity)
