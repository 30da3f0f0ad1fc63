"""The parts of a state: one that is missing or foreign is an error, never a default."""

from __future__ import annotations

from typing import Any

ANY: Any = object()  # stands for a part that is checked by whoever takes it


def check_parts(found: Any, expected: Any, where: str, name: str = "the state") -> None:
    """Raise ValueError, starting with `where`, unless `found` has just the parts of `expected`.

    Dicts must have the same keys, lists of dicts the same length, and all in them likewise; what is
    None in the one and a dict in the other differs. Other values are not looked at.
    """
    if expected is ANY:
        return
    if isinstance(expected, dict) or isinstance(found, dict):
        if not isinstance(expected, dict) or not isinstance(found, dict):
            raise ValueError(
                f"{where}: {name} is {_kind(found)}, expected {_kind(expected)}; a state fits "
                "settings equal to those it was taken with"
            )
        missing, unknown = expected.keys() - found.keys(), found.keys() - expected.keys()
        if missing or unknown:
            words = ", ".join(
                f"{word} {', '.join(map(repr, sorted(keys)))}"
                for word, keys in (("missing", missing), ("unknown", unknown))
                if keys
            )
            raise ValueError(f"{where}: {name} has other parts than expected: {words}")
        for key, part in expected.items():
            check_parts(found[key], part, where, f"{name}[{key!r}]")
    elif isinstance(expected, list) and any(isinstance(part, dict) for part in expected):
        if not isinstance(found, list) or len(found) != len(expected):
            raise ValueError(f"{where}: {name} is not a list of {len(expected)}")
        for i, part in enumerate(expected):
            check_parts(found[i], part, where, f"{name}[{i}]")


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
