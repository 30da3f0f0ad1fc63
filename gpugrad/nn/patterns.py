"""Parameters by name: patterns, and what they are for, freezing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from .module import Module
from .parameter import Parameter

M = TypeVar("M", bound=Module)


def fits(name: str, pattern: str) -> bool:
    """Return whether a dotted name, or that of a module around it, fits a shell pattern.

    ``"blocks.0"`` and ``"*.mlp"`` fit all parameters inside, ``"*.bias"`` all biases.
    """
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def unused(names: Iterable[str], patterns: Iterable[str]) -> str | None:
    """Return the first pattern that fits none of the names, None if there is none such."""
    names = list(names)
    return next((p for p in patterns if not any(fits(name, p) for name in names)), None)


def freeze(model: M, *patterns: str) -> M:
    """Take parameters out of training, those whose names fit a pattern or all; return the model.

    They get no gradient, and the backward pass computes none for them, nor through layers below
    which nothing is trained. An optimiser skips them. A tied parameter is frozen by any of its
    names. ``fits`` says what a pattern is; one that fits nothing raises ValueError,
    one that is no string TypeError.
    """
    return _set("freeze", model, patterns, False)


def unfreeze(model: M, *patterns: str) -> M:
    """Undo freeze for the parameters whose names fit a pattern, or for all; return the model."""
    return _set("unfreeze", model, patterns, True)


def _set(where: str, model: M, patterns: Sequence[str], requires_grad: bool) -> M:
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(
            f"{where}: patterns are strings, one argument each, as in {where}(model, 'tokens', "
            f"'blocks.0'); got {', '.join(map(repr, patterns))}"
        )
    named: list[tuple[str, Parameter]] = list(model.named_parameters(remove_duplicate=False))
    missing = unused((name for name, _ in named), patterns)
    if missing is not None:
        shown = ", ".join(name for name, _ in named[:3])
        raise ValueError(
            f"{where}: no parameter of {type(model).__name__} fits {missing!r}; they are called "
            f"{shown}, ... (see named_parameters)"
        )
    for name, parameter in named:
        if not patterns or any(fits(name, pattern) for pattern in patterns):
            parameter.requires_grad = requires_grad
            if not requires_grad:
                parameter.grad = None
    return model
