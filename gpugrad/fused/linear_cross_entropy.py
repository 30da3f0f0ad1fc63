"""The head of a language model and its loss in one: the logits are never seen.

    loss = cross_entropy(x @ weight.T, target)

On a GPU the logits are one buffer: a matrix product writes them, and the kernel that computes the
loss leaves their gradient in the same place, with 1 instead of the upstream gradient g, which
nobody knows yet. The backward pass is two matrix products that multiply by g:

    dx = g * d @ weight,    dweight = g * d.T @ x,    d = (softmax(logits) - q) / count

With ``chunk`` the buffer is that of so many rows. What each chunk of rows adds to dx and dweight is
then computed at once, in float32, and multiplied by g and rounded at the end.

d is as small as 1 / count. float16 would lose most of it, so there it is 2**15 times as large, and
g 2**15 times smaller: no element of softmax - q is beyond 1, and 2**15 is half of what float16 can
hold. dx and dweight are rounded behind g: a loss scale protects them as it does other gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend, cuda
from ..engine import as_array, is_grad_enabled
from ..ops import concat, linear, sum
from ..registry import Sample, describe
from ..tensor import Tensor
from ..transforms import checkpoint
from . import _cross_entropy_cuda as kernels
from ._arguments import floating
from .affine import as_matrix
from .base import Cost, Implementation, fused
from .cross_entropy import _cross_entropy, checked_ids, checked_statics

_SCALE = 2.0**15  # of the gradient of the logits in float16

# CUDA


def _scale(x: Any) -> float:
    return _SCALE if x.dtype == backend.float16 else 1.0


def _cuda_forward(
    x: Any,
    weight: Any,
    target: Any,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    chunk: int | None,
    needs: tuple[bool, bool],
) -> tuple[Any, tuple]:
    """Return the loss, and for the backward (d, None, None) or, with chunks, (None, dx, dweight).

    ``needs`` says whether x and weight want a gradient.
    """
    rows, ids = as_matrix(x), cuda.contiguous(target).reshape(-1)
    size, (classes, features) = len(rows), weight.shape
    labels = kernels.rows_of(rows, ids, None, ignore_index, label_smoothing)
    labels = labels._replace(columns=classes)
    count = kernels.count_of(labels) if reduction == "mean" else None
    losses = cuda.empty(size, np.float32, like=x)
    dx = dweight = d = None
    if chunk is not None and needs[0]:
        dx = cuda.empty((size, features), np.float32, like=x)
    if chunk is not None and needs[1]:
        dweight = cuda.empty((classes, features), np.float32, like=x)
    step = size if chunk is None else chunk
    for start in range(0, size, step):
        part = slice(start, min(start + step, size))
        logits = cuda.gemm(rows[part], weight.mT)
        here = labels._replace(
            logits=logits, target=labels.target[part], rows=part.stop - part.start
        )
        if not any(needs):
            kernels.write_losses(here, losses[part])
            continue
        kernels.write_gradient(here, losses[part], _scale(x), count)
        if chunk is None:
            d = logits
        if dx is not None:
            cuda.gemm(logits, weight, dx[part])
        if dweight is not None:
            cuda.gemm(logits.mT, rows[part], dweight, beta=float(start > 0))
    if reduction == "none":
        return losses.reshape(target.shape), (d, dx, dweight)
    return kernels.sum_of(losses, labels.code, count), (d, dx, dweight)


def _cuda_backward(
    wanted: tuple[bool, ...],
    g: Any,
    arrays: Sequence[Any],
    residuals: tuple,
    reduction: str,
    **statics: Any,
) -> Sequence[Any]:
    x, weight, _ = arrays
    d, dx, dweight = residuals
    g, back = cuda.contiguous(g), 1 / _scale(x)
    if d is None:
        g = g * back
        dx = (dx * g).astype(x.dtype).reshape(x.shape) if wanted[0] else None
        return dx, (dweight * g).astype(weight.dtype) if wanted[1] else None, None
    rows = as_matrix(x)
    if reduction == "none":  # one g for each row
        g = g.reshape(-1, 1)
        if wanted[0]:
            dx = (cuda.gemm(d, weight, alpha=back, dtype=np.float32) * g).astype(x.dtype)
        if wanted[1]:
            dweight = cuda.gemm(d.mT, (rows * g).astype(x.dtype), alpha=back)
    else:
        g = g if back == 1 else as_array(g * back)
        dx = cuda.gemm(d, weight, alpha=g) if wanted[0] else None
        dweight = cuda.gemm(d.mT, rows, alpha=g) if wanted[1] else None
    return None if dx is None else dx.reshape(x.shape), dweight, None


def _fits(
    x: Any, weight: Any, target: Any, reduction: str, chunk: int | None, **statics: Any
) -> bool:
    if chunk is not None and reduction == "none":
        return False  # what each row is multiplied by is needed too early
    return cuda.fits(x, weight) and target.dtype.kind in "iu"


# The definition


def _cost(x: Any, weight: Any, target: Any, **statics: Any) -> Cost:
    """Return what one call cannot do without, if the logits are a buffer in memory.

    They are written, read and overwritten forward, and read by both products backward.
    """
    rows, size = math.prod(x.shape[:-1]), x.dtype.itemsize
    classes, features = weight.shape
    ends, logits = (rows + classes) * features, rows * classes
    flops = 2 * logits * features
    return Cost(
        (ends + 3 * logits) * size, flops + 10 * logits, 2 * (ends + logits) * size, 2 * flops
    )


_IDS = np.array([[2, -100, 0], [4, 2, 2]])
_PLAIN: dict[str, Any] = {"ignore_index": -100, "label_smoothing": 0.0, "needs": (True, True)}


@fused(
    [
        Sample((2, 3, 4), (5, 4), _IDS, **_PLAIN, reduction="mean", chunk=None),
        Sample((2, 3, 4), (5, 4), _IDS, **_PLAIN, reduction="none", chunk=None),
        Sample((2, 3, 4), (5, 4), _IDS, **_PLAIN, reduction="mean", chunk=4),
        Sample(
            (3, 4),
            (5, 4),
            _IDS[1],
            ignore_index=2,
            label_smoothing=0.1,
            reduction="sum",
            chunk=2,
            needs=(True, True),
        ),
    ],
    arguments=("x", "weight", "target"),
    differentiable=("x", "weight"),
    cuda=Implementation(_cuda_forward, _cuda_backward, _fits),
    cost=_cost,
)
@np.errstate(all="ignore")
def _linear_cross_entropy(
    x, weight, target, ignore_index, label_smoothing, reduction, chunk, needs
):
    kept = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    size = math.prod(target.shape)
    if chunk is None or chunk >= size:
        return _cross_entropy(linear(x, weight), target, None, **kept, reduction=reduction)
    kept["reduction"] = "none" if reduction == "none" else "sum"

    def losses(x, weight, target):
        return _cross_entropy(linear(x, weight), target, None, **kept)

    rows, ids = x.reshape(size, x.shape[-1]), target.reshape(size)
    parts = [slice(start, start + chunk) for start in range(0, size, chunk)]
    found = [checkpoint(losses, rows[part], weight, ids[part]) for part in parts]
    if reduction == "none":
        return concat(found).reshape(target.shape)
    total = found[0]
    for loss in found[1:]:
        total = total + loss
    if reduction == "sum":
        return total
    return total / sum((target != ignore_index).astype(total.dtype))


def linear_cross_entropy(
    x: Any,
    weight: Any,
    target: Any,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    chunk: int | None = None,
) -> Tensor:
    """Return cross_entropy(x @ weight.T, target) without keeping the logits.

    x: (..., C) and weight (V, C), floating; target: ids (...) in [0, V), or ignore_index. The rest,
    and the result, are as those of ``cross_entropy``. ``chunk`` is how many rows have their logits
    in memory at the same time, None for all of them: the memory for logits is chunk * V numbers,
    beside which the gradients of x and weight take 4 bytes per number until the backward pass.
    With reduction "none" chunks are computed again there. Without a gradient to compute, under
    no_grad, there is the loss only.

    Raises what ``cross_entropy`` raises, and ValueError where x and weight do not fit or chunk is
    less than 1.
    """
    x, weight = floating(x), floating(weight)
    if not x.ndim or weight.ndim != 2 or x.shape[-1] != weight.shape[1] or not weight.shape[0]:
        raise ValueError(
            f"linear_cross_entropy: x {describe(x)} and weight {describe(weight)} do not fit: "
            "they must be (..., C) and (V, C)"
        )
    statics = checked_statics(ignore_index, label_smoothing, reduction)
    target = checked_ids(target, x, (*x.shape[:-1], weight.shape[0]), ignore_index)
    if chunk is not None and (type(chunk) is not int or chunk < 1):
        raise ValueError(
            f"linear_cross_entropy: chunk must be a number of rows >= 1, got {chunk!r}"
        )
    rows = math.prod(target.shape)
    statics["chunk"] = None if chunk is None or chunk >= rows else chunk
    recorded = is_grad_enabled()
    needs = recorded and x.requires_grad, recorded and weight.requires_grad
    return _linear_cross_entropy(x, weight, target, needs=needs, **statics)
