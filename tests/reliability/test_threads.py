"""Threads, forks, spawned processes and the end of the interpreter: each as if it were alone."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import emulator, nn, optim, threads
from gpugrad.cuda import emulation
from gpugrad.generate import log_probability
from gpugrad.models import GPT, GPTConfig
from gpugrad.ops import random

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
MANY = 6


def make_gpt(seed=0, dropout=0.0):
    gg.manual_seed(seed)
    shape = {"vocab_size": 19, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 16}
    return GPT(GPTConfig(**shape, dropout=dropout))


def digest(model):
    arrays = (p.data for p in model.parameters())
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()


def train(seed, steps=4, model=None):
    """Train a model of one's own, on data of one's own; return the digest of its weights."""
    rng = np.random.default_rng(seed)
    model = model or make_gpt(seed)
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        ids = rng.integers(19, size=(2, 9))
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(max_norm=1.0)
    return digest(model)


def test_independent_graphs_in_threads():
    models = [make_gpt(seed) for seed in range(MANY)]  # weights come from the common generator
    expected = [train(seed) for seed in range(MANY)]
    with threads.num_threads(3), ThreadPoolExecutor(6) as pool:
        found = list(pool.map(train, range(MANY), [4] * MANY, models))
    assert found == expected


def test_one_graph_swept_by_many_threads():
    """Nodes are shared, what is saved is kept: each sweep has gradients of its own."""
    x = gg.random.normal(size=(64, 32)).requires_grad_()
    y = (gg.exp(x * 0.1) @ x.T).sum()
    (expected,) = gg.grad(y, x, retain_graph=True)

    def sweep(_):
        (g,) = gg.grad(y, x, retain_graph=True)
        return np.array_equal(g.numpy(), expected.numpy())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(sweep, range(20)))


def test_contexts_belong_to_one_thread():
    entered, checked = threading.Barrier(2, timeout=20), threading.Barrier(2, timeout=20)
    where = random.reserve(0)

    def inside():
        with (
            gg.no_grad(),
            gg.detect_anomaly(),
            emulator.enabled("plain"),
            random.drawing_from(random.Draw(99, 5)),
            np.errstate(divide="raise"),
        ):
            entered.wait()
            checked.wait()
            return gg.random.uniform(size=3).tolist()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(inside)
        entered.wait()
        assert gg.is_grad_enabled()
        assert emulation.active() is None
        y = gg.tensor(1.0, requires_grad=True) * gg.tensor(np.inf)
        assert y.requires_grad  # recorded, and no anomaly
        assert random.reserve(0) == where
        checked.wait()
        drawn = future.result()
    with random.drawing_from(random.Draw(99, 5)):
        assert gg.random.uniform(size=3).tolist() == drawn
    assert random.reserve(0) == where


def test_decorated_functions_in_threads():
    @gg.no_grad()
    def compute(x):
        time.sleep(0.001)
        return (x * 2).requires_grad

    x = gg.ones(3).requires_grad_()

    def look(i):
        return compute(x) if i % 2 else (x * 2).requires_grad

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(look, range(40))) == [i % 2 == 0 for i in range(40)]
    assert gg.is_grad_enabled()


def test_the_generator_gives_no_number_twice():
    gg.manual_seed(3)
    with ThreadPoolExecutor(6) as pool:
        drawn = list(
            pool.map(lambda _: tuple(gg.random.integers(2**62, size=4).tolist()), range(60))
        )
    gg.manual_seed(3)
    alone = [tuple(gg.random.integers(2**62, size=4).tolist()) for _ in range(60)]
    assert sorted(drawn) == sorted(alone)


def test_generation_while_another_thread_trains():
    writer = make_gpt(1).eval()
    alone = [writer.generate([1, 2], 12, temperature=0.8, seed=i).tolist() for i in range(4)]
    trained = train(2)
    done = threading.Event()

    def train_on():
        found = []
        while models and not done.is_set():
            found.append(train(2, model=models.pop()))
        return found

    models = [make_gpt(2) for _ in range(60)]
    with threads.num_threads(2), ThreadPoolExecutor(1) as pool:
        future = pool.submit(train_on)
        try:
            for i, text in enumerate(alone):
                found = writer.generate([1, 2], 12, temperature=0.8, seed=i).tolist()
                assert found == text
        finally:
            done.set()
    assert future.result()
    assert set(future.result()) == {trained}


def test_generation_by_a_model_that_is_being_trained():
    """Every token comes from weights that are whole enough to be finite; nothing is recorded."""
    model = make_gpt(5, dropout=0.1)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(train, 5, 40, model)
        while not future.done():
            with gg.no_grad():
                ids = gg.tensor([[1, 2, 3]])
                assert np.isfinite(model(ids)[0].numpy()).all()
    assert all(p.grad is not None for p in model.parameters())


def losses_of_compiled_training(model, steps=12):
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)

    @gg.compile
    def step(x, y):
        loss = model.loss(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    rng = np.random.default_rng(6)
    rows = [rng.integers(19, size=(2, 9)) for _ in range(steps)]
    gg.manual_seed(8)
    return [float(step(ids[:, :-1], ids[:, 1:])) for ids in rows]


def test_generation_by_a_model_leaves_its_training_alone():
    """Dropout stays on in the thread that trains, of the same model."""
    alone, shared = make_gpt(4, dropout=0.1), make_gpt(4, dropout=0.1)
    expected = losses_of_compiled_training(alone)
    done, started = threading.Event(), threading.Event()

    def write():
        while not done.is_set():
            shared.generate([1, 2], 6, seed=1)
            started.set()

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write) for _ in range(2)]
        try:
            assert started.wait(20)
            found = losses_of_compiled_training(shared)
        finally:
            done.set()
    assert [writer.result() for writer in writers] == [None, None]
    assert found == expected
    assert digest(shared) == digest(alone)


def test_many_threads_generate_with_one_model():
    """None of them switches dropout on again while another still writes."""
    model = make_gpt(7, dropout=0.5)
    alone = [model.generate([i], 10, greedy=True).tolist() for i in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that threads change places within a step
    try:
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda i: model.generate([i % 4], 10, greedy=True).tolist(), range(60))
            assert list(found) == alone * 15
    finally:
        sys.setswitchinterval(interval)
    assert model.training


def test_a_compiled_model_knows_who_evaluates():
    model = make_gpt(9, dropout=0.5)
    plain = model.sequence_logits
    expected = log_probability(model, [1, 2, 3, 4]).tokens
    model.sequence_logits = gg.compile(plain)
    with gg.no_grad():
        model.sequence_logits(gg.tensor([[1, 2, 3, 4]]))  # recorded with dropout
    np.testing.assert_allclose(log_probability(model, [1, 2, 3, 4]).tokens, expected, rtol=1e-6)


# Processes


def in_child(function):
    """Fork, call the function there, return its exit status."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        status = 1
        try:
            status = 0 if function() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forks_while_threads_compute():
    expected, model = train(3), make_gpt(3)
    x = np.ones((500, 200), "f")
    done = threading.Event()

    def work():
        w = gg.tensor(x, requires_grad=True)
        while not done.is_set():  # threads are in the middle of anything
            gg.random.normal(size=(700,))
            (nn.functional.gelu(w) @ w.T).sum().backward()
            with emulator.enabled("plain"):
                nn.functional.softmax(gg.ones((3, 5)), axis=-1)

    workers = [threading.Thread(target=work) for _ in range(2)]
    with threads.num_threads(3):
        for worker in workers:
            worker.start()

        def look():
            with emulator.enabled("plain"):
                nn.functional.softmax(gg.ones((3, 5)), axis=-1)
            gg.random.normal(size=3)
            big = gg.tensor(x, requires_grad=True)
            (nn.functional.gelu(big) @ big.T).sum().backward()
            return train(3, model=model) == expected

        try:
            found = [in_child(look) for _ in range(4)]
        finally:
            done.set()
            for worker in workers:
                worker.join()
    assert found == [0] * 4


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_does_not_wait_for_a_thread_that_records():
    recording, go_on = threading.Event(), threading.Event()

    @gg.compile
    def step(x):
        recording.set()
        go_on.wait(60)
        return x * 2

    worker = threading.Thread(target=step, args=(gg.ones(3),))
    worker.start()
    recording.wait(60)

    def look():
        go_on.set()
        one_more = gg.compile(lambda x: x + 1)
        return step(gg.ones(2)).tolist() == one_more(gg.ones(2)).tolist() == [2, 2]

    try:
        assert in_child(look) == 0
    finally:
        go_on.set()
        worker.join()


