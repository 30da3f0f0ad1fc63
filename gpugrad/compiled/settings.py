"""Settings of optimisers, such as learning rates, that a step sets itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from ..optim import Optimizer
from .guards import same


class _Whole(int):
    """An integer that is an object of its own."""


class Settings:
    """What a step sets in ``param_groups``: it is set again ahead of each replay.

    What it is set to may be computed from what was there, so such a recording holds only while the
    settings of these optimisers are those it began with. Those of other recordings are free.
    """

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self._before = [
            (group, {k: v for k, v in group.items() if k != "params"}) for group in groups
        ]
        self._set: list[tuple[dict[str, Any], dict[str, Any]]] = []

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Find out what is set inside the ``with`` block, be it to a number that was there before.

        The numbers are other objects in it.
        """
        marked = [{k: _another(v) for k, v in before.items()} for _, before in self._before]
        for (group, _), marks in zip(self._before, marked, strict=True):
            group.update(marks)
        try:
            yield
        finally:
            for (group, before), marks in zip(self._before, marked, strict=True):
                kept = {k: v for k, v in before.items() if group.get(k) is marks[k]}
                new = {k: v for k, v in group.items() if k != "params" and k not in kept}
                group.update(kept)
                if new:
                    self._set.append((group, new))

    def hold(self) -> bool:
        """Return whether the step would set the same."""
        return not self._set or all(
            same([group.get(k) for k in then], [*then.values()]) for group, then in self._before
        )

    def apply(self) -> None:
        """Set what the step sets."""
        for group, new in self._set:
            group.update(new)


def _another(value: Any) -> Any:
    """Return an equal number that is another object; what is no number as it is."""
    if type(value) is float:
        return value * 1.0
    return _Whole(value) if type(value) is int else value
