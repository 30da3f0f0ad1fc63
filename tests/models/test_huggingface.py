from __future__ import annotations

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gpugrad as gg
from gpugrad.models import GPT, GPTConfig, huggingface
from gpugrad.ops.random import get_state

SHAPE = {"vocab_size": 13, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 6}
OPTIONS = {
    "gpt2": {},
    "dropout": {"dropout": 0.25, "norm_eps": 1e-6},
    "untied": {"tied_head": False},
    "exact-gelu": {"activation": "gelu", "mlp_ratio": 1.5},
    "nobias": {"bias": False},
    "post": {"norm_first": False},
    "post-with-final-norm": {"norm_first": False, "final_norm": True},
    "rotary": {"n_head": 3, "positions": "rotary"},
    "sinusoidal": {"positions": "sinusoidal"},
    "float64": {"dtype": "float64"},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
}
IDS = np.array([[3, 1, 4, 1, 5, 9, 2, 6], [12, 0, 7, 7, 8, 8, 1, 2]])


def small(**options) -> GPT:
    gg.manual_seed(11)
    model = GPT(GPTConfig(**{**SHAPE, **options}))
    rng = np.random.default_rng(11)
    for p in model.parameters():
        p.data = (p.data + rng.normal(size=p.shape, scale=0.2)).astype(p.dtype)
    return model


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_round_trip_is_exact(tmp_path, options) -> None:
    model = small(**options).eval()
    model.save_pretrained(tmp_path / "new" / "folder")
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    loaded = GPT.from_pretrained(tmp_path / "new" / "folder").eval()
    assert loaded.config == model.config
    for (name, one), (_, two) in zip(
        model.named_parameters(), loaded.named_parameters(), strict=True
    ):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one.numpy(), two.numpy(), err_msg=name)
    np.testing.assert_array_equal(model(IDS)[0].numpy(), loaded(IDS)[0].numpy())


def gpt2_names(n_layer: int) -> set[str]:
    modules = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    names = {
        f"transformer.h.{i}.{module}.{kind}"
        for i in range(n_layer)
        for module in modules
        for kind in ("weight", "bias")
    }
    outer = {"transformer.wte.weight", "transformer.wpe.weight"}
    return names | outer | {"transformer.ln_f.weight", "transformer.ln_f.bias"}


def test_files_are_gpt2s(tmp_path) -> None:
    model = small(dropout=0.25)
    model.save_pretrained(tmp_path)
    arrays = load_file(tmp_path / "model.safetensors")
    assert set(arrays) == gpt2_names(2)
    assert arrays["transformer.h.0.attn.c_attn.weight"].shape == (6, 18)
    assert arrays["transformer.h.1.mlp.c_fc.weight"].shape == (6, 24)
    assert arrays["transformer.h.1.mlp.c_proj.weight"].shape == (24, 6)
    block = model.blocks[1]
    for name, linear in {
        "attn.c_attn": block.attention.in_proj,
        "attn.c_proj": block.attention.out_proj,
        "mlp.c_fc": block.mlp.up,
        "mlp.c_proj": block.mlp.down,
    }.items():
        np.testing.assert_array_equal(
            arrays[f"transformer.h.1.{name}.weight"], linear.weight.numpy().T
        )
    config = json.loads((tmp_path / "config.json").read_text())
    expected = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 13,
        "n_positions": 8,
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 6,
        "n_inner": 24,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.25,
        "embd_pdrop": 0.25,
        "attn_pdrop": 0.25,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    }
    assert expected.items() <= config.items()


def test_what_gpt2_cannot_express_does_not_claim_to_be_it(tmp_path) -> None:
    small(positions="rotary", n_head=3).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gpugrad"


# Folders that others wrote


