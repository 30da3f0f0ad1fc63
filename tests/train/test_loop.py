"""The loop: gradients over batches, schedules, evaluation, stopping, exact resumption."""

from __future__ import annotations

import dis
import inspect
import math
import signal
import sys
from contextlib import contextmanager

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backend, cuda, emulator, memory, prepared
from gpugrad.cli import main
from gpugrad.models import GPT, GPTConfig
from gpugrad.nn import functional as F
from gpugrad.text.chat import IGNORED
from gpugrad.train import checkpoint
from gpugrad.train.interrupt import Stopped, StopSignals
from gpugrad.train.loop import (
    DivergedError,
    Trainer,
    backward,
    find_device,
    learning_rate,
    model_state,
    with_targets,
)
from gpugrad.train.metrics import read_metrics

from .conftest import SMALL


@pytest.fixture
def make_trainer(make_config, make_data):
    """Return a trainer with such settings."""

    def make(**settings) -> Trainer:
        config = make_config(**settings)
        return Trainer(config, make_data(config))

    return make


def run(trainer: Trainer, steps: int) -> list:
    """Train, reporting at the same steps whatever happens in between."""
    reports = []
    for _ in range(steps):
        trainer.update()
        if trainer.step % 3 == 0:
            report = trainer.report()
            reports.append((report.step, report.loss, report.norm, report.lr))
    return reports


def bits(state: object) -> object:
    if isinstance(state, dict):
        return {
            key: bits(value) for key, value in state.items() if key not in ("seconds", "reported")
        }
    if isinstance(state, list):
        return [bits(value) for value in state]
    return state.tobytes() if isinstance(state, np.ndarray) else state


def gradients(model: GPT) -> dict[str, np.ndarray]:
    return {name: p.grad.numpy().copy() for name, p in model.named_parameters()}


@pytest.fixture
def small_model() -> GPT:
    gg.manual_seed(3)
    shape = GPTConfig(11, block_size=6, n_layer=1, n_head=2, n_embd=8, dtype="float64")
    return GPT(shape, device="cpu")


def masked_batch(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 11, (2, rows, 6))
    return x, np.where(rng.random(y.shape) < 0.4, IGNORED, y)


@pytest.mark.parametrize("cuts", [[], [1], [2, 3], [1, 2, 3, 4, 5, 6]], ids=str)
def test_every_target_counts_the_same_however_batches_are_cut(small_model, cuts):
    x, y = masked_batch(0, 7)
    y[2] = IGNORED  # a batch without any target, when it stands alone
    loss = backward(small_model, *with_targets([(x, y)], "float64"))
    whole = gradients(small_model)
    logits = small_model(x)[0].reshape(-1, 11)
    expected = F.cross_entropy(logits, gg.asarray(y).reshape(-1), reduction="sum")
    assert float(loss) == pytest.approx(expected.item() / np.count_nonzero(y != IGNORED), abs=1e-12)
    small_model.zero_grad()
    parts = list(zip(np.split(x, cuts), np.split(y, cuts), strict=True))
    parted = backward(small_model, *with_targets(parts, "float64"))
    assert float(parted) == pytest.approx(float(loss), abs=1e-12)
    for name, g in gradients(small_model).items():
        np.testing.assert_allclose(g, whole[name], rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dropout": 0.2},
        {"accumulate": 3, "precision": "float64", "positions": "rotary"},
        {"precision": "bfloat16", "min_change": 1e-9},
        {"precision": "float16", "dropout": 0.2},
        {"grad_clip": 0.0, "schedule": "linear", "min_change": 1e-9, "tied_head": False},
    ],
    ids=["plain", "dropout", "accumulate", "bfloat16", "float16", "no clipping"],
)
@pytest.mark.parametrize("first", [4, 6])
def test_resumption_is_bit_identical(make_trainer, tmp_path, settings, first):
    straight = make_trainer(**settings)
    reports = run(straight, 10)
    before = make_trainer(**settings)
    early = run(before, first)
    path = before.snapshot(tmp_path / "checkpoints")()
    run(before, 1)  # what happens after saving changes nothing
    gg.manual_seed(99)
    after = make_trainer(**settings)
    after.load_state_dict(checkpoint.read(path).state)
    assert early + run(after, 10 - first) == reports
    assert bits(after.state_dict()) == bits(straight.state_dict())


