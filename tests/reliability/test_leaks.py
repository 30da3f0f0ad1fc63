"""Nothing grows: 10,000 steps without the garbage collector, and everything else that repeats.

A graph is freed by reference counts alone, so the collector is off. What may not grow: blocks of
memory that Python traces (tracemalloc; NumPy's arrays are among them), objects that the collector
knows (cycles would stay there), and the process (which also shows memory of C++).
"""

from __future__ import annotations

import ctypes
import gc
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import emulator, nn, optim, threads
from gpugrad.models import GPT, GPTConfig
from gpugrad.optim import chunks
from gpugrad.train import checkpoint

PAGE = resource.getpagesize()
STATM = Path("/proc/self/statm")
LARGEST = 24 * 1024  # bytes that may come and go: caches of the interpreter and of NumPy


class MallInfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``: see mallinfo(3)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def sizes() -> np.ndarray:
    """Return the bytes of the process that are in memory, and those that malloc has handed out.

    A leak can hide from the first where malloc has kept freed memory; only glibc tells the second.
    """
    resident = int(STATM.read_text().split()[1]) * PAGE
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return np.array([resident, 0])
    mallinfo2.restype = MallInfo
    found = mallinfo2()
    return np.array([resident, found.uordblks + found.hblkhd])


def stays_flat(step: Callable[[], object], count: int, warm: int = 10, process: int = 0) -> None:
    """Call step `count` times; raise if there are more objects or memory than after `warm` times.

    ``process`` is by how many bytes the process may grow, 0: the process is not looked at.
    """
    counted = min(count // 10, 100)  # steps that are traced take three times as long
    for _ in range(warm):
        step()
    before = sizes()
    for _ in range(count - counted):
        step()
    grown = int((sizes() - before).max())
    tracemalloc.start()
    try:
        for _ in range(warm):
            step()
        gc.collect()  # empties the lists in which Python keeps freed tuples and frames
        objects, traced = len(gc.get_objects()), tracemalloc.get_traced_memory()[0]
        for _ in range(counted):
            step()
        more_objects = len(gc.get_objects()) - objects
        gc.collect()
        more_traced = tracemalloc.get_traced_memory()[0] - traced
    finally:
        tracemalloc.stop()
    assert more_objects <= 20, f"{more_objects} more objects after {counted} steps"
    assert more_traced <= LARGEST, f"{more_traced} more bytes after {counted} steps"
    assert not process or grown <= process, f"the process grew by {grown} bytes in {count} steps"


def make_mlp():
    model = nn.Sequential(nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 5))
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    x, y = gg.random.normal(size=(3, 4)), gg.tensor([1, 4, 0])

    def step(x=x, y=y):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(max_norm=1.0)
        return loss

    return step, model, optimizer


def make_gpt(dropout=0.1):
    config = GPTConfig(vocab_size=13, block_size=6, n_layer=1, n_head=2, n_embd=8, dropout=dropout)
    model = GPT(config)
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    ids = gg.random.integers(13, size=(2, 6))

    def step(ids=ids, targets=ids):
        loss = model.loss(ids, targets)
        loss.backward()
        optimizer.step(max_norm=1.0)
        optimizer.zero_grad()
        return loss

    return step, model, ids


def test_ten_thousand_steps():
    step, _, _ = make_mlp()
    stays_flat(step, 10_000, process=2**21)


def test_a_gpt():
    step, _, _ = make_gpt()
    stays_flat(step, 100, process=2**21)


def test_threads_that_share_rows():
    x = gg.random.normal(size=(300, 150)).requires_grad_()

    def step():
        x.grad = None
        nn.functional.gelu(x @ x.T).sum().backward()

    with threads.num_threads(3):
        stays_flat(step, 30, process=2**23)


def test_a_compiled_step():
    step, _, ids = make_gpt()
    compiled = gg.compile(step)
    with emulator.enabled("plain"):
        stays_flat(lambda: compiled(ids, ids), 40, warm=16, process=2**22)
    assert compiled.recordings == 1
    stays_flat(lambda: compiled(ids, ids), 60, process=2**22)  # by NumPy


