"""What the recurrent layers share: checks of shapes, and the gradient of the recurrent weight."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backend, cuda
from ..registry import describe
from ..tensor import Tensor
from ._arguments import floating


def checked(op: str, gates: int, x: Any, weight: Any, *states: Any) -> tuple[Tensor, ...]:
    """Return x (T, N, G*H), weight (G*H, H) and states (N, H) as tensors, refusing other shapes."""
    x, weight, *kept = tensors = [floating(a) for a in (x, weight, *states)]
    size = x.shape[-1] // gates if x.ndim == 3 else 0
    expected = (gates * size, size), *[(*x.shape[1:2], size)] * len(kept)
    found = tuple(t.shape for t in (weight, *kept))
    if not size or x.shape[-1] != gates * size or not x.shape[0] or found != expected:
        given = ", ".join(describe(t) for t in tensors)
        wide = "H" if gates == 1 else f"{gates}*H"
        raise ValueError(
            f"{op}: x, weight and the initial state must be (T, N, {wide}) with T > 0, "
            f"({wide}, H) and (N, H), got {given}"
        )
    return tuple(tensors)


def fits(*arrays: Any, **statics: Any) -> bool:
    """Return whether the NumPy implementation takes these arrays: one dtype, not a narrow one.

    In the emulator the definition runs: each of its steps is a kernel.
    """
    dtypes = {a.dtype for a in arrays if a is not None}
    return not cuda.emulated() and len(dtypes) == 1 and dtypes <= {backend.float32, backend.float64}


def weight_gradient(d: np.ndarray, h: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Return the sum over t of d_t.T @ h_(t-1), for d (T, N, G*H), h (N, H) and out (T, N, H)."""
    before = np.concatenate((h[None], out[:-1]))
    return d.reshape(-1, d.shape[-1]).T @ before.reshape(-1, h.shape[-1])
