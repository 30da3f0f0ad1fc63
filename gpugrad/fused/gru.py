"""Gated recurrent unit over a whole sequence: Cho et al. (2014), in PyTorch's and cuDNN's form.

    r, z = sigmoid(x_rz + b_rz),   n = tanh(x_n + r b_n),   b = h_(t-1) @ weight.T + bias
    h_t = (1 - z) n + z h_(t-1)

where x_t holds the input's part of the gates, in the order r, z, n. NumPy takes sigmoid(a) as
(1 + tanh(a / 2)) / 2. In the backward pass all factors that do not depend on later steps are
computed for all t at once: what remains in the loop is db_t = factor_t * dh_t and
dh_(t-1) = g_(t-1) + z dh_t + db_t @ weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend, ops
from ..memory import empty, zeros
from ..registry import Sample
from ..tensor import Tensor
from ._arguments import floating
from ._recurrent import checked, fits, weight_gradient
from .base import Implementation, fused
from .fuse import fuse

# NumPy


@np.errstate(all="ignore")
def _forward(
    x: np.ndarray, weight: np.ndarray, h: np.ndarray, bias: np.ndarray | None
) -> tuple[np.ndarray, tuple]:
    steps, batch, width = x.shape
    size = width // 3
    half = np.repeat(np.array([0.5, 0.5, 1], x.dtype), size)
    gates = x * half
    transposed = np.ascontiguousarray((weight * half[:, None]).T)
    shift = None if bias is None else bias * half
    out, hidden = empty((2, steps, batch, size), x.dtype)
    product = empty((batch, width), x.dtype)
    for t in range(steps):
        r_z, n = gates[t, :, : 2 * size], gates[t, :, 2 * size :]
        np.matmul(h, transposed, out=product)
        if shift is not None:
            product += shift
        r_z += product[:, : 2 * size]
        np.tanh(r_z, out=r_z)
        r_z *= 0.5
        r_z += 0.5
        hidden[t] = product[:, 2 * size :]
        now = np.multiply(r_z[:, :size], hidden[t], out=out[t])
        n += now
        np.tanh(n, out=n)
        np.subtract(h, n, out=now)
        now *= r_z[:, size:]
        now += n
        h = now
    return out, (out, gates, hidden)


@np.errstate(all="ignore")
def _backward(
    wanted: tuple[bool, ...], g: np.ndarray, arrays: Sequence[Any], residuals: tuple
) -> Sequence[Any]:
    x, weight, h, _ = arrays
    out, gates, hidden = residuals
    r, z, n = (gates.reshape(*out.shape[:2], 3, out.shape[2])[:, :, k] for k in range(3))
    to_n = (1 - z) * (1 - n * n)
    d = empty((*out.shape[:2], 3, out.shape[2]), x.dtype)  # of b
    d[:, :, 0] = to_n * hidden * r * (1 - r)
    d[0, :, 1], d[1:, :, 1] = h, out[:-1]
    d[:, :, 1] -= n
    d[:, :, 1] *= z * (1 - z)
    d[:, :, 2] = to_n * r
    rows = d.reshape(x.shape)
    dh = zeros(h.shape, x.dtype)
    through, kept = empty((2, *h.shape), x.dtype)
    for t in range(len(x) - 1, -1, -1):
        dh += g[t]
        d[t] *= dh[:, None]
        to_n[t] *= dh
        np.multiply(dh, z[t], out=kept)
        np.matmul(rows[t], weight, out=through)
        np.add(through, kept, out=dh)
    dweight = weight_gradient(rows, h, out) if wanted[1] else None
    dbias = backend.total(np, rows, (0, 1)) if wanted[3] else None
    dx = None
    if wanted[0]:
        dx = np.concatenate((rows[..., : -h.shape[1]], to_n), -1)
    return dx, dweight, dh, dbias


# The definition


@fuse
def _gru(
    x_r: Tensor, x_z: Tensor, x_n: Tensor, h_r: Tensor, h_z: Tensor, h_n: Tensor, h: Tensor
) -> Tensor:
    r, z = ops.sigmoid(x_r + h_r), ops.sigmoid(x_z + h_z)
    n = ops.tanh(x_n + r * h_n)
    return n + z * (h - n)


@fused(
    [
        Sample((3, 2, 6), (6, 2), (2, 2), (6,)),
        Sample((2, 1, 9), (9, 3), (1, 3), None),
    ],
    arguments=("x", "weight", "h", "bias"),
    numpy=Implementation(_forward, _backward, fits),
)
def _gru_spec(x, weight, h, bias):
    def gates(a):
        return ops.unstack(ops.reshape(a, (*h.shape[:-1], 3, h.shape[-1])), axis=-2)

    outs = []
    for part in ops.unstack(x):
        hidden = ops.matmul(h, weight.T)
        h = _gru(*gates(part), *gates(hidden if bias is None else hidden + bias), h)
        outs.append(h)
    return ops.stack(outs)


def gru(x: Any, weight: Any, h: Any, bias: Any = None) -> Tensor:
    """Return h_1, ..., h_T, (T, N, H), of a layer that starts from h (N, H).

    x (T, N, 3*H), T at least 1: the input's part of the gates r, z, n; weight (3*H, H); bias (3*H)
    is that of the state's part, of which the reset gate multiplies a third. Raises ValueError where
    shapes do not fit.
    """
    x, weight, h = checked("gru", 3, x, weight, h)
    if bias is not None:
        bias = floating(bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"gru: bias has shape {bias.shape}, weight {weight.shape} needs {weight.shape[:1]}"
            )
    return _gru_spec(x, weight, h, bias)
