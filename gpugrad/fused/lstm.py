"""Long short-term memory over a whole sequence: Hochreiter, Schmidhuber (1997), with forget gate.

    i, f, o = sigmoid(a),   g = tanh(a),   a = x_t + h_(t-1) @ weight.T, four gates wide
    c_t = f c_(t-1) + i g,   h_t = o tanh(c_t)

where x_t holds the input's part of the gates, biases included; gates in the order i, f, g, o.
NumPy takes all four gates by one tanh, sigmoid(a) being (1 + tanh(a / 2)) / 2. In the backward pass
all factors that do not depend on later steps are computed for all t at once: what remains in the
loop is da_t = factor_t * (dc, dc, dc, dh), dc_(t-1) = f dc and dh_(t-1) = g_(t-1) + da_t @ weight.
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
from .fuse import fuse

# NumPy


@np.errstate(all="ignore")
def _forward(
    x: np.ndarray, weight: np.ndarray, h: np.ndarray, c: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], tuple]:
    steps, batch, width = x.shape
    size = width // 4
    half = np.repeat(np.array([0.5, 0.5, 1, 0.5], x.dtype), size)
    shift = 1 - half
    gates = x * half
    transposed = np.ascontiguousarray((weight * half[:, None]).T)
    out, tanhs = empty((2, steps, batch, size), x.dtype)
    cells = empty((steps + 1, batch, size), x.dtype)
    cells[0] = c
    product, spare = empty((batch, width), x.dtype), empty((batch, size), x.dtype)
    for t in range(steps):
        a, cell = gates[t], cells[t + 1]
        np.matmul(h, transposed, out=product)
        a += product
        np.tanh(a, out=a)
        a *= half
        a += shift
        i, f, g, o = (a[:, k : k + size] for k in range(0, width, size))
        np.multiply(f, cells[t], out=cell)
        np.multiply(i, g, out=spare)
        cell += spare
        np.tanh(cell, out=tanhs[t])
        h = np.multiply(o, tanhs[t], out=out[t])
    return (out, cells[-1].copy()), (out, gates, cells, tanhs)


@np.errstate(all="ignore")
def _backward(
    wanted: tuple[bool, ...], g: Any, arrays: Sequence[Any], residuals: tuple
) -> Sequence[Any]:
    x, weight, h, _ = arrays
    out, gates, cells, tanhs = residuals
    g_out, g_c = g
    gates = gates.reshape(*out.shape[:2], 4, out.shape[2])
    i, f, n, o = (gates[:, :, k] for k in range(4))
    d = empty(gates.shape, x.dtype)
    np.subtract(1, gates, out=d)
    d *= gates  # the derivative of the three sigmoids
    d[:, :, 0] *= n
    d[:, :, 1] *= cells[:-1]
    d[:, :, 2] = i * (1 - n * n)
    d[:, :, 3] *= tanhs
    to_cell = o * (1 - tanhs * tanhs)
    rows = d.reshape(x.shape)
    dh, spare = zeros((2, *h.shape), x.dtype)
    dc = np.zeros(h.shape, x.dtype) if g_c is None else g_c.copy()
    for t in range(len(x) - 1, -1, -1):
        if g_out is not None:
            dh += g_out[t]
        np.multiply(dh, to_cell[t], out=spare)
        dc += spare
        d[t, :, :3] *= dc[:, None]
        d[t, :, 3] *= dh
        dc *= f[t]
        np.matmul(rows[t], weight, out=dh)
    return rows, weight_gradient(rows, h, out) if wanted[1] else None, dh, dc


# The definition


@fuse
def _lstm(i: Tensor, f: Tensor, g: Tensor, o: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
    return ops.sigmoid(o) * ops.tanh(c), c


@fused(
    [
        Sample((3, 2, 8), (8, 2), (2, 2), (2, 2)),
        Sample((1, 1, 12), (12, 3), (1, 3), (1, 3)),
    ],
    arguments=("x", "weight", "h", "c"),
    numpy=Implementation(_forward, _backward, fits),
)
def _lstm_spec(x, weight, h, c):
    outs = []
    for part in ops.unstack(x):
        gates = part + ops.matmul(h, weight.T)
        parts = ops.unstack(ops.reshape(gates, (*h.shape[:-1], 4, h.shape[-1])), axis=-2)
        h, c = _lstm(*parts, c)
        outs.append(h)
    return ops.stack(outs), c


def lstm(x: Any, weight: Any, h: Any, c: Any) -> tuple[Tensor, Tensor]:
    """Return h_1, ..., h_T, (T, N, H), and the last c, (N, H), starting from h and c (N, H).

    x (T, N, 4*H), T at least 1: the input's part of the gates i, f, g, o, biases included;
    weight (4*H, H). Raises ValueError where shapes do not fit.
    """
    return _lstm_spec(*checked("lstm", 4, x, weight, h, c))
