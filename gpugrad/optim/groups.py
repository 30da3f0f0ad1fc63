"""Which parameters decay."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from ..tensor import Tensor

_NORM = re.compile(r"ln(_?[0-9a-z]+)?|.*norm[0-9]*")


def decays(name: str, parameter: Tensor) -> bool:
    """Return whether weight decay is usual for a parameter of this dotted name.

    Not for vectors and scalars, biases, and what belongs to a normalisation: a part of the name
    reads ``ln``, ``ln_1``, ``ln_f``, ``norm``, ``norm1``, ``layernorm``, ``final_norm``, ...
    """
    parts = name.lower().split(".")
    is_norm = any(_NORM.fullmatch(part) for part in parts)
    return parameter.ndim >= 2 and parts[-1] != "bias" and not is_norm


def decay_groups(
    model: Any, weight_decay: float = 1e-2, undecayed: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Return two parameter groups: matrices with weight decay, the rest without.

    ``model`` is a module or the (name, parameter) pairs of one; a parameter that two names share
    is taken once, under the first, and one that does not require grad is left out. ``undecayed``
    are further names, as shell patterns (``"*.wpe.weight"``); one that fits nothing raises
    ValueError.
    """
    pairs = model.named_parameters() if hasattr(model, "named_parameters") else model
    patterns = list(undecayed)
    unused = set(patterns)
    groups: tuple[list, list] = ([], [])
    seen = set()
    for name, parameter in pairs:
        fitting = [pattern for pattern in patterns if fnmatchcase(name, pattern)]
        unused.difference_update(fitting)
        if parameter in seen or not parameter.requires_grad:
            continue
        seen.add(parameter)
        groups[fitting != [] or not decays(name, parameter)].append((name, parameter))
    if unused:
        raise ValueError(f"decay_groups: undecayed: no parameter is called {min(unused)!r}")
    return [
        {"params": groups[0], "weight_decay": weight_decay},
        {"params": groups[1], "weight_decay": 0.0},
    ]
