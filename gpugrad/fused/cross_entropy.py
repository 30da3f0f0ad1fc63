"""Softmax and cross-entropy in one: the loss of a classifier or language model from its logits.

    loss = -sum_c q_c log(softmax(x)_c),    q_c = w_c ((1 - a) t_c + a / V)

over the last axis, the V classes; w are class weights, a is the label smoothing, and t are target
probabilities, or 1 at the target id and 0 elsewhere (Szegedy et al.: Rethinking the Inception
Architecture, 2016). The gradient of x_c is softmax(x)_c sum(q) - q_c.

Conventions follow PyTorch: rows whose target is ignore_index have loss 0; the mean over ids divides
by the sum of the weights of the targets (NaN if all are ignored), the mean over probabilities by
the number of rows. Beyond PyTorch, an ignored row has gradient 0 whatever its logits are, and
0 * log(0) counts as 0: a class masked with -inf costs nothing where its q is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from ..ops import asarray, exp, log, max, sum, where
from ..registry import Sample, describe
from ..tensor import Tensor
from ._ids import on_device_of, refuse_non_integer, refuse_out_of_range
from ._rows import as_rows, row_blocks, wide_block, wide_dtype, widened
from .base import Implementation, fused

LONG = 4096  # classes beyond which sums are pairwise
REDUCTIONS = ("none", "sum", "mean")

# NumPy


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


def _block(rows: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return memory for the largest block of rows."""
    first = next(row_blocks(rows, 1), slice(0, 0))
    return np.empty((first.stop, rows.shape[1]), dtype)


def _row_sums(x: np.ndarray, factor: np.ndarray | None = None) -> np.ndarray:
    """Return the sums of x * factor, by BLAS where it is exact enough: it does not add in pairs."""
    if x.shape[1] > LONG:
        return np.add.reduce(x if factor is None else x * factor, axis=-1)
    return np.vecdot(x, np.ones(x.shape[1], x.dtype) if factor is None else factor)


