"""What a training run is made of: one dataclass, whose every field is a flag and a file's key."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from ..models import GPTConfig
from ..models.config import Activation, Norm, Positions
from .patterns import factors
from .presets import PRESETS, SHAPE
from .source import source_settings


def _setting(default: Any, help: str, fixed: bool = False, **limits: Any) -> Any:
    """Return a field; `fixed` ones belong to the state of a run and cannot change on resuming.

    limits: low, high (inclusive), above, below (exclusive), choices.
    """
    return dataclasses.field(default=default, metadata={"help": help, "fixed": fixed, **limits})


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run; the defaults are those of a plain `gpugrad train`.

    Raises TypeError or ValueError naming the field, its value and what is allowed.
    """

    preset: str = _setting("default", "settings to start from", choices=tuple(PRESETS))
    out: str = _setting("", "folder of the run (default: runs/PRESET, with --init-from -tuned)")
    device: str = _setting("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    threads: int = _setting(0, "of the CPU (0: GPUGRAD_NUM_THREADS, else one for each core)", low=0)
    precision: str = _setting(
        "float32",
        "of parameters and activations; in halves AdamW keeps float32 copies, and float16 scales "
        "the loss",
        True,
        choices=("float32", "bfloat16", "float16", "float64"),
    )
    seed: int = _setting(1337, "of initial weights, batches and dropout", True, low=0, below=2**64)

    data: str = _setting(
        "python-stdlib",
        "python-stdlib, a text file, a folder, a glob, or - for standard input",
        True,
    )
    max_chars: int = _setting(
        4_000_000, "use only the first so many characters (0: all)", True, low=0
    )
    tokenizer: str = _setting(
        "byte", "char, byte, bpe (learned from the data), or the path of a tokenizer.json", True
    )
    vocab_size: int = _setting(4096, "subwords to learn, for --tokenizer bpe", True, low=256)
    train_fraction: float = _setting(0.9, "part of the tokens to train on", True, above=0, below=1)
    test_fraction: float = _setting(
        0.0,
        "part at the end that only `gpugrad evaluate --split test` looks at; what lies between is "
        "for validation (dev)",
        True,
        low=0,
        below=1,
    )

    n_layer: int = _setting(4, "transformer blocks", True, low=1)
    n_head: int = _setting(4, "attention heads", True, low=1)
    n_kv_head: int = _setting(0, "heads of keys and values (0: as many as n_head)", True, low=0)
    n_embd: int = _setting(128, "width: channels of the residual stream", True, low=1)
    block_size: int = _setting(64, "tokens of context", True, low=1)
    bias: bool = _setting(False, "biases in linear layers and norms", True)
    dropout: float = _setting(0.0, "probability of dropping a value", True, low=0, below=1)
    norm_first: bool = _setting(True, "norms before attention and MLP (pre-LN), or after", True)
    positions: str = _setting(
        "rotary", "how the model sees places", True, choices=get_args(Positions)
    )
    tied_head: bool = _setting(True, "the head uses the token embedding's weight", True)
    activation: str = _setting("gelu_tanh", "of the MLP", True, choices=get_args(Activation))
    mlp_ratio: float = _setting(4.0, "width of the MLP as a multiple of n_embd", True, above=0)
    norm: str = _setting("layer", "kind of norms", True, choices=get_args(Norm))

    init_from: str = _setting(
        "", "folder of a run or a Hugging Face GPT-2 whose weights to start from", True
    )
    fresh: str = _setting(
        "", "parameters that start anew all the same: patterns of names, with commas", True
    )
    freeze: str = _setting("", "parameters that stay as they are: patterns, with commas", True)
    lora_rank: int = _setting(
        0, "train adapters of this rank instead of the weights (0: weights)", True, low=0
    )
    lora_alpha: float = _setting(16.0, "adapters count alpha / rank", True, above=0)
    lora_dropout: float = _setting(
        0.0, "probability of dropping an input of an adapter", True, low=0, below=1
    )
    lora_targets: str = _setting("*", "layers that get adapters: patterns, with commas", True)

    max_steps: int = _setting(2500, "updates of the parameters", low=1)
    batch_size: int = _setting(12, "windows per pass", True, low=1)
    recompute: str = _setting(
        "none",
        "what the backward pass computes again to save memory",
        choices=("none", "attention", "block"),
    )
    head_chunk: int = _setting(
        0, "positions whose logits are in memory at the same time (0: all)", low=0
    )
    compile: bool = _setting(
        True, "record a step once and replay its launches, on a GPU as one CUDA graph"
    )
    accumulate: int = _setting(1, "passes per update, their gradients added up", True, low=1)
    lr: float = _setting(3e-3, "highest learning rate", low=0)
    min_lr: float = _setting(
        3e-4, "learning rate at the end; unless given, a tenth of lr, as in the presets", low=0
    )
    lr_scales: str = _setting(
        "", "factors of the learning rate by name: PATTERN=FACTOR, with commas", True
    )
    layer_decay: float = _setting(
        1.0, "factor of the learning rate from each block to the one below", True, above=0
    )
    schedule: str = _setting(
        "cosine",
        "of the learning rate after warm-up",
        choices=("cosine", "linear", "exponential", "constant"),
    )
    warmup_steps: int = _setting(
        100, "steps over which the learning rate rises; unless given, a tenth of all at most", low=0
    )
    beta1: float = _setting(0.9, "AdamW's decay of the first moment", True, low=0, below=1)
    beta2: float = _setting(0.99, "AdamW's decay of the second moment", True, low=0, below=1)
    eps: float = _setting(1e-8, "AdamW's epsilon", True, low=0)
    weight_decay: float = _setting(0.1, "of matrices; norms and biases never decay", True, low=0)
    grad_clip: float = _setting(1.0, "largest norm of the gradient (0: any)", low=0)
    skip_spikes: float = _setting(
        0.0,
        "leave out updates whose gradient's norm is so many standard deviations above the last "
        "ones', by its logarithm (0: none but those that are not finite)",
        low=0,
    )
    detect_anomaly: bool = _setting(
        False, "stop at the first NaN or infinity and name its operation; slower, not compiled"
    )

    eval_interval: int = _setting(250, "steps between evaluations and checkpoints", low=1)
    eval_windows: int = _setting(256, "windows of held-out text per evaluation", True, low=1)
    log_interval: int = _setting(10, "steps between lines of metrics.jsonl", low=1)
    patience: int = _setting(0, "stop after so many evaluations without progress (0: never)", low=0)
    min_delta: float = _setting(0.0, "least fall of the validation loss that is progress", low=0)
    min_change: float = _setting(
        0.0, "stop when an update after warm-up moves the parameters less (2-norm; 0: never)", low=0
    )
    keep: int = _setting(2, "checkpoints to keep, beside the best", low=2)
    async_save: bool = _setting(True, "write checkpoints in a thread while training goes on")
    sample_tokens: int = _setting(300, "length of the text sample at the end", low=0)
    png: bool = _setting(False, "draw the loss curve as PNG too (needs matplotlib)")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _converted(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            _check_limits(field, value)
        if not self.out:
            object.__setattr__(self, "out", usual_folder(self.preset, self.init_from))
        trained = self.train_fraction
        allowed = f"below 1 - train_fraction, {1 - trained:g}: something is left for validation"
        _require(self.test_fraction < 1 - trained, "test_fraction", self.test_fraction, allowed)
        if self.schedule != "constant":
            allowed = f"at most lr, {self.lr:g} (--min-lr 0 suits every lr)"
            _require(self.min_lr <= self.lr, "min_lr", self.min_lr, allowed)
            warmup = self.warmup_steps
            allowed = f"below max_steps, {self.max_steps} (--warmup-steps 0 trains without)"
            _require(warmup < self.max_steps, "warmup_steps", warmup, allowed)
        if self.schedule == "exponential":
            _require(self.min_lr > 0, "min_lr", self.min_lr, "above 0 for an exponential schedule")
        spikes = self.skip_spikes
        _require(spikes == 0 or spikes >= 1, "skip_spikes", spikes, "0, or at least 1")
        factors(self.lr_scales)
        if self.init_from and os.path.realpath(self.init_from) == os.path.realpath(self.out):
            raise ValueError(
                f"out must be another folder than init_from, got {self.out!r} for both"
            )
        self.model(vocab_size=256)  # refuses impossible shapes before any text is read

    def model(self, vocab_size: int) -> GPTConfig:
        """Return the model's configuration."""
        shape = {name: getattr(self, name) for name in SHAPE}
        shape["n_kv_head"] = shape["n_kv_head"] or None
        return GPTConfig(vocab_size=vocab_size, dtype=self.precision, **shape)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, fit for JSON."""
        return dataclasses.asdict(self)


FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
_FOLLOWED = "lr", "min_lr", "warmup_steps"  # settings that follow others, or that these follow
# What other programs call settings, where that is far from what they are called here
ELSEWHERE = {
    "epochs": "max_steps",
    "iterations": "max_steps",
    "learning_rate": "lr",
    "max_iters": "max_steps",
    "wd": "weight_decay",
}
RENAMED = {"dtype": "precision"}  # settings that config.json of older runs calls otherwise


def resolve(flags: Mapping[str, Any], file: Mapping[str, Any] | None = None) -> TrainConfig:
    """Return the settings of a preset, changed by a file's and then by flags'.

    With ``init_from`` the shape and the tokenizer are those of that model unless given. Where
    ``lr`` is given and ``min_lr`` is not, that is the same part of it as in the preset; where
    ``max_steps`` is and ``warmup_steps`` is not, that is a tenth of it at most.

    Raises ValueError for an unknown key, naming the nearest one, FileNotFoundError for no such
    model.
    """
    file = known(file or {}, "the configuration file")
    flags = known(flags, "TrainConfig")
    preset = flags.get("preset", file.get("preset", "default"))
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is unknown{nearest(str(preset), PRESETS)}")
    given = {**file, **flags}
    source = source_settings(given["init_from"]) if given.get("init_from") else {}
    usual = {name: PRESETS[preset].get(name, FIELDS[name].default) for name in _FOLLOWED}
    return TrainConfig(**{**PRESETS[preset], **_following(given, usual), **source, **given})


def resumed(saved: Mapping[str, Any], changes: Mapping[str, Any]) -> TrainConfig:
    """Return a run's saved settings with those changes that leave its state meaningful.

    What the run has stays unless it contradicts the changes: then it follows as in ``resolve``.
    Settings saved under an older name are understood. Raises ValueError naming the first setting
    that cannot change.
    """
    saved = {RENAMED.get(name, name): value for name, value in saved.items()}
    config = TrainConfig(**known(saved, "config.json"))
    changes = known(changes, "TrainConfig")
    usual = {name: getattr(config, name) for name in _FOLLOWED}
    following = _following(changes, usual, only_contradictions=True)
    changed = dataclasses.replace(config, **{**following, **changes})
    for name, field in FIELDS.items():
        old, new = getattr(config, name), getattr(changed, name)
        if old != new and (field.metadata["fixed"] or name == "preset"):
            raise ValueError(
                f"{name} is {old!r} in this run and cannot become {new!r} on resuming; start a "
                "new run in another folder (--out), or leave the flag away"
            )
    return changed


def _following(
    given: Mapping[str, Any], usual: Mapping[str, Any], only_contradictions: bool = False
) -> dict[str, Any]:
    """Return the usual settings that those given might contradict, or do, fitted to them."""
    found: dict[str, Any] = {}
    lr = _converted(FIELDS["lr"], given.get("lr", usual["lr"]))
    if lr != usual["lr"] != 0 and (usual["min_lr"] > lr or not only_contradictions):
        share = usual["min_lr"] / usual["lr"]
        found["min_lr"] = min(lr, float(f"{lr * share:.12g}"))  # 0.1, not 0.09999999999999999
    if "max_steps" in given:
        steps = _converted(FIELDS["max_steps"], given["max_steps"])
        if usual["warmup_steps"] >= steps or not only_contradictions:
            found["warmup_steps"] = min(usual["warmup_steps"], steps // 10)
    return found


def usual_folder(preset: str, init_from: str) -> str:
    """Return the folder of a run that names none."""
    return os.path.join("runs", f"{preset}-tuned" if init_from else preset)


def known(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `values` as a dict, or raise ValueError naming the first key that is no setting."""
    for name in values:
        if name not in FIELDS:
            raise ValueError(f"{where}: unknown setting {name!r}{nearest(name, FIELDS)}")
    return dict(values)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return '; did you mean ...?' for a mistyped name, or the choices when none is near."""
    names = list(names)
    new = RENAMED.get(name.lstrip("-"))
    if new is not None:
        return f"; it is called {name.replace(name.lstrip('-'), new)!r} now"
    bare = {each.lstrip("-").replace("-", "_"): each for each in names}
    word = name.lstrip("-").replace("-", "_").partition("=")[0]
    near = [ELSEWHERE.get(word, "")] + [each for each in bare if word in each.split("_")]
    near += difflib.get_close_matches(word, bare, n=1, cutoff=0.7)
    for each in near:
        if each in bare:
            return f"; did you mean {bare[each]!r}?"
    return f"; choose one of {', '.join(names)}" if len(names) <= 10 else ""


def _converted(field: dataclasses.Field, value: Any) -> Any:
    """Return the value in the field's type; text becomes a number (YAML reads 1e-3 as text)."""
    kind = {"int": int, "float": float, "bool": bool, "str": str}[str(field.type)]
    if kind in (int, float) and isinstance(value, str):
        try:
            return kind(value)
        except ValueError:
            pass  # refused below
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{field.name} is an integer that no float can hold") from None
    if type(value) is not kind:
        raise TypeError(
            f"{field.name} must be {'an' if kind is int else 'a'} {kind.__name__}, got {value!r}"
        )
    return value


def _check_limits(field: dataclasses.Field, value: Any) -> None:
    limits = field.metadata
    if isinstance(value, float):
        _require(math.isfinite(value), field.name, value, "a finite number")
    if "choices" in limits:
        choices = limits["choices"]
        _require(value in choices, field.name, value, f"one of {', '.join(choices)}")
    if "low" in limits:
        _require(value >= limits["low"], field.name, value, f"at least {limits['low']}")
    if "above" in limits:
        _require(value > limits["above"], field.name, value, f"above {limits['above']}")
    if "below" in limits:
        _require(value < limits["below"], field.name, value, f"below {limits['below']}")


def _require(holds: bool, name: str, value: Any, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
