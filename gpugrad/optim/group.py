"""The parameters of a group and its settings, and what a recorded step reads and sets of them."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from ..cuda import recording


class Group(dict[str, Any]):
    """Parameters ("params") and their settings: a dict."""

    __slots__ = ()


def set_rate(group: MutableMapping[str, Any], lr: float) -> None:
    """Give a group the learning rate ``lr`` times its ``"lr_scale"``, if it has one."""
    group["lr"] = lr * group.get("lr_scale", 1.0)


class NotingGroup(Group):
    """What groups are while a step is recorded, which is told what the step reads and sets."""

    __slots__ = ()

    def __getitem__(self, key: str) -> Any:
        """Return a setting."""
        recording.reads_settings(self, [key])
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        """Return whether there is a setting."""
        recording.reads_settings(self, [key])
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a setting, or the default."""
        recording.reads_settings(self, [key])
        return super().get(key, default)

    def values(self) -> Any:
        """Return all settings."""
        recording.reads_settings(self, [*self])
        return super().values()

    def items(self) -> Any:
        """Return all settings and their names."""
        recording.reads_settings(self, [*self])
        return super().items()

    def copy(self) -> dict[str, Any]:
        """Return a dict of the same."""
        return dict(self.items())

    def __setitem__(self, key: str, value: Any) -> None:
        recording.sets_settings(self, [key])
        super().__setitem__(key, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Change settings."""
        new = dict(*args, **kwargs)
        recording.sets_settings(self, [*new])
        super().update(new)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return a setting, which gets the default where there is none."""
        if key not in self:
            self[key] = default
        return self[key]

    def _refuse(self, *args: Any) -> Any:
        raise recording.not_recordable("removing a setting from a group of an optimiser")

    pop = popitem = clear = __delitem__ = __ior__ = _refuse
