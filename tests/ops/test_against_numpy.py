"""Every row's forward is NumPy's function of that name, or a formula written out here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad.ops.philox import philox_uint32
from gpugrad.ops.random import Draw
from gpugrad.registry import OPS


def scattered(x: np.ndarray, index: Any, shape: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(shape)
    np.add.at(out, index, x)
    return out


def replaced(x: np.ndarray, value: np.ndarray, index: Any) -> np.ndarray:
    out = x.copy()
    out[index] = value
    return out


def pad(x: np.ndarray, pad_width: Any, value: float = 0.0) -> np.ndarray:
    return np.pad(x, pad_width, constant_values=value)


def logsumexp(x: np.ndarray, axis: Any = None, keepdims: bool = False) -> np.ndarray:
    return np.log(np.exp(x).sum(axis=axis, keepdims=keepdims))


def norm(x: np.ndarray, axis: Any = None, keepdims: bool = False) -> np.ndarray:
    return np.sqrt((x * x).sum(axis=axis, keepdims=keepdims))


def total(x: np.ndarray, axis: Any = None, keepdims: bool = False) -> np.ndarray:
    return np.sum(x, axis=tuple(axis) if isinstance(axis, list) else axis, keepdims=keepdims)


def dropped(x: np.ndarray, p: float, draw: Draw) -> np.ndarray:
    words = philox_uint32(np, draw.seed, draw.offset, x.size).reshape(x.shape)
    return np.where(words >= round(p * 2**32), x / (1 - p), 0)


FORMULAS: dict[str, Callable[..., Any]] = {  # what NumPy does not have, or has under another name
    "astype": lambda x, dtype: x.astype(dtype),
    "clip": lambda x, low, high: np.clip(x, low, high),
    "cumulative_prod": np.cumprod,
    "cumulative_sum": np.cumsum,
    "dropout": dropped,
    "dropout_add": lambda x, residual, **how: residual + dropped(x, **how),
    "erf": np.vectorize(math.erf, otypes=[float]),
    "getitem": lambda x, index: x[index],
    "getitem_view": lambda x, index: x[index],
    "linear": lambda x, w, b: x @ w.T if b is None else x @ w.T + b,
    "logsumexp": logsumexp,
    "norm": norm,
    "pad": pad,
    "put": replaced,
    "relu": lambda x: np.maximum(x, 0),
    "repeat_each": lambda x, repeats, axis=0: np.repeat(x, repeats, axis),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "scatter": scattered,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softplus": lambda x: np.log(1 + np.exp(x)),
    "sum": total,
}


def reference(name: str) -> Callable[..., Any]:
    return FORMULAS.get(name) or getattr(np, name)


def test_no_formula_hides_a_function_of_numpy() -> None:
    renamed = {"clip", "cumulative_prod", "cumulative_sum", "astype", "pad", "put", "sum"}
    assert set(FORMULAS) <= set(OPS)
    assert {name for name in FORMULAS if hasattr(np, name)} <= renamed


def test_value_and_shape(row: Any) -> None:
    arrays = row.arrays(seed=4)
    if row.op.name.startswith("bitwise"):
        arrays = [np.abs(a * 10).astype(np.int64) for a in arrays]
    expected = np.asarray(reference(row.op.name)(*arrays, **row.sample.statics))
    out = row(*(a if a is None else gg.tensor(a) for a in arrays)).numpy()
    assert out.shape == expected.shape
    assert out.dtype == expected.dtype
    np.testing.assert_allclose(out, expected, rtol=1e-14, atol=1e-15)