def _spread_costs(z: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """Return the sums of w * z, for the part of q that is smoothed over all classes."""
    if weight is None or weight.all():
        return _row_sums(z, weight)
    used = np.flatnonzero(weight)  # what has no weight may be -inf
    return _row_sums(z[:, used], weight[used])


def _forward(
    logits: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> tuple[np.ndarray, tuple]:
    rows, wide, classes = as_rows(logits), wide_dtype(logits.dtype), logits.shape[-1]
    by_id = target.dtype.kind in "iu"
    labels: _Labels | None = None
    targets: Any = None
    with np.errstate(all="ignore"):
        if by_id:
            labels = _labels(target, weight, classes, wide, ignore_index, label_smoothing)
        else:
            targets = as_rows(target)
        tops, totals, losses = np.empty((3, len(rows)), wide)
        buffer = _block(rows, wide)
        for part in row_blocks(rows, 1):
            z = buffer[: part.stop - part.start]
            x = wide_block(rows[part], z)
            each = np.arange(len(z))
            top = x[each, x.argmax(axis=-1)]  # faster than max
            top[top == -math.inf] = 0
            np.subtract(x, top[:, None], out=z)
            if labels is not None:
                mass, hit = labels.mass[part], labels.hit[part]
                cost = z[each, labels.id[part]]
                cost *= hit
                cost[hit == 0] = 0
                if label_smoothing:
                    cost += label_smoothing / classes * _spread_costs(z, weight)
            else:
                q = _blend(targets[part], weight, label_smoothing, wide)
                mass, cost = _row_sums(q), _row_sums(q, z)
                if np.isnan(cost).any():
                    cost = _row_sums(q, np.where(q == 0, 0, z))
            total = _row_sums(np.exp(z, out=z))
            total[total == 0] = 1
            np.subtract(mass * np.log(total), cost, out=losses[part])
            tops[part], totals[part] = top, total
        count = len(rows) if labels is None else labels.count
        if labels is not None:
            losses[labels.ignored] = 0
        if reduction == "none":
            return losses.reshape(logits.shape[:-1]), (tops, totals, count)
        loss = np.add.reduce(losses)
        if reduction == "mean":
            loss = np.divide(loss, count, dtype=wide)
        return np.asarray(loss), (tops, totals, count)


def _backward(
    wanted: tuple[bool, ...],
    g: np.ndarray,
    arrays: Sequence[Any],
    residuals: tuple,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> Sequence[Any]:
    logits, target, weight = arrays
    tops, totals, count = residuals
    rows, wide, classes = as_rows(logits), wide_dtype(logits.dtype), logits.shape[-1]
    g = g / count if reduction == "mean" else g
    g = np.broadcast_to(g.reshape(-1), len(rows)).astype(wide, copy=False)
    dx = np.empty(logits.shape, logits.dtype)
    dx_rows = as_rows(dx)
    buffer = None if dx.dtype == wide else _block(rows, wide)
    labels: _Labels | None = None
    targets: Any = None
    if target.dtype.kind in "iu":
        labels = _labels(target, weight, classes, wide, ignore_index, label_smoothing)
        scale, hit, even = g * labels.mass, g * labels.hit, g * (label_smoothing / classes)
        scale /= totals
    else:
        targets = as_rows(target)
    for part in row_blocks(rows, 1):
        d = dx_rows[part] if buffer is None else buffer[: part.stop - part.start]
        np.subtract(rows[part], tops[part, None], out=d)
        np.exp(d, out=d)
        if labels is not None:
            d *= scale[part, None]
            if label_smoothing:
                d -= even[part, None] * (1 if weight is None else weight)
            d[np.arange(len(d)), labels.id[part]] -= hit[part]
        else:
            q = _blend(targets[part], weight, label_smoothing, wide)
            d *= (_row_sums(q) / totals[part])[:, None]
            d -= q
            d *= g[part, None]
        if buffer is not None:
            dx_rows[part] = d
    if labels is not None:
        dx_rows[labels.ignored] = 0
    return dx, None, None


# The definition

_IDS = np.array([[2, -100, 0], [4, 2, 2]])
_ALL_IDS = np.array([[2, 1, 0], [4, 2, 2]])
_CERTAIN = np.array([[0.0, 1.0, 0.0], [0.2, 0.3, 0.5]])


@fused(
    [
        Sample((2, 3, 5), _IDS, None, ignore_index=-100, label_smoothing=0.0, reduction="mean"),
        Sample((2, 3, 5), _ALL_IDS, None, ignore_index=2, label_smoothing=0.2, reduction="none"),
        Sample(
            (3, 5),
            _IDS[0],
            np.array([0.5, 2.0, 0.0, 1.0, 3.0]),
            ignore_index=-100,
            label_smoothing=0.1,
            reduction="mean",
        ),
        Sample((2, 3), _CERTAIN, None, ignore_index=-100, label_smoothing=0.0, reduction="sum"),
        Sample(
            (2, 3),
            _CERTAIN,
            np.array([0.5, 2.0, 0.0]),
            ignore_index=-100,
            label_smoothing=0.3,
            reduction="mean",
        ),
    ],
    arguments=("logits", "target", "weight"),
    differentiable=("logits",),
    numpy=Implementation(_forward, _backward),
)
@np.errstate(all="ignore")
def _cross_entropy(logits, target, weight, ignore_index, label_smoothing, reduction):
    x = widened(logits)
    classes, xp = x.shape[-1], backend.xp_of(x._data)
    by_id = target.dtype.kind in "iu"
    if by_id:
        counted = target != ignore_index
        x = where(counted[..., None], x, 0)
        q = (target[..., None] == Tensor._wrap(xp.arange(classes), None)).astype(x.dtype)
        each = q if weight is None else q * weight
        count = sum(where(counted, sum(each, axis=-1), 0))
    else:
        q, count = target, math.prod(x.shape[:-1]) or math.nan
    q = q * (1 - label_smoothing) + label_smoothing / classes
    q = q if weight is None else q * weight
    largest = max(x, axis=-1, keepdims=True).detach()  # any constant gives the same result
    shifted = x - where(largest == -math.inf, 0, largest)
    total = sum(exp(shifted), axis=-1, keepdims=True)
    log_p = shifted - log(where(total == 0, 1, total))
    log_p = where((q == 0) & (log_p == -math.inf), 0, log_p)
    losses = -sum(q * log_p, axis=-1)
    losses = where(counted, losses, 0) if by_id else losses
    if reduction == "none":
        return losses
    return sum(losses) / count if reduction == "mean" else sum(losses)


def cross_entropy(
    logits: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Return the cross-entropy between softmax(logits) over the last axis and the target.

    logits: (..., V) floating. target: ids (...) of an integer dtype in [0, V), or ignore_index for
    rows without loss; or probabilities (..., V) of a floating dtype. weight: (V,), one factor per
    class. reduction "none" gives (...), "sum" and "mean" a number; all in at least float32. The
    classes are the last axis: ``nn.functional.cross_entropy`` accepts PyTorch's (N, V, d1, ...).

    Raises TypeError for dtypes, ValueError for shapes and values that do not fit, IndexError for
    a target id out of range, naming the id and its position.
    """
    logits = asarray(logits)
    _check_logits(logits)
    if reduction not in REDUCTIONS:
        raise ValueError(f"cross_entropy: reduction must be none, sum or mean, got {reduction!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(
            f"cross_entropy: label_smoothing must lie in [0, 1], got {label_smoothing}"
        )
    wide = wide_dtype(logits.dtype)
    target = _checked_target(logits, on_device_of(target, logits), ignore_index, wide)
    if weight is not None:
        weight = on_device_of(weight, logits)
        if not backend.is_float(weight.dtype) or weight.shape != logits.shape[-1:]:
            raise ValueError(
                f"cross_entropy: weight must be floating, one factor for each of the "
                f"{logits.shape[-1]} classes, got {describe(weight)}"
            )
        weight = weight.astype(wide)
    statics = {
        "ignore_index": ignore_index,
        "label_smoothing": float(label_smoothing),
        "reduction": reduction,
    }
    if target.requires_grad or (weight is not None and weight.requires_grad):
        return _cross_entropy.spec(
            logits, target, weight, **statics
        )  # rare: not worth a fused rule
    return _cross_entropy(logits, target, weight, **statics)


def _check_logits(logits: Tensor) -> None:
    if not backend.is_float(logits.dtype):
        raise TypeError(f"cross_entropy: logits must be floating, got {describe(logits)}")
    if not logits.ndim or not logits.shape[-1]:
        raise ValueError(
            f"cross_entropy: logits of shape {logits.shape} have no classes; they must be (..., V)"
        )


def _checked_target(logits: Tensor, target: Tensor, ignore_index: int, wide: np.dtype) -> Tensor:
    if backend.is_float(target.dtype):
        if target.shape != logits.shape:
            raise ValueError(
                f"cross_entropy: target {describe(target)} holds probabilities, so it must have "
                f"the shape of the logits, {logits.shape}; ids have an integer dtype"
            )
        if ignore_index >= 0:
            raise ValueError(
                f"cross_entropy: ignore_index={ignore_index} has no meaning for target "
                "probabilities; only ids can be ignored"
            )
        return target.astype(wide)
    refuse_non_integer("cross_entropy", "target", target)
    if target.shape != logits.shape[:-1]:
        raise ValueError(
            f"cross_entropy: target ids have shape {target.shape}, but logits {logits.shape} need "
            f"{logits.shape[:-1]}, one id for each row; the classes are the last axis"
        )
    classes = logits.shape[-1]
    refuse_out_of_range(
        "cross_entropy", "target", target, classes, "the number of classes is", ignore_index
    )
    return target