REPLAYED = {
    "accumulate": {"accumulate": 3, "recompute": "block", "dropout": 0.1},
    "bfloat16": {"precision": "bfloat16", "dropout": 0.2, "positions": "learned"},
    "float16": {"precision": "float16", "head_chunk": 5, "recompute": "attention"},
    "no clipping": {
        "grad_clip": 0.0,
        "min_change": 1e-9,
        "tied_head": False,
        "positions": "sinusoidal",
    },
}


@pytest.mark.parametrize("settings", REPLAYED.values(), ids=REPLAYED)
@pytest.mark.parametrize("launched", ["kernels", "numpy"])
def test_a_replayed_step_gives_the_same_bits(make_trainer, launched, settings):
    settings = {"n_embd": 64, **settings}  # heads of 32, for which there are kernels
    with emulator.enabled("plain") if launched == "kernels" else cuda.emulation.disabled():
        assert_replays_are_equal(make_trainer, **settings)


def test_a_replayed_step_in_float64_gives_the_same_bits(make_trainer):
    with cuda.emulation.disabled():
        assert_replays_are_equal(make_trainer, precision="float64")


def assert_replays_are_equal(make_trainer, **settings):
    ends = []
    for replayed in (True, False):  # one after the other: they share the random numbers
        trainer = make_trainer(compile=replayed, **settings)
        ends.append((run(trainer, 4), trainer.evaluate(), bits(trainer.state_dict())))
        assert not replayed or trainer._take.recordings == 1
    assert ends[0] == ends[1]


def test_the_curve_of_a_run_is_that_of_one_which_is_not_compiled(text, tmp_path, monkeypatch):
    monkeypatch.delenv("GPUGRAD_EMULATE", raising=False)
    curves = []
    for name, *flag in (("plain", "--no-compile"), ("default",)):
        out = tmp_path / name
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
        more = [f"--data={text}", f"--out={out}", "--dropout=0.1", "--log-interval=1", *flag]
        assert main(["train", *flags, *more]) == 0
        records = read_metrics(out / "metrics.jsonl")
        curves.append([[r.get(k) for k in ("kind", "step", "loss", "norm")] for r in records])
    assert len(curves[0]) >= SMALL["max_steps"] + 3
    assert curves[0] == curves[1]


def test_runs_with_one_seed_are_equal_and_with_another_differ(make_trainer):
    first, second, third = make_trainer(), make_trainer(), make_trainer(seed=1)
    reports = [run(first, 3), run(second, 3), run(third, 3)]
    assert reports[0] == reports[1]
    assert reports[0] != reports[2]


def test_evaluation_is_the_mean_over_windows_and_changes_nothing(make_trainer):
    trainer = make_trainer(dropout=0.3, eval_windows=7)
    run(trainer, 2)
    before = bits(trainer.state_dict())
    loss = trainer.evaluate()
    assert loss == trainer.evaluate()
    assert bits(trainer.state_dict()) == before
    x, y = trainer.held_out
    assert len(x) == 7  # in batches of 4 and 3
    trainer.model.eval()
    with gg.no_grad():
        losses = [trainer.model(a[None], b[None])[1].item() for a, b in zip(x, y, strict=True)]
    assert loss == pytest.approx(np.mean(losses), abs=1e-5)


