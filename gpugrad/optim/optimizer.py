"""What every optimiser shares: parameter groups, state in flat buffers, state_dict.

A subclass gives the names of its state arrays (``slots``), the numbers of one step (``numbers``)
and the arithmetic on one cache-sized piece (``update``). On a GPU the kernel of the subclass, if
it has one, takes all parameters in one launch, and reads from device memory what may change:
gradients, steps taken, settings. Moments and momentum are float64 for float64 parameters and
float32 for all others. Parameters of half precision have a float32 master copy, from which they
are rounded after each step: their last bit is larger than most updates.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeAlias

import numpy as np

from .. import backend, cuda, registry
from ..backend import Array
from ..cuda import recording
from ..engine import enable_grad, mutations
from ..tensor import Tensor
from .blocks import Scratch, blocks
from .checks import check_max_norm, label_of, leaves, refuse_misfits
from .chunks import SETTINGS, Row, Table, table, takes, write_settings
from .clip import count_steps, factor_of, measure, norm_of
from .scaler import LossScaler, check_scaler
from .state import MASTER, State, follow, lay_out, real, zeros

Group: TypeAlias = dict[str, Any]
Member: TypeAlias = tuple[Tensor, Group]
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
        self._settings: dict[str, Array] = {}  # for the kernel, by device
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

    kernel: ClassVar[str] = ""  # computes what `update` does, on many parameters
    source: ClassVar[cuda.Source | None] = None  # of the kernel

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Drop the kernel of a base where ``update`` is another one."""
        super().__init_subclass__(**kwargs)
        if "update" in vars(cls) and "source" not in vars(cls):
            cls.source = None

    def slots(self, group: Group) -> tuple[str, ...]:
        """Return the names of the arrays kept per parameter."""
        raise NotImplementedError

    def check(self, group: Group) -> None:
        """Raise ValueError for a setting that makes no sense."""
        raise NotImplementedError

    def numbers(self, group: Group, step: int) -> tuple[float, ...]:
        """Return what ``update`` needs to know of a group, at a parameter's step 1, 2, ..."""
        raise NotImplementedError

    def settings(self, group: Group) -> tuple[float, ...]:
        """Return what the kernel needs to know of a group beside the step: at most 8 numbers."""
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
                if registry.lift is not None:
                    recording.forget_gradient(p)
                if set_to_none or p._grad is None:
                    p._grad = None
                else:
                    p._grad = Tensor._wrap(backend.xp_of(p._data).zeros_like(p._data), None)

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        max_norm: float | None = None,
        scaler: LossScaler | None = None,
    ) -> Any:
        """Update every parameter that has a gradient; return what ``closure`` returns, if given.

        Nothing is changed if any parameter or gradient does not fit the state.

        With ``max_norm`` > 0 the update is that of gradients clipped to this common 2-norm, by
        ``clip_grad_norm_``'s factor over all parameters of the optimiser, and the norm before
        clipping is returned: a float64 tensor without dimensions, on the parameters' device. With
        ``scaler`` the gradients are those of ``scaler.scale(loss)``: the update and the norm are
        those without the scale, which is then adapted. ``.grad`` stays as it is in both cases.
        Where the norm is NaN or infinite no parameter and no moment changes and no step counts:
        bias corrections are those of the steps that were taken.

        On a GPU this is three launches however many parameters there are: two measure the norm, the
        last one updates. Without a norm a launch that counts the steps takes the place of the two.
        Kernels read factor and steps where they lie, so nothing waits for the GPU, unless there
        are parameters that its kernels do not take (float64, or on a second device).

        Raises ValueError for another ``max_norm``, TypeError if ``closure`` is given too or
        ``scaler`` is no LossScaler.
        """
        check_scaler(self._name, scaler)
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
        moving = self._ready()
        taken, others = self._split(moving)
        tables = {device: self._table(members) for device, members in taken.items()}
        limit = math.inf if max_norm is None else float(max_norm)
        clip: Array | None = None  # the norm and the factor
        factor = 1.0
        if max_norm is None and scaler is None:
            self._count(tables, None)
        elif len(tables) == 1 and not others:
            (found,) = tables.values()
            clip = measure(found, limit, scaler)
        else:
            clip = self._measured(moving, limit, scaler)
            factor = float(clip[1])
            self._count(tables, clip)
        if scaler is not None:
            scaler.changed(f"{self._name}.step")
        for device, members in taken.items():
            self._by_kernel(device, members, tables[device], clip)
        for p, group in others:
            self._step(p, group, factor)
        if max_norm is None or clip is None:
            return loss
        device = self.param_groups[0]["params"][0].device
        return Tensor._wrap(backend.to_device(clip[:1].reshape(()), device), None)

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

        State stays in its memory, where recorded steps find it. Raises ValueError, changing
        nothing, if groups, shapes or names do not match.
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
                    label = f"{self._name}.load_state_dict: {label_of(group, position, index)}"
                    layout[p].load(saved_state.pop(number), label)
                number += 1
        if saved_state:
            raise ValueError(
                f"{self._name}.load_state_dict: state for parameter {min(saved_state)}, but "
                f"there are only {number}"
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

    @property
    def _name(self) -> str:
        return type(self).__name__

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

    def _ready(self) -> list[Member]:
        """Return the parameters that have a gradient, with state for all; raise where one misfits.

        In a step that is recorded the settings are checked ahead of each run as well.
        """
        for index, group in enumerate(self.param_groups):
            self.check(group)
            self._lay_out(group)
            for position, p in enumerate(group["params"]):
                refuse_misfits(self._name, label_of(group, position, index), p, self._states[p])
        return [(p, g) for g in self.param_groups for p in g["params"] if p._grad is not None]

    def _split(self, moving: list[Member]) -> tuple[dict[str, list[Member]], list[Member]]:
        """Return what the kernel takes, by device, and the other parameters."""
        on_gpu = any(not isinstance(p._data, np.ndarray) for p, _ in moving)
        if self.source is None or not (on_gpu or cuda.emulated()):
            taken: dict[str, list[Member]] = {}
            others = moving
        else:
            taken, others = {}, []
            for p, group in moving:
                assert p._grad is not None
                fits = takes(p._data) and cuda.fits(p._grad._data)
                device = backend.device_of(real(p._data))
                (taken.setdefault(device, []) if fits else others).append((p, group))
            for device in [
                d for d, members in taken.items() if not any(p.size for p, _ in members)
            ]:
                others += taken.pop(device)
        if recording.current() is not None and (others or len(taken) > 1):
            kinds = ", ".join({str(p.dtype) for p, _ in others} or taken)
            raise recording.not_recordable(
                f"{self._name}.step of parameters that one launch does not take ({kinds})"
            )
        return taken, others

    def _table(self, members: list[Member]) -> Table:
        """Write the groups' settings to the members' device and return the table of their arrays.

        A step that is recorded writes them ahead of each run instead.
        """
        rows = []
        groups: list[Group] = []
        for p, group in members:
            assert p._grad is not None
            if not groups or groups[-1] is not group:
                groups.append(group)
            g, state = p._grad._data, self._states[p]
            master = state.arrays.get(MASTER)
            x, narrow = (p._data, None) if master is None else (master, p._data)
            kept = [state.arrays[name] for name in self.slots(group)]
            first, second = (*kept, None, None)[:2]
            g = g if takes(g) else g.copy()  # a transposed one, for example
            rows.append(Row(g, x, narrow, first, second, state.steps, len(groups) - 1))
        like = real(members[0][0]._data)
        device, shape = backend.device_of(like), (len(groups), SETTINGS)
        if device not in self._settings or self._settings[device].shape != shape:
            self._settings[device] = zeros(shape, backend.float64, like)
        slots = [self.slots(group) for group in groups]
        write = functools.partial(self._write, self._settings[device], groups, slots)
        trace = recording.current()
        if trace is None:
            write()
        elif not isinstance(like, backend.Symbolic):
            trace.before(write)
        return table(rows)

    def _write(self, into: Array, groups: list[Group], slots: list[tuple[str, ...]]) -> None:
        """Write the settings of groups, which have to be such that the same state is needed."""
        for group, kept in zip(groups, slots, strict=True):
            self.check(group)
            if self.slots(group) != kept:
                raise RuntimeError(
                    f"{self._name}: a recorded step updates {kept or 'no state'}, but the settings "
                    f"now need {self.slots(group) or 'none'}; record it anew"
                )
        write_settings(into, [self.settings(group) for group in groups])

    def _count(self, tables: Mapping[str, Table], clip: Array | None) -> None:
        """Count a step of all that kernels update, unless the factor in ``clip`` is NaN."""
        for device, found in tables.items():
            count_steps(found, None if clip is None else backend.to_device(clip, device))

    def _measured(self, moving: list[Member], limit: float, scaler: LossScaler | None) -> Array:
        """Return what ``clip.measure`` does, by way of the host."""
        norm = norm_of([p._grad._data for p, _ in moving if p._grad is not None])
        scale = 1.0 if scaler is None else scaler.get_scale()
        norm /= scale
        if scaler is not None and moving:
            scaler.update(math.isfinite(norm))
        return np.array([norm, factor_of(norm, limit) / scale])

    def _by_kernel(
        self, device: str, members: list[Member], found: Table, clip: Array | None
    ) -> None:
        """Update all parameters of a device in one launch, by gradients clipped as ``clip`` says.

        ``clip`` is the result of ``clip.measure``.
        """
        assert self.source is not None
        factor = None if clip is None else backend.to_device(clip, device)
        found.launch(
            self.source,
            self.kernel,
            self._settings[device],
            factor,
            reads=("g", "step"),
            writes=("x", "narrow", "first", "second"),
        )
        for p, _ in members:
            mutations.record(p._data, f"{self._name}.step")

    def _step(self, p: Tensor, group: Group, factor: float) -> None:
        """Update one parameter by its gradient times the factor, piece by piece; by NaN, not."""
        assert p._grad is not None
        state = self._states[p]
        if math.isnan(factor):
            return
        state.steps += 1
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
            gradient = g[rows].reshape(-1)
            if factor != 1:  # a small factor has no accurate value in float32
                gradient = gradient.astype(backend.float64)
                gradient *= factor
            gradient = gradient.astype(work_dtype, copy=False)
            work = self._scratch.pair(piece)
            self.update(xp, piece, gradient, [a[flat] for a in kept], work, numbers)
            if master is not None or not target.flags.c_contiguous:
                target[...] = piece.reshape(target.shape)
        mutations.record(p._data, f"{self._name}.step")
