"""Settings of optimisers, such as learning rates, that a step reads or sets itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from ..cuda.recording import Trace
from ..optim import Optimizer
from ..optim.group import Group, NotingGroup
from .guards import same

_Part = tuple[dict[str, Any], dict[str, Any]]  # a group, and some of its settings


class Settings:
    """What a step reads and sets in ``param_groups``.

    A recording holds while what the step has read, to compute with it or to set other settings, is
    what it was; that an optimiser reads its own is no matter. What the step sets is set again ahead
    of each replay.
    """

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self._groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self._read: list[_Part] = []
        self._set: list[_Part] = []

    @contextlib.contextmanager
    def recorded(self, trace: Trace) -> Iterator[None]:
        """Find out what is read and set inside the ``with`` block.

        Of a dict that somebody has put in the place of a group all is taken to be read.
        """
        before = [dict(group) for group in self._groups]
        noting = [group for group in self._groups if isinstance(group, Group)]
        for group in noting:
            group.__class__ = NotingGroup
        try:
            yield
        finally:
            for group in noting:
                group.__class__ = Group
            for group, then in zip(self._groups, before, strict=True):
                if isinstance(group, Group):
                    read = trace.settings_read.get(id(group), set())
                    changed = trace.settings_set.get(id(group), set())
                else:
                    read = {*then}
                    changed = {k for k in group if not same([group[k]], [then.get(k)])}
                self._read.append((group, {k: then.get(k) for k in read - {"params"}}))
                self._set.append((group, {k: group[k] for k in changed}))

    def hold(self) -> bool:
        """Return whether the settings that the step has read are what they were."""
        return all(
            same([group.get(key) for key in then], [*then.values()]) for group, then in self._read
        )

    def apply(self) -> None:
        """Set what the step sets."""
        for group, new in self._set:
            group.update(new)
