"""Cross-entropy in NumPy: block by block through the rows, with the sums that gradients need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..memory import empty
from ..prepared import once
from ._rows import as_rows, for_blocks, largest, row_sums, scratch, wide_block, wide_dtype


class _Labels(NamedTuple):
    """What integer targets say about the rows.

    ``hit`` is what q has at ``id`` beyond the smoothed part, ``mass`` the sum of q; both are 0 in
    the rows at positions ``ignored``. ``count`` is what the mean divides by.
    """

    id: np.ndarray
    hit: np.ndarray
    mass: np.ndarray
    ignored: np.ndarray
    count: Any


def _labels(
    target: np.ndarray,
    weight: np.ndarray | None,
    classes: int,
    wide: np.dtype,
    ignore_index: int,
    label_smoothing: float,
) -> _Labels:
    ids = target.reshape(-1)
    counted = ids != ignore_index
    ignored = np.flatnonzero(~counted)
    if len(ignored):
        ids = np.where(counted, ids, 0)
    hit = counted.astype(wide) if weight is None else weight[ids] * counted
    count = np.add.reduce(hit)
    spread = label_smoothing * (1 if weight is None else np.add.reduce(weight) / classes)
    hit *= 1 - label_smoothing
    mass = hit + spread * counted if label_smoothing else hit
    return _Labels(ids, hit, mass.astype(wide, copy=False), ignored, count)


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
    labels: _Labels | None = None
    targets = None if by_id else as_rows(target)
    tops, totals, losses = empty((3, len(rows)), wide)
    loss = None if reduction == "none" else empty((), wide)
    count = empty((), wide if weight is None or not by_id else weight.dtype)

    def look() -> None:
        nonlocal labels
        if by_id:
            labels = _labels(target, weight, classes, wide, ignore_index, label_smoothing)
        count[...] = len(rows) if labels is None else labels.count

    def finish() -> None:
        if labels is not None:
            losses[labels.ignored] = 0
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
    labels: _Labels | None = None
    targets = None if by_id else as_rows(target)
    factors = scale = hit = even = tops  # made below

    def look() -> None:
        nonlocal labels, factors, scale, hit, even
        factors = (g / count if reduction == "mean" else g).reshape(-1)
        factors = np.broadcast_to(factors, len(rows)).astype(wide, copy=False)
        if by_id:
            labels = _labels(target, weight, classes, wide, ignore_index, label_smoothing)
            scale, hit = factors * labels.mass, factors * labels.hit
            even = factors * (label_smoothing / classes)
            scale /= totals

    def work(part: slice) -> None:
        d = dx_rows[part] if dx.dtype == wide else scratch(part, rows, wide)[0]
        np.subtract(rows[part], tops[part, None], out=d)
        np.exp(d, out=d)
        if labels is not None:
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
        if labels is not None:
            dx_rows[labels.ignored] = 0

    once(look)
    for_blocks(rows, work, 1)
    once(clear)
    return dx, None, None
