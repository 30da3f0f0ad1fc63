"""What a training step needs, from shapes alone: memory, arithmetic, and how long it takes.

The step is recorded on arrays without elements (``gg.cuda.recording``), exactly as a GPU of the
named kind would run it, and laid out in its arena; nothing is computed, and no GPU is needed.

Two times are predicted. The floor lets every launch run at the device's data-sheet rates. The
estimate lets matrix products reach the share PRODUCTS of the peak, attention ATTENTION of it and
everything else MEMORY of the bandwidth, and adds LAUNCH for each launch. PRODUCTS and MEMORY were
measured on one H200, the others are assumptions.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from operator import itemgetter
from typing import Any, NamedTuple

from .. import backend
from ..compiled import OLDEST
from ..cuda import recording
from ..models import GPTConfig, parameter_count
from ..models.flops import Arithmetic, arithmetic, petaflop_days, training_flops
from .config import TrainConfig
from .data import saved_tokenizer
from .devices import Device, by_driver, device
from .outline import Outline
from .recorded import evaluation_outline, step_outline
from .speed import device_name

PRODUCTS, MEMORY = 0.80, 0.90  # 790 of 989 TFLOP/s in bfloat16, 4.3 of 4.8 TB/s copying: an H200
ATTENTION = 0.35
LAUNCH = 1.5e-6  # seconds from one launch of a graph to the next
RESERVED = 1 << 30  # bytes that the driver, the context and cublasLt's workspace take
MARGIN = 1.05  # arenas of steps are within this of the least there can be: tests/cuda/test_arena.py
LEAST_CHUNK = 1024  # positions of --head-chunk that still fill a GPU
CHUNKS = 16  # in as many parts the logits are little beside all else


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step adds up to. Times are at the device's own rates and expected, in seconds."""

    outline: Outline
    evaluated: Outline  # a batch of held-out text
    floor: float
    by_operation: dict[str, float]  # of the estimate

    @property
    def launches(self) -> int:
        """How many kernels and products there are."""
        return self.outline.launches

    @property
    def products(self) -> int:
        """Floating-point operations in matrix products."""
        return sum(entry.times * entry.flops for entry in self.outline.entries)

    @property
    def estimate(self) -> float:
        """The time expected."""
        return sum(self.by_operation.values())

    @functools.cached_property
    def arena(self) -> int:
        """Bytes of the arena."""
        return self.outline.arena().size

    @functools.cached_property
    def lower_bound(self) -> int:
        """Bytes in use at one launch: no arena is smaller."""
        return self.outline.lower_bound()

    @functools.cached_property
    def evaluation(self) -> int:
        """Bytes of the arena of a batch that is evaluated."""
        return self.evaluated.arena().size

    @property
    def activations(self) -> int:
        """Bytes of the arena in use when the first backward pass begins."""
        return self.outline.activations

    @property
    def kept(self) -> int:
        """Bytes of parameters and optimiser state, and of the inputs."""
        return self.outline.kept

    @functools.cached_property
    def least(self) -> int:
        """The least memory it needs, however well arenas are laid out; found at once."""
        return self.kept + self.lower_bound + self.evaluated.lower_bound() + RESERVED

    @property
    def total(self) -> int:
        """All memory that is needed, with what the driver takes."""
        return self.kept + self.arena + self.evaluation + RESERVED


