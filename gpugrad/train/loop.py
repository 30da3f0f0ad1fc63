"""The training loop: batches, gradients, updates, evaluations, checkpoints, exact resumption."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from ..anomaly import detect_anomaly
from ..compiled import compile
from ..cuda import recording
from ..engine import no_grad
from ..models import GPT, flops_per_token, parameter_count
from ..nn.module import evaluating
from ..ops import asarray, random
from ..optim import AdamW, LossScaler, SpikeGuard, schedule
from ..optim.group import set_rate
from ..optim.schedule import Schedule
from ..tensor import Tensor
from ..text import RandomWindows, fixed_windows
from ..text.chat import IGNORED
from . import checkpoint
from .config import TrainConfig
from .data import Data
from .interrupt import Stopped, StopSignals
from .model import make_model, parameter_groups
from .speed import device_name, peak_flops
from .state import ANY, check_parts
from .stopping import Movement, Patience

MOST_IN_A_ROW = 10  # gradients that are not finite, before a run counts as lost


class DivergedError(ArithmeticError):
    """The loss or the gradient is no longer a finite number."""


class Report(NamedTuple):
    """What happened since the last report: means over `steps` updates, and their speed.

    loss in nats per token and norm, that of the gradient before clipping, are means over the
    updates where they are finite, None where none is; mfu is a share of the device's peak, None
    where that is not known. skipped are the updates left out since the run began, because the norm
    was not finite or a spike; loss_scale, with float16, is the scale of the loss now.
    """

    step: int
    loss: float | None
    norm: float | None
    lr: float
    tokens_per_second: float
    mfu: float | None
    skipped: int = 0
    loss_scale: float | None = None


class _AdamW(AdamW):
    """AdamW that calls ``begin`` before it changes a parameter, replayed by NumPy as well."""

    begin: Callable[[], None] = staticmethod(lambda: None)

    def _moved(self, *arguments: Any) -> Any:
        if recording.current() is None:
            self.begin()
        return super()._moved(*arguments)


class Trainer:
    """A model in training: everything that decides its next step, and nothing else.

    Two trainers with equal settings, data and state do bit for bit the same on one machine, one
    after the other: dropout draws from the generator of the process, which a new trainer seeds.
    Raises RuntimeError when the device is not there.
    """

    def __init__(self, config: TrainConfig, data: Data) -> None:
        self.config = config
        self.device = find_device(config.device)
        random.manual_seed(config.seed)
        shape = config.model(data.tokenizer.vocab_size)
        self.model = make_model(config, shape, self.device)
        self.optimizer = _AdamW(
            parameter_groups(self.model, config),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
        )
        half = config.precision == "float16"
        self.scaler = LossScaler(device=self.device) if half else None
        self.guard = SpikeGuard(config.skip_spikes or math.inf, device=self.device)
        self.schedule = learning_rate(config)
        self.batches = RandomWindows(data.train, config.block_size, config.batch_size, config.seed)
        self.held_out = fixed_windows(data.val, config.block_size, config.eval_windows)
        self.patience = Patience(config.patience, config.min_delta)
        self.step = 0
        self.evaluated = -1  # the step of the last evaluation
        self.change: float | None = None  # how far the last update moved, where that is measured
        self.seconds = 0.0  # spent in updates
        self.left_by(StopSignals(at_once=False))
        self._take, self._measure = self._take_step, self._loss
        # a GPU has no kernels for float64
        if (
            config.compile
            and not config.detect_anomaly
            and (self.device == "cpu" or config.precision != "float64")
        ):
            self._take, self._measure = (
                compile(function, device=self.device) for function in (self._take, self._measure)
            )
        self._movement = Movement(self.model.parameters()) if config.min_change else None
        self._losses: list[Any] = []  # since the last report; a GPU is not waited for before it
        self._norms: list[Any] = []  # likewise
        self._reported = 0.0
        self._data = data.checksum
        self._flops = flops_per_token(shape)
        self._peak = peak_flops(device_name(self.device), config.precision)
        self.parameters = parameter_count(shape)
        self.trained = sum(p.size for group in self.optimizer.param_groups for p in group["params"])
        self.tokens_per_step = config.accumulate * config.batch_size * config.block_size

    def left_by(self, signals: StopSignals) -> None:
        """Leave updates and evaluations half done when these signals come: Stopped is raised."""
        self._signals, self.optimizer.begin = signals, signals.stay

    def update(self) -> None:
        """Take one step: accumulate gradients, clip, update.

        A gradient whose norm is not finite, or a spike, changes no parameter and is counted.
        MOST_IN_A_ROW that are not finite raise DivergedError; with float16, where they shrink the
        scale of the loss, they do when nothing is left of that. A GPU is not waited for: there the
        next report or checkpoint raises it. With ``detect_anomaly`` the first NaN or infinity
        raises it at once, and names its operation.

        Left half done (see ``left_by``), before it changes parameters, it leaves the trainer as it
        was.
        """
        started = time.perf_counter()
        lr = self.schedule(self.step)
        for group in self.optimizer.param_groups:
            set_rate(group, lr)
        self.model.train()
        if self._movement:
            self._movement.start()
            skipped = self.guard.skipped
        draws, position = random.get_state(), self.batches.state_dict()
        try:
            batches, shares = self._next_batches()
            with self._signals.leaving():
                loss, norm = self._take(batches, shares)
        except Stopped:
            random.set_state(draws)
            self.batches.load_state_dict(position)
            raise
        except FloatingPointError as error:
            raise DivergedError(f"an anomaly at step {self.step + 1}: {error}") from error
        self._losses.append(loss._data)
        self._norms.append(norm._data)
        if self._movement:
            moved = self._movement.distance()
            if self.guard.skipped == skipped:  # an update that was left out moves nothing
                self.change = moved
        self.step += 1
        self.seconds += time.perf_counter() - started
        if self.device == "cpu":
            self._check_skipped()

    def _take_step(self, batches: Sequence[Any], shares: Any) -> tuple[Tensor, Tensor]:
        """Update the parameters; return the loss and the norm of the gradient.

        This is what is recorded once and replayed (``gg.compile``): it looks at no values.
        """
        memory = {"recompute": self.config.recompute, "head_chunk": self.config.head_chunk or None}
        with self._watched():
            self.optimizer.zero_grad()
            loss = backward(self.model, batches, shares, self.scaler, **memory)
        most = self.config.grad_clip or math.inf
        norm = self.optimizer.step(max_norm=most, scaler=self.scaler, guard=self.guard)
        self.optimizer.zero_grad()
        return loss, norm

    def _watched(self) -> AbstractContextManager[None]:
        if not self.config.detect_anomaly:
            return nullcontext()
        return detect_anomaly(gradients=self.scaler is None)  # a scaled gradient may overflow

    def _loss(self, x: Any, y: Any) -> Tensor:
        """Return the loss of a batch of held-out windows."""
        return self.model.loss(x, y, head_chunk=self.config.head_chunk or None)

    def report(self) -> Report | None:
        """Return what happened since the last report, None if nothing did.

        Raises DivergedError when the loss of an update that was taken is not finite, and when
        too many gradients in a row were not, with float16 without any scale.
        """
        if not self._losses:
            return None
        started = time.perf_counter()
        losses, norms = self._finite()
        scale = self._check_skipped()
        self.seconds += time.perf_counter() - started
        speed = len(losses) * self.tokens_per_step / (self.seconds - self._reported)
        report = Report(
            self.step,
            _mean(losses),
            _mean(norms),
            self.schedule(self.step - 1),
            speed,
            speed * self._flops / self._peak if self._peak else None,
            self.guard.skipped,
            scale,
        )
        self._losses, self._norms, self._reported = [], [], self.seconds
        return report

    def evaluate(self) -> float:
        """Return the loss on the held-out windows."""
        x, y = self.held_out
        size = self.config.batch_size
        total = 0.0
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            with self._signals.leaving(), no_grad(), evaluating():
                total += float(self._measure(x[rows], y[rows])) * len(x[rows])
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

    def snapshot(self, folder: Path) -> Callable[[Callable[[], None]], Path]:
        """Return a function that writes a checkpoint of what is now, whatever happens until then.

        It and the best one stay, with `config.keep` in all at least, beside those since
        gradients were not finite. The function takes ``go_on`` of checkpoint.save.
        """
        state = self.state_dict()
        return partial(checkpoint.save, folder, self.step, state, self._keep, self._best)

    def prune(self, folder: Path) -> None:
        """Remove the checkpoints that do not stay, should `save` have been killed before it did."""
        checkpoint.prune(folder, self.step, self._keep, self._best)

    @property
    def unsound(self) -> int:
        """The first step whose parameters have brought no finite gradient since; waits for a GPU.

        It is that of the last update that was taken: from there a run would come to the same end.
        """
        return self.step - self.guard.in_a_row

    @property
    def _keep(self) -> int:
        return self.config.keep + self.guard.in_a_row

    @property
    def _best(self) -> list[int]:
        return [] if self.patience.best is None else [self.patience.best_step]

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the whole state, as NumPy arrays and plain values.

        Raises DivergedError where ``report`` does.
        """
        self._check_skipped()
        return {
            "model": model_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            **self._numbers(),
        }

    def _numbers(self) -> dict[str, Any]:
        """Return the part of the state that is plain values."""
        losses, norms = self._finite()
        return {
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "guard": self.guard.state_dict(),
            "random": random.get_state(),
            "data": self._data,
            "batches": self.batches.state_dict(),
            "patience": self.patience.state_dict(),
            "step": self.step,
            "evaluated": self.evaluated,
            "change": self.change,
            "seconds": self.seconds,
            "reported": self._reported,
            "losses": losses,
            "norms": norms,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a trainer with the same fixed settings and data.

        Raises ValueError for a state with a missing or foreign part, and for one of other data.
        """
        groups = {"state": ANY, "param_groups": self.optimizer.param_groups}
        expected = {"model": ANY, "optimizer": groups, **self._numbers()}
        check_parts(state, expected, "Trainer.load_state_dict")
        if state["data"] != self._data:
            raise ValueError(
                "Trainer.load_state_dict: the state was taken with other data: its token file had "
                f"the SHA-256 {state['data']}, here it has {self._data}; put tokens.bin and "
                "tokenizer.json back as they were, or start a new run"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.guard.load_state_dict(state["guard"])
        random.set_state(state["random"])
        self.batches.load_state_dict(state["batches"])
        self.patience.load_state_dict(state["patience"])
        self.step, self.evaluated = state["step"], state["evaluated"]
        self.change, self.seconds = state["change"], state["seconds"]
        self._losses, self._norms = list(state["losses"]), list(state["norms"])
        self._reported = state["reported"]

    def _next_batches(self) -> tuple[list[tuple[Any, Any]], np.ndarray]:
        """Return the batches of a step and the share of its targets that each of them has."""
        drawn = [next(self.batches) for _ in range(self.config.accumulate)]
        return with_targets(drawn, "float64" if self.config.precision == "float64" else "float32")

    def _finite(self) -> tuple[list[float | None], list[float | None]]:
        """Return the losses and norms of the last steps, None for those that are not finite.

        Waits for a GPU. Raises DivergedError where the loss is not, but the norm is.
        """
        losses = [None if loss is None else float(loss) for loss in self._losses]
        norms = [None if norm is None else float(norm) for norm in self._norms]
        for i, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            if norm is None or not math.isfinite(norm):
                norms[i] = None
                losses[i] = loss if loss is not None and math.isfinite(loss) else None
            elif loss is not None:
                self._require_finite("loss", loss, self.step - len(losses) + i + 1)
        return losses, norms

    def _check_skipped(self) -> float | None:
        """Return the scale of the loss, if it is scaled; raise DivergedError if the run is lost.

        It is where so many gradients in a row were not finite, or where the scale fell below 1: no
        float16 holds the gradients as such.
        """
        if self.scaler is None:
            count = self.guard.in_a_row
            if count >= MOST_IN_A_ROW:
                raise DivergedError(
                    f"the norm of the gradient was not finite in {count} steps in a row, up to "
                    f"step {self.step}; these updates were left out (--detect-anomaly names the "
                    "operation that it begins with)"
                )
            return None
        scale = self.scaler.get_scale()
        if scale < 1:
            raise DivergedError(
                f"the gradient overflows float16 at step {self.step} even where the loss is scaled "
                f"by {scale:g}; {self.scaler.skipped} updates were left out"
            )
        return scale

    def _require_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise DivergedError(f"the {what} is {value} at step {step}")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def find_device(name: str) -> str:
    """Return the device of this name, "auto" being the default one.

    Raises RuntimeError that says what is missing, ValueError for what is no device.
    """
    device = backend.default_device() if name == "auto" else name
    backend.namespace(device)
    return device


def with_targets(
    batches: Sequence[tuple[Any, Any]], dtype: str
) -> tuple[list[tuple[Any, Any]], np.ndarray]:
    """Return the batches that have targets and which share of all targets each of them has."""
    counts = [int(np.count_nonzero(y != IGNORED)) for _, y in batches]
    chosen = [batch for batch, count in zip(batches, counts, strict=True) if count]
    return chosen, (np.array([n for n in counts if n]) / max(1, sum(counts))).astype(dtype)


def backward(
    model: GPT,
    batches: Sequence[tuple[Any, Any]],
    shares: Any,
    scaler: LossScaler | None = None,
    **memory: Any,
) -> Tensor:
    """Add the gradient of the sum of the batches' mean losses times their shares; return that sum.

    With the share of all targets that a batch holds, every target counts the same wherever it
    stands, so a step does not depend on how its windows are cut into batches. ``shares`` (batches,)
    is floating. With a scaler the gradient is that of the scaled loss. ``memory`` are ``recompute``
    and ``head_chunk`` of GPT.loss. Raises ValueError without any batch.
    """
    if not batches:
        raise ValueError("backward: no target counts in any batch, so there is no mean loss")
    shares, total = asarray(shares), None
    for i, (x, y) in enumerate(batches):
        loss = model.loss(x, y, **memory)
        if len(batches) > 1:
            loss = loss * shares[i].to(loss.device)
        (loss if scaler is None else scaler.scale(loss)).backward()
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
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
    """Return copies of a model's parameters and buffers as NumPy arrays; a tied one once."""
    arrays: dict[str, Any] = {}
    seen = set()
    for name, tensor in model.state_dict().items():
        if id(tensor._data) not in seen:
            seen.add(id(tensor._data))
            array = backend.to_numpy(tensor._data)
            arrays[name] = array.copy() if array is tensor._data else array
    return arrays
