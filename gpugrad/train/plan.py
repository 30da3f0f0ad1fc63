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
import itertools
from collections.abc import Iterator
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from ..compiled import OLDEST
from ..cuda import recording, replay
from ..engine import no_grad
from ..models import GPT, GPTConfig, parameter_count
from ..models.flops import Arithmetic, arithmetic
from ..ops import random
from ..optim import AdamW, LossScaler, decay_groups
from ..tensor import Tensor
from .config import TrainConfig
from .devices import Device, by_driver, device
from .loop import backward
from .speed import device_name

PRODUCTS, MEMORY = 0.80, 0.90  # 790 of 989 TFLOP/s in bfloat16, 4.3 of 4.8 TB/s copying: an H200
ATTENTION = 0.35
LAUNCH = 1.5e-6  # seconds from one launch of a graph to the next
RESERVED = 1 << 30  # bytes that the driver, the context and cublasLt's workspace take
LEAST_CHUNK = 1024  # positions of --head-chunk that still fill a GPU


class Step(NamedTuple):
    """What a recorded step adds up to. ``seconds`` are at the device's own rates and expected."""

    launches: int
    products: int  # floating-point operations
    floor: float
    estimate: float
    by_operation: dict[str, float]  # of the estimate
    arena: int
    evaluation: int  # bytes of the arena of a batch that is evaluated
    lower_bound: int
    activations: int  # bytes of the arena in use when the first backward pass begins
    kept: int  # bytes of parameters and optimiser state, and of the inputs


class Plan(NamedTuple):
    """One training step of a model on a kind of GPU. Sizes in bytes, times in seconds."""

    config: TrainConfig
    model: GPT  # without elements
    device: Device
    step: Step
    arithmetic: Arithmetic

    @property
    def shape(self) -> GPTConfig:
        """The shape of the model."""
        return self.model.config

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return parameter_count(self.shape)

    @property
    def parameter_bytes(self) -> int:
        """The memory of the parameters themselves."""
        return sum(p.nbytes for p in self.model.parameters())

    @property
    def total(self) -> int:
        """All memory that is needed, with what the driver takes."""
        return self.step.kept + self.step.arena + self.step.evaluation + RESERVED

    @property
    def tokens(self) -> int:
        """The tokens of a step."""
        return self.config.accumulate * self.config.batch_size * self.config.block_size

    @property
    def fits(self) -> bool:
        """Whether the device has the memory."""
        return self.total <= self.device.memory

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


def plan(config: TrainConfig, gpu: Device, model: GPT | None = None) -> Plan:
    """Return what a step with these settings needs on a device of this kind.

    The vocabulary is 256 for --tokenizer byte, else --vocab-size. ``model`` is one of that shape on
    the device "meta", if there is one already. Raises ValueError for a GPU that is too old and for
    a precision it has no rate for.
    """
    shape = config.model(256 if config.tokenizer == "byte" else config.vocab_size)
    if gpu.capability < OLDEST:
        raise ValueError(
            f"{gpu.name} has compute capability {gpu.capability / 10}; steps are recorded for "
            f"{OLDEST / 10} and newer"
        )
    gpu.flops(shape.dtype)
    each = arithmetic(shape, config.block_size, config.recompute)
    if model is None:
        model = GPT(shape, "meta")
    if config.precision == "float64":
        raise ValueError("a step in float64 launches no kernels; there is nothing to plan")
    if config.batch_size * config.block_size >= 2**31:
        raise ValueError(
            f"{config.batch_size} windows of {config.block_size} tokens are more than kernels index"
        )
    try:
        step = _measured(config, model, gpu, each, 1)
        if config.accumulate > 1:  # passes repeat each other
            two = _measured(config, model, gpu, each, 2)
            step = _repeated(step, two, config.accumulate)
    except (recording.NotRecordable, ValueError) as error:
        raise ValueError(
            f"{config.batch_size} windows of {config.block_size} tokens cannot be planned: {error}"
        ) from error
    return Plan(config, model, gpu, step, each)


def default_device() -> Device:
    """Return the data sheet of the GPU that is here, or of an H200 where none is known."""
    here = by_driver(device_name("cuda:0")) if backend.cuda_is_available() else None
    return here or device("h200")


def remedies(found: Plan) -> Iterator[tuple[str, Plan]]:
    """Yield settings that need less memory, the cheapest first, with their plans.

    The first of them needs least of all: if it does not fit, nothing does, and it is the only one.
    """
    config = found.config
    chunk = {"head_chunk": LEAST_CHUNK} if not 0 < config.head_chunk <= LEAST_CHUNK else {}
    again = [{"recompute": kind} for kind in ("attention", "block")]
    again = again[("none", "attention", "block").index(config.recompute) :]
    least = _smaller(config, config.batch_size)
    changes: list[dict[str, Any]] = [{**least, **(again[-1] if again else {}), **chunk}]
    last = plan(dataclasses.replace(config, **changes[0]), found.device, found.model)
    if last.fits:
        room = found.device.memory - found.step.kept - RESERVED
        share = room / (found.step.arena + found.step.evaluation)  # both grow with the batch
        factor = 1
        while factor * share < 1 and config.batch_size % (2 * factor) == 0:
            factor *= 2
        changes = [chunk, *again, *({**kind, **chunk} for kind in again if chunk)]
        changes.append(_smaller(config, factor))
        for change in filter(None, changes):
            other = plan(dataclasses.replace(config, **change), found.device, found.model)
            yield _flags(change), other
        changes = [{**least, **(again[-1] if again else {}), **chunk}]
    yield _flags(changes[0]), last