def test_steps_in_the_emulator(monkeypatch):
    step, _, _ = make_gpt()
    # it keeps its last 16 results, by addresses: whether these come again is chance
    monkeypatch.setattr(chunks, "_tables", chunks._tables.__wrapped__)
    with emulator.enabled("plain"):
        stays_flat(step, 30, warm=5, process=2**22)


def test_steps_that_are_recorded_anew():
    """A step of its own each time: what was recorded for the others goes with them."""
    weight = gg.tensor([1.0, 2.0], requires_grad=True)

    def step():
        compiled = gg.compile(lambda x: (weight * x).sum().backward())
        with emulator.enabled("plain"):
            compiled(np.ones(2, np.float32))

    for _ in range(3):
        step()
    gc.collect()
    objects = len(gc.get_objects())
    for _ in range(20):
        step()
        gc.collect()  # the functions of a recording may refer to each other
    assert len(gc.get_objects()) - objects <= 40


def test_writing_text():
    _, model, _ = make_gpt()
    model.eval()
    stays_flat(lambda: model.generate([1, 2], 5, temperature=0.9, top_k=3), 40, process=2**21)


def test_saving_and_loading(tmp_path):
    step, model, optimizer = make_mlp()
    step()

    def save():
        model.load_state_dict(dict(model.state_dict()))
        optimizer.load_state_dict(optimizer.state_dict())
        state = {"optimizer": optimizer.state_dict(), "step": 3}
        checkpoint.save(tmp_path, 3, state)
        checkpoint.latest(tmp_path)
        gc.collect()  # json's encoder is a cycle

    stays_flat(save, 10, warm=3)


class Wrong(Exception):
    """What a step may raise."""


@pytest.mark.parametrize("where", ["forward", "backward", "hook", "shape", "anomaly"])
def test_errors_in_a_step(where):
    step, model, _ = make_mlp()
    x = gg.random.normal(size=(3, 4))

    class Fails(gg.Function):
        @staticmethod
        def forward(ctx, x):
            if where == "forward":
                raise Wrong
            return x * 1

        @staticmethod
        def backward(ctx, g):
            raise Wrong

    def raising(g):
        raise Wrong

    def fail():
        h = model(x)
        if where == "shape":
            h @ h  # (3, 5) by (3, 5)
        elif where == "hook":
            h.register_hook(raising)
            h.sum().backward()
        elif where == "anomaly":
            with gg.detect_anomaly():
                (h * np.inf).sum().backward()
        else:
            Fails.apply(h).sum().backward()

    def caught():
        with np.errstate(all="ignore"), pytest.raises((Wrong, ValueError, FloatingPointError)):
            fail()
        step()

    stays_flat(caught, 60)


def test_what_is_abandoned_half_way():
    """Graphs that nobody sweeps, sweeps with retain_graph, second derivatives, detached parts."""
    x = gg.random.normal(size=(5, 4)).requires_grad_()

    def step():
        y = gg.exp(x).sum()
        (g,) = gg.grad(y, x, create_graph=True)
        (g * g).sum().backward(retain_graph=True)
        x.grad = None
        gg.hvp(lambda v: (v**3).sum(), x.detach(), x.detach())
        gg.checkpoint(gg.tanh, x).sum()
        z = x * 1
        z += x
        z[0] = 3.0

    stays_flat(step, 100)


def test_the_test_finds_a_leak(monkeypatch):
    kept, tensors = [], []
    with pytest.raises(AssertionError, match="more bytes"):
        stays_flat(lambda: kept.append(np.zeros(1000)), 200)

    class Cycle:
        pass

    def cycle():
        one = Cycle()
        one.me, one.x = one, gg.ones(1)

    with pytest.raises(AssertionError, match="more objects"):
        stays_flat(cycle, 500)
    monkeypatch.setattr(tracemalloc, "get_traced_memory", lambda: (0, 0))  # as if C++ had it
    freed = [np.ones(10_000) for _ in range(500)]
    last = np.ones(10_000)
    del freed  # the heap has 40 MB of room below `last`: no page is new
    with pytest.raises(AssertionError, match="the process grew"):
        stays_flat(lambda: tensors.append(np.ones(40_000)), 100, process=2**21)
    assert last.all()
