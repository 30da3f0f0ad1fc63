"""GPT weights on disk: config.json and model.safetensors in Hugging Face's GPT-2 form.

A model that GPT-2's classes can express (pre-LN with biases, learned positions) is written so that
they can read it; any other has the same files and names with model_type "gpugrad". Weights of
linear layers lie transposed, (in, out), as GPT-2's Conv1D keeps them. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as to_safetensors

from .. import backend
from ..text.files import atomic_write, parse_json, read_small
from .config import GPTConfig, parameter_count

CONFIG = "config.json"
TENSORS = "model.safetensors"

_DTYPES = {
    "F64": backend.float64,
    "F32": backend.float32,
    "F16": backend.float16,
    "BF16": backend.bfloat16,
}
_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
}
_THEIRS = {"gelu_tanh": "gelu_new", "gelu": "gelu"}
_MODULES = {  # ours -> theirs, and whether the weight lies transposed
    "tokens": ("transformer.wte", False),
    "positions": ("transformer.wpe", False),
    "norm1": ("ln_1", False),
    "attention.in_proj": ("attn.c_attn", True),
    "attention.out_proj": ("attn.c_proj", True),
    "norm2": ("ln_2", False),
    "mlp.gate": ("mlp.c_gate", True),
    "mlp.up": ("mlp.c_fc", True),
    "mlp.down": ("mlp.c_proj", True),
    "distances": ("transformer.relative_bias", False),
    "norm": ("transformer.ln_f", False),
    "head": ("lm_head", False),
}
_OLD_MASKS = re.compile(r".*\.attn\.(masked_)?bias")  # buffers that early versions saved
# settings of GPT2Config that change what is computed, and the only value known here
_FIXED: dict[str, Any] = {
    "add_cross_attention": False,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
}


def _their_name(name: str) -> tuple[str, bool]:
    """Return Hugging Face's name of a parameter, and whether it lies transposed."""
    block = re.match(r"blocks\.(\d+)\.", name)
    module, _, kind = name[block.end() if block else 0 :].rpartition(".")
    theirs, transposed = _MODULES[module]
    prefix = f"transformer.h.{block[1]}." if block else ""
    return f"{prefix}{theirs}.{kind}", transposed and kind == "weight"


