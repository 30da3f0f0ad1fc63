"""Adapters on disk: small, complete, and refused by any other model."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gpugrad as gg
from gpugrad import nn
from gpugrad.models import GPT, GPTConfig, SequenceClassifier, load_adapter, save_adapter
from gpugrad.nn import lora

CONFIG = GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)
IDS = np.arange(12).reshape(2, 6) % 11


def base(seed=1, dtype="float32", **changes):
    gg.manual_seed(seed)
    return GPT(GPTConfig(**{**vars(CONFIG), "dtype": dtype, **changes}))


def adapted(model):
    lora.adapt(model, rank=2, alpha=5.0, targets=["*.in_proj", "blocks.1.mlp.down"], dropout=0.1)
    with gg.no_grad():
        for layer in lora.layers(model).values():
            layer.lora_b.copy_(gg.random.normal(size=layer.lora_b.shape))
    return model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_there_and_back(tmp_path, dtype):
    saved = adapted(base(dtype=dtype)).eval()
    save_adapter(saved, tmp_path / "adapter.safetensors")
    held = load_file(tmp_path / "adapter.safetensors")
    assert len(held) == 6
    assert all(name.endswith((".lora_a", ".lora_b")) for name in held)
    fresh = base(dtype=dtype)
    state = gg.random.get_state()
    assert load_adapter(fresh, tmp_path / "adapter.safetensors") is fresh
    assert gg.random.get_state() == state
    np.testing.assert_array_equal(fresh.eval()(IDS)[0].numpy(), saved(IDS)[0].numpy())
    assert {n: repr(m) for n, m in lora.layers(fresh).items()} == {
        n: repr(m) for n, m in lora.layers(saved).items()
    }
    trained = [[n for n, p in m.named_parameters() if p.requires_grad] for m in (saved, fresh)]
    assert trained[0] == trained[1] == sorted(trained[1], key=trained[0].index)


def test_a_new_head_goes_with_it(tmp_path):
    saved = SequenceClassifier(base(), 3)
    adapted(saved.body)
    nn.unfreeze(saved, "head")
    save_adapter(saved, tmp_path / "a")
    fresh = load_adapter(SequenceClassifier(base(), 3), tmp_path / "a")
    np.testing.assert_array_equal(fresh.eval()(IDS)[0].numpy(), saved.eval()(IDS)[0].numpy())


def test_any_other_model_refuses_it_and_stays_what_it_was(tmp_path):
    save_adapter(adapted(base()), tmp_path / "a")
    for model, message in (
        (base(seed=2), "it was trained on other weights"),
        (base(n_layer=1), r"blocks\.1\.attention\.in_proj' fits none"),
        (base(n_embd=16), "the module has shape"),
        (base(dtype="float64"), "it was trained on other weights"),
    ):
        nn.freeze(model, "norm")
        before = model(IDS)[0].numpy()
        required = [(n, p.requires_grad) for n, p in model.named_parameters()]
        strict = "shape" not in message
        with pytest.raises(
            ValueError, match=f"(?s)load_adapter: .*does not fit this model: .*{message}"
        ):
            load_adapter(model, tmp_path / "a", strict=strict)
        np.testing.assert_array_equal(model(IDS)[0].numpy(), before)
        assert [(n, p.requires_grad) for n, p in model.named_parameters()] == required
        assert not lora.layers(model)
    load_adapter(base(seed=2), tmp_path / "a", strict=False)


def test_files_that_are_no_adapter(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_adapter(base(), tmp_path / "nowhere")
    save_file({"x": np.ones(3)}, tmp_path / "other")
    with pytest.raises(ValueError, match="is not an adapter"):
        load_adapter(base(), tmp_path / "other")
    save_adapter(adapted(base()), tmp_path / "a")
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="is damaged"):
        load_adapter(base(), tmp_path / "a")


def test_what_cannot_be_saved_or_loaded_twice(tmp_path):
    with pytest.raises(ValueError, match="GPT has no adapted layer"):
        save_adapter(base(), tmp_path / "a")
    model = adapted(base())
    save_adapter(model, tmp_path / "a")
    with pytest.raises(ValueError, match="adapted layers already"):
        load_adapter(model, tmp_path / "a")
    lora.merge(model)
    with pytest.raises(ValueError, match="is merged; call lora"):
        save_adapter(model, tmp_path / "b")
    assert not (tmp_path / "b").exists()