class Plan(NamedTuple):
    """One training step of a model on a kind of GPU. Sizes in bytes, times in seconds."""

    config: TrainConfig
    shape: GPTConfig
    device: Device
    step: Step
    arithmetic: Arithmetic

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return parameter_count(self.shape)

    @property
    def parameter_bytes(self) -> int:
        """The memory of the parameters themselves."""
        return self.parameters * backend.as_dtype(self.shape.dtype).itemsize

    @property
    def total(self) -> int:
        """All memory that is needed, with what the driver takes."""
        return self.step.total

    @property
    def tokens(self) -> int:
        """The tokens of a step."""
        return self.config.accumulate * self.config.batch_size * self.config.block_size

    @property
    def fits(self) -> bool:
        """Whether the device has the memory."""
        least, memory = self.step.least, self.device.memory
        return least <= memory and (MARGIN * least <= memory or self.total <= memory)

    def mfu(self, seconds: float) -> float:
        """Return the share of the peak that the model's own arithmetic takes in this time.

        Attention counts as causal, half of what the usual convention (``flops_per_token``) counts.
        """
        flops = arithmetic(self.shape, self.config.block_size).total * self.tokens
        return flops / seconds / self.device.flops(self.shape.dtype)

    def to_text(self) -> str:
        """Return what `gpugrad plan` prints."""
        step, shape, config = self.step, self.shape, self.config
        each = self.arithmetic
        tokens = config.max_steps * self.tokens
        days = petaflop_days(training_flops(self.parameters, tokens))
        rows = {
            "model": f"{self.parameters:,} parameters: {shape.n_layer} layers, {shape.n_head} "
            f"heads, width {shape.n_embd}, context {shape.block_size}, vocabulary "
            f"{shape.vocab_size}; {shape.dtype}",
            "step": f"{self.tokens:,} tokens ({config.accumulate} x {config.batch_size} x "
            f"{config.block_size}) in {step.launches:,} launches",
            "compute": f"{each.products / 1e6:.0f} MFLOP per token in matrix products, "
            f"{each.attention / 1e6:.0f} in attention; {each.total * self.tokens / 1e12:.1f} "
            "TFLOP per step",
            "memory": f"{_gb(self.total)}: parameters {_gb(self.parameter_bytes)}, optimiser and "
            f"inputs {_gb(step.kept - self.parameter_bytes)}, arena {_gb(step.arena)} (no arena is "
            f"below {_gb(step.lower_bound)}; activations {_gb(step.activations)} when the backward "
            f"pass begins), evaluation {_gb(step.evaluation)}, driver {_gb(RESERVED)}",
            "device": f"{self.device.name}: {_gb(self.device.memory)}, "
            f"{self.device.bandwidth / 1e12:.2f} TB/s, "
            f"{self.device.flops(shape.dtype) / 1e12:.0f} TFLOP/s in {shape.dtype} (data sheet)",
            "floor": f"{self._speed(step.floor)}: every launch at the device's peak",
            "estimate": f"{self._speed(step.estimate)}: predicted, not measured",
            "run": f"{config.max_steps:,} steps, {tokens:,} tokens, "
            f"{tokens / self.parameters:,.1f} per parameter; 6 N D = {days:.3g} petaflop/s-days, "
            f"{_duration(config.max_steps * step.estimate)} at the estimate",
            "where": ", ".join(
                f"{name} {seconds / step.estimate:.0%}"
                for name, seconds in list(step.by_operation.items())[:8]
            ),
        }
        return "\n".join(f"{name:<9} {text}" for name, text in rows.items())

    def _speed(self, seconds: float) -> str:
        return (
            f"{seconds * 1e3:.2f} ms per step, {self.tokens / seconds:,.0f} tokens/s, MFU "
            f"{self.mfu(seconds):.0%}"
        )


def plan(config: TrainConfig, gpu: Device, vocab_size: int | None = None) -> Plan:
    """Return what a step with these settings needs on a device of this kind.

    The vocabulary is 256 for --tokenizer byte, that of a tokenizer.json, else --vocab-size, if no
    other is given. Raises ValueError for a GPU that is too old, for a precision it has no rate for
    and for a tokenizer that is no such file.
    """
    if vocab_size is None:
        saved = saved_tokenizer(config)
        known = 256 if config.tokenizer == "byte" else config.vocab_size
        vocab_size = known if saved is None else saved.vocab_size
    shape = config.model(vocab_size)
    if gpu.capability < OLDEST:
        raise ValueError(
            f"{gpu.name} has compute capability {gpu.capability / 10}; steps are recorded for "
            f"{OLDEST / 10} and newer"
        )
    gpu.flops(shape.dtype)
    if config.precision == "float64":
        raise ValueError("a step in float64 launches no kernels; there is nothing to plan")
    if config.batch_size * config.block_size >= 2**31:
        raise ValueError(
            f"{config.batch_size} windows of {config.block_size} tokens are more than kernels index"
        )
    each = arithmetic(shape, config.block_size, config.recompute)
    try:
        trained = step_outline(config, shape, gpu.capability)
        evaluated = evaluation_outline(shape, config.batch_size, config.head_chunk, gpu.capability)
    except (recording.NotRecordable, ValueError) as error:
        raise ValueError(
            f"{config.batch_size} windows of {config.block_size} tokens cannot be planned: {error}"
        ) from error
    tokens = config.accumulate * config.batch_size * config.block_size
    peak, bandwidth = gpu.flops(shape.dtype), gpu.bandwidth
    attention = each.attention * tokens / peak
    floor = _seconds(trained, peak, bandwidth, attention, 0.0)
    estimate = _seconds(trained, peak * PRODUCTS, bandwidth * MEMORY, attention / ATTENTION, LAUNCH)
    step = Step(trained, evaluated, sum(floor.values()), _sorted(estimate))
    return Plan(config, shape, gpu, step, each)


def default_device() -> Device:
    """Return the data sheet of the GPU that is here, or of an H200 where none is known."""
    here = by_driver(device_name("cuda:0")) if backend.cuda_is_available() else None
    return here or device("h200")


