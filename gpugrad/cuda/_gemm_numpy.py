"""gemm by NumPy: the reference. Products in float32, rounded once to the dtype of the result."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from ..backend import float32
from .emulation import settings

_LIMIT = 40.0  # beyond it gelu is its limit: see kernels/gelu.cuh
_SLOPE = math.sqrt(2 / math.pi)
_CUBIC = 0.044715


def run(
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    epilogue: str | None,
    bias: np.ndarray | None,
    aux: np.ndarray | None,
    alpha: Any,
    beta: float,
) -> None:
    """Write what gpugrad.cuda.gemm defines to out, and to aux or bias where they are results."""
    with np.errstate(all="ignore"):
        x, y = a.astype(float32, copy=False), b.astype(float32, copy=False)
        product = np.matmul(x, y)
        scale = float32.type(alpha.item() if isinstance(alpha, np.ndarray) else alpha)
        if scale != 1:
            product *= scale
        if beta:
            product += out
        written = [out]
        if bias is not None and epilogue in ("bias", "gelu"):
            product += bias
        if epilogue == "gelu":
            assert aux is not None
            aux[...] = product
            written.append(aux)
            product = np.maximum(product, -_LIMIT) * _probability(product)
        elif epilogue in ("dgelu", "dgelu_bgrad"):
            assert aux is not None
            product *= _derivative(aux.astype(float32, copy=False))
        out[...] = product
        if bias is not None and epilogue == "dgelu_bgrad":
            bias[...] = product.reshape(-1, product.shape[-1]).sum(0)
            written.append(bias)
        elif bias is not None and epilogue == "bgrad":
            bias[...] = x.reshape(x.shape[-2:]).sum(1)
            written.append(bias)
    how = settings()
    if how is not None and how.mode == "checked":
        memory = importlib.import_module("gpugrad.emulator.memory")
        for array in written:
            memory.wrote(array)


def _probability(h: np.ndarray) -> np.ndarray:
    """Return P(h) = (1 + tanh(sqrt(2 / pi) * (h + 0.044715 * h**3))) / 2."""
    return (1 + np.tanh(h * (_SLOPE + _SLOPE * _CUBIC * (h * h)))) * 0.5


def _derivative(h: np.ndarray) -> np.ndarray:
    """Return P(h) + h * P'(h)."""
    p, near = _probability(h), np.clip(h, -_LIMIT, _LIMIT)
    slope = 2 * p * (1 - p) * (_SLOPE + 3 * _SLOPE * _CUBIC * (near * near))
    return p + near * slope
