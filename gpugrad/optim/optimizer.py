"""What every optimiser shares: parameter groups, state in flat buffers, state_dict.

A subclass gives the names of its state arrays (``slots``), the numbers of one step (``numbers``)
and the arithmetic on one cache-sized piece (``update``; by_pieces.py), and may give a kernel that
does the same for many parameters (by_kernel.py). Moments and momentum are float64 for float64
parameters and float32 for all others. Parameters of half precision have a float32 master copy, from
which they are rounded after each step: their last bit is larger than most updates.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from .. import backend, registry
from ..backend import Array
from ..cuda import recording
from ..engine import enable_grad
from ..ops import zeros_like
from ..tensor import Tensor
from . import recorded
from .by_kernel import Group, Member
from .by_pieces import ByPieces
from .checks import (
    check_max_norm,
    check_same_keys,
    check_settings,
    fits,
    label_of,
    leaves,
    refuse_misfits,
)
from .clip import factor_of, measure, norm_of
from .scaler import LossScaler, check_scaler
from .spike_guard import SpikeGuard, check_guard
from .state import State, lay_out

Parameters: TypeAlias = (
    Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[Mapping[str, Any]]
)


class Optimizer(ByPieces):
    """Base of the optimisers.

    ``params`` are tensors, (name, tensor) pairs, or groups: dicts whose "params" are such a list
    and whose other entries override the defaults. ``param_groups`` holds the groups; what is
    changed there (``group["lr"] = 1e-4``) counts from the next step on. A parameter without a
    gradient is passed over: it does not move, decay, or count a step.
    """

    idle: tuple[str, ...] = ()  # arrays that a group has from when a setting first used them

    def __init__(self, params: Parameters, defaults: dict[str, Any]) -> None:
        super().__init__()
        recording.refuses(f"making an optimiser ({self._name}), whose state would last")
        self.defaults = defaults
        self.param_groups: list[Group] = []
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

    # For users

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group of parameters with its own settings, the defaults filling the rest.

        Beside the optimiser's settings a group may have a ``"name"`` and the ``"lr_scale"`` of
        ``discriminative_groups``; others raise ValueError.
        """
        if "params" not in group:
            raise ValueError(f"{self._name}: a group needs 'params', got {sorted(group)}")
        check_settings(self._name, group, self.defaults)
        added = Group({**self.defaults, **group})
        added["params"], names = leaves(self._name, group["params"])
        if names:
            added["param_names"] = names
        seen = {p for other in self.param_groups for p in other["params"]}
        for position, p in enumerate(added["params"]):
            if p in seen:
                where = label_of(added, position, len(self.param_groups))
                raise ValueError(f"{self._name}: {where} is given twice")
            seen.add(p)
        self.check(added)
        self.param_groups.append(added)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or replace those there are by zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                kept = not set_to_none and p.grad is not None
                p.grad = zeros_like(p) if kept else None

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        max_norm: float | None = None,
        scaler: LossScaler | None = None,
        guard: SpikeGuard | None = None,
    ) -> Any:
        """Update every parameter that has a gradient; return what ``closure`` returns, if given.

        Nothing is changed if any parameter or gradient does not fit the state.

        With ``max_norm`` > 0 the update is that of gradients clipped to this common 2-norm, by
        ``clip_grad_norm_``'s factor over all parameters of the optimiser, and the norm before
        clipping is returned: a float64 tensor without dimensions, on the parameters' device. With
        ``scaler`` the gradients are those of ``scaler.scale(loss)``: the update and the norm are
        those without the scale, which is then adapted. ``.grad`` stays as it is in both cases.
        Where the norm is NaN or infinite no parameter and no moment changes and no step counts:
        bias corrections are those of the steps that were taken. With ``guard`` the same holds where
        the norm is a spike, and it counts both.

        On a GPU this is three launches however many parameters there are: two measure the norm, the
        last one updates. Without a norm a launch that counts the steps takes the place of the two.
        Kernels read factor and steps where they lie, so nothing waits for the GPU, unless there
        are parameters that its kernels do not take (float64, or on a second device).

        Raises ValueError for another ``max_norm``, TypeError if ``closure`` is given too,
        ``scaler`` is no LossScaler or ``guard`` no SpikeGuard.
        """
        check_scaler(self._name, scaler)
        check_guard(self._name, guard)
        if max_norm is not None:
            check_max_norm(self._name, max_norm)
            if closure is not None:
                raise TypeError(
                    f"{self._name}.step: give closure or max_norm, not both; each has a result"
                )
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        with recording.unnoticed():
            clip = self._moved(max_norm, scaler, guard)
        if max_norm is None or clip is None:
            return loss
        device = self.param_groups[0]["params"][0].device
        return Tensor._wrap(backend.to_device(clip[:1].reshape(()), device), None)

    def _moved(
        self, max_norm: float | None, scaler: LossScaler | None, guard: SpikeGuard | None
    ) -> Array | None:
        """Take a step; return the norm and the factor, if there is one."""
        moving = self._ready()
        trace = recording.current()
        if trace is not None and trace.buffer.by_numpy:
            return self._recorded(trace, moving, max_norm, scaler, guard)
        taken, others = self._split(moving)
        tables = {device: self._table(members) for device, members in taken.items()}
        limit = math.inf if max_norm is None else float(max_norm)
        clip: Array | None = None  # the norm and the factor
        factor = 1.0
        if max_norm is None and scaler is None and guard is None:
            self._count(tables, None)
        elif len(tables) == 1 and not others:
            (found,) = tables.values()
            clip = measure(found, limit, scaler, guard)
        else:
            clip = self._measured(moving, limit, scaler, guard)
            factor = float(clip[1])
            self._count(tables, clip)
        if scaler is not None:
            scaler.changed(f"{self._name}.step")
        for device, members in taken.items():
            self._by_kernel(device, members, tables[device], clip)
        if not math.isnan(factor):
            self._by_pieces(others, factor)
        return clip

    def _recorded(
        self,
        trace: recording.Trace,
        moving: list[Member],
        max_norm: float | None,
        scaler: LossScaler | None,
        guard: SpikeGuard | None,
    ) -> Array | None:
        """Have each run of a step take this step, as NumPy does; return the norm and the factor."""
        groups = [group for group in self.param_groups if any(g is group for _, g in moving)]
        self._guard(trace, groups, lambda group: {k: v for k, v in group.items() if k != "params"})
        states = [self._states[p] for p, _ in moving]
        kept = [a for state in states for a in (state.steps, *state.arrays.values())]
        kept += () if guard is None else guard.arrays
        step = functools.partial(self._moved, max_norm, scaler, guard)
        found = recorded.record(moving, self.param_groups, kept, scaler, step)
        return None if max_norm is None and scaler is None and guard is None else found

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state, as NumPy arrays and plain numbers a checkpoint can hold.

        PyTorch's layout: ``{"state": {"0": {"step": ..., "exp_avg": ...}}, "param_groups": [...]}``
        with parameters numbered across the groups (here as str). One that took no step yet has
        ``{"step": 0}``.
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
                state[str(key)] = known.copied() if known and known.step else {"step": 0}
        return {"state": state, "param_groups": saved_groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` returned; steps, moments and settings are restored.

        State stays in its memory, where recorded steps find it. Raises ValueError, changing
        nothing, if groups or shapes do not match, or a setting, a parameter's state or an array of
        it is missing or foreign: settings and arrays must be those of this optimiser. The momentum
        of a group whose parameters have none yet begins with zeros.
        """
        name = f"{self._name}.load_state_dict"
        check_same_keys(f"{name}: the state", state_dict, ("state", "param_groups"))
        saved_groups = state_dict["param_groups"]
        counts = [len(group["params"]) for group in saved_groups]
        expected = [len(group["params"]) for group in self.param_groups]
        if counts != expected:
            raise ValueError(
                f"{name}: the saved groups have {counts} parameters, "
                f"this optimiser's have {expected}"
            )
        for index, (group, saved) in enumerate(zip(self.param_groups, saved_groups, strict=True)):
            check_same_keys(f"{name}: saved group {index}", saved, group)
        groups = [
            Group({**saved, "params": group["params"]})
            for group, saved in zip(self.param_groups, saved_groups, strict=True)
        ]
        for group in groups:
            self.check(group)
        saved_state = {int(key): value for key, value in state_dict["state"].items()}
        layouts: dict[Tensor, State] = {}
        number = 0
        for index, group in enumerate(groups):
            held = {key for i in range(counts[index]) for key in saved_state.get(number + i, ())}
            names = [key for key in self.slots(group) if key not in self.idle]
            layout = lay_out(group["params"], names + [key for key in self.idle if key in held])
            layouts.update(layout)
            for position, p in enumerate(group["params"]):
                label = f"{name}: {label_of(group, position, index)}"
                if number not in saved_state:
                    raise ValueError(
                        f"{label}: the saved state lacks {str(number)!r}, its own; that of a "
                        "parameter without steps is {'step': 0}"
                    )
                layout[p].load(saved_state.pop(number), label)
                number += 1
        if saved_state:
            raise ValueError(
                f"{name}: state for parameter {min(saved_state)}, but there are only {number}"
            )
        for p, loaded_state in layouts.items():
            if not (p in self._states and self._states[p].take(loaded_state)):
                self._states[p] = loaded_state
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

    def _lay_out(self, group: Group) -> None:
        """Give the parameters of a group the state they do not have yet, zeros."""
        names = set(self.slots(group))
        states = self._states
        fresh = [
            p for p in group["params"] if p not in states or not names <= states[p].arrays.keys()
        ]
        if not fresh:
            return
        for p, new in lay_out(fresh, self.slots(group)).items():
            state = states.setdefault(p, new)
            for name, array in new.arrays.items():
                state.arrays.setdefault(name, array)

    def _ready(self) -> list[Member]:
        """Return the parameters that have a gradient, with state for all; raise where one misfits.

        In a step that is recorded the settings are checked ahead of each run as well.
        """
        moving = []
        for index, group in enumerate(self.param_groups):
            self.check(group)
            self._lay_out(group)
            for position, p in enumerate(group["params"]):
                if registry.lift is not None:
                    recording.gradient_of(p)
                if not fits(p, self._states[p]):
                    refuse_misfits(self._name, label_of(group, position, index), p, self._states[p])
                if p._grad is not None:
                    moving.append((p, group))
        return moving

    def _measured(
        self,
        moving: list[Member],
        limit: float,
        scaler: LossScaler | None,
        guard: SpikeGuard | None,
    ) -> Array:
        """Return what ``clip.measure`` does, by way of the host."""
        norm = norm_of([p._grad._data for p, _ in moving if p._grad is not None])
        scale = 1.0 if scaler is None else scaler.get_scale()
        norm /= scale
        if scaler is not None and moving:
            scaler.update(math.isfinite(norm))
        taken = guard is None or not moving or guard.take(norm)
        return np.array([norm, factor_of(norm, limit) / scale if taken else math.nan])