def save(folder: str | os.PathLike[str], config: GPTConfig, state: Mapping[str, Any]) -> None:
    """Write a state dict and its config; the folder is made if it is not there.

    Each file takes its name only once it is complete and on disk, the weights first.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for name, tensor in state.items():
        theirs, transposed = _their_name(name)
        array = backend.to_numpy(tensor._data)
        arrays[theirs] = np.ascontiguousarray(array.T if transposed else array)
    with atomic_write(folder / TENSORS) as file:
        file.write(to_safetensors(arrays, metadata={"format": "pt"}))
    with atomic_write(folder / CONFIG) as file:
        file.write((json.dumps(_to_json(config), indent=2) + "\n").encode())


def _to_json(config: GPTConfig) -> dict[str, Any]:
    gpt2 = config.norm_first and config.has_final_norm and config.bias
    gpt2 = gpt2 and config.positions == "learned" and config.activation in _THEIRS
    gpt2 = gpt2 and config.norm == "layer" and config.kv_heads == config.n_head
    end_of_text = 50256 if config.vocab_size == 50257 else None  # in GPT-2's own vocabulary
    return {
        "architectures": ["GPT2LMHeadModel" if gpt2 else "GPT"],
        "model_type": "gpt2" if gpt2 else "gpugrad",
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_ctx": config.block_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_inner": config.hidden_size,
        "activation_function": _THEIRS.get(config.activation, config.activation),
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": 0.02,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": config.dtype,
        "gpugrad": asdict(config),
    }


def read_config(
    folder: str | os.PathLike[str], dropout: float | None = None, dtype: str | None = None
) -> GPTConfig:
    """Return the config that config.json describes; dropout and dtype may be replaced.

    Raises FileNotFoundError or ValueError, naming the file and the setting.
    """
    path = Path(folder, CONFIG)
    if not path.is_file():
        raise FileNotFoundError(f"from_pretrained: there is no {path}")
    try:
        content = parse_json(read_small(path))
    except ValueError as error:
        raise ValueError(f"from_pretrained: {path} is truncated or not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"from_pretrained: {path} must hold a JSON object")
    try:
        settings = _settings(content, replaced_dropout=dropout is not None)
        settings.update(
            {k: v for k, v in (("dropout", dropout), ("dtype", dtype)) if v is not None}
        )
        return GPTConfig(**settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"from_pretrained: {path}: {error}") from error


def _settings(content: dict[str, Any], replaced_dropout: bool) -> dict[str, Any]:
    """Return the fields of a GPTConfig that the content of a config.json stands for."""
    own = content.get("gpugrad")
    if own is not None:
        unknown = sorted(set(own) - {field.name for field in fields(GPTConfig)})
        if unknown:
            raise ValueError(f"unknown settings {', '.join(unknown)}: from a newer version?")
        return dict(own)
    if content.get("model_type") != "gpt2":
        raise ValueError(f"model_type must be 'gpt2', got {content.get('model_type')!r}")
    missing = [k for k in ("vocab_size", "n_layer", "n_head", "n_embd") if k not in content]
    if missing or not {"n_positions", "n_ctx"} & set(content):
        raise ValueError(f"missing: {', '.join(missing or ['n_positions'])}")
    for key, value in _FIXED.items():
        if content.get(key, value) != value:
            raise ValueError(f"{key}={content[key]!r} is not supported, only {value!r}")
    activation = content.get("activation_function", "gelu_new")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation_function {activation!r} is none of {', '.join(_ACTIVATIONS)}")
    dropouts = {content.get(key, 0.1) for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    if len(dropouts) > 1 and not replaced_dropout:
        raise ValueError(f"different dropouts {sorted(dropouts)}: choose one with dropout=")
    n_embd, n_inner = content["n_embd"], content.get("n_inner")
    return {
        **{key: content[key] for key in ("vocab_size", "n_layer", "n_head", "n_embd")},
        "block_size": content.get("n_positions", content.get("n_ctx")),
        "mlp_ratio": 4 if n_inner is None else n_inner / n_embd,
        "activation": _ACTIVATIONS[activation],
        "dropout": max(dropouts),
        "norm_eps": content.get("layer_norm_epsilon", 1e-5),
        "tied_head": content.get("tie_word_embeddings", True),
        "dtype": content.get("torch_dtype") or content.get("dtype") or "float32",
    }


def read_tensors(folder: str | os.PathLike[str], config: GPTConfig) -> dict[str, np.ndarray]:
    """Return the arrays of model.safetensors under gpugrad's names, in its layout.

    Names with and without "transformer." are understood. Raises FileNotFoundError for a missing
    file, ValueError for a damaged one and for names that are missing or unknown.
    """
    path = Path(folder, TENSORS)
    theirs = _read_safetensors(path)
    if not any(name.startswith("transformer.") for name in theirs):
        theirs = {
            name if name.startswith("lm_head.") else f"transformer.{name}": array
            for name, array in theirs.items()
        }
    theirs = {name: array for name, array in theirs.items() if not _OLD_MASKS.fullmatch(name)}
    if config.tied_head and "lm_head.weight" in theirs:
        head = theirs.pop("lm_head.weight")
        if not np.array_equal(head, theirs.get("transformer.wte.weight", head)):
            raise ValueError(
                f"from_pretrained: {path}: lm_head.weight differs from transformer.wte.weight, "
                "but config.json says tie_word_embeddings"
            )
    held = sum(array.size for array in theirs.values())
    claimed = parameter_count(config)
    if config.n_layer > len(theirs) or claimed > 2 * held:  # before memory for them is asked for
        raise ValueError(
            f"from_pretrained: {path} does not fit config.json, which says {config.n_layer:,} "
            f"layers and {claimed:,} parameters: the file holds {held:,}"
        )
    names = {_their_name(name)[0]: name for name in parameter_names(config)}
    problems = [
        f"{word} {', '.join(sorted(found)[:5])}{', ...' if len(found) > 5 else ''}"
        for word, found in (("missing", names.keys() - theirs), ("unknown", theirs.keys() - names))
        if found
    ]
    if problems:
        raise ValueError(f"from_pretrained: {path} does not fit config.json: {'; '.join(problems)}")
    return {
        ours: theirs[name].T if _their_name(ours)[1] else theirs[name]
        for name, ours in names.items()
    }


def parameter_names(config: GPTConfig) -> list[str]:
    """Return the names of a GPT's parameters without making one."""
    kinds = ["weight", "bias"] if config.bias else ["weight"]
    names = ["tokens.weight"]
    if config.positions == "learned":
        names.append("positions.weight")
    if config.positions == "relative":
        names.append("distances.weight")
    norm_kinds = kinds if config.norm == "layer" else ["weight"]
    modules = {"norm1": norm_kinds, "attention.in_proj": kinds, "attention.out_proj": kinds}
    modules |= {"norm2": norm_kinds}
    modules |= {"mlp.gate": kinds} if config.activation == "swiglu" else {}
    modules |= {"mlp.up": kinds, "mlp.down": kinds}
    for layer in range(config.n_layer):
        names += [
            f"blocks.{layer}.{module}.{kind}" for module, found in modules.items() for kind in found
        ]
    if config.has_final_norm:
        names += [f"norm.{kind}" for kind in norm_kinds]
    return names if config.tied_head else [*names, "head.weight"]


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        others = sorted(p.name for p in path.parent.glob("*.index.json"))
        others += sorted(p.name for p in path.parent.glob("*.bin"))
        hint = f" (only {', '.join(others)}: convert to one safetensors file)" if others else ""
        raise FileNotFoundError(f"from_pretrained: there is no {path}{hint}")
    try:
        found = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(
            f"from_pretrained: {path} is truncated or not a safetensors file: {error}"
        ) from error
    arrays = {}
    for name, entry in found:
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            if _OLD_MASKS.fullmatch(name):
                continue
            raise ValueError(f"from_pretrained: {path}: {name} has dtype {entry['dtype']}")
        arrays[name] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    return arrays