def foreign(folder, change_config=None, change_arrays=None) -> GPT:
    """Write a folder as Hugging Face's own GPT-2 is: no prefix, old mask buffers, few settings."""
    model = small()
    model.save_pretrained(folder)
    arrays = {
        name.removeprefix("transformer."): array
        for name, array in load_file(folder / "model.safetensors").items()
    }
    for i in range(2):
        arrays[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 8, 8), np.float32))
        arrays[f"h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
    config = {"model_type": "gpt2", "n_ctx": 8, "n_positions": 8, "activation_function": "gelu_new"}
    config |= {key: value for key, value in SHAPE.items() if key != "block_size"}
    if change_config:
        change_config(config)
    if change_arrays:
        change_arrays(arrays)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(arrays, folder / "model.safetensors")
    return model.eval()


def test_reads_the_form_of_the_published_files(tmp_path) -> None:
    model = foreign(tmp_path)
    loaded = GPT.from_pretrained(tmp_path).eval()
    assert loaded.config.dropout == 0.1
    np.testing.assert_array_equal(loaded(IDS)[0].numpy(), model(IDS)[0].numpy())


def test_dropout_and_dtype_can_be_replaced(tmp_path) -> None:
    model = foreign(tmp_path, lambda config: config.update(attn_pdrop=0.3))
    loaded = GPT.from_pretrained(tmp_path, dropout=0.0, dtype="float64")
    assert loaded.config.dropout == 0.0
    assert loaded.tokens.weight.dtype == np.float64
    np.testing.assert_allclose(loaded(IDS)[0].numpy(), model(IDS)[0].numpy(), atol=1e-5)


def test_a_repeated_tied_head_is_accepted(tmp_path) -> None:
    foreign(tmp_path, change_arrays=lambda a: a.update({"lm_head.weight": a["wte.weight"].copy()}))
    assert GPT.from_pretrained(tmp_path).head is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="llama"), "model_type must be 'gpt2', got 'llama'"),
        (lambda c: c.pop("n_layer"), "missing: n_layer"),
        (lambda c: (c.pop("n_ctx"), c.pop("n_positions")), "missing: n_positions"),
        (lambda c: c.update(add_cross_attention=True), "add_cross_attention=True is not supported"),
        (lambda c: c.update(scale_attn_weights=False), "scale_attn_weights=False is not supported"),
        (lambda c: c.update(activation_function="swish"), "activation_function 'swish' is none of"),
        (lambda c: c.update(attn_pdrop=0.3), r"different dropouts \[0.1, 0.3\]"),
        (lambda c: c.update(n_head=4), "n_embd 6 does not divide into n_head 4"),
        (lambda c: c.update(n_layer="2"), "n_layer must be an integer"),
        (lambda c: c.update(torch_dtype="complex64"), "dtype 'complex64' is not supported"),
        (lambda c: c.update(gpugrad={"n_lay": 3}), "unknown settings n_lay"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses_a_config(tmp_path, change, message) -> None:
    foreign(tmp_path, change)
    with pytest.raises(ValueError, match=rf"from_pretrained: .*config.json: .*{message}"):
        GPT.from_pretrained(tmp_path)


def drop(name):
    return lambda arrays: arrays.pop(name)


def put(name, *shape, dtype=np.float32):
    return lambda arrays: arrays.update({name: np.ones(shape, dtype)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("wte.weight"), "missing transformer.wte.weight"),
        (drop("h.1.ln_2.bias"), "missing transformer.h.1.ln_2.bias"),
        (put("h.2.ln_1.weight", 6), "unknown transformer.h.2.ln_1.weight"),
        (put("wte.weight", 14, 6), "tokens.weight: the module has shape (13, 6), got (14, 6)"),
        (put("lm_head.weight", 13, 6), "lm_head.weight differs from transformer.wte.weight"),
        (put("wte.weight", 13, 6, dtype=np.int8), "wte.weight has dtype I8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses_tensors(tmp_path, change, message) -> None:
    foreign(tmp_path, change_arrays=change)
    with pytest.raises(ValueError, match=re.escape(message)):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 60, -1], ids="{} bytes".format)
def test_refuses_truncated_files(tmp_path, keep) -> None:
    for name in ("model.safetensors", "config.json"):
        small().save_pretrained(tmp_path)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:keep] if keep >= 0 else content[:-3])
        with pytest.raises(ValueError, match=rf"from_pretrained: .*{name} is truncated"):
            GPT.from_pretrained(tmp_path)


def test_says_what_is_missing(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*config.json"):
        GPT.from_pretrained(tmp_path)
    small().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"only pytorch_model.bin: convert"):
        GPT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object"):
        GPT.from_pretrained(tmp_path)


def test_a_save_that_fails_leaves_the_old_files(tmp_path, monkeypatch) -> None:
    model = small().eval()
    model.save_pretrained(tmp_path)

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    for where in ("to_safetensors", "json.dumps"):
        with monkeypatch.context() as patch:
            patch.setattr(f"{huggingface.__name__}.{where}", full)
            with pytest.raises(OSError, match="no space"):
                small().save_pretrained(tmp_path)
        assert len(list(tmp_path.iterdir())) == 2
        loaded = GPT.from_pretrained(tmp_path).eval()
        np.testing.assert_array_equal(loaded(IDS)[0].numpy(), model(IDS)[0].numpy())


def test_loading_leaves_the_generator_alone(tmp_path) -> None:
    small().save_pretrained(tmp_path)
    before = get_state()
    GPT.from_pretrained(tmp_path)
    assert get_state() == before


def test_loaded_weights_can_be_trained(tmp_path) -> None:
    small().save_pretrained(tmp_path)
    model = GPT.from_pretrained(tmp_path)
    model(IDS, IDS)[1].backward()
    for p in model.parameters():
        assert p.data.flags.writeable
        assert p.grad is not None