@forks
def test_children_draw_the_same_numbers():
    gg.manual_seed(11)
    gg.random.uniform(size=5)
    state = gg.random.get_state()
    expected = gg.random.uniform(size=4).tolist()
    gg.random.set_state(state)
    for _ in range(2):
        assert in_child(lambda: gg.random.uniform(size=4).tolist() == expected) == 0
    assert gg.random.get_state() == state  # what children draw is not drawn here


def draw_in_a_process(seed):
    before = gg.random.get_state()
    gg.manual_seed(seed)
    return before, gg.random.uniform(size=3).tolist(), train(seed, steps=2)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["spawn", *["fork"] * hasattr(os, "fork")])
def test_processes_of_a_pool(method):
    gg.manual_seed(21)
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, context) as pool:
        found = pool.submit(draw_in_a_process, 7).result(timeout=120)
    first, *same = draw_in_a_process(7)
    assert list(found[1:]) == same
    assert found[0] == (first if method == "fork" else {"seed": 0, "offset": 0})


# Ctrl-C, and the end


@pytest.mark.parametrize("moment", [0.0, 0.002, 0.01, 0.02, 0.03])
def test_ctrl_c_waits_for_the_pieces(moment):
    """After the interrupt no thread writes any more; it mostly comes while this one waits."""
    out = np.zeros(20)

    def work(start, stop):
        time.sleep(0.001 if threading.current_thread() is threading.main_thread() else 0.04)
        out[start:stop] += 1

    def interrupt():
        time.sleep(moment)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def work_until_interrupted():
        sender.start()
        for _ in range(100):
            threads.for_rows(20, work, 1)

    sender = threading.Thread(target=interrupt)
    with threads.num_threads(4):
        with pytest.raises(KeyboardInterrupt):
            work_until_interrupted()
        seen = out.copy()
        time.sleep(0.06)
        assert np.array_equal(out, seen)
        sender.join()
        threads.for_rows(20, work, 1)
        assert np.array_equal(out, seen + 1)


