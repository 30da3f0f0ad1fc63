"""Parameter groups: which parameters decay, and which learn faster than others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..nn.patterns import fits, unused
from ..tensor import Tensor

_NORM = r"ln(_?[0-9a-z]+)?|.*norm[0-9]*"


def decays(name: str, parameter: Tensor) -> bool:
    """Return whether weight decay is usual for a parameter of this dotted name.

    Not for vectors and scalars, biases, and what belongs to a normalisation: a part of the name
    reads ``ln``, ``ln_1``, ``ln_f``, ``norm``, ``norm1``, ``layernorm``, ``final_norm``, ...
    """
    parts = name.lower().split(".")
    is_norm = any(re.fullmatch(_NORM, part) for part in parts)
    return parameter.ndim >= 2 and parts[-1] != "bias" and not is_norm


def decay_groups(
    model: Any, weight_decay: float = 1e-2, undecayed: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Return two parameter groups: matrices with weight decay, the rest without.

    ``model`` is a module or the (name, parameter) pairs of one; a parameter that two names share
    is taken once, under the first, and one that does not require grad is left out. ``undecayed``
    are patterns of further names (``"*.wpe.weight"``, ``"blocks.0"``, see ``nn.freeze``); one that
    fits nothing raises ValueError.
    """
    pairs = list(model.named_parameters() if hasattr(model, "named_parameters") else model)
    patterns = list(undecayed)
    missing = unused((name for name, _ in pairs), patterns)
    if missing is not None:
        raise ValueError(
            f"decay_groups: undecayed: no parameter fits {missing!r}; see named_parameters"
        )
    groups: tuple[list, list] = ([], [])
    seen = set()
    for name, parameter in pairs:
        if parameter in seen or not parameter.requires_grad:
            continue
        seen.add(parameter)
        spared = any(fits(name, pattern) for pattern in patterns)
        groups[spared or not decays(name, parameter)].append((name, parameter))
    return [
        {"params": groups[0], "weight_decay": weight_decay},
        {"params": groups[1], "weight_decay": 0.0},
    ]


def discriminative_groups(
    groups: Sequence[Mapping[str, Any]], scales: Mapping[str, float], lr: float | None = None
) -> list[dict[str, Any]]:
    """Return parameter groups whose learning rates differ by factors.

    ``groups`` come from decay_groups or hold (name, parameter) pairs. Of ``scales``, patterns of
    names (``nn.freeze``) and factors, the first that fits a parameter counts; one that none fits
    has the factor 1. Each group is split by factor and gets it as ``"lr_scale"``, multiplied with
    one it has already, and with ``lr`` given ``"lr"`` = lr * lr_scale; empty groups are left out.
    Raises ValueError for a factor below 0 or a pattern that fits nothing, TypeError for a module
    or factors without patterns.

    Howard, Ruder, "Universal language model fine-tuning for text classification" (ACL 2018).
    """
    if not isinstance(groups, Sequence) or not isinstance(scales, Mapping):
        raise TypeError(
            "discriminative_groups: pass groups and factors by pattern, as in "
            "discriminative_groups(decay_groups(model), {'blocks.0': 0.1}); "
            f"got {type(groups).__name__} and {type(scales).__name__}"
        )
    for pattern, factor in scales.items():
        if not 0 <= factor < float("inf"):
            raise ValueError(
                f"discriminative_groups: the factor of {pattern!r} must be a number >= 0, "
                f"got {factor!r}"
            )
    missing = unused((name for group in groups for name, _ in group["params"]), scales)
    if missing is not None:
        raise ValueError(
            f"discriminative_groups: no parameter that is trained fits {missing!r}; see "
            "named_parameters"
        )
    split: list[dict[str, Any]] = []
    for group in groups:
        by_factor: dict[float, list] = {}
        for name, parameter in group["params"]:
            factor = next((f for pattern, f in scales.items() if fits(name, pattern)), 1.0)
            by_factor.setdefault(factor, []).append((name, parameter))
        for factor, params in by_factor.items():
            scale = factor * group.get("lr_scale", 1.0)
            rate = {} if lr is None else {"lr": lr * scale}
            split.append({**group, "params": params, "lr_scale": scale, **rate})
    return split


def layer_scales(model: Any, decay: float) -> dict[str, float]:
    """Return factors of the learning rate that fall by ``decay`` from each layer to the one below.

    For discriminative_groups. Layers are what a number in the name tells apart (``blocks.3``): the
    last and what comes after it has the factor 1, the first of n decay**(n - 1), and what comes
    before it, the embeddings, decay**n. Howard and Ruder take 1 / 2.6. Raises ValueError for a
    model without layers or a decay that is not above 0.
    """
    if not 0 < decay < float("inf"):
        raise ValueError(f"layer_scales: decay must be a number above 0, got {decay!r}")
    names = [name for name, _ in model.named_parameters()]
    numbered = [re.match(r"(.*?\b\d+)\.", name) for name in names]
    layers = list(dict.fromkeys(found[1] for found in numbered if found))
    if not layers:
        raise ValueError(
            f"layer_scales: no name of {type(model).__name__}'s parameters has a number in it"
        )
    first = next(i for i, found in enumerate(numbered) if found)
    below = {name: decay ** len(layers) for name in names[:first]}
    return below | {name: decay**i for i, name in enumerate(reversed(layers))}
