"""Cross-entropy in NumPy: block by block through the rows, with the sums that gradients need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..memory import empty
from ..prepared import once
from ._rows import as_rows, for_blocks, largest, row_sums, scratch, wide_block, wide_dtype


class _Labels:
    """What integer targets say about the rows, once ``look`` has looked at them.

    ``hit`` is what q has at ``id`` beyond the smoothed part, ``mass`` the sum of q; both are 0 in
    the rows at the positions that ``look`` returns, which are ignored.
    """

    def __init__(self, target: np.ndarray, weight: np.ndarray | None, wide: np.dtype) -> None:
        self._target, self._weight = target, weight
        self.id = empty((target.size,), np.intp)
        self.hit = empty((target.size,), wide if weight is None else weight.dtype)
        self.mass = empty((target.size,), wide)

    def look(
        self, classes: int, ignore_index: int, label_smoothing: float
    ) -> tuple[Any, np.ndarray]:
        """Return what the mean divides by, and which rows are ignored."""
        ids, weight = self._target.reshape(-1), self._weight
        counted = ids != ignore_index
        ignored = np.flatnonzero(~counted)
        np.copyto(self.id, ids, casting="unsafe")
        self.id[ignored] = 0
        np.copyto(self.hit, counted if weight is None else weight[self.id] * counted)
        count = np.add.reduce(self.hit)
        spread = label_smoothing * (1 if weight is None else np.add.reduce(weight) / classes)
        self.hit *= 1 - label_smoothing
        self.mass[...] = self.hit + spread * counted if label_smoothing else self.hit
        return count, ignored


def _blend(
    target: np.ndarray, weight: np.ndarray | None, label_smoothing: float, wide: np.dtype
) -> np.ndarray:
    """Return q of some rows of target probabilities."""
    q = target.astype(wide)
    if label_smoothing:
        q *= 1 - label_smoothing
        q += label_smoothing / target.shape[-1]
    if weight is not None:
        q *= weight
    return q


def _spread_costs(z: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """Return the sums of w * z, for the part of q that is smoothed over all classes."""
    if weight is None or weight.all():
        return row_sums(z, weight)
    used = np.flatnonzero(weight)  # what has no weight may be -inf
    return row_sums(z[:, used], weight[used])


def forward(
    logits: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> tuple[np.ndarray, tuple]:
    """Return the loss, and for the backward the maxima, the totals and the mean's divisor."""
    rows, wide, classes = as_rows(logits), wide_dtype(logits.dtype), logits.shape[-1]
    by_id = target.dtype.kind in "iu"
    labels = _Labels(target, weight, wide) if by_id else None
    targets = None if by_id else as_rows(target)
    tops, totals, losses = empty((3, len(rows)), wide)
    loss = None if reduction == "none" else empty((), wide)
    count = empty((), wide if weight is None or not by_id else weight.dtype)
    ignored = np.empty(0, np.intp)

    def look() -> None:
        nonlocal ignored
        if labels is None:
            count[...] = len(rows)
        else:
            count[...], ignored = labels.look(classes, ignore_index, label_smoothing)

    def finish() -> None:
        losses[ignored] = 0
        if loss is not None:
            np.add.reduce(losses, out=loss)
            if reduction == "mean":
                np.divide(loss, count, out=loss, dtype=wide)

    with np.errstate(all="ignore"):
        once(look)

        def work(part: slice) -> None:
            (z,) = scratch(part, rows, wide)
            x = wide_block(rows[part], z)
            top = largest(x)
            top[top == -math.inf] = 0
            np.subtract(x, top[:, None], out=z)
            if labels is not None:
                mass, hit = labels.mass[part], labels.hit[part]
                cost = z[np.arange(len(z)), labels.id[part]]
                cost *= hit
                cost[hit == 0] = 0
                if label_smoothing:
                    cost += label_smoothing / classes * _spread_costs(z, weight)
            else:
                assert targets is not None
                q = _blend(targets[part], weight, label_smoothing, wide)
                mass, cost = row_sums(q), row_sums(q, z)
                if np.isnan(cost).any():
                    cost = row_sums(q, np.where(q == 0, 0, z))
            total = row_sums(np.exp(z, out=z))
            total[total == 0] = 1
            np.subtract(mass * np.log(total), cost, out=losses[part])
            tops[part], totals[part] = top, total

        for_blocks(rows, work, 1)
        once(finish)
    out = losses.reshape(logits.shape[:-1]) if loss is None else loss
    return out, (tops, totals, count)


def backward(
    wanted: tuple[bool, ...],
    g: np.ndarray,
    arrays: Sequence[Any],
    residuals: tuple,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> Sequence[Any]:
    """Return the gradient of the logits."""
    logits, target, weight = arrays
    tops, totals, count = residuals
    rows, wide, classes = as_rows(logits), wide_dtype(logits.dtype), logits.shape[-1]
    dx = empty(logits.shape, logits.dtype)
    dx_rows = as_rows(dx)
    by_id = target.dtype.kind in "iu"
    labels = _Labels(target, weight, wide) if by_id else None
    targets = None if by_id else as_rows(target)
    factors, scale, even = empty((3, len(rows)), wide)
    hit = None if labels is None else empty((len(rows),), np.result_type(wide, labels.hit.dtype))
    ignored = np.empty(0, np.intp)

    def look() -> None:
        nonlocal ignored
        factors[...] = (g / count if reduction == "mean" else g).reshape(-1)
        if labels is not None:
            _, ignored = labels.look(classes, ignore_index, label_smoothing)
            np.multiply(factors, labels.mass, out=scale)
            np.multiply(factors, labels.hit, out=hit)
            np.multiply(factors, label_smoothing / classes, out=even)
            np.divide(scale, totals, out=scale)

    def work(part: slice) -> None:
        d = dx_rows[part] if dx.dtype == wide else scratch(part, rows, wide)[0]
        np.subtract(rows[part], tops[part, None], out=d)
        np.exp(d, out=d)
        if labels is not None:
            assert hit is not None
            d *= scale[part, None]
            if label_smoothing:
                d -= even[part, None] * (1 if weight is None else weight)
            d[np.arange(len(d)), labels.id[part]] -= hit[part]
        else:
            assert targets is not None
            q = _blend(targets[part], weight, label_smoothing, wide)
            d *= (row_sums(q) / totals[part])[:, None]
            d -= q
            d *= factors[part, None]
        if dx.dtype != wide:
            dx_rows[part] = d

    def clear() -> None:
        dx_rows[ignored] = 0

    once(look)
    for_blocks(rows, work, 1)
    once(clear)
    return dx, None, None
