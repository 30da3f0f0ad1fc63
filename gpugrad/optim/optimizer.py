"""What every optimiser shares: parameter groups, state in flat buffers, state_dict.

A subclass gives the names of its state arrays (``slots``), the numbers of one step (``numbers``)
and the arithmetic on one cache-sized piece (``update``). Moments and momentum are float64 for
float64 parameters and float32 for all others. Parameters of half precision have a float32 master
copy, from which they are rounded after each step: their last bit is larger than most updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from .. import backend, registry
from ..backend import Array
from ..engine import enable_grad, mutations
from ..tensor import Tensor
from .blocks import Scratch, blocks
from .state import MASTER, State, follow, lay_out

Group: TypeAlias = dict[str, Any]
Parameters: TypeAlias = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[Group]


class Optimizer:
    """Base of the optimisers.

    ``params`` are tensors, (name, tensor) pairs, or groups: dicts whose "params" are such a list
    and whose other entries override the defaults. ``param_groups`` holds the groups; what is
    changed there (``group["lr"] = 1e-4``) counts from the next step on. A parameter without a
    gradient is passed over: it does not move, decay, or count a step.
    """

    def __init__(self, params: Parameters, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.param_groups: list[Group] = []
        self._states: dict[Tensor, State] = {}
        self._scratch = Scratch()
        if isinstance(params, (Tensor, Mapping, str)) or not isinstance(params, Iterable):
            raise TypeError(
                f"{self._name}: params must be a list of tensors or of groups, such as "
                f"model.parameters(); got {type(params).__name__}"
            )
        given: list[Any] = list(params)
        if not given:
            raise ValueError(f"{self._name}: params is empty, there is nothing to optimise")
        groups = given if isinstance(given[0], Mapping) else [{"params": given}]
        for group in groups:
            self.add_param_group(group)

    # For subclasses

    def slots(self, group: Group) -> tuple[str, ...]:
        """Return the names of the arrays kept per parameter."""
        raise NotImplementedError

    def check(self, group: Group) -> None:
        """Raise ValueError for a setting that makes no sense."""
        raise NotImplementedError

    def numbers(self, group: Group, step: int) -> tuple:
        """Return what ``update`` needs to know of a group, at a parameter's step 1, 2, ..."""
        raise NotImplementedError

    def update(
        self, xp: Any, x: Array, g: Array, state: list[Array], work: tuple, numbers: tuple
    ) -> None:
        """Change x and state in place; all arrays are 1-D and of one dtype, g is read only."""
        raise NotImplementedError

    # For users

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group of parameters with its own settings, the defaults filling the rest."""
        if "params" not in group:
            raise ValueError(f"{self._name}: a group needs 'params', got {sorted(group)}")
        added: Group = {**self.defaults, **group}
        added["params"], names = self._tensors(group["params"])
        if names:
            added["param_names"] = names
        seen = {p for other in self.param_groups for p in other["params"]}
        for position, p in enumerate(added["params"]):
            if p in seen:
                where = _label(added, position, len(self.param_groups))
                raise ValueError(f"{self._name}: {where} is given twice")
            seen.add(p)
        self.check(added)
        self.param_groups.append(added)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or replace those there are by zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none or p._grad is None:
                    p._grad = None
                else:
                    zeros = backend.xp_of(p._data).zeros_like(p._data)
                    p._grad = Tensor._wrap(zeros, None)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return what ``closure`` returns, if given.

        Nothing is changed if any parameter or gradient does not fit the state.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        for index, group in enumerate(self.param_groups):
            self.check(group)
            self._lay_out(group)
            for position, p in enumerate(group["params"]):
                self._refuse_misfits(p, _label(group, position, index))
        for group in self.param_groups:
            for p in group["params"]:
                if p._grad is not None:
                    self._step(p, group)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state, as NumPy arrays and plain numbers a checkpoint can hold.

        PyTorch's layout: ``{"state": {"0": {"step": ..., "exp_avg": ...}}, "param_groups": [...]}``
        with parameters numbered across the groups (here as str).
        """
        state: dict[str, Any] = {}
        saved_groups = []
        number = 0
        for group in self.param_groups:
            numbered = list(range(number, number + len(group["params"])))
            number += len(numbered)
            saved_groups.append({**group, "params": numbered})
            for key, p in zip(numbered, group["params"], strict=True):
                known = self._states.get(p)
                if known is not None and known.step:
                    state[str(key)] = known.copied()
        return {"state": state, "param_groups": saved_groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` returned; steps, moments and settings are restored.

        Raises ValueError, changing nothing, if groups, shapes or names do not match.
        """
        saved_groups = state_dict["param_groups"]
        counts = [len(group["params"]) for group in saved_groups]
        expected = [len(group["params"]) for group in self.param_groups]
        if counts != expected:
            raise ValueError(
                f"{self._name}.load_state_dict: the saved groups have {counts} parameters, "
                f"this optimiser's have {expected}"
            )
        groups = [
            {**group, **{k: v for k, v in saved.items() if k != "params"}}
            for group, saved in zip(self.param_groups, saved_groups, strict=True)
        ]
        for group in groups:
            self.check(group)
        saved_state = {int(key): value for key, value in state_dict["state"].items()}
        layouts: dict[Tensor, State] = {}
        number = 0
        for index, group in enumerate(groups):
            layout = lay_out(group["params"], self.slots(group))
            layouts.update(layout)
            for position, p in enumerate(group["params"]):
                if number in saved_state:
                    label = f"{self._name}.load_state_dict: {_label(group, position, index)}"
                    layout[p].load(saved_state.pop(number), label)
                number += 1
        if saved_state:
            raise ValueError(
                f"{self._name}.load_state_dict: state for parameter {min(saved_state)}, but "
                f"there are only {number}"
            )
        self._states = layouts
        for group, loaded in zip(self.param_groups, groups, strict=True):
            group.update(loaded)

    def __repr__(self) -> str:
        lines = [
            f"  group {i}: {len(group['params'])} parameters, "
            + ", ".join(f"{k}={group[k]}" for k in self.defaults)
            for i, group in enumerate(self.param_groups)
        ]
        return "\n".join([f"{self._name}(", *lines, ")"])

    # Within

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _tensors(self, params: Any) -> tuple[list[Tensor], list[str]]:
        given = [params] if isinstance(params, Tensor) else list(params)
        named = [p for p in given if isinstance(p, tuple)]
        if named and len(named) != len(given):
            raise TypeError(f"{self._name}: either all parameters of a group have a name or none")
        names = [name for name, _ in named]
        tensors = [p for _, p in named] if named else given
        for position, p in enumerate(tensors):
            label = repr(names[position]) if names else position
            if not isinstance(p, Tensor):
                raise TypeError(
                    f"{self._name}: parameter {label} must be a tensor, got {type(p).__name__}"
                )
            if not p.is_leaf:
                raise ValueError(
                    f"{self._name}: parameter {label} was computed; only leaves can be optimised: "
                    "use .detach().requires_grad_()"
                )
            if not backend.is_float(p.dtype):
                raise TypeError(f"{self._name}: parameter {label} must be floating, got {p.dtype}")
        return tensors, names

    def _lay_out(self, group: Group) -> None:
        """Give the parameters of a group the state they do not have yet, zeros."""
        names = set(self.slots(group))
        states = self._states
        fresh = [
            p for p in group["params"] if p not in states or not names <= states[p].arrays.keys()
        ]
        for p, new in lay_out(fresh, self.slots(group)).items():
            state = states.setdefault(p, new)
            for name, array in new.arrays.items():
                state.arrays.setdefault(name, array)

    def _refuse_misfits(self, p: Tensor, label: str) -> None:
        state = self._states[p]
        if p.dtype != state.dtype or p.shape != state.shape:
            raise RuntimeError(
                f"{self._name}.step: {label} is {registry.describe(p)} but was "
                f"{state.dtype}{list(state.shape)} when its state was made; convert the model "
                "before making the optimiser"
            )
        if p._grad is None:
            return
        if p._grad.shape != p.shape:
            raise RuntimeError(
                f"{self._name}.step: {label} is {registry.describe(p)} but its gradient is "
                f"{registry.describe(p._grad)}; call zero_grad() after changing .data"
            )
        for what, a in (("gradient", p._grad._data), *state.arrays.items()):
            if backend.device_of(a) != p.device:
                raise RuntimeError(
                    f"{self._name}.step: {label} is on {p.device} but its {what} is on "
                    f"{backend.device_of(a)}; move the model before making the optimiser"
                )
        if isinstance(p._data, np.ndarray) and not p._data.flags.writeable:
            raise RuntimeError(f"{self._name}.step: {label} is read-only; make it of a copy")

    def _step(self, p: Tensor, group: Group) -> None:
        """Update one parameter, piece by piece."""
        assert p._grad is not None
        state = self._states[p]
        state.step += 1
        numbers = self.numbers(group, state.step)
        kept = [state.arrays[name] for name in self.slots(group)]
        master = state.arrays.get(MASTER)
        work_dtype = p.dtype if master is None else master.dtype
        xp = backend.xp_of(p._data)
        (x, g), pieces = blocks(p._data, p._grad._data)
        for flat, rows in pieces:
            target = x[rows]
            if master is None:
                piece = target.reshape(-1)
            else:
                piece = master[flat]
                follow(piece, target.reshape(-1))
            gradient = g[rows].reshape(-1).astype(work_dtype, copy=False)
            work = self._scratch.pair(piece)
            self.update(xp, piece, gradient, [a[flat] for a in kept], work, numbers)
            if master is not None or not target.flags.c_contiguous:
                target[...] = piece.reshape(target.shape)
        mutations.record(p._data, f"{self._name}.step")


def _label(group: Group, position: int, index: int) -> str:
    names = group.get("param_names")
    return f"parameter {names[position]!r}" if names else f"parameter {position} of group {index}"


def require(name: str, key: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raise ValueError unless value, the setting called key, is a number in [low, high)."""
    if not isinstance(value, (int, float, np.floating)) or not low <= value < high:
        interval = f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g})"
        raise ValueError(f"{name}: {key} must be a number {interval}, got {value!r}")
