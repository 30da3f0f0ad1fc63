"""The weights fine-tuning starts with."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

from ..models import GPT, GPTConfig
from ..nn import lora
from ..nn.patterns import fits, unused
from .config import FIELDS, TrainConfig
from .patterns import patterns
from .sampling import load_run
from .source import MEANING, is_pretrained

_OF_ADAPTERS = ("lora_alpha", "lora_dropout", "lora_targets")


class Source(NamedTuple):
    """A trained model's shape and its arrays or tensors by name."""

    config: GPTConfig
    state: dict[str, Any]


def read_source(config: TrainConfig) -> Source | None:
    """Return what ``config.init_from`` names, of a run its best checkpoint; None if it is empty.

    Raises FileNotFoundError when there is no such model, ValueError when it is damaged or means
    something else by its parameters, or when there are settings that need one. Settings that are
    rarely meant so are warned of.
    """
    path = config.init_from
    idle = [] if config.lora_rank else [name for name in _OF_ADAPTERS if _given(config, name)]
    if idle:
        _warn(f"{', '.join(idle)} without lora_rank: there are no adapters, nothing changes")
    if not path:
        if config.fresh:
            raise ValueError("fresh needs init_from: without it all parameters start anew")
        if config.lora_rank:
            raise ValueError(
                "lora_rank needs init_from: without it adapters are all that is trained beside "
                "weights that are random and stay so"
            )
        if config.freeze:
            _warn(f"freeze {config.freeze!r} without init_from: what it names stays random")
        return None
    model = (
        GPT.from_pretrained(path, device="cpu")
        if is_pretrained(path)
        else load_run(path, "cpu", best=True).model
    )
    shape = config.model(model.config.vocab_size)
    for name in MEANING:
        ours, theirs = getattr(shape, name), getattr(model.config, name)
        if ours != theirs:
            raise ValueError(
                f"{name} is {theirs!r} in {path} and cannot become {ours!r}: its weights mean "
                "something else then; leave the flag away"
            )
    return Source(model.config, dict(model.state_dict()))


def _given(config: TrainConfig, name: str) -> bool:
    return getattr(config, name) != FIELDS[name].default


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def start(model: GPT, source: Source, config: TrainConfig) -> None:
    """Give a new model the parameters of another one, but those that are to be fresh.

    Raises ValueError naming what differs, and what `fresh` could leave out.
    """
    left_out = patterns(config.fresh)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    missing = unused(names | source.state.keys(), left_out)
    if missing is not None:
        raise ValueError(
            f"fresh: no parameter fits {missing!r}; they are called {sorted(names)[0]}"
        )

    def taken(name: str) -> bool:
        return not any(fits(name, pattern) for pattern in left_out)

    adapters = {f"{layer}.{part}" for layer in lora.layers(model) for part in ("lora_a", "lora_b")}
    wanted = {name for name in names if taken(name)} - adapters
    given = {name: tensor for name, tensor in source.state.items() if taken(name)}
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    buffers = {name for name, _ in model.named_buffers()}
    differing = sorted(
        {name for name in wanted if name not in given}
        | {name for name in given if name not in shapes and name not in buffers}
        | {name for name in wanted & given.keys() if tuple(given[name].shape) != shapes[name]}
    )
    if differing:
        name = differing[0]
        theirs = tuple(given[name].shape) if name in given else "absent"
        ours = shapes.get(name, "absent")
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise ValueError(
            f"{name} is {theirs} in {config.init_from} and {ours} here{more}; "
            "leave --tokenizer and the flags of the shape away, or name with --fresh what is to "
            "start anew"
        )
    model.load_state_dict({name: given[name] for name in wanted}, strict=False)
