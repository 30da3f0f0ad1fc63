"""Settings in a file: TOML, JSON or YAML."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from ..text.files import parse_json, read_small

_DEEPEST = 20  # settings are a flat table, two levels at most


def read_config_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the settings in a .toml, .json, .yaml or .yml file: a flat table of field names.

    Raises ValueError for another suffix or content, ModuleNotFoundError for YAML without PyYAML.
    """
    path = Path(path)
    try:
        text = read_small(path).decode()
        values = _parse(text, path.suffix.lower())
    except RecursionError:
        raise ValueError(f"configuration file {path}: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"configuration file {path}: {error}") from error
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise ValueError(f"configuration file {path}: expected names and values, got a {kind}")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def _parse(text: str, suffix: str) -> Any:
    if suffix == ".json":
        return parse_json(text)
    if suffix == ".toml":
        toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
        return toml.loads(text)
    if suffix in (".yaml", ".yml"):
        try:
            yaml = importlib.import_module("yaml")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "a configuration file in YAML needs PyYAML, which is not installed: "
                'pip install "gpugrad[yaml]"; TOML and JSON need nothing'
            ) from error
        try:
            _refuse_deep(yaml, text)
            return yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"not YAML: {error}") from error
    raise ValueError(f"the suffix {suffix!r} is unknown; use .toml, .json, .yaml or .yml")


def _refuse_deep(yaml: Any, text: str) -> None:
    """Raise ValueError for YAML nested deeper than settings are.

    PyYAML takes time that grows with the square of the depth: a minute for 20,000 brackets.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")