@pytest.mark.parametrize("work", [Trainer.update, Trainer.evaluate], ids=["update", "evaluate"])
def test_what_is_left_half_done_never_was(make_trainer, work):
    """Left at one place after the other where Python looks for signals, it ends as if it had begun
    once: as a function of Python's begins, as one in C has ended, and as a ``for`` loop goes on.
    """
    straight = make_trainer(dropout=0.2, accumulate=2)
    expected = work(straight), bits(straight.state_dict())
    trainer = make_trainer(dropout=0.2, accumulate=2)
    places = left_at = 0
    is_struck = False
    loops: dict[object, set[int]] = {}

    def strike(frame):
        nonlocal places, is_struck
        if frame.f_globals.get("__name__", "").startswith("hypothesis"):
            return  # it has the garbage collector call it
        places += 1
        if places >= left_at and not is_struck:
            is_struck = True
            raise Stopped

    def at_calls(frame, event, argument):
        # not as a generator goes on: it may be as it is freed, where exceptions are lost
        is_generator = frame.f_code.co_flags & inspect.CO_GENERATOR
        if event == "c_return" or (event == "call" and not is_generator):
            strike(frame)

    def at_loops(frame, event, argument):
        code = frame.f_code
        if event == "call" and code not in loops:
            found = dis.get_instructions(code)
            loops[code] = {i.offset for i in found if i.opname == "FOR_ITER"}
        elif event == "line" and frame.f_lasti in loops[code]:
            strike(frame)
        return at_loops if loops[code] else None

    class Striking(StopSignals):
        @contextmanager
        def leaving(self):
            nonlocal places, is_struck
            places, is_struck = 0, False
            self.before = sys.getprofile(), sys.gettrace()
            sys.setprofile(at_calls)
            sys.settrace(at_loops)
            try:
                yield
            finally:
                self.stay()

        def stay(self):
            sys.setprofile(self.before[0])
            sys.settrace(self.before[1])

    trainer.left_by(Striking())
    left = 0
    while True:
        left_at += 251
        try:
            found = work(trainer)
        except Stopped:
            left += 1
        else:
            break
    assert left > 5
    assert (found, bits(trainer.state_dict())) == expected
    assert memory._local.source is None
    assert prepared.is_plain()


def test_stopping_an_evaluation(make_trainer):
    trainer = make_trainer()
    with StopSignals(at_once=False) as signals:
        trainer.left_by(signals)
        assert trainer.evaluate() > 0
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped):
            trainer.evaluate()


def test_it_learns(make_trainer):
    trainer = make_trainer(n_embd=32, lr=1e-2, max_steps=150)
    first = trainer.evaluate()
    run(trainer, 150)
    assert first == pytest.approx(math.log(trainer.model.config.vocab_size), abs=0.3)
    assert trainer.evaluate() < 1.2


@pytest.mark.parametrize("schedule", ["cosine", "linear", "exponential", "constant"])
def test_learning_rate(make_config, schedule):
    config = make_config(schedule=schedule, lr=1e-2, min_lr=1e-4, max_steps=50, warmup_steps=10)
    rate = learning_rate(config)
    assert rate(0) == pytest.approx(1e-2 / 11)
    assert rate(10) == pytest.approx(1e-2)
    end = 1e-2 if schedule == "constant" else 1e-4
    assert rate(50) == pytest.approx(end)
    rates = [rate(step) for step in range(10, 51)]
    assert rates == sorted(rates, reverse=True)


def test_the_rate_of_a_step_is_the_schedules(make_trainer):
    trainer = make_trainer()
    for step in range(4):
        trainer.update()
        assert {group["lr"] for group in trainer.optimizer.param_groups} == {trainer.schedule(step)}


def test_weights_decay_and_norms_do_not(make_trainer):
    trainer = make_trainer(weight_decay=0.3)
    decayed, undecayed = trainer.optimizer.param_groups
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.3, 0.0)
    assert all(p.ndim == 2 for p in decayed["params"])
    assert all(p.ndim == 1 for p in undecayed["params"])


