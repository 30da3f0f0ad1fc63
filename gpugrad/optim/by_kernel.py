"""Updating many parameters in one launch: what an optimiser with a kernel shares."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias

import numpy as np

from .. import backend, cuda
from ..backend import Array
from ..cuda import recording
from ..engine import mutations
from ..registry import describe
from ..tensor import Tensor
from .chunks import Row, Settings, Table, table, takes
from .clip import count_steps
from .group import Group
from .state import MASTER, State

Member: TypeAlias = tuple[Tensor, Group]


class ByKernel:
    """The part of an optimiser that has its kernel update all parameters which that takes.

    The kernel reads from device memory what changes from step to step: gradients, the steps taken
    with each parameter, and a row of settings for each group. So launches can be recorded: what is
    left to the host, writing the settings, is then done ahead of each run.
    """

    kernel: ClassVar[str] = ""  # computes what `update` does, on many parameters
    source: ClassVar[cuda.Source | None] = None  # of the kernel

    param_groups: list[Group]

    def __init__(self) -> None:
        self._states: dict[Tensor, State] = {}
        self._settings: dict[str, Settings] = {}  # by device

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

    def settings(self, group: Group) -> tuple[float, ...]:
        """Return what the kernel needs to know of a group beside the step: at most 8 numbers."""
        raise NotImplementedError

    @property
    def _name(self) -> str:
        return type(self).__name__

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
                device = backend.device_of(recording.array_of(p))
                (taken.setdefault(device, []) if fits else others).append((p, group))
            for device in [
                d for d, members in taken.items() if not any(p.size for p, _ in members)
            ]:
                others += taken.pop(device)
        if recording.current() is not None and (others or len(taken) > 1):
            kinds = ", ".join(sorted({describe(p) for p, _ in others} or taken))
            raise recording.not_recordable(
                f"{self._name}.step of parameters that one launch does not take ({kinds}; it takes "
                "float32, bfloat16 and float16 on one device, C-contiguous as w.data.copy() is)"
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
        like = recording.array_of(members[0][0])
        device = backend.device_of(like)
        if device not in self._settings or len(self._settings[device].array) != len(groups):
            self._settings[device] = Settings(len(groups), like)
        write = functools.partial(self._write, self._settings[device], groups)
        trace = recording.current()
        if trace is None:
            write()
        elif not isinstance(like, backend.Symbolic):
            trace.before(write)
            self._guard(trace, groups, self.settings)
        return table(rows)

    def _guard(
        self, trace: recording.Trace, groups: list[Group], settings: Callable[[Group], Any]
    ) -> None:
        """Have a recording end with the groups it was made for; refuse settings that change in it.

        All steps of a recording read the settings that there are ahead of a run: ``settings``
        returns those of a group.
        """
        now = [settings(group) for group in groups]
        if trace.settings.setdefault(self, now) != now:
            raise recording.not_recordable(
                f"changing the settings of {self._name} between two steps of it"
            )
        kept = [(group, group["params"][:], self.slots(group)) for group in self.param_groups]

        def is_same() -> bool:
            return len(self.param_groups) == len(kept) and all(
                group is then
                and len(group["params"]) == len(params)
                and all(map(operator.is_, group["params"], params))
                and self.slots(group) == slots  # momentum may need state
                for group, (then, params, slots) in zip(self.param_groups, kept, strict=True)
            )

        def unchanged() -> None:
            if [settings(group) for group in groups] != now:
                raise recording.not_recordable(
                    f"changing the settings of {self._name} after a step of it (a schedule goes "
                    "outside, or before)"
                )

        trace.guards.append(is_same)
        trace.checks.append(unchanged)

    def _write(self, into: Settings, groups: list[Group]) -> None:
        """Write the settings of groups."""
        for group in groups:
            self.check(group)
        into.write([self.settings(group) for group in groups])

    def _count(self, tables: Mapping[str, Table], clip: Array | None) -> None:
        """Count a step of all that kernels update, unless the factor in ``clip`` is NaN."""
        for device, found in tables.items():
            count_steps(found, None if clip is None else backend.to_device(clip, device))

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
            self._settings[device].array,
            factor,
            reads=("g", "step"),
            writes=("x", "narrow", "first", "second"),
        )
        for p, _ in members:
            mutations.record(p._data, f"{self._name}.step")
