"""What an optimiser refuses, and how it says so; ``name`` is the optimiser's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .. import backend, registry
from ..cuda import recording
from ..tensor import Tensor
from .state import State

_BESIDE = ("param_names", "name", "lr_scale")  # keys of any optimiser's groups, beside its settings


def label_of(group: Mapping[str, Any], position: int, index: int) -> str:
    """Return what messages call a parameter."""
    names = group.get("param_names")
    return f"parameter {names[position]!r}" if names else f"parameter {position} of group {index}"


def require(name: str, key: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raise ValueError unless value, the setting called key, is a number in [low, high)."""
    if not isinstance(value, (int, float, np.floating)) or not low <= value < high:
        interval = f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g})"
        raise ValueError(f"{name}: {key} must be a number {interval}, got {value!r}")


def check_settings(name: str, group: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise ValueError for a key of a group that neither the optimiser nor the library reads."""
    known = {"params", *defaults, *_BESIDE}
    if unknown := sorted(map(repr, group.keys() - known)):
        raise ValueError(
            f"{name}: a group has the unknown setting {', '.join(unknown)}; its settings are "
            f"{', '.join(defaults)}, and beside them name and lr_scale"
        )


def check_same_keys(what: str, found: Mapping[str, Any], expected: Iterable[str]) -> None:
    """Raise ValueError, starting with what, unless the keys are those expected."""
    wanted = set(expected)
    missing, foreign = sorted(wanted - found.keys()), sorted(map(str, found.keys() - wanted))
    if missing or foreign:
        parts = [("it lacks", missing), ("foreign are", foreign)]
        told = "; ".join(f"{words} {', '.join(keys)}" for words, keys in parts if keys)
        raise ValueError(f"{what} is not that of this optimiser: {told}")


def check_max_norm(name: str, max_norm: Any) -> None:
    """Raise ValueError unless max_norm is a number > 0, infinity among them."""
    if not isinstance(max_norm, (int, float, np.floating)) or not max_norm > 0:
        raise ValueError(f"{name}.step: max_norm must be a number > 0, got {max_norm!r}")


def leaves(name: str, params: Any) -> tuple[list[Tensor], list[str]]:
    """Return the tensors of a group and their names, if given.

    Raises TypeError and ValueError for what cannot be optimised.
    """
    given = [params] if isinstance(params, Tensor) else list(params)
    named = [p for p in given if isinstance(p, tuple)]
    if named and len(named) != len(given):
        raise TypeError(f"{name}: either all parameters of a group have a name or none")
    names = [called for called, _ in named]
    tensors = [p for _, p in named] if named else given
    for position, p in enumerate(tensors):
        label = repr(names[position]) if names else position
        if not isinstance(p, Tensor):
            raise TypeError(f"{name}: parameter {label} must be a tensor, got {type(p).__name__}")
        if not p.is_leaf:
            raise ValueError(
                f"{name}: parameter {label} was computed; only leaves can be optimised: "
                "use .detach().requires_grad_()"
            )
        if not backend.is_float(p.dtype):
            raise TypeError(f"{name}: parameter {label} must be floating, got {p.dtype}")
    return tensors, names


def fits(p: Tensor, state: State) -> bool:
    """Return whether a parameter, its gradient and its state are arrays of NumPy that fit.

    That is the common case; of all others ``refuse_misfits`` says whether they do.
    """
    x = p._data
    if x.__class__ is not np.ndarray or x.dtype != state.dtype or x.shape != state.shape:
        return False
    g = x if p._grad is None else p._grad._data
    return (
        g.__class__ is state.steps.__class__ is np.ndarray
        and g.shape == x.shape
        and x.flags.writeable
    )


def refuse_misfits(name: str, label: str, p: Tensor, state: State) -> None:
    """Raise RuntimeError unless a parameter and its gradient fit the state and can be changed."""
    if p.dtype != state.dtype or p.shape != state.shape:
        raise RuntimeError(
            f"{name}.step: {label} is {registry.describe(p)} but was "
            f"{state.dtype}{list(state.shape)} when its state was made; convert the model "
            "before making the optimiser"
        )
    if p._grad is None:
        return
    if p._grad.shape != p.shape:
        raise RuntimeError(
            f"{name}.step: {label} is {registry.describe(p)} but its gradient is "
            f"{registry.describe(p._grad)}; call zero_grad() after changing .data"
        )
    array = recording.array_of(p)
    place = backend.device_of(array)
    for what, a in (("gradient", p._grad._data), *state.arrays.items()):
        if a.__class__ is array.__class__ is np.ndarray or isinstance(a, backend.Symbolic):
            continue
        if backend.device_of(a) != place:
            raise RuntimeError(
                f"{name}.step: {label} is on {place} but its {what} is on "
                f"{backend.device_of(a)}; move the model before making the optimiser"
            )
    if isinstance(array, np.ndarray) and not array.flags.writeable:
        raise RuntimeError(f"{name}.step: {label} is read-only; make it of a copy")