def remedies(found: Plan) -> Iterator[tuple[str, Plan]]:
    """Yield settings with which a step fits, and their plans; what slows it down least comes first.

    They are a smaller batch with as many more passes, --head-chunk and --recompute, which leave the
    update as it is up to rounding. --precision bfloat16 is proposed where nothing else helps.
    """
    config = found.config

    def planned(change: dict[str, Any]) -> Plan:
        changed = dataclasses.replace(config, **change)
        return plan(changed, found.device, found.shape.vocab_size)

    for other in _precisions(found):
        least = {**other, **_smaller(config, config.batch_size), **_knobs(config, 1)[-1]}
        last = planned(least)
        if last.fits:
            whole = planned(other) if other else found
            changes = [{**other, **change} for change in _changes(whole)]
            fitting = ((_flags(change), planned(change)) for change in changes if change)
            yield from (row for row in fitting if row[1].fits)
            yield _flags(least), last
            return


def _changes(found: Plan) -> Iterator[dict[str, Any]]:
    """Yield changes of settings, what slows a step down least first."""
    config, kept = found.config, found.step.kept + RESERVED
    yield {}
    grows = (found.step.least - kept) / max(1, found.device.memory - kept)  # with the batch
    yield from [_smaller(config, n) for n in _factors(config.batch_size) if n >= grows][:1]
    yield from _knobs(config, config.batch_size)


def _precisions(found: Plan) -> list[dict[str, Any]]:
    """Return the changes of --precision to try: none first."""
    if found.config.precision != "float32" or "bfloat16" not in found.device.rates:
        return [{}]
    return [{}, {"precision": "bfloat16"}]


def _knobs(config: TrainConfig, batch_size: int) -> list[dict[str, Any]]:
    """Return settings of --recompute and --head-chunk that save memory, those that save most last.

    Chunks cost next to nothing, the more is computed again the more time it takes.
    """
    kinds = ("none", "attention", "block")
    again: list[dict[str, Any]]
    again = [{"recompute": kind} for kind in kinds[kinds.index(config.recompute) + 1 :]]
    positions = batch_size * config.block_size
    chunk = max(LEAST_CHUNK, positions // CHUNKS)
    if chunk >= min(config.head_chunk or positions, positions):
        return again or [{}]
    pairs = [(change, {**change, "head_chunk": chunk}) for change in [{}, *again]]
    return [change for pair in pairs for change in pair if change]


def _factors(batch_size: int) -> list[int]:
    """Return by what a batch can be divided, the powers of two first."""
    divisors = [n for n in range(2, batch_size + 1) if batch_size % n == 0]
    powers = [n for n in divisors if n & (n - 1) == 0]
    return powers or divisors


def _smaller(config: TrainConfig, factor: int) -> dict[str, Any]:
    """Return the settings for batches smaller by a factor, and as many more passes."""
    if factor == 1:
        return {}
    return {"batch_size": config.batch_size // factor, "accumulate": config.accumulate * factor}


def _flags(change: dict[str, Any]) -> str:
    return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in change.items())


def verdict(found: Plan) -> str:
    """Return why a plan does not fit its device and the first settings that do; "" if it fits."""
    if found.fits:
        return ""
    text = f"{_gb(found.total)} do not fit {found.device.name} with {_gb(found.device.memory)}"
    shown = [
        f"{flags} (about {_gb(other.step.least)}, {other.step.estimate / found.step.estimate:.2f} "
        "of the time)"
        for flags, other in itertools.islice(remedies(found), 2)
    ]
    if not shown:
        return f"{text}, and neither --recompute nor --head-chunk nor a smaller --batch-size helps"
    return f"{text}; what fits: {', or '.join(shown)}"


def _seconds(
    outline: Outline, flops: float, bandwidth: float, attention: float, gap: float
) -> dict[str, float]:
    """Return the time of all launches by operation: arithmetic or memory, whichever takes longer.

    ``attention`` is the time of its arithmetic alone.
    """
    found: dict[str, float] = collections.defaultdict(float)
    moved = 0.0  # by attention
    for entry in outline.entries:
        seconds = entry.nbytes / bandwidth
        if entry.flops:
            seconds = max(seconds, entry.flops / flops)
        elif entry.name.startswith("attention"):
            moved, seconds = moved + entry.times * seconds, 0.0
        found[entry.operation or entry.name] += entry.times * (seconds + gap)
    found["attention"] += max(moved, attention)
    return dict(found)


def _sorted(seconds: dict[str, float]) -> dict[str, float]:
    """Return times with the longest first."""
    return dict(sorted(seconds.items(), key=itemgetter(1), reverse=True))


def _duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
