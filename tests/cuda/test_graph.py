"""gg.compile on a GPU: a CUDA graph gives what the launches give one by one."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import optim
from gpugrad.models import GPT, GPTConfig

pytestmark = pytest.mark.gpu


def trained(dtype, dropout, replayed, steps=5):
    """Return the losses and norms of some steps, and the parameters after them."""
    gg.manual_seed(11)
    shape = {"vocab_size": 128, "block_size": 128, "n_layer": 2, "n_head": 2, "n_embd": 128}
    model = GPT(GPTConfig(**shape, dropout=dropout, dtype=dtype), device="cuda")
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)

    def step(x, y):
        loss = model.loss(x, y)
        loss.backward()
        norm = optimizer.step(max_norm=1.0)
        optimizer.zero_grad()
        return loss, norm

    run = gg.compile(step) if replayed else step
    rng = np.random.default_rng(5)
    found = []
    for number in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 / (number + 1)
        found.append(run(*rng.integers(0, 128, (2, 4, 128))))
    assert not replayed or run.recordings == 1
    numbers = [[float(value) for value in pair] for pair in found]
    return numbers, [p.numpy() for p in model.parameters()]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_graph_gives_the_same_bits(dtype, dropout):
    plain, replayed = (trained(dtype, dropout, way) for way in (False, True))
    assert plain[0] == replayed[0]
    assert np.isfinite(plain[0]).all()
    for a, b in zip(plain[1], replayed[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_results_are_copies_and_gradients_stay():
    w = gg.tensor(np.ones((64, 64), np.float32), device="cuda", requires_grad=True)

    @gg.compile
    def step(x):
        loss = (x @ w).sum()
        loss.backward()
        return loss

    losses = []
    for number in range(1, 5):
        w.grad = None
        losses.append(step(np.full((8, 64), number, np.float32)))
        np.testing.assert_allclose(w.grad.numpy(), 8.0 * number)
    np.testing.assert_allclose(
        [float(loss) for loss in losses], [8 * 64 * 64 * n for n in (1, 2, 3, 4)]
    )


def test_gradients_counters_and_norms_from_call_to_call():
    """What a step adds to, counts and clips, with gradients that are its own or from outside."""
    found = []
    for wrap in (lambda step: step, gg.compile):
        w = gg.tensor(np.ones(8, np.float32), device="cuda", requires_grad=True)
        count = gg.tensor([0, 7], device="cuda")
        optimizer = optim.SGD([w], lr=0.5)

        @wrap
        def step(x, w=w, count=count, optimizer=optimizer):
            (w * x).sum().backward()
            norm = optim.clip_grad_norm_([w], 4.0)
            optimizer.step()
            with gg.no_grad():
                count += 1
            return norm, gg.where(count > 2, count, -count), x[::-1] * 1.0

        for number in range(5):
            x = gg.tensor(np.arange(8, dtype=np.float32) * number, device="cuda")
            norm, counted, turned = step(x)
            found.append((float(norm), counted.tolist(), turned.tolist(), w.tolist()))
            found.append((w.grad.tolist(), count.tolist()))
            if number == 2:
                w.grad = gg.tensor(np.ones(8, np.float32), device="cuda")
    assert found[:10] == found[10:]


def test_runs_on_several_streams_come_one_after_another():
    import cupy

    total = gg.tensor(np.zeros((512, 512), np.float32), device="cuda")

    @gg.compile
    def step(x):
        total.copy_(total * 0.5 + x @ x)
        return total.sum()

    ones = gg.tensor(np.ones((512, 512), np.float32), device="cuda")
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    cupy.cuda.Device().synchronize()
    expected = 0.0
    for number in range(20):
        with streams[number % 2]:
            found = step(ones)
        expected = expected * 0.5 + 512
    streams[1].synchronize()
    assert float(found) == pytest.approx(expected * 512 * 512, rel=1e-5)
