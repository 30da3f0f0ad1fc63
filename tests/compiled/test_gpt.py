"""gg.compile: a training step of a GPT, with memory and without."""

from __future__ import annotations

import numpy as np
import pytest
from plain_and_compiled import bits, by_kernels, recorded

import gpugrad as gg
from gpugrad import cuda, emulator, optim
from gpugrad.cuda import recording
from gpugrad.cuda.layout import Layout
from gpugrad.cuda.recording import NotRecordable
from gpugrad.cuda.replay import Replay
from gpugrad.models import GPT, GPTConfig
from gpugrad.nn import functional as F

pytestmark = pytest.mark.usefixtures("launched")


def gpt(**changes):
    gg.manual_seed(3)
    shape = {"vocab_size": 37, "block_size": 12, "n_layer": 2, "n_head": 2, "n_embd": 64}
    return GPT(GPTConfig(**{**shape, **changes}))


def batches(rng, count, shape=(2, 12), vocabulary=37):
    return [tuple(rng.integers(0, vocabulary, (2, *shape))) for _ in range(count)]


def trainer(model, replayed, max_norm=1.0):
    optimizer = optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)

    def step(x, y):
        loss = model.loss(x, y)
        loss.backward()
        norm = optimizer.step(max_norm=max_norm)
        optimizer.zero_grad()
        return loss, norm

    return (gg.compile(step) if replayed else step), optimizer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_training_step_of_gpt_gives_the_same_bits(dtype, dropout, rng):
    data = batches(rng, 4)
    runs = []
    for replayed in (False, True):
        model = gpt(dtype=dtype, dropout=dropout)
        step, optimizer = trainer(model, replayed)
        results = []
        for number, (x, y) in enumerate(data):
            optimizer.param_groups[0]["lr"] = 1e-2 / (number + 1)
            results += [bits(value) for value in step(x, y)]
        state = optimizer.state_dict()["state"]
        moments = [bits(s["exp_avg"]) + bits(s["exp_avg_sq"]) for s in state.values()]
        runs.append(
            (results, [bits(p) for p in model.parameters()], moments, gg.random.get_state())
        )
        assert {int(s["step"]) for s in state.values()} == {4}
    assert runs[0] == runs[1]


def test_one_recording_serves_many_steps_and_another_shape_makes_one_more(rng):
    model = gpt()
    step, _ = trainer(model, True)
    for x, y in batches(rng, 3):
        step(x, y)
    assert step.recordings == 1
    for x, y in batches(rng, 2, (3, 7)):
        step(x, y)
    assert step.recordings == 2
    step(*batches(rng, 1)[0])
    assert step.recordings == 2


def test_no_two_live_storages_overlap_and_the_arena_is_tight(rng):
    step, _ = trainer(gpt(n_layer=4), True)
    step(*batches(rng, 1)[0])
    layout = recorded(step).replay.layout
    assert layout.plan.size <= 1.05 * layout.plan.lower_bound
    rows = sorted(
        zip(layout.first, layout.last, layout.plan.offsets, layout.storages, strict=True),
        key=lambda row: row[0],
    )
    for i, (first, last, offset, storage) in enumerate(rows):
        for other_first, other_last, other, stored in rows[i + 1 :]:
            if other_first <= last and first <= other_last:
                assert offset + storage.nbytes <= other or other + stored.nbytes <= offset


@by_kernels
def test_the_checked_build_finds_nothing_in_a_replay(rng):
    with emulator.enabled("checked", poison=0x7F):
        step, _ = trainer(gpt(n_layer=1), True)
        for x, y in batches(rng, 2):
            loss, norm = step(x, y)
            assert np.isfinite(loss.item())
            assert np.isfinite(norm.item())


@by_kernels
def test_no_launch_is_left_out_of_the_count(rng):
    x, y = batches(rng, 1)[0]
    counts = []
    for replayed in (False, True):
        step, _ = trainer(gpt(), replayed)
        before = cuda.launches.copy()
        step(x, y)
        counts.append(cuda.launches - before)
    plain = {k: n for k, n in counts[0].items() if not k.startswith("elementwise")}
    again = {k: n for k, n in counts[1].items() if not k.startswith(("elementwise", "copy"))}
    assert plain == again


@by_kernels
def test_a_model_on_the_device_meta_is_recorded_from_shapes():
    """GPT-2 124M at batch 64: nothing is allocated, and its products are those of a hand count."""
    config = GPTConfig(vocab_size=50304, dtype="bfloat16")
    model = GPT(config, device="meta")
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    trace = recording.Trace(90)
    state = trace.input((2,), gg.uint64)
    with recording.recording(trace), gg.random.recording(state):
        x, y = (gg.Tensor(trace.input((64, 1024), gg.int64)) for _ in range(2))
        loss = model.loss(x, y)
        loss.backward()
        optimizer.step(max_norm=1.0)
    flops = sum(launch.flops for launch in trace.launches) / (64 * 1024)
    assert flops == pytest.approx(741e6, rel=0.02)
    layout = Layout(trace, [loss.data])
    assert layout.plan.size <= 1.05 * layout.plan.lower_bound
    assert len(trace.launches) <= 300
    logits = max(storage.nbytes for storage in layout.storages)
    assert logits == 64 * 1024 * 50304 * 2  # 6.6 GB
    with pytest.raises(NotRecordable, match="'meta' has no memory"):
        Replay(trace, "cpu", [loss.data], [])


def test_what_nothing_reads_is_not_launched(launched, rng):
    w = gg.tensor(rng.standard_normal((4, 4)).astype("f"), requires_grad=True)

    @gg.compile
    def step(x):
        F.softmax(x)  # for nobody
        hidden = gg.checkpoint(lambda a: F.linear(F.gelu(F.linear(a, w)), w), x)
        hidden.sum().backward()
        return hidden

    step(rng.standard_normal((3, 4)).astype("f"))
    names = [launch.name for launch in recorded(step).trace.launches]
    assert not any("softmax" in name for name in names)
    product = "gemm" if launched == "kernels" else "matmul"
    assert sum(name.startswith(product) for name in names) == 2 + 1 + 3  # forward, again, backward


@pytest.mark.filterwarnings("ignore:gg.compile.* without a backward pass")
def test_a_loss_whose_gradients_nobody_reads(rng):
    """Kernels that overwrite what they read: what wrote it before is needed."""
    model = gpt()
    run = gg.compile(lambda x, y: model.loss(x, y))
    for x, y in batches(rng, 2):
        assert bits(run(x, y)) == bits(model.loss(x, y).detach())
