"""layer_norm by NumPy, some rows at a time: on its own, or on the way into a layer.

A layer behind a norm takes its rows from ``Forward`` while they are in the cache, and takes them
once more from ``Backward``, which hands their gradients on: what is normalised need not be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..memory import empty
from ..prepared import once
from ._rows import (
    ColumnSums,
    as_rows,
    cut,
    ones,
    reshaped,
    scratch,
    wide_block,
    wide_dtype,
)


class Forward:
    """The norm of x, or of the sum h of x and a residual; ``rows`` is what is normalised, (N, C).

    Mean and 1 / sqrt(var + eps) of each row that was normalised are in ``averages`` and ``scales``.
    """

    def __init__(
        self,
        x: np.ndarray,
        weight: np.ndarray | None,
        bias: np.ndarray | None,
        residual: np.ndarray | None,
        eps: float,
    ) -> None:
        self.wide = wide_dtype(x.dtype)
        self.h = x if residual is None else empty(x.shape, x.dtype)
        self.rows = as_rows(self.h)
        self.averages, self.scales = empty((2, len(self.rows)), self.wide)
        self._x, self._residual = as_rows(x), None if residual is None else as_rows(residual)
        self._weight, self._bias = _widened(weight, self.wide), _widened(bias, self.wide)
        self._eps = eps

    def write(self, part: slice, out: np.ndarray) -> None:
        """Write some rows, normalised, to out."""
        average, scale = self.averages[part], self.scales[part]
        if self._residual is not None:
            np.add(self._x[part], self._residual[part], out=self.rows[part])
        y, block = out, self.rows[part]
        if out.dtype != self.wide:
            y = block = wide_block(block, scratch(part, self.rows, self.wide)[0])
        _normalize(block, y, average, scale, self._eps)
        _finish(y, scale, self._weight, self._bias)
        if out.dtype != self.wide:
            out[...] = y

    def taken(self, start: int, stop: int) -> np.ndarray:
        """Return these rows, normalised, in new memory."""
        out = np.empty((stop - start, self.rows.shape[1]), self.rows.dtype)
        for part in cut(start, stop, self.rows):
            self.write(part, out[part.start - start : part.stop - start])
        return out


def few_rows(
    x: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    residual: np.ndarray | None,
    eps: float,
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the norm of what ``_rows.few`` holds for, h, and rows, averages and scales.

    The same bits as by a Forward.
    """
    h = x if residual is None else x + residual
    rows = h.reshape(-1, x.shape[-1])
    out = np.empty(rows.shape, rows.dtype)
    averages, scales = np.empty((2, len(rows)), rows.dtype)
    _normalize(rows, out, averages, scales, eps)
    _finish(out, scales, weight, bias)
    return out.reshape(x.shape), h, (rows, averages, scales)


class Backward:
    """The gradients of h and of the parameters, from those of the rows that were normalised.

    ``wanted`` says whether of h, weight and bias; ``forward`` are the rows of a Forward with their
    averages and scales, ``g_h`` the gradient that reaches h past the norm.
    """

    def __init__(
        self,
        wanted: tuple[bool, bool, bool],
        forward: tuple[np.ndarray, np.ndarray, np.ndarray],
        weight: np.ndarray | None,
        bias: np.ndarray | None,
        shape: tuple[int, ...],
        g_h: np.ndarray | None,
    ) -> None:
        self.rows, self._averages, self._scales = forward
        self.wide, n = wide_dtype(self.rows.dtype), self.rows.shape[1]
        self._dtypes = tuple(self.wide if p is None else p.dtype for p in (weight, bias))
        self._dh = empty(shape, self.rows.dtype) if wanted[0] else None
        self._dh_rows = None if self._dh is None else as_rows(self._dh)
        self._dweight = ColumnSums(self.rows, self.wide) if wanted[1] else None
        self._dbias = ColumnSums(self.rows, self.wide) if wanted[2] else None
        self._g_h_rows = None if g_h is None else as_rows(g_h)
        self._weight, self._bias = _widened(weight, self.wide), _widened(bias, self.wide)
        self._factor = ones(n, self.wide) if self._weight is None else self._weight
        self._share = empty((n,), self.wide)
        once(lambda: np.divide(self._factor, n, out=self._share))

    def taken(self, start: int, stop: int) -> np.ndarray:
        """Return these rows as a Forward has returned them."""
        out = np.empty((stop - start, self.rows.shape[1]), self.rows.dtype)
        for part in cut(start, stop, self.rows):
            y = out[part.start - start : part.stop - start]
            np.subtract(self.rows[part], self._averages[part, None], out=y)
            _finish(y, self._scales[part], self._weight, self._bias)
        return out

    def pull(self, start: int, g: np.ndarray) -> None:
        """Take the gradient of the rows from start on."""
        for part in cut(start, start + len(g), self.rows):
            self.add(part, g[part.start - start : part.stop - start])

    def add(self, part: slice, g: np.ndarray) -> None:
        """Take the gradient of a block of rows, which starts at a multiple of CHUNK."""
        y, d, spare = scratch(part, self.rows, self.wide, 3)
        scale, dh = self._scales[part], self._dh_rows
        np.subtract(self.rows[part], self._averages[part, None], out=y)  # z is y * scale
        g = wide_block(g, spare)
        if dh is not None and dh.dtype == self.wide:
            d = dh[part]
        np.multiply(g, y, out=d)
        if self._dweight is not None:
            self._dweight.add(d, part, scale)
        if self._dbias is not None:
            self._dbias.add(g, part)
        if dh is None:
            return
        slope = np.dot(d, self._share)  # mean(u * y)
        slope *= scale
        slope *= scale
        y *= slope[:, None]  # z * mean(u * z)
        y += np.dot(g, self._share)[:, None]  # mean(u)
        np.multiply(g, self._factor, out=d)
        d -= y
        d *= scale[:, None]
        if self._g_h_rows is not None:
            d += self._g_h_rows[part]
        if dh.dtype != self.wide:
            dh[part] = d

    def gradients(self) -> Sequence[Any]:
        """Return the gradients of x, weight, bias and residual."""
        dweight, dbias = self._dweight, self._dbias
        return (
            self._dh,
            None if dweight is None else dweight.total(self._dtypes[0]),
            None if dbias is None else dbias.total(self._dtypes[1]),
            self._dh,
        )


def _widened(parameter: np.ndarray | None, dtype: np.dtype) -> np.ndarray | None:
    return None if parameter is None else reshaped(parameter, parameter.shape, dtype)


def _normalize(
    rows: np.ndarray, out: np.ndarray, average: np.ndarray, scale: np.ndarray, eps: float
) -> None:
    """Write each row less its average to out, and average and 1 / sqrt(var + eps)."""
    n = rows.shape[1]
    np.vecdot(rows, ones(n, out.dtype), out=average)
    average /= n
    np.subtract(rows, average[:, None], out=out)
    np.vecdot(out, out, out=scale)
    scale /= n
    scale += eps
    np.sqrt(scale, out=scale)
    np.reciprocal(scale, out=scale)


def _finish(
    y: np.ndarray, scale: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None
) -> None:
    """Have the rows y, less their mean, normalised, times weight plus bias."""
    y *= scale[:, None]
    if weight is not None:
        y *= weight
    if bias is not None:
        y += bias