HEAD = """
import sys, threading, time
import numpy as np
import gpugrad as gg
from gpugrad import emulator, nn, optim, threads
threads.set_num_threads(3)
model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 64))
optimizer = optim.AdamW(model.parameters(), lr=1e-2)
x = gg.ones((700, 64))
def step(x=x):
    loss = nn.functional.mse_loss(model(x), x)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step(max_norm=1.0)
    return loss
step()
"""
ENDS = {
    "pool threads": "",
    "a graph that was not swept": "loss = model(x).sum()",
    "the emulator": "with emulator.enabled('plain'): step(gg.ones((3, 64)))",
    "a compiled step": """
        compiled = gg.compile(step)
        with emulator.enabled('plain'):
            compiled(gg.ones((3, 64)))
            compiled(gg.ones((3, 64)))
        """,
    "a thread that goes on": """
        def forever():
            while True:
                step()
        threading.Thread(target=forever, daemon=True).start()
        time.sleep(0.05)
        """,
    "a thread in the emulator": """
        def forever():
            with emulator.enabled('plain'):
                while True:
                    nn.functional.softmax(gg.ones((5, 70)), axis=-1)
        threading.Thread(target=forever, daemon=True).start()
        time.sleep(0.05)
        """,
    "sys.exit in a step": """
        def leave(g):
            sys.exit(0)
        h = model(x)
        h.register_hook(leave)
        h.sum().backward()
        """,
    "sys.exit in a piece of rows": """
        def work(start, stop):
            if start == 60:
                sys.exit(0)
        threads.for_rows(100, work, 10)
        """,
    "a cycle with a graph": """
        class Node: pass
        node = Node()
        node.me, node.loss = node, model(x).sum()
        """,
    "an anomaly context that is left open": """
        context = gg.detect_anomaly()
        context.__enter__()
        step()
        """,
}


@pytest.mark.parametrize("name", ENDS)
def test_the_interpreter_ends_in_silence(name):
    program = HEAD + textwrap.dedent(ENDS[name])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
