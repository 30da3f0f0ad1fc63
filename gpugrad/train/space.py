"""What a search tries: every combination of some values, or random draws from ranges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .config import FIELDS, known

Settings = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds: evenly ("uniform") or evenly in their logarithm ("log").

    Of an integer setting both bounds are drawn too. Raises ValueError for bounds in the wrong
    order or, with "log", not above zero.
    """

    low: float
    high: float
    scale: Literal["uniform", "log"] = "uniform"

    def __post_init__(self) -> None:
        if self.scale not in ("uniform", "log"):
            raise ValueError(f"Range: scale must be 'uniform' or 'log', got {self.scale!r}")
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"Range: low must be below high, got {self.low!r}, {self.high!r}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"Range: low must be above 0 on a log scale, got {self.low!r}")

    def at(self, share: float, integer: bool = False) -> float | int:
        """Return the number that a share in [0, 1) of the range lies below."""
        low, high = (self.low - 0.5, self.high + 0.5) if integer else (self.low, self.high)
        log = self.scale == "log"
        value = low * (high / low) ** share if log else low + (high - low) * share
        value = min(max(value, self.low), self.high)
        return round(value) if integer else value


def grid(space: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """Return every combination of the values of each setting, the last setting varying fastest.

    >>> grid({"n_layer": [2, 3], "lr": [1e-2, 1e-3]})[1]
    {'n_layer': 2, 'lr': 0.001}

    Raises ValueError for a setting without values or with one twice.
    """
    for name, values in space.items():
        _check_values("grid", name, values)
    return [dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*space.values())]


def draw(space: Mapping[str, Sequence[Any] | Range], trials: int, seed: int = 0) -> list[Settings]:
    """Return ``trials`` random choices: from a Range, or one of the given values.

    Choice number n depends on the seed and n alone (Philox), so more trials begin with the same
    ones. Where few settings matter, as many draws see more different values of each than a grid
    does: Bergstra, Bengio, "Random search for hyper-parameter optimization" (JMLR 2012).

    Raises ValueError for no trials, a seed outside 0 ... 2**64 - 1, or as `grid` does.
    """
    if trials < 1:
        raise ValueError(f"draw: trials must be at least 1, got {trials}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"draw: seed must be in 0..2**64-1, got {seed}")
    for name, values in space.items():
        if not isinstance(values, Range):
            _check_values("draw", name, values)
    chosen = []
    for number in range(trials):
        bits = np.random.Philox(key=seed, counter=number << 64).random_raw(len(space))
        shares = (bits >> np.uint64(11)) * 2.0**-53  # [0, 1), float64
        chosen.append(
            {
                name: values.at(share, _is_integer(name))
                if isinstance(values, Range)
                else values[int(share * len(values))]
                for (name, values), share in zip(space.items(), shares.tolist(), strict=True)
            }
        )
    return chosen


def parse(text: str, ranges: bool = False) -> tuple[str, list[Any] | Range]:
    """Return the setting and its values that ``"lr=1e-2,1e-3"`` stands for.

    With ``ranges``, ``"lr=log:1e-4:1e-2"`` and ``"n_layer=uniform:2:6"`` are ranges. Raises
    ValueError naming what is wrong.
    """
    name, equals, values = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    if not equals or not values:
        raise ValueError(f"{text!r} must be NAME=VALUE,VALUE,..., as in lr=1e-2,1e-3")
    known({name: None}, f"{text!r}")
    scale, colon, bounds = values.partition(":")
    if ranges and colon and scale in ("log", "uniform"):
        low, colon, high = bounds.partition(":")
        if str(FIELDS[name].type) not in ("int", "float"):
            raise ValueError(f"{text!r}: {name} is no number; give values: {name}=VALUE,VALUE")
        try:
            found = Range(float(low), float(high), "log" if scale == "log" else "uniform")
        except ValueError as error:
            raise ValueError(f"{text!r} must be {name}={scale}:LOW:HIGH: {error}") from error
        return name, found
    return name, [_value(name, value.strip()) for value in values.split(",")]


def _value(name: str, text: str) -> Any:
    kind = str(FIELDS[name].type)
    parsers: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": _truth}
    try:
        return parsers.get(kind, str)(text)
    except ValueError:
        raise ValueError(f"{name} must be of type {kind}, got {text!r}") from None


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


def _is_integer(name: str) -> bool:
    return name in FIELDS and str(FIELDS[name].type) == "int"


def _check_values(where: str, name: str, values: Sequence[Any]) -> None:
    if isinstance(values, str) or not isinstance(values, Sized) or not len(values):
        raise ValueError(f"{where}: {name} needs a list of values, got {values!r}")
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{where}: {name} has the value {value!r} twice")
