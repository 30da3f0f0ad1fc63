"""What the configs of models refuse: each error names the config, the field and its value."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from .. import backend


def require(where: str, condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(f"{where}: {message}")


def require_sizes(config: Any, *names: str) -> None:
    """Raise ValueError unless the fields of these names are integers >= 1."""
    where = type(config).__name__
    for name in names:
        value = getattr(config, name)
        valid = type(value) is int and value >= 1
        require(where, valid, f"{name} must be an integer >= 1, got {value!r}")


def require_flags(config: Any) -> None:
    """Raise ValueError unless the fields that are True or False by default are one of the two."""
    where = type(config).__name__
    for field in fields(config):
        value = getattr(config, field.name)
        if type(field.default) is bool:
            valid = type(value) is bool
            require(where, valid, f"{field.name} must be True or False, got {value!r}")


def require_shares(config: Any, *names: str) -> None:
    """Raise ValueError unless the fields of these names lie in [0, 1)."""
    where = type(config).__name__
    for name in names:
        value = getattr(config, name)
        require(where, 0 <= value < 1, f"{name} must lie in [0, 1), got {value!r}")


def require_floating(config: Any) -> None:
    """Raise ValueError unless the field dtype names a floating one."""
    is_float = backend.is_float(backend.as_dtype(config.dtype))
    require(type(config).__name__, is_float, f"dtype must be floating, got {config.dtype!r}")
