"""LoRA: starts as the model it was, learns the textbook gradient, merges and unmerges."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn, optim
from gpugrad.models import GPT, GPTConfig
from gpugrad.nn import lora

CONFIG = GPTConfig(vocab_size=13, block_size=8, n_layer=2, n_head=2, n_embd=16)


@pytest.fixture
def model():
    gg.manual_seed(3)
    return GPT(CONFIG)


@pytest.fixture
def ids():
    return np.random.default_rng(5).integers(13, size=(3, 8))


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def shake(model):
    """Give every B elements, as training would."""
    with gg.no_grad():
        for layer in lora.layers(model).values():
            layer.lora_b.copy_(gg.random.normal(size=layer.lora_b.shape) * 0.1)


def test_an_adapted_model_starts_as_it_was(model, ids):
    before, names = model(ids)[0].numpy(), [name for name, _ in model.named_parameters()]
    assert lora.adapt(model, rank=3, targets=["*.in_proj", "*.up"]) is model
    np.testing.assert_array_equal(model(ids)[0].numpy(), before)
    assert list(trained(model)) == [
        f"blocks.{i}.{layer}.{part}"
        for i in (0, 1)
        for layer in ("attention.in_proj", "mlp.up")
        for part in ("lora_a", "lora_b")
    ]
    assert trained(model)["blocks.0.mlp.up.lora_a"].shape == (3, 16)
    assert trained(model)["blocks.0.mlp.up.lora_b"].shape == (64, 3)
    assert set(names) < {name for name, _ in model.named_parameters()}


def test_an_adapted_layer_is_the_sum_of_both():
    rng = np.random.default_rng(0)
    layer = nn.Linear(5, 4, dtype="float64")
    adapted = lora.LoRALinear(layer, rank=2, alpha=3.0)
    a, b = rng.normal(size=(2, 5)), rng.normal(size=(4, 2))
    adapted.lora_a.data, adapted.lora_b.data = gg.tensor(a), gg.tensor(b)
    x, g = rng.normal(size=(7, 5)), rng.normal(size=(7, 4))
    given = gg.tensor(x, requires_grad=True)
    out = adapted(given)
    whole = layer.weight.numpy() + 1.5 * b @ a
    np.testing.assert_allclose(out.numpy(), x @ whole.T + layer.bias.numpy(), rtol=1e-13)
    out.backward(gg.tensor(g))
    np.testing.assert_allclose(given.grad.numpy(), g @ whole, rtol=1e-12)
    # of the loss by the whole weight, g^T x, through B and through A
    np.testing.assert_allclose(adapted.lora_a.grad.numpy(), 1.5 * b.T @ g.T @ x, rtol=1e-12)
    np.testing.assert_allclose(adapted.lora_b.grad.numpy(), 1.5 * g.T @ x @ a.T, rtol=1e-12)
    assert layer.weight.grad is None
    assert layer.bias.grad is None


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_merge_and_unmerge_are_exact_to_rounding(model, ids, dtype):
    model.to(dtype)
    lora.adapt(model, rank=4, alpha=8)
    shake(model)
    layers = lora.layers(model)
    before = {name: layer.weight.numpy().astype("float64") for name, layer in layers.items()}
    adapted = model(ids)[0].numpy().astype("float64")
    assert lora.merge(model) is model
    eps = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8}[dtype]
    for name, layer in layers.items():
        a, b = (p.numpy().astype("float64") for p in (layer.lora_a, layer.lora_b))
        whole = before[name] + 2.0 * b @ a
        error = np.abs(layer.weight.numpy().astype("float64") - whole)
        assert (error <= eps * np.abs(whole) * 1.001 + 1e-15 * (dtype == "float64")).all()
    merged = model(ids)[0].numpy().astype("float64")
    spread = np.abs(adapted).max()
    assert np.abs(merged - adapted).max() <= 100 * eps * spread
    lora.merge(model)  # a second time does nothing
    np.testing.assert_array_equal(model(ids)[0].numpy().astype("float64"), merged)
    lora.unmerge(model)
    for name, layer in layers.items():
        a, b = (p.numpy().astype("float64") for p in (layer.lora_a, layer.lora_b))
        whole = np.abs(before[name] + 2.0 * b @ a)
        error = np.abs(layer.weight.numpy().astype("float64") - before[name])
        bound = eps * (whole + np.abs(before[name])) * 1.01
        assert (error <= bound + 1e-15 * (dtype == "float64")).all()


def test_only_the_adapter_learns(ids):
    gg.manual_seed(3)
    model = GPT(GPTConfig(**{**vars(CONFIG), "tied_head": False}))  # whose head can grow
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    lora.adapt(model, rank=4)
    optimizer = optim.AdamW(trained(model).items(), lr=3e-2)
    losses = []
    for _ in range(50):
        loss = model.loss(ids, np.roll(ids, -1, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    for name, p in model.named_parameters():
        if name in before:
            np.testing.assert_array_equal(p.numpy(), before[name])
    learned = model.eval()(ids)[0].numpy()
    lora.remove(lora.merge(model))
    assert not lora.layers(model)
    assert {name for name, _ in model.named_parameters()} == set(before)
    assert len(trained(model)) == len(before)
    np.testing.assert_allclose(model(ids)[0].numpy(), learned, atol=2e-5)


def test_removed_without_merging_it_is_what_it_was(model, ids):
    before = model(ids)[0].numpy()
    lora.adapt(model)
    shake(model)
    assert not np.array_equal(model(ids)[0].numpy(), before)
    np.testing.assert_array_equal(lora.remove(model)(ids)[0].numpy(), before)


def test_an_untied_head_is_adapted_too(ids):
    model = GPT(GPTConfig(**{**vars(CONFIG), "tied_head": False}))
    lora.adapt(model, rank=2, targets="head")
    shake(model)
    _, loss = model(ids, ids)
    assert model.loss(ids, ids).item() == pytest.approx(loss.item(), rel=1e-6)
    each = model.loss(ids, ids, reduction="none")
    assert each.shape == (3, 8)
    model.loss(ids, ids).backward()
    assert model.head.lora_b.grad is not None


def test_another_head_counts_with_its_bias(model, ids):
    model.head = nn.Linear(16, 13)
    _, loss = model(ids, ids)
    assert model.loss(ids, ids).item() == pytest.approx(loss.item(), rel=1e-6)
    model.loss(ids, ids).backward()
    assert model.head.bias.grad is not None


def test_dropout_acts_in_training_on_the_adapter_only():
    layer = nn.Sequential(nn.Linear(8, 8))
    lora.adapt(layer, rank=2, dropout=0.5)
    x = gg.random.normal(size=(4, 8))
    np.testing.assert_array_equal(layer(x).numpy(), layer(x).numpy())  # B is zero
    shake(layer)
    assert not np.array_equal(layer(x).numpy(), layer(x).numpy())
    layer.eval()
    np.testing.assert_array_equal(layer(x).numpy(), layer(x).numpy())


def test_adapters_in_containers_and_a_second_time():
    model = nn.Sequential({"in": nn.Linear(4, 4), "rest": nn.ModuleList([nn.Linear(4, 3)])})
    lora.adapt(model, rank=2, targets=["in"])
    lora.adapt(model, rank=1, targets=["rest.*"])
    assert {name: layer.rank for name, layer in lora.layers(model).items()} == {
        "in": 2,
        "rest.0": 1,
    }
    assert len(trained(model)) == 4


def test_what_cannot_be_adapted(model):
    before = repr(model)
    with pytest.raises(ValueError, match=r"'\*\.query' fits none of the linear layers blocks\.0"):
        lora.adapt(model, targets=["*.in_proj", "*.query"])
    with pytest.raises(ValueError, match=r"rank must be an integer in 1\.\.16"):
        lora.adapt(model, rank=17)
    with pytest.raises(ValueError, match="alpha must be a number above 0"):
        lora.adapt(model, alpha=0.0)
    with pytest.raises(ValueError, match="lora: dropout is a probability"):
        lora.adapt(model, dropout=1.5)
    with pytest.raises(ValueError, match="targets names none"):
        lora.adapt(model, targets=[])
    with pytest.raises(ValueError, match="put it into a Sequential"):
        lora.adapt(nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"lora\.merge: GPT has no adapted layer"):
        lora.merge(model)
    assert repr(model) == before
    assert len(trained(model)) == len(list(model.parameters()))
    model.head = nn.Linear(16, 13, bias=False)
    model.head.weight = model.tokens.weight
    with pytest.raises(ValueError, match="the weight of head is also that of tokens"):
        lora.adapt(model)


def test_a_recorded_step_trains_an_adapter(ids):
    """Compiled and plain agree, and a merge or a freeze is seen."""

    def run(compiled):
        gg.manual_seed(3)
        model = GPT(GPTConfig(vocab_size=13, block_size=8, n_layer=1, n_head=2, n_embd=16))
        lora.adapt(model, rank=4)
        nn.unfreeze(model, "norm")
        optimizer = optim.AdamW(trained(model).items(), lr=1e-2)

        def step(x, y):
            loss = model.loss(x, y)
            loss.backward()
            optimizer.step(max_norm=1.0)
            optimizer.zero_grad()
            return loss

        take = gg.compile(step) if compiled else step
        losses = [take(ids, ids).item() for _ in range(3)]
        nn.freeze(model, "*.up", "norm")
        losses += [take(ids, ids).item() for _ in range(2)]
        return losses, model, take

    with gg.emulator.enabled("plain"):
        plain, straight, _ = run(False)
        losses, model, take = run(True)
    assert take.recordings == 2
    np.testing.assert_allclose(losses, plain, rtol=1e-5)
    for name, p in model.named_parameters():
        np.testing.assert_allclose(
            p.numpy(), dict(straight.named_parameters())[name].numpy(), atol=1e-5
        )


def test_every_kind_of_block_uses_its_adapters(ids):
    for activation in ("gelu_tanh", "swiglu"):
        gg.manual_seed(1)
        shape = {"activation": activation, "n_kv_head": 1, "norm": "rms", "tied_head": False}
        model = GPT(GPTConfig(**{**vars(CONFIG), **shape}))
        lora.adapt(model, rank=2)
        shake(model)
        model.loss(ids, ids).backward()
        for name, p in trained(model).items():
            assert p.grad is not None, name
            assert np.abs(p.grad.numpy()).max() > 0, name