def test_gradients_that_are_not_finite_change_nothing_and_are_counted(make_trainer):
    trainer = make_trainer(max_steps=40, min_change=1e-9, warmup_steps=0)
    run(trainer, 1)
    good = trainer.model.tokens.weight.data[0, 0].copy()
    for count in range(1, 10):
        trainer.model.tokens.weight.data[0, 0] = np.nan
        before = bits(model_state(trainer.model))
        trainer.update()
        assert bits(model_state(trainer.model)) == before
        assert trainer.report() is not None
        assert trainer.guard.skipped == trainer.guard.in_a_row == count
        assert trainer.finished == ""  # an update that was left out is no sign of rest
    trainer.model.tokens.weight.data[0, 0] = good
    trainer.update()
    assert (trainer.guard.skipped, trainer.guard.in_a_row) == (9, 0)
    assert {state.step for state in trainer.optimizer._states.values()} == {2}
    trainer.model.tokens.weight.data[0, 0] = np.nan
    for _ in range(9):
        trainer.update()
    assert trainer.unsound == 11
    for call in (trainer.update, trainer.report, trainer.state_dict):
        with pytest.raises(DivergedError, match="not finite in 10 steps in a row, up to step 21"):
            call()


@pytest.mark.parametrize("grad_clip", [0.0, 1.0])
def test_means_are_those_of_finite_steps(make_trainer, grad_clip):
    straight, broken = (make_trainer(grad_clip=grad_clip, max_steps=40) for _ in range(2))
    for trainer in (straight, broken):
        trainer.update()
        trainer.update()
    expected = straight.report()
    good = broken.model.tokens.weight.data.copy()
    broken.model.tokens.weight.data[...] = np.inf
    broken.update()
    broken.update()
    found = broken.report()
    assert (found.loss, found.norm) == (expected.loss, expected.norm)
    assert (found.step, found.skipped, expected.skipped) == (4, 2, 0)
    broken.update()
    assert broken.report()[1:3] == (None, None)
    broken.model.tokens.weight.data[...] = good
    broken.update()
    assert broken.report().loss == pytest.approx(expected.loss, rel=0.3)


def test_spikes_are_skipped(make_trainer):
    trainer = make_trainer(skip_spikes=20.0, max_steps=100)
    for _ in range(70):
        trainer.update()
    assert trainer.report().skipped == 0
    trainer.model.tokens.weight.data[...] *= 1e4  # a batch of data cannot be so bad
    before = bits(model_state(trainer.model))
    trainer.update()
    assert bits(model_state(trainer.model)) == before
    report = trainer.report()
    assert (report.skipped, trainer.guard.spikes) == (1, 1)
    assert report.norm > 100


def test_a_guard_that_leaves_out_spikes_goes_on_bit_for_bit(make_trainer, monkeypatch):
    monkeypatch.setattr("gpugrad.optim.spike_guard.LEAST", 1e-4)

    def make():
        trainer = make_trainer(skip_spikes=1.0, compile=False, lr=0.3, warmup_steps=0)
        trainer.guard = gg.optim.SpikeGuard(1.0, window=4, warmup=2)
        return trainer

    straight, broken, resumed = make(), make(), make()
    for trainer, steps in ((straight, 12), (broken, 5)):
        for _ in range(steps):
            trainer.update()
    resumed.load_state_dict(broken.state_dict())
    for _ in range(7):
        resumed.update()
    assert straight.guard.spikes > broken.guard.spikes  # which estimates of before decided
    assert resumed.guard.state_dict() == straight.guard.state_dict()
    assert bits(model_state(resumed.model)) == bits(model_state(straight.model))


def test_an_anomaly_is_named(make_trainer):
    trainer = make_trainer(detect_anomaly=True)
    run(trainer, 2)
    trainer.model.blocks[0].attention.in_proj.weight.data[0, 0] = np.nan
    before = bits(model_state(trainer.model))
    message = r"(?s)an anomaly at step 3: forward of .*in module GPT\.blocks\.0\.attention\.in_proj"
    with pytest.raises(DivergedError, match=message):
        trainer.update()
    assert bits(model_state(trainer.model)) == before


def test_looking_for_anomalies_changes_no_bit(make_trainer):
    plain, watched = make_trainer(compile=False), make_trainer(detect_anomaly=True)
    run(plain, 3)
    run(watched, 3)
    assert bits(model_state(plain.model)) == bits(model_state(watched.model))


