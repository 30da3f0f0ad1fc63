"""LoRA: train a product of two thin matrices beside each frozen weight.

    lora.adapt(model, rank=8, alpha=16, targets=["*.in_proj", "*.out_proj"])
    optimizer = optim.AdamW(p for p in model.parameters() if p.requires_grad)
    ...
    lora.merge(model)           # the weights now hold the adapter: no cost when it is used

A linear layer y = x W^T + b becomes y = x W^T + b + (alpha / rank) (x A^T) B^T, with A (rank, in)
and B (out, rank). B starts at zero, so the adapted model starts as the model it was. Parameters
keep their names; ``lora_a`` and ``lora_b`` come beside ``weight`` and ``bias``.
``models.save_adapter`` writes them alone. Hu et al., "LoRA: low-rank adaptation of large language
models" (ICLR 2022).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeVar

from .. import backend, ops
from ..engine import no_grad
from ..fused.dropout import probability
from ..tensor import Tensor
from . import functional as F
from . import init
from .containers import _Container
from .linear import Linear
from .module import Module, shape_error
from .parameter import empty_parameter
from .patterns import fits, freeze, unused

M = TypeVar("M", bound=Module)
EVERYWHERE = ("*",)


class LoRALinear(Module):
    """A linear layer whose weight stays, with a trained product of rank ``rank`` beside it.

    Takes over the layer's own parameters, frozen. ``dropout`` acts in training on what A sees.
    A starts as a Linear's weight does, B at zero; both have the weight's dtype and device.
    """

    def __init__(self, linear: Linear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        _check(linear, rank, alpha, dropout)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.merged = False
        self.weight, self.bias = linear.weight, linear.bias
        made: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.lora_a = empty_parameter(rank, linear.in_features, **made)
        self.lora_b = empty_parameter(linear.out_features, rank, **made)
        self._linear = (linear,)  # in a tuple it is no part, whose parameters would come twice
        freeze(linear)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a new A and set B to zero."""
        init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        init.zeros_(self.lora_b)

    def forward(self, input: Any) -> Tensor:
        """Return (..., out_features)."""
        x = ops.asarray(input)
        if x.shape[-1:] != (self.in_features,):
            raise shape_error(self, f"(..., {self.in_features})", x)
        out = F.linear(x, self.weight, self.bias)
        if self.merged:
            return out
        thin = F.linear(F.dropout(x, self.dropout, self.training), self.lora_a)
        return out + F.linear(thin * (self.alpha / self.rank), self.lora_b)

    def merge(self) -> None:
        """Add the product to the weight; the layer then costs what it cost before."""
        if not self.merged:
            self._shift(1)
            self.merged = True

    def unmerge(self) -> None:
        """Subtract the product from the weight again."""
        if self.merged:
            self._shift(-1)
            self.merged = False

    def _shift(self, sign: int) -> None:
        with no_grad():
            weight, a, b = (
                p.astype(backend.float64) for p in (self.weight, self.lora_a, self.lora_b)
            )
            moved = weight + (sign * self.alpha / self.rank) * (b @ a)
            self.weight.copy_(moved.astype(self.weight.dtype))

    def extra_repr(self) -> str:
        """Return the sizes."""
        text = f"in_features={self.in_features}, out_features={self.out_features}"
        text += f", bias={self.bias is not None}, rank={self.rank}, alpha={self.alpha:g}"
        return text + f", dropout={self.dropout:g}" * bool(self.dropout) + ", merged" * self.merged


