"""Compiled steps that other processes help with: the same bits, and nothing else changes."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import processes, threads
from gpugrad.models import GPT, GPTConfig

pytestmark = pytest.mark.skipif(
    not (sys.platform == "linux" and processes.platform.machine() == "x86_64"),
    reason="helpers are forked on Linux on x86-64",
)
CONFIG = GPTConfig(vocab_size=65, block_size=48, n_layer=2, n_head=4, n_embd=64, dropout=0.0)
BATCH = 16


@pytest.fixture(autouse=True)
def two():
    with threads.num_threads(2):
        yield


def helpers(step: Any) -> int:
    """Return how many processes help with the recordings of a step."""
    found = [one.replay._helped for some in step._found.values() for one in some]
    return sum(len(helped._team) for helped in found if helped is not None and helped._team)


class Training:
    """A small GPT and its optimiser, always the same, and batches by their number."""

    def __init__(self, dropout: float = 0.0) -> None:
        gg.manual_seed(0)
        config = GPTConfig(**{**vars(CONFIG), "dropout": dropout})
        self.model = GPT(config, device="cpu")
        self.optimizer = gg.optim.AdamW(self.model.parameters(), lr=1e-2)

    def batch(self, number: int) -> tuple[Any, Any]:
        ids = np.random.default_rng(number).integers(0, 65, (2, BATCH, CONFIG.block_size))
        return gg.tensor(ids[0]), gg.tensor(ids[1])

    def step(self, x: Any, y: Any) -> Any:
        loss = self.model.loss(x, y)
        loss.backward()
        norm = self.optimizer.step(max_norm=1.0)
        self.optimizer.zero_grad()
        return loss, norm

    def disturb(self, number: int) -> None:
        """Change what a replay has to notice."""
        if number == 4:
            self.optimizer.param_groups[0]["lr"] = 3e-3
        if number == 5:
            self.model.tokens.weight.data[...] *= 0.5
        if number == 6:
            state = {k: 1.5 * v for k, v in self.model.state_dict().items()}
            self.model.load_state_dict(state)

    def run(self, step: Any, steps: int = 9) -> list[float]:
        found = []
        for number in range(steps):
            self.disturb(number)
            gg.manual_seed(number)
            found += [value.item() for value in step(*self.batch(number))]
        return found


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("count", [2, 3])
def test_training_is_that_of_one_process_to_the_last_bit(monkeypatch, count, dropout):
    plain = Training(dropout)
    expected = plain.run(plain.step)
    with threads.num_threads(count):
        helped = Training(dropout)
        step = gg.compile(helped.step)
        assert helped.run(step) == expected
        assert helpers(step) >= 1
    monkeypatch.setenv(processes.VARIABLE, "0")
    alone = Training(dropout)
    step = gg.compile(alone.step)
    assert alone.run(step) == expected
    assert helpers(step) == 0
    for name, value in plain.model.state_dict().items():
        np.testing.assert_array_equal(helped.model.state_dict()[name].data, value.data)


def test_gradients_that_pile_up():
    found = []
    for compiled in (False, True):
        training = Training()

        def micro(x, y, training=training):
            loss = training.model.loss(x, y)
            loss.backward()
            return loss

        step = gg.compile(micro) if compiled else micro
        losses = []
        for number in range(12):
            losses.append(step(*training.batch(number)).item())
            if number % 3 == 2:
                training.optimizer.step()
                training.optimizer.zero_grad()
        gradients = [p.grad.numpy() for p in training.model.parameters() if p.grad is not None]
        found.append((losses, [p.numpy() for p in training.model.parameters()], gradients))
        if compiled:
            assert helpers(step) >= 1
    assert found[0][0] == found[1][0]
    for a, b in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_changes_within_a_step_is_read_as_it_is_then():
    """A weight that is read, updated, and read again: by its array the second time."""
    found = []
    for compiled in (False, True):
        gg.manual_seed(1)
        layer = gg.nn.Linear(256, 256)
        optimizer = gg.optim.SGD(layer.parameters(), lr=0.1)

        def twice(x, layer=layer, optimizer=optimizer):
            losses = []
            for _ in range(2):
                loss = (layer(x) ** 2).mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss)
            return losses

        step = gg.compile(twice) if compiled else twice
        x = gg.tensor(np.random.default_rng(2).standard_normal((1024, 256)).astype("float32"))
        found.append([loss.item() for _ in range(6) for loss in step(x)])
        if compiled:
            assert helpers(step) >= 1
    assert found[0] == found[1]
    assert len(set(found[0])) == 12


@gg.no_grad()
def test_steps_with_empty_arrays():
    w = gg.tensor(np.ones((512, 512), np.float32))
    norm = gg.nn.LayerNorm(64)

    def step(x, e):
        return ((x @ w) ** 2).mean() + norm(e).sum()

    compiled = gg.compile(step)
    arguments = gg.ones((1024, 512)), gg.zeros((0, 64))
    for _ in range(3):
        assert compiled(*arguments).item() == step(*arguments).item()
    assert helpers(compiled) == 1


def test_what_reads_weights_and_little_else_is_not_shared():
    """To copy the weights would take as long as the product."""
    w = gg.tensor(np.ones((1024, 1024), np.float32))
    few, many = gg.ones((300, 1024)), gg.ones((1024, 1024))
    step = gg.compile(lambda x: x @ w)
    step(few)
    assert helpers(step) == 0
    step(many)
    assert helpers(step) == 1


@gg.no_grad()
def test_small_steps_have_no_helpers():
    w = gg.tensor(np.ones((8, 8), np.float32), requires_grad=True)
    step = gg.compile(lambda x: (x @ w).sum())
    for _ in range(5):
        step(gg.ones((8, 8)))
    assert helpers(step) == 0


def test_helpers_end_with_the_step():
    training = Training()
    step = gg.compile(training.step)
    training.run(step, 4)
    (recording,) = (one for some in step._found.values() for one in some)
    pid = recording.replay._helped._team._helpers[0].pid
    os.kill(pid, 0)
    del step, recording
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_helper_that_is_killed_is_an_error_once():
    training = Training()
    step = gg.compile(training.step)
    training.run(step, 4)
    (recording,) = (one for some in step._found.values() for one in some)
    os.kill(recording.replay._helped._team._helpers[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="was ended from outside"):
        step(*training.batch(4))
    assert np.isfinite(step(*training.batch(5))[0].item())
    assert helpers(step) == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_trains_on_its_own():
    """Neither changes the other's weights, gradients or results."""
    plain = Training()
    expected = plain.run(plain.step, 8)
    training = Training()
    step = gg.compile(training.step)
    assert training.run(step, 4) == expected[:8]
    training.model.loss(*training.batch(0)).backward()
    child = os.fork()
    if child == 0:
        try:
            for number in range(5, 9):  # other batches
                step(*training.batch(number))
            os._exit(0 if helpers(step) >= 1 else 2)
        finally:
            os._exit(1)
    training.optimizer.zero_grad()
    found = []
    for number in range(4, 8):
        training.disturb(number)
        gg.manual_seed(number)
        found += [value.item() for value in step(*training.batch(number))]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert found == expected[8:]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("is_over", [False, True])
def test_a_forked_process_has_gradients_of_its_own(is_over):
    """Also as raw arrays, and when the step is gone."""
    training = Training()

    @gg.compile
    def micro(x, y):
        loss = training.model.loss(x, y)
        loss.backward()
        return loss

    for number in range(4):
        micro(*training.batch(number))
    assert helpers(micro) >= 1
    parameters = list(training.model.parameters())
    held = [p.grad for p in parameters]
    before = [g.numpy().copy() for g in held]
    raw = [g.numpy() for g in held]
    if is_over:
        del micro
        gc.collect()
    child = os.fork()
    if child == 0:
        try:
            same = all((p.grad.numpy() == g).all() for p, g in zip(parameters, before, strict=True))
            for g in raw:
                g[...] = 0
            os._exit(0 if same else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for p, g in zip(parameters, before, strict=True):
        np.testing.assert_array_equal(p.grad.numpy(), g)
