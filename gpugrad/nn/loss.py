"""Losses: the functions of gg.nn.functional, and the modules that call them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backend, fused, ops
from ..fused._ids import in_range, refuse_non_integer, refuse_out_of_range
from ..fused._rows import widened
from ..fused.cross_entropy import REDUCTIONS, checked_statics
from ..fused.fuse import fuse
from ..ops import asarray
from ..registry import describe
from ..tensor import Tensor
from .module import Module


def _known(name: str, reduction: str) -> str:
    if reduction not in REDUCTIONS:
        raise ValueError(f"{name}: reduction must be 'none', 'sum' or 'mean', got {reduction!r}")
    return reduction


def _reduced(name: str, losses: Any, reduction: str) -> Tensor:
    return losses if _known(name, reduction) == "none" else getattr(losses, reduction)()


def _classes_last(name: str, input: Any, target: Any) -> tuple[Tensor, Tensor]:
    """Return input (N, C, d1, ...) as (N, d1, ..., C), and the target in the same order."""
    x, target = asarray(input), asarray(target)
    axis = min(x.ndim - 1, 1)
    labels = x.shape[:axis] + x.shape[axis + 1 :]
    expected = x.shape if backend.is_float(target.dtype) else labels
    if axis < 0 or target.shape != expected or target.dtype == backend.bool_:
        raise ValueError(
            f"{name}: input {describe(x)} and target {describe(target)} do not fit: input is (C,), "
            "(N, C) or (N, C, d1, ...), target the same without C, of integers, or probabilities "
            "of the shape of input"
        )
    if x.ndim < 3:
        return x, target
    x = ops.moveaxis(x, 1, -1)
    return x, ops.moveaxis(target, 1, -1) if target.ndim == x.ndim else target


def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return -log softmax(input)[target] over the classes, which are axis 1 of (N, C, d1, ...).

    ``target`` holds class numbers, (N, d1, ...), or probabilities in the shape of input; a single
    input is (C,). ``weight`` (C) weighs the classes, and the mean is over the weights of the
    targets; those equal to ignore_index count nothing (a mean over none is NaN).

    Raises IndexError naming a class out of range; on a GPU, where classes are not looked at, loss
    and gradient of such a row are NaN.
    """
    x, target = _classes_last("cross_entropy", input, target)
    return fused.cross_entropy(
        x,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )


def nll_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Return -input[target], input being logarithms of probabilities; otherwise cross_entropy.

    Computed and returned in at least float32.
    Raises IndexError naming a class out of range; on a GPU, where classes are not looked at, loss
    and gradient of such a row are NaN.
    """
    x, target = _classes_last("nll_loss", input, target)
    x = widened(x)
    classes = x.shape[-1]
    refuse_non_integer("nll_loss", "target", target)
    refuse_out_of_range(
        "nll_loss", "target", target, classes, "the number of classes is", ignore_index
    )
    target = target.astype(np.int64)  # a narrow unsigned one has no -100
    valid, inside = target != ignore_index, in_range(target, classes)
    known = ops.where(valid & inside, target, 0)
    picked = ops.squeeze(ops.take_along_axis(x, ops.expand_dims(known, -1), -1), -1)
    sign = ops.where(inside | (target == ignore_index), -1, np.nan)
    losses = ops.where(valid, sign * picked, 0)
    weights = valid.astype(x.dtype)
    if weight is not None:
        if np.shape(weight) != (classes,):
            raise ValueError(
                f"nll_loss: weight has shape {np.shape(weight)}, input {x.shape} needs ({classes},)"
            )
        weights = weights * ops.take(weight, known, 0)
        losses = losses * weights
    if reduction != "mean":
        return _reduced("nll_loss", losses, reduction)
    with np.errstate(invalid="ignore"):  # nothing counted: NaN
        return losses.sum() / weights.sum()


def _pair(name: str, input: Any, target: Any) -> tuple[Tensor, Tensor]:
    x, y = asarray(input), asarray(target)
    if x.shape != y.shape:
        raise ValueError(
            f"{name}: input {x.shape} and target {y.shape} differ; broadcasting them would "
            "compare every element with many others, so reshape one"
        )
    return x, y


def mse_loss(input: Any, target: Any, *, reduction: str = "mean") -> Tensor:
    """Return (input - target)**2, computed and returned in at least float32.

    Raises ValueError unless the shapes are equal.
    """
    x, y = _pair("mse_loss", input, target)
    return _reduced("mse_loss", _squared_difference(x, y), reduction)


@fuse
def _squared_difference(x: Tensor, y: Tensor) -> Tensor:
    return ops.square(widened(x) - widened(y))


def binary_cross_entropy_with_logits(
    input: Any,
    target: Any,
    weight: Any = None,
    *,
    reduction: str = "mean",
    pos_weight: Any = None,
) -> Tensor:
    """Return -(p y log s(x) + (1 - y) log(1 - s(x))) * weight, s the sigmoid, without overflow.

    ``target`` y has the shape of input; ``weight`` and the positive examples' weight p broadcast.
    Computed and returned in at least float32. Raises ValueError unless the shapes are equal.
    """
    x, y = _pair("binary_cross_entropy_with_logits", input, target)
    losses = _binary_cross_entropy(x, y, weight, pos_weight)
    return _reduced("binary_cross_entropy_with_logits", losses, reduction)


@fuse
def _binary_cross_entropy(x: Tensor, y: Tensor, weight: Any, pos_weight: Any) -> Tensor:
    x, y = widened(x), widened(y)
    positive = y if pos_weight is None else y * pos_weight
    losses = positive * ops.softplus(-x) + (1 - y) * ops.softplus(x)
    return losses if weight is None else losses * weight


def dpo_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    beta: float = 0.1,
    *,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Return -log s(beta d): direct preference optimisation of a policy on pairs of answers.

    d = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected), s the sigmoid.
    The four are log-probabilities of whole answers given their prompts, (N,), in nats: for a GPT
    ``-model.loss(x, y, reduction="none").sum(axis=-1)`` with targets -100 on prompts and padding.
    Those of the reference, the policy before training, are constants: compute them under no_grad.
    ``beta`` > 0 says how dear it is to move away from it. With ``label_smoothing`` e in [0, 0.5)
    each pair is the wrong way round with that probability: (1 - e) and e weigh both directions.

    The gradient by the policy's parameters is -beta s(-beta d) (grad policy_chosen - grad
    policy_rejected). Rafailov et al., "Direct preference optimization: your language model is
    secretly a reward model" (NeurIPS 2023), equations 7 and 8. Computed and returned in at least
    float32. Raises ValueError for shapes that differ and for settings outside these ranges.
    """
    if not 0 < beta < float("inf"):
        raise ValueError(f"dpo_loss: beta must be a number above 0, got {beta!r}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"dpo_loss: label_smoothing must be in [0, 0.5), got {label_smoothing!r}")
    given = policy_chosen, policy_rejected, reference_chosen, reference_rejected
    tensors = [widened(asarray(x)) for x in given]
    if len({x.shape for x in tensors}) > 1:
        shapes = ", ".join(str(x.shape) for x in tensors)
        raise ValueError(f"dpo_loss: all four need the same shape, (N,), got {shapes}")
    losses = _dpo(*tensors, beta, label_smoothing)
    return _reduced("dpo_loss", losses, reduction)


@fuse
def _dpo(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    smoothing: float,
) -> Tensor:
    z = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    return (1 - smoothing) * ops.softplus(-z) + smoothing * ops.softplus(z)


class _Loss(Module):
    """What all share: how the losses are reduced, and an optional weight per class or element."""

    weight: Tensor | None

    def __init__(self, reduction: str, **weights: Any) -> None:
        super().__init__()
        self.reduction = _known(type(self).__name__, reduction)
        for name, weight in weights.items():
            self.register_buffer(name, None if weight is None else asarray(weight))

    def extra_repr(self) -> str:
        """Return the reduction."""
        return f"reduction={self.reduction!r}"


class MSELoss(_Loss):
    """The mean of (input - target)**2; shapes must be equal."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__(reduction)

    def forward(self, input: Any, target: Any) -> Tensor:
        """Return the loss."""
        return mse_loss(input, target, reduction=self.reduction)


class CrossEntropyLoss(_Loss):
    """-log softmax(input)[target] for scores (N, C, d1, ...) and classes (N, d1, ...).

    The target may also be probabilities in the shape of input; see cross_entropy.
    """

    def __init__(
        self,
        weight: Any = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(reduction, weight=weight)
        checked_statics(ignore_index, label_smoothing, reduction)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, input: Any, target: Any) -> Tensor:
        """Return the loss."""
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class NLLLoss(_Loss):
    """-input[target] for logarithms of probabilities (N, C, d1, ...) and classes (N, d1, ...)."""

    def __init__(
        self, weight: Any = None, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction, weight=weight)
        self.ignore_index = ignore_index

    def forward(self, input: Any, target: Any) -> Tensor:
        """Return the loss."""
        return nll_loss(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


class BCEWithLogitsLoss(_Loss):
    """Cross-entropy of independent yes/no targets in the shape of input, from scores."""

    pos_weight: Tensor | None

    def __init__(
        self, weight: Any = None, *, reduction: str = "mean", pos_weight: Any = None
    ) -> None:
        super().__init__(reduction, weight=weight, pos_weight=pos_weight)

    def forward(self, input: Any, target: Any) -> Tensor:
        """Return the loss."""
        return binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )
