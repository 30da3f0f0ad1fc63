"""SequenceClassifier: reads the last token that counts, trains its head alone or all of it."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn, optim
from gpugrad.models import GPT, GPTConfig, SequenceClassifier


@pytest.fixture
def model():
    gg.manual_seed(1)
    config = GPTConfig(vocab_size=11, block_size=6, n_layer=1, n_head=2, n_embd=8)
    return SequenceClassifier(GPT(config), 3)


def test_the_last_token_that_counts_decides(model):
    rng = np.random.default_rng(0)
    ids, lengths = rng.integers(11, size=(4, 6)), np.array([1, 6, 3, 5])
    logits, loss = model(ids, lengths)
    assert loss is None
    assert logits.shape == (4, 3)
    alone = [model(row[None, :n])[0].numpy()[0] for row, n in zip(ids, lengths, strict=True)]
    np.testing.assert_allclose(logits.numpy(), alone, rtol=1e-5, atol=1e-6)
    other = np.where(np.arange(6) < lengths[:, None], ids, 10 - ids)  # another padding
    np.testing.assert_array_equal(model(other, lengths)[0].numpy(), logits.numpy())


def test_the_loss_and_its_gradient(model):
    model.to("float64")
    rng = np.random.default_rng(1)
    ids, lengths, labels = rng.integers(11, size=(3, 6)), [2, 6, 4], [0, 2, 1]
    logits, loss = model(ids, lengths, labels)
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    assert loss.item() == pytest.approx(-np.log(p[range(3), labels]).mean(), rel=1e-12)
    loss.backward()
    np.testing.assert_allclose(model.head.bias.grad.numpy(), (p - np.eye(3)[labels]).mean(0))
    weight = model.body.tokens.weight
    got, h = weight.grad.numpy()[ids[0, 0], 0], 1e-6
    values = []
    for step in (h, -h):
        with gg.no_grad():
            weight[ids[0, 0], 0] += step
            values.append(model(ids, lengths, labels)[1].item())
            weight[ids[0, 0], 0] -= step
    assert got == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


def test_only_the_head_is_fresh(model):
    nn.freeze(model, "body")
    fresh = {name: p.size for name, p in model.named_parameters() if p.requires_grad}
    assert fresh == {"head.weight": 24, "head.bias": 3}
    before = model.body.state_dict()
    before = {name: tensor.numpy().copy() for name, tensor in before.items()}
    ids = np.random.default_rng(2).integers(11, size=(8, 6))
    optimizer = optim.AdamW(model.parameters(), lr=0.1)
    losses = []
    for _ in range(60):
        _, loss = model(ids, labels=ids[:, -1] % 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 < losses[0]
    for name, tensor in model.body.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name])


def test_what_is_refused(model):
    ids = np.zeros((2, 4), int)
    with pytest.raises(ValueError, match=r"lengths must lie in 1\.\.4, got \[0, 2\]"):
        model(ids, [0, 2])
    with pytest.raises(ValueError, match=r"lengths must lie in 1\.\.4, got \[5, 2\]"):
        model(ids, [5, 2])
    with pytest.raises(ValueError, match=r"lengths must be integers of shape \(2,\), got float"):
        model(ids, [1.0, 2.0])
    with pytest.raises(TypeError, match="body must be a GPT, got Linear"):
        SequenceClassifier(model.head, 2)
    with pytest.raises(ValueError, match="classes must be at least 1"):
        SequenceClassifier(model.body, 0)
