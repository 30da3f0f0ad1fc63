"""A state, nested dicts and lists: its arrays taken out and put back, its parts checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from ml_dtypes import bfloat16

Key = str | int
Place = tuple[Key, ...]  # the keys that lead from the state to one of its arrays

ANY: Any = object()  # stands for a part that is checked by whoever takes it


def take_arrays(value: Any, place: Place, places: dict[Place, npt.NDArray[Any]]) -> Any:
    """Return `value` as JSON can hold it, its arrays moved to `places`: see save."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf" and value.dtype != bfloat16:
            raise TypeError(f"checkpoint.save: {_where(place)} has the dtype {value.dtype}")
        places[place] = value
        return None
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"checkpoint.save: the key {key!r} in {_where(place)} is not a str")
        return {key: take_arrays(item, (*place, key), places) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [take_arrays(item, (*place, i), places) for i, item in enumerate(value)]
    if value is None or isinstance(value, (str, int, float)):
        if isinstance(value, float) and not np.isfinite(value):
            raise ValueError(f"checkpoint.save: {_where(place)} is {value}, not a finite number")
        return value
    raise TypeError(
        f"checkpoint.save: {_where(place)} is a {type(value).__name__}; a state holds dicts, "
        "lists, numpy arrays, str, int, float, bool and None"
    )


def put(state: Any, place: Sequence[Key], value: Any) -> None:
    """Put an array back to its place."""
    for key in place[:-1]:
        state = state[key]
    state[place[-1]] = value


def _where(place: Place) -> str:
    return f"state[{']['.join(map(repr, place))}]" if place else "state"


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
