"""A LoRA adapter on disk: what was trained, and what it was trained on top of.

One safetensors file: the parameters that require a gradient under their names, and in its header,
as JSON, which layers are adapted how and the SHA-256 of all frozen parameters. A few hundred
kilobytes where the model takes hundreds of megabytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from .. import backend
from ..nn import Module, lora
from ..ops import random
from ..text.files import atomic_write, parse_json

M = TypeVar("M", bound=Module)
FORMAT = "gpugrad-adapter"


def save_adapter(model: Module, path: str | os.PathLike[str]) -> None:
    """Write the trained parameters of an adapted model to one file; it is complete or absent.

    These are the LoRA matrices and whatever else requires a gradient, such as a new head. Raises
    ValueError for a model without adapted layers or with merged ones.
    """
    found = lora.layers(model)
    if not found:
        raise ValueError(f"save_adapter: {type(model).__name__} has no adapted layer")
    merged = [name for name, layer in found.items() if layer.merged]
    if merged:
        raise ValueError(f"save_adapter: {merged[0]} is merged; call lora.unmerge(model) before")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    about = {
        "format": FORMAT,
        "base": _fingerprint(model, set(trained)),
        "layers": json.dumps(
            {name: [layer.rank, layer.alpha, layer.dropout] for name, layer in found.items()}
        ),
    }
    arrays = {name: np.ascontiguousarray(backend.to_numpy(p._data)) for name, p in trained.items()}
    with atomic_write(path) as file:
        file.write(to_safetensors(arrays, about))


def load_adapter(model: M, path: str | os.PathLike[str], strict: bool = True) -> M:
    """Adapt a model as the one that was saved, take over what that learned, and return the model.

    The model must be the one the adapter was trained on: the same names and shapes and, if strict,
    the same frozen parameters bit for bit. Parameters that were trained require a gradient
    afterwards, no others do. Raises FileNotFoundError for a missing file, ValueError for a damaged
    or foreign one and for a model that does not fit; the model is what it was then.
    """
    arrays, about = _read(path)
    layers = about["layers"]
    if lora.layers(model):
        raise ValueError("load_adapter: the model has adapted layers already; see lora.remove")
    required = {name: p.requires_grad for name, p in model.named_parameters()}
    state = random.get_state()  # the initial values are overwritten: leave no trace
    try:
        for name, (rank, alpha, dropout) in layers.items():
            lora.adapt(model, rank, alpha, [name], dropout)
        _take(model, arrays, about["base"] if strict else None, path)
    except ValueError as error:
        if lora.layers(model):
            lora.remove(model)
        for name, p in model.named_parameters():
            p.requires_grad = required[name]
        raise ValueError(f"load_adapter: {path} does not fit this model: {error}") from error
    finally:
        random.set_state(state)
    return model


def _take(model: Module, arrays: dict[str, Any], base: str | None, path: Any) -> None:
    """Load the arrays into a model that is adapted already; nothing changes if one misfits."""
    parameters = dict(model.named_parameters())
    adapters = {f"{name}.{part}" for name in lora.layers(model) for part in ("lora_a", "lora_b")}
    unknown = sorted(arrays.keys() - parameters)
    missing = sorted(adapters - arrays.keys())
    if unknown or missing:
        kind, names = ("unknown", unknown) if unknown else ("missing", missing)
        raise ValueError(f"{kind} parameters {', '.join(names[:3])}")
    if base is not None and _fingerprint(model, set(arrays)) != base:
        raise ValueError(
            "it was trained on other weights, over which it means nothing (strict=False loads it "
            "all the same)"
        )
    model.load_state_dict(arrays, strict=False)
    for name, p in parameters.items():
        p.requires_grad = name in arrays


def _fingerprint(model: Module, trained: set[str]) -> str:
    """Return the SHA-256 of the names, dtypes and bytes of all parameters that were not trained."""
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        if name not in trained:
            digest.update(f"{name} {p.dtype} {list(p.shape)}\n".encode())
            digest.update(np.ascontiguousarray(backend.to_numpy(p._data)).tobytes())
    return digest.hexdigest()


def _is_layer(value: Any) -> bool:
    """Return whether a value is a rank, an alpha and a dropout."""
    match value:
        case [int(), int() | float(), int() | float()]:
            return not any(isinstance(number, bool) for number in value)
    return False


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with safe_open(os.fspath(path), "np") as file:
            about: dict[str, Any] = dict(file.metadata() or {})
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if about.get("format") != FORMAT:
            raise ValueError("it is not an adapter")
        about["layers"] = parse_json(about["layers"])
        if not isinstance(about["layers"], dict) or not all(
            map(_is_layer, about["layers"].values())
        ):
            raise ValueError("its layers are no table of rank, alpha and dropout")
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"load_adapter: {path} is damaged: {error}") from error
    return arrays, about