def test_a_loss_that_is_not_finite_is_neither_reported_nor_saved(make_trainer, monkeypatch):
    trainer = make_trainer(grad_clip=0.0)
    run(trainer, 1)
    finite, infinite = (gg.tensor(value, "float64") for value in (1.0, math.inf))
    monkeypatch.setattr(trainer, "_take", lambda batches, shares: (infinite, finite))
    trainer.update()
    for call in (trainer.report, trainer.state_dict):
        with pytest.raises(DivergedError, match="the loss is inf at step 2"):
            call()
    with pytest.raises(DivergedError, match="validation loss is nan"):
        trainer.take_evaluation(math.nan)


def test_the_end_of_all_steps(make_trainer):
    trainer = make_trainer(max_steps=3)
    assert trainer.evaluation_due  # before the first step
    trainer.take_evaluation(2.0)
    assert not trainer.evaluation_due
    run(trainer, 3)
    assert trainer.evaluation_due  # though 3 is no multiple of the interval
    assert trainer.finished == "all 3 steps are done"


def test_the_end_of_patience(make_trainer):
    trainer = make_trainer(patience=2)
    for loss in (2.0, 1.0, 1.5):
        trainer.take_evaluation(loss)
        assert trainer.finished == ""
    trainer.take_evaluation(1.0)
    assert trainer.finished == "no progress in 2 evaluations"


def test_the_end_of_movement_comes_after_the_warm_up(make_trainer):
    trainer = make_trainer(min_change=1e9, warmup_steps=2)
    run(trainer, 2)
    assert trainer.finished == ""
    run(trainer, 1)
    assert trainer.evaluation_due
    assert trainer.finished == f"the last update moved the parameters by only {trainer.change:.3g}"


def test_the_change_is_that_of_the_last_update(make_trainer):
    trainer = make_trainer(min_change=1e-9, precision="float64")
    run(trainer, 3)
    before = [p.numpy().copy() for p in trainer.model.parameters()]
    run(trainer, 1)
    after = [p.numpy() for p in trainer.model.parameters()]
    squares = sum(((x - y) ** 2).sum() for x, y in zip(before, after, strict=True))
    assert trainer.change == pytest.approx(math.sqrt(squares), rel=1e-12)
    assert make_trainer().change is None


def test_the_cpu_is_enough_when_told_so(make_trainer, monkeypatch):
    def fail():
        raise AssertionError("nothing may go to the default device")

    monkeypatch.setattr(backend, "default_device", fail)
    trainer = make_trainer(device="cpu", dropout=0.1, positions="rotary")
    run(trainer, 1)
    trainer.evaluate()


def test_devices(monkeypatch):
    monkeypatch.setenv("GPUGRAD_DEVICE", "cpu")
    assert find_device("auto") == "cpu"
    assert find_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="'gpu' is not a device"):
        find_device("gpu")
    monkeypatch.setattr(backend, "cupy_or_reason", lambda: (None, "CuPy is not installed"))
    with pytest.raises(RuntimeError, match=r"CuPy is not installed.*gpugrad doctor"):
        find_device("cuda")


def test_speed_and_mfu(make_trainer, monkeypatch):
    monkeypatch.setattr("gpugrad.train.loop.peak_flops", lambda name, dtype: 1e9)
    trainer = make_trainer(accumulate=2)
    assert trainer.report() is None
    trainer.update()
    seconds = trainer.seconds
    report = trainer.report()
    assert report.tokens_per_second == pytest.approx(2 * 4 * 16 / seconds, rel=0.5)
    assert report.mfu == pytest.approx(report.tokens_per_second * trainer._flops / 1e9)
    assert trainer.report() is None
    assert make_trainer().report() is None


def test_a_tied_tensor_is_saved_once(small_model):
    arrays = model_state(small_model)
    assert len(arrays) == len(list(small_model.parameters()))