def adapt(
    model: M,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Iterable[str] = EVERYWHERE,
    dropout: float = 0.0,
) -> M:
    """Put a LoRALinear in the place of each Linear that a pattern fits, and return the model.

    All other parameters are frozen; ``unfreeze`` what is to be trained with them, such as a new
    head. ``targets`` are patterns of module names, all Linear layers by default. A model can be
    adapted again, with other targets. Raises ValueError for a pattern that fits no Linear, a rank
    that no target has, and a weight that another module uses too; nothing has changed then.
    """
    targets = [targets] if isinstance(targets, str) else list(targets)
    linear = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, Linear)
    }
    missing = unused(linear, targets)
    if missing is not None or not targets:
        raise ValueError(
            f"lora.adapt: {f'{missing!r} fits none' if targets else 'targets names none'} of the "
            f"linear layers {', '.join(list(linear)[:6]) or '(there are none)'}"
            + (", ..." if len(linear) > 6 else "")
        )
    chosen = {name: m for name, m in linear.items() if any(fits(name, p) for p in targets)}
    _refuse_shared(model, chosen)
    for module in chosen.values():
        _check(module, rank, alpha, dropout)
    trained = [p for m in layers(model).values() for p in (m.lora_a, m.lora_b)]
    made: dict[Linear, LoRALinear] = {}
    for module in chosen.values():
        if module not in made:
            made[module] = LoRALinear(module, rank, alpha, dropout)
    freeze(model)
    for name, module in chosen.items():
        _put(model, name, made[module])
    for parameter in trained:
        parameter.requires_grad = True
    return model


def layers(model: Module) -> dict[str, LoRALinear]:
    """Return the adapted layers of a model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def merge(model: M) -> M:
    """Add each adapter to its weight, and return the model: its outputs differ by rounding only.

    The sum is rounded once, from float64. While merged, adapters are not trained.
    """
    for layer in _known("merge", model):
        layer.merge()
    return model


def unmerge(model: M) -> M:
    """Subtract each merged adapter again: weights are as before, up to one rounding of their sum.

    That is half a unit in the last place of the merged weight, or of the weight if that is larger;
    for weights in halves it can be felt: keep the model they came from.
    """
    for layer in _known("unmerge", model):
        layer.unmerge()
    return model


def remove(model: M) -> M:
    """Put the linear layers back in their places, and return the model.

    After ``merge`` they hold what the adapters learned, otherwise they are what they were. All
    parameters are trained again.
    """
    _known("remove", model)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, LoRALinear):
            _put(model, name, module._linear[0])
    return model.requires_grad_()


def _check(linear: Linear, rank: int, alpha: float, dropout: float) -> None:
    limit = min(linear.in_features, linear.out_features)
    if not isinstance(rank, int) or not 1 <= rank <= limit:
        raise ValueError(
            f"lora: rank must be an integer in 1..{limit}, the smaller side of {linear!r}, got "
            f"{rank!r}"
        )
    if not 0 < alpha < math.inf:
        raise ValueError(f"lora: alpha must be a number above 0, got {alpha!r}")
    probability("lora", "dropout", dropout)


def _known(where: str, model: Module) -> Iterable[LoRALinear]:
    found = layers(model)
    if not found:
        raise ValueError(f"lora.{where}: {type(model).__name__} has no adapted layer")
    return found.values()


def _put(model: Module, name: str, module: Module) -> None:
    """Set the part of a model that has this name."""
    path, _, last = name.rpartition(".")
    parent: Any = dict(model.named_modules(remove_duplicate=False))[path]
    if isinstance(parent, _Container) and last in parent._items:
        parent._put(last, module)
    else:
        setattr(parent, last, module)


def _refuse_shared(model: Module, chosen: dict[str, Linear]) -> None:
    """Raise ValueError where a weight belongs to a second module, which a merge would change."""
    if "" in chosen:
        raise ValueError("lora.adapt: the model is itself the layer; put it into a Sequential")
    ours = {id(module) for module in chosen.values()}
    others = {
        id(parameter): name
        for name, module in model.named_modules()
        if id(module) not in ours
        for _, parameter in module.named_parameters(recurse=False)
    }
    for name, module in chosen.items():
        if id(module.weight) in others:
            raise ValueError(
                f"lora.adapt: the weight of {name} is also that of {others[id(module.weight)]}, "
                "which a merge would change; leave it out of targets"
            )
