"""The weights fine-tuning starts with."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..models import GPT, GPTConfig
from ..nn import lora
from ..nn.patterns import fits, unused
from .config import TrainConfig
from .patterns import patterns
from .sampling import load_run
from .source import MEANING, is_pretrained


class Source(NamedTuple):
    """A trained model's shape and its arrays or tensors by name."""

    config: GPTConfig
    state: dict[str, Any]


def read_source(config: TrainConfig) -> Source | None:
    """Return what ``config.init_from`` names, of a run its best checkpoint; None if it is empty.

    Raises FileNotFoundError when there is no such model, ValueError when it is damaged or means
    something else by its parameters.
    """
    path = config.init_from
    if not path:
        if config.fresh:
            raise ValueError("fresh needs init_from: without it all parameters start anew")
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
