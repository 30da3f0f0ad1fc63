"""Models in one safetensors file: tensors by name, and the config as JSON in its header."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from .. import backend
from ..nn.utils import skip_init
from ..ops import random
from ..tensor import Tensor
from ..text.files import atomic_write, parse_json

Self = TypeVar("Self", bound="Saved")


def _integers(values: Any) -> Iterator[int]:
    """Yield the integers of a config."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, int):
            yield value
        elif isinstance(value, list):
            yield from _integers(value)


class Saved:
    """A model that is a ``config`` (a dataclass of numbers and text) and a state dict."""

    Config: Any  # the class of config
    config: Any

    def state_dict(self) -> Mapping[str, Any]:
        """Return arrays or tensors by name."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Take over what state_dict returned."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write config and tensors to one safetensors file; it is complete or absent."""
        arrays = {
            name: np.ascontiguousarray(
                backend.to_numpy(value._data if isinstance(value, Tensor) else value)
            )
            for name, value in self.state_dict().items()
        }
        about = {"model": type(self).__name__, "config": json.dumps(asdict(self.config))}
        with atomic_write(path) as file:
            file.write(to_safetensors(arrays, about))

    @classmethod
    def load(cls: type[Self], path: str | os.PathLike[str]) -> Self:
        """Return the model that save wrote; ValueError names a file that is another's or damaged.

        Nothing is drawn from ``gg.random``.
        """
        name = cls.__name__
        try:
            with safe_open(os.fspath(path), "np") as file:
                about = file.metadata() or {}
                names = file.keys()
                arrays = {key: file.get_tensor(key) for key in names}
        except SafetensorError as error:
            raise ValueError(f"{name}.load: {path} is damaged: {error}") from error
        if about.get("model") != name:
            raise ValueError(f"{name}.load: {path} holds a {about.get('model', 'model unknown')}")
        try:
            values = parse_json(about["config"])
            config = cls.Config(
                **{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
            )
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"{name}.load: {path} has no config of it: {error!r}") from error
        held = sum(array.size for array in arrays.values())
        largest = max((n for n in _integers(values) if n > 2**16), default=0)
        if largest > held:  # before memory for it is asked for
            raise ValueError(
                f"{name}.load: {path} claims {largest:,} in its config, but holds {held:,} numbers"
            )
        state = random.get_state()
        model = skip_init(cls, config)
        random.set_state(state)
        model.load_state_dict(arrays)
        return model
