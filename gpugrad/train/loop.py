"""The training loop: batches, gradients, updates, evaluations, checkpoints, exact resumption."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from ..engine import no_grad
from ..models import GPT, flops_per_token, parameter_count
from ..ops import random
from ..optim import AdamW, LossScaler, decay_groups, schedule
from ..optim.schedule import Schedule
from ..text import RandomWindows, fixed_windows
from . import checkpoint
from .config import TrainConfig
from .data import Data
from .speed import device_name, peak_flops
from .stopping import Movement, Patience

IGNORED = -100  # a target that does not count
NORM = "norm of the gradient"


class DivergedError(ArithmeticError):
    """The loss or the gradient is no longer a finite number."""


class Report(NamedTuple):
    """What happened since the last report: means over `steps` updates, and their speed.

    loss in nats per token; norm is the mean gradient norm before clipping, None without clipping;
    mfu a share of the device's peak, None where that is not known. With float16 loss_scale is the
    scale of the loss now, skipped the number of updates left out since the run began because a
    gradient overflowed, whose norm does not count; otherwise None.
    """

    step: int
    loss: float
    norm: float | None
    lr: float
    tokens_per_second: float
    mfu: float | None
    loss_scale: float | None = None
    skipped: int | None = None


class Trainer:
    """A model in training: everything that decides its next step, and nothing else.

    Two trainers with equal settings, data and state do bit for bit the same on one machine.
    Raises RuntimeError when the device is not there.
    """

    def __init__(self, config: TrainConfig, data: Data) -> None:
        self.config = config
        self.device = find_device(config.device)
        random.manual_seed(config.seed)
        shape = config.model(data.tokenizer.vocab_size)
        self.model = GPT(shape, self.device)
        self.optimizer = AdamW(
            decay_groups(self.model, config.weight_decay),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
        )
        half = config.precision == "float16"
        self.scaler = LossScaler(device=self.device) if half else None
        self.schedule = learning_rate(config)
        self.batches = RandomWindows(data.train, config.block_size, config.batch_size, config.seed)
        self.held_out = fixed_windows(data.val, config.block_size, config.eval_windows)
        self.patience = Patience(config.patience, config.min_delta)
        self.step = 0
        self.evaluated = -1  # the step of the last evaluation
        self.change: float | None = None  # how far the last update moved, where that is measured
        self.seconds = 0.0  # spent in updates
        self._movement = Movement(self.model.parameters()) if config.min_change else None
        self._losses: list[Any] = []  # since the last report; a GPU is not waited for before it
        self._norms: list[Any] = []  # likewise
        self._reported = 0.0
        self._flops = flops_per_token(shape)
        self._peak = peak_flops(device_name(self.device), config.precision)
        self.parameters = parameter_count(shape)
        self.tokens_per_step = config.accumulate * config.batch_size * config.block_size

    def update(self) -> None:
        """Take one step: accumulate gradients, clip, update.

        A gradient whose norm is not finite changes no parameter and raises DivergedError; on a GPU,
        which is not waited for here, the next report or checkpoint raises it. With float16 it only
        shrinks the scale of the loss.
        """
        started = time.perf_counter()
        lr = self.schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        self.optimizer.zero_grad()
        memory = {"recompute": self.config.recompute, "head_chunk": self.config.head_chunk or None}
        self._losses.append(backward(self.model, self._next_batches(), self.scaler, **memory))
        if self._movement:
            self._movement.start()
        if self.config.grad_clip:
            norm = self.optimizer.step(max_norm=self.config.grad_clip, scaler=self.scaler)._data
            if isinstance(norm, np.ndarray) and self.scaler is None:
                self._require_finite(NORM, float(norm), self.step + 1)
            self._norms.append(norm)
        else:
            self.optimizer.step(scaler=self.scaler)
        if self._movement:
            moved = self._movement.distance()
            if moved or self.scaler is None:  # an update that was left out moves nothing
                self.change = moved
        self.step += 1
        self.seconds += time.perf_counter() - started

    def report(self) -> Report | None:
        """Return what happened since the last report, None if nothing did.

        Raises DivergedError when a loss or the norm of a gradient is not finite, with float16 when
        gradients overflow without any scale.
        """
        if not self._losses:
            return None
        started = time.perf_counter()
        losses, norms = self._finite("loss", self._losses), self._finite_norms()
        scale, skipped = self._scaling()
        self.seconds += time.perf_counter() - started
        speed = len(losses) * self.tokens_per_step / (self.seconds - self._reported)
        report = Report(
            self.step,
            sum(losses) / len(losses),
            sum(norms) / len(norms) if norms else None,
            self.schedule(self.step - 1),
            speed,
            speed * self._flops / self._peak if self._peak else None,
            scale,
            skipped,
        )
        self._losses, self._norms, self._reported = [], [], self.seconds
        return report

    def evaluate(self, stop: Callable[[], bool] = lambda: False) -> float | None:
        """Return the loss on the held-out windows, None if `stop` says so in between."""
        x, y = self.held_out
        size = self.config.batch_size
        total = 0.0
        self.model.eval()
        for start in range(0, len(x), size):
            if stop():
                return None
            rows = slice(start, start + size)
            with no_grad():
                loss = self.model.loss(x[rows], y[rows], head_chunk=self.config.head_chunk or None)
                total += float(loss.item()) * len(x[rows])
        return total / len(x)

    def take_evaluation(self, loss: float) -> bool:
        """Note the loss of an evaluation at this step; return whether it is the best so far."""
        self._require_finite("validation loss", loss, self.step)
        self.evaluated = self.step
        return self.patience.update(loss, self.step)

    @property
    def resting(self) -> bool:
        """Whether the last update, after the warm-up, moved the parameters less than tau."""
        past_warmup = self.step > self.config.warmup_steps
        return past_warmup and self.change is not None and self.change < self.config.min_change

    @property
    def evaluation_due(self) -> bool:
        """Whether the parameters are to be evaluated before the next step, if any."""
        config = self.config
        at_end = self.step >= config.max_steps or self.resting
        return self.evaluated != self.step and (at_end or self.step % config.eval_interval == 0)

    @property
    def finished(self) -> str:
        """Why there is no next step, in words; "" if there is one."""
        config = self.config
        if self.step >= config.max_steps:
            return f"all {config.max_steps} steps are done"
        if self.patience.exhausted:
            return f"no progress in {self.patience.waited} evaluations"
        if self.resting:
            return f"the last update moved the parameters by only {self.change:.3g}"
        return ""

    def save(self, folder: Path) -> Path:
        """Write a checkpoint; it and the best one stay, with `config.keep` in all at least."""
        best = [] if self.patience.best is None else [self.patience.best_step]
        return checkpoint.save(folder, self.step, self.state_dict(), self.config.keep, best)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as NumPy arrays and plain values.

        Raises DivergedError where ``report`` does.
        """
        self._scaling()
        return {
            "model": model_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "random": random.get_state(),
            "batches": self.batches.state_dict(),
            "patience": self.patience.state_dict(),
            "step": self.step,
            "evaluated": self.evaluated,
            "change": self.change,
            "seconds": self.seconds,
            "reported": self._reported,
            "losses": self._finite("loss", self._losses),
            "norms": self._finite_norms(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a trainer with the same fixed settings and data."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        random.set_state(state["random"])
        self.batches.load_state_dict(state["batches"])
        self.patience.load_state_dict(state["patience"])
        self.step, self.evaluated = state["step"], state["evaluated"]
        self.change, self.seconds = state["change"], state["seconds"]
        self._losses, self._norms = list(state["losses"]), list(state["norms"])
        self._reported = state["reported"]

    def _next_batches(self) -> list[tuple[Any, Any]]:
        return [next(self.batches) for _ in range(self.config.accumulate)]

    def _finite(self, what: str, scalars: list[Any]) -> list[float]:
        """Return what was noted at each of the last steps as floats."""
        values = [float(scalar) for scalar in scalars]  # waits for a GPU
        for back, value in enumerate(reversed(values)):
            self._require_finite(what, value, self.step - back)
        return values

    def _finite_norms(self) -> list[float]:
        """Return the norms of the last steps; of steps that were left out there is none."""
        if self.scaler is None:
            return self._finite(NORM, self._norms)
        return [norm for norm in map(float, self._norms) if math.isfinite(norm)]

    def _scaling(self) -> tuple[float | None, int | None]:
        """Return the scale of the loss and the number of updates left out, if the loss is scaled.

        Raises DivergedError where the scale fell below 1: no float16 holds the gradients as such.
        """
        if self.scaler is None:
            return None, None
        scale, skipped = self.scaler.get_scale(), self.scaler.skipped
        if scale < 1:
            raise DivergedError(
                f"the gradient overflows float16 at step {self.step} even where the loss is scaled "
                f"by {scale:g}; {skipped} updates were left out"
            )
        return scale, skipped

    def _require_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise DivergedError(f"the {what} is {value} at step {step}")


def find_device(name: str) -> str:
    """Return the device of this name, "auto" being the default one.

    Raises RuntimeError that says what is missing, ValueError for what is no device.
    """
    device = backend.default_device() if name == "auto" else name
    backend.namespace(device)
    return device


def backward(
    model: GPT,
    batches: Iterable[tuple[Any, Any]],
    scaler: LossScaler | None = None,
    **memory: Any,
) -> Any:
    """Add the gradient of the mean loss over all targets of all batches; return that loss.

    Every target counts the same wherever it stands, so a step does not depend on how its windows
    are cut into batches. With a scaler the gradient is that of the scaled loss. ``memory`` are
    ``recompute`` and ``head_chunk`` of GPT.loss. The loss is an array without dimensions, float32
    or float64, on the model's device.
    """
    batches = list(batches)
    counts = [int(np.count_nonzero(y != IGNORED)) for _, y in batches]
    total: Any = 0.0
    for (x, y), count in zip(batches, counts, strict=True):
        if count:
            loss = model.loss(x, y, **memory) * (count / sum(counts))
            (loss if scaler is None else scaler.scale(loss)).backward()
            total = total + loss._data
    return total


def learning_rate(config: TrainConfig) -> Schedule:
    """Return the learning rate as a function of the step."""
    lr, steps, warmup, final = config.lr, config.max_steps, config.warmup_steps, config.min_lr
    match config.schedule:
        case "cosine":
            return schedule.cosine(lr, steps, warmup, final)
        case "linear":
            return schedule.linear(lr, steps, warmup, final)
        case "exponential":
            decay = (final / lr) ** (1 / (steps - warmup))
            return schedule.exponential(lr, decay, warmup, final)
        case _:
            return schedule.constant(lr, warmup)


def model_state(model: GPT) -> dict[str, Any]:
    """Return a model's parameters and buffers as NumPy arrays; a tied one once."""
    arrays: dict[str, Any] = {}
    seen = set()
    for name, tensor in model.state_dict().items():
        if id(tensor._data) not in seen:
            seen.add(id(tensor._data))
            arrays[name] = backend.to_numpy(tensor._data)
    return arrays
