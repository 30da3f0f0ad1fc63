"""A GPT trained by the CUDA kernels in the emulator follows the run by NumPy."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, emulator
from gpugrad.fused import FUSED
from gpugrad.models import GPT, GPTConfig
from gpugrad.optim import AdamW, LossScaler, decay_groups
from gpugrad.text import RandomWindows

BLOCK, BATCH, VOCABULARY = 20, 3, 128
OPERATIONS = {"affine", "embed", "layer_norm", "linear_cross_entropy", "mlp", "packed_attention"}
KERNELS = {  # of a training step; launches per step
    "adamw": 1,
    "attention_forward": 2,
    "cross_entropy_in_place": 1,
    "embed_forward": 1,
    "embedding_backward": 1,
    "grad_norm_partial": 1,
    "gemm_gelu": 2,  # what cublasLt does for bfloat16
    "gemm_dgelu": 2,
    "layer_norm_backward": 5,
}


def train(steps: int, dropout: float = 0.0, dtype: str = "float32") -> list[float]:
    """Return the loss before each step of a small run on Python source."""
    tokens = np.frombuffer(Path(argparse.__file__).read_bytes(), np.uint8) % VOCABULARY
    batches = RandomWindows(tokens, BLOCK, BATCH, seed=1)
    gg.manual_seed(1)
    config = GPTConfig(
        vocab_size=VOCABULARY,
        block_size=BLOCK,
        n_layer=2,
        n_head=2,
        n_embd=48,
        dropout=dropout,
        dtype=dtype,
    )
    model = GPT(config, "cpu")
    optimizer = AdamW(decay_groups(model, 0.1), lr=2e-3, betas=(0.9, 0.95))
    scaler = LossScaler(2.0**18, device="cpu") if dtype == "float16" else None  # overflows
    losses = []
    for _ in range(steps):
        x, y = next(batches)
        loss = model.loss(x, y)
        optimizer.zero_grad()
        (loss if scaler is None else scaler.scale(loss)).backward()
        optimizer.step(max_norm=1.0, scaler=scaler)
        losses.append(loss.item())
    assert scaler is None or steps > scaler.skipped > 0
    return losses


@pytest.mark.parametrize(("steps", "dropout"), [(50, 0.0), (8, 0.2)])
def test_training_in_the_emulator_follows_numpy(steps, dropout, monkeypatch):
    monkeypatch.delenv("GPUGRAD_EMULATE", raising=False)
    expected = train(steps, dropout)
    launched = cuda.launches.copy()
    operations = {name: op.launches.copy() for name, op in FUSED.items()}
    with emulator.enabled("plain"):
        losses = train(steps, dropout)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=2e-4)
    if steps == 50:
        assert losses[-1] < losses[0] - 2
    moved = {name: op.launches - operations[name] for name, op in FUSED.items()}
    moved = {name: counts for name, counts in moved.items() if counts}
    assert set(moved) >= OPERATIONS
    assert all(set(counts) == {"cuda"} for counts in moved.values()), moved
    kernels = cuda.launches - launched
    assert {name: kernels[name] for name in KERNELS} == {k: n * steps for k, n in KERNELS.items()}
    assert (kernels["dropout"] > 0) == bool(dropout)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_training_in_half_precision_follows_numpy(dtype, monkeypatch):
    """Within 0.002 nats at every step; with float16 both leave out the steps that overflow."""
    monkeypatch.delenv("GPUGRAD_EMULATE", raising=False)
    expected = train(8, dtype=dtype)
    operations = {name: op.launches.copy() for name, op in FUSED.items()}
    launched = cuda.launches.copy()
    with emulator.enabled("plain"):
        losses = train(8, dtype=dtype)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=0.002)
    assert losses[-1] < losses[0] - 0.2
    moved = {name: op.launches - operations[name] for name, op in FUSED.items()}
    moved = {name: counts for name, counts in moved.items() if counts}
    assert all(set(counts) == {"cuda"} for counts in moved.values()), moved
    assert (cuda.launches - launched)["adamw"] == 8


def test_the_checked_emulator_finds_nothing_in_a_step():
    with emulator.enabled("checked"):
        checked = train(2, dropout=0.1)
    assert checked == pytest.approx(train(2, dropout=0.1), abs=1e-4)