def _smaller(config: TrainConfig, factor: int) -> dict[str, Any]:
    """Return the settings for batches smaller by a factor, and as many more passes."""
    if factor == 1 or config.batch_size % factor:
        return {}
    return {"batch_size": config.batch_size // factor, "accumulate": config.accumulate * factor}


def _flags(change: dict[str, Any]) -> str:
    return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in change.items())


def verdict(found: Plan) -> str:
    """Return why a plan does not fit its device and the first settings that do; "" if it fits."""
    if found.fits:
        return ""
    text = f"{_gb(found.total)} do not fit {found.device.name} with {_gb(found.device.memory)}"
    fitting = (f"{flags} ({_gb(other.total)})" for flags, other in remedies(found) if other.fits)
    shown = list(itertools.islice(fitting, 2))
    if not shown:
        return f"{text}, and neither --recompute nor --head-chunk nor a smaller --batch-size helps"
    return f"{text}; what fits: {', or '.join(shown)}"


def _measured(config: TrainConfig, model: GPT, gpu: Device, each: Arithmetic, passes: int) -> Step:
    """Record one update of a model without elements, and add up what it launches."""
    optimizer = AdamW(decay_groups(model, config.weight_decay), lr=config.lr)
    scaler = LossScaler(device="meta") if config.precision == "float16" else None
    trace = recording.Trace(gpu.capability)
    state = trace.input((2,), backend.uint64)
    sizes = (config.batch_size, config.block_size)
    memory: dict[str, Any] = {
        "recompute": config.recompute,
        "head_chunk": config.head_chunk or None,
    }
    with recording.recording(trace), random.recording(state):
        batches = [
            (Tensor(trace.input(sizes, backend.int64)), Tensor(trace.input(sizes, backend.int64)))
            for _ in range(passes)
        ]
        shares = np.full(passes, 1 / passes, np.float32)
        loss = backward(model, batches, shares, scaler, **memory)._data.settle()
        norm = optimizer.step(max_norm=config.grad_clip or None, scaler=scaler)
    results = [loss] if norm is None else [loss, norm._data.settle()]
    trace.drop_unread(results)
    layout = replay.Layout(trace, results)
    attention = each.attention * passes * config.batch_size * config.block_size
    peak, bandwidth = gpu.flops(model.config.dtype), gpu.bandwidth
    floor = _seconds(trace, peak, bandwidth, attention / peak, 0.0)
    estimate = _seconds(
        trace, peak * PRODUCTS, bandwidth * MEMORY, attention / peak / ATTENTION, LAUNCH
    )
    return Step(
        len(trace.launches),
        sum(launch.flops for launch in trace.launches),
        sum(floor.values()),
        sum(estimate.values()),
        _sorted(estimate),
        layout.plan.size,
        _evaluation(config, model, gpu),
        layout.plan.lower_bound,
        _activations(trace, layout),
        sum(storage.nbytes for storage in layout.others),
    )


def _evaluation(config: TrainConfig, model: GPT, gpu: Device) -> int:
    """Return the bytes of the arena in which a batch is evaluated."""
    trace = recording.Trace(gpu.capability)
    sizes = (config.batch_size, config.block_size)
    with recording.recording(trace), no_grad():
        x, y = (Tensor(trace.input(sizes, backend.int64)) for _ in range(2))
        loss = model.loss(x, y, head_chunk=config.head_chunk or None)._data.settle()
    return replay.Layout(trace, [loss]).plan.size


def _repeated(one: Step, two: Step, passes: int) -> Step:
    """Return a step of many passes from steps of one and of two."""
    more = passes - 1
    return two._replace(
        launches=one.launches + more * (two.launches - one.launches),
        products=one.products * passes,
        floor=one.floor + more * (two.floor - one.floor),
        estimate=one.estimate + more * (two.estimate - one.estimate),
        by_operation=_sorted(
            {
                name: one.by_operation.get(name, 0)
                + more * (seconds - one.by_operation.get(name, 0))
                for name, seconds in two.by_operation.items()
            }
        ),
        kept=one.kept + more * (two.kept - one.kept),
    )


def _activations(trace: recording.Trace, layout: replay.Layout) -> int:
    """Return the bytes in use when the backward pass begins."""
    names = [launch.operation for launch in trace.launches]
    start = next((i for i, name in enumerate(names) if name.endswith("_backward")), len(names))
    rows = zip(layout.storages, layout.first, layout.last, strict=True)
    return sum(s.nbytes for s, first, last in rows if first < start <= last)


def _seconds(
    trace: recording.Trace, flops: float, bandwidth: float, attention: float, gap: float
) -> dict[str, float]:
    """Return the time of all launches by operation: arithmetic or memory, whichever takes longer.

    ``attention`` is the time of its arithmetic alone.
    """
    found: dict[str, float] = collections.defaultdict(float)
    moved = 0.0  # by attention
    for launch in trace.launches:
        seconds = launch.nbytes / bandwidth
        if launch.flops:
            seconds = max(seconds, launch.flops / flops)
        elif launch.name.startswith("attention"):
            moved, seconds = moved + seconds, 0.0
        found[launch.operation or launch.name] += seconds + gap
    found["attention"] += max(moved, attention)
    return dict(found)


def _sorted(seconds: dict[str, float]) -> dict[str, float]:
    """Return times with the longest first."""
    return dict(sorted(seconds.items(), key=itemgetter(1), reverse=True))


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
