"""Softmax and cross-entropy in one: the loss of a classifier or language model from its logits.

    loss = -sum_c q_c log(softmax(x)_c),    q_c = w_c ((1 - a) t_c + a / V)

over the last axis, the V classes; w are class weights, a is the label smoothing, and t are target
probabilities, or 1 at the target id and 0 elsewhere (Szegedy et al.: Rethinking the Inception
Architecture, 2016). The gradient of x_c is softmax(x)_c sum(q) - q_c.

Conventions follow PyTorch: rows whose target is ignore_index have loss 0; the mean over ids divides
by the sum of the weights of the targets (NaN if all are ignored), the mean over probabilities by
the number of rows. Beyond PyTorch, an ignored row has gradient 0 whatever its logits are, and
0 * log(0) counts as 0: a class masked with -inf costs nothing where its q is 0. Where q is not, the
loss is infinite and the gradient still softmax(x)_c sum(q) - q_c, in a row that is masked
altogether with softmax 0 (PyTorch: NaN). Ids are checked on the CPU alone: on a GPU a row whose id
is out of range has loss and gradient NaN.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import backend, cuda
from ..ops import asarray, exp, log, max, sum, where
from ..registry import Sample, describe
from ..tensor import Tensor
from . import _cross_entropy_cuda as kernels
from . import _cross_entropy_numpy as by_numpy
from ._ids import in_range, on_device_of, refuse_non_integer, refuse_out_of_range
from ._rows import wide_dtype, widened
from .base import Cost, Implementation, fused

REDUCTIONS = ("none", "sum", "mean")

_IDS = np.array([[2, -100, 0], [4, 2, 2]])
_ALL_IDS = np.array([[2, 1, 0], [4, 2, 2]])
_CERTAIN = np.array([[0.0, 1.0, 0.0], [0.2, 0.3, 0.5]])


def _cost(logits: Any, target: Any, weight: Any = None, **statics: Any) -> Cost:
    """Return what one call cannot do without; ids, weights and losses count for nothing.

    The logits, and a target of probabilities, are read by both passes; the gradient is written.
    """
    size = math.prod(logits.shape)
    array = size * logits.dtype.itemsize
    read = array if target.dtype.kind in "iu" else array + size * target.dtype.itemsize
    return Cost(read, 5 * size, read + array, 5 * size)


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
    numpy=Implementation(by_numpy.forward, by_numpy.backward, prepared=True),
    cuda=Implementation(kernels.forward, kernels.backward, kernels.fits),
    cost=_cost,
)
@np.errstate(all="ignore")
def _cross_entropy(logits, target, weight, ignore_index, label_smoothing, reduction):
    x = widened(logits)
    classes, xp = x.shape[-1], backend.xp_of(x._data)
    by_id = target.dtype.kind in "iu"
    if by_id:
        target = target.astype(np.int64)  # a narrow unsigned one has no -100
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
    if by_id:
        known = in_range(target, classes) | (target == ignore_index)
        losses = losses * where(known, 1, math.nan)  # and so the gradient
        losses = where(counted, losses, 0)
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
    a target id out of range, naming the id and its position. Only ids on the CPU are checked: on a
    GPU a row whose id is out of range has loss and gradient NaN.
    """
    logits = asarray(logits)
    _check_logits(logits)
    statics = checked_statics(ignore_index, label_smoothing, reduction)
    target = on_device_of(target, logits)
    if backend.is_float(target.dtype):
        _check_probabilities(logits, target, ignore_index)
        target = target.astype(wide_dtype(logits.dtype))
    else:
        target = checked_ids(target, logits, logits.shape, ignore_index)
    if weight is not None:
        weight = on_device_of(weight, logits)
        _check_weight(logits, weight)
        weight = weight.astype(wide_dtype(logits.dtype))
    if target.requires_grad or (weight is not None and weight.requires_grad):
        return _cross_entropy.spec(
            logits, target, weight, **statics
        )  # rare: not worth a fused rule
    return _cross_entropy(logits, target, weight, **statics)


def cross_entropy_in_place(
    logits: Any,
    target: Any,
    scale: Any = 1.0,
    weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Any:
    """Return the cross-entropy of logits, which become the gradient of scale times it.

    For a training step that knows what the loss is multiplied by before the backward pass. On a GPU
    one kernel reads and writes the logits once, and nothing waits for the device. All arguments are
    arrays, not tensors, and nothing is recorded. logits: (..., V), floating, C-contiguous, they are
    overwritten. target: ids (...). scale: a number; an array of one element; or, with reduction
    "none", an array (...). The rest, and the result, are as those of ``cross_entropy``.

    Raises what ``cross_entropy`` raises, and ValueError for logits without rows or that cannot be
    overwritten.
    """
    for name, value in {"logits": logits, "target": target}.items():
        if not backend.is_array(value):
            raise TypeError(f"cross_entropy_in_place: {name} must be an array, got {value!r}")
    _check_logits(logits)
    if not logits.size or not logits.flags.c_contiguous or not _writeable(logits):
        raise ValueError(
            f"cross_entropy_in_place: logits must have rows, be C-contiguous and writeable, got "
            f"{describe(logits)}"
        )
    statics = checked_statics(ignore_index, label_smoothing, reduction)
    _check_ids(logits.shape, target)
    xp, wide = backend.xp_of(logits), wide_dtype(logits.dtype)
    _check_range(logits.shape, Tensor._wrap(target, None), ignore_index)
    if weight is not None:
        _check_weight(logits, weight)
        weight = weight.astype(wide, copy=False)
    if backend.is_array(scale):
        if scale.size != 1 and (reduction != "none" or scale.shape != target.shape):
            raise ValueError(
                f"cross_entropy_in_place: scale must be one number, or with reduction 'none' one "
                f"for each of the rows {target.shape}, got {describe(scale)}"
            )
        scale = xp.ascontiguousarray(scale, wide)
    if kernels.fits(logits, target, weight) and (xp is not np or cuda.emulated()):
        return kernels.in_place(logits, target, weight, scale, **statics)
    if xp is not np:
        raise TypeError(f"cross_entropy_in_place: no kernel knows {describe(logits)}")
    loss, residuals = by_numpy.forward(logits, target, weight, **statics)
    g = np.asarray(scale, wide)
    arrays = logits, target, weight
    with np.errstate(all="ignore"):
        logits[...], *_ = by_numpy.backward((True,) * 3, g, arrays, residuals, **statics)
    return loss


def checked_statics(ignore_index: int, label_smoothing: float, reduction: str) -> dict[str, Any]:
    """Return what decides the loss beside its arguments; raise ValueError for what cannot be."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"cross_entropy: reduction must be none, sum or mean, got {reduction!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(
            f"cross_entropy: label_smoothing must lie in [0, 1], got {label_smoothing}"
        )
    return {
        "ignore_index": ignore_index,
        "label_smoothing": float(label_smoothing),
        "reduction": reduction,
    }


def _check_logits(logits: Any) -> None:
    if not backend.is_float(logits.dtype):
        raise TypeError(f"cross_entropy: logits must be floating, got {describe(logits)}")
    if not logits.ndim or not logits.shape[-1]:
        raise ValueError(
            f"cross_entropy: logits of shape {logits.shape} have no classes; they must be (..., V)"
        )


def _check_probabilities(logits: Tensor, target: Tensor, ignore_index: int) -> None:
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


def checked_ids(target: Any, x: Tensor, logits: tuple[int, ...], ignore_index: int) -> Tensor:
    """Return the ids of rows of logits of a shape, on the device of x; raise what does not fit."""
    target = on_device_of(target, x)
    _check_ids(logits, target)
    _check_range(logits, target, ignore_index)
    return target


def _check_ids(logits: tuple[int, ...], target: Any) -> None:
    refuse_non_integer("cross_entropy", "target", target)
    if target.shape != logits[:-1]:
        raise ValueError(
            f"cross_entropy: target ids have shape {target.shape}, but logits {logits} need "
            f"{logits[:-1]}, one id for each row; the classes are the last axis"
        )


def _check_range(logits: tuple[int, ...], target: Tensor, ignore_index: int) -> None:
    what = "the number of classes is"
    refuse_out_of_range("cross_entropy", "target", target, logits[-1], what, ignore_index)


def _check_weight(logits: Any, weight: Any) -> None:
    if not backend.is_float(weight.dtype) or weight.shape != logits.shape[-1:]:
        raise ValueError(
            f"cross_entropy: weight must be floating, one factor for each of the "
            f"{logits.shape[-1]} classes, got {describe(weight)}"
        )


def _writeable(array: Any) -> bool:
    return not isinstance(array, np.ndarray) or array.flags.writeable
