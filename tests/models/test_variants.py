"""The parts a GPT may be made of: positions, norms, gated layers, heads shared in groups."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.models import GPT, GPTConfig, preset
from gpugrad.models.config import parameter_count
from gpugrad.models.decoding import generate_batch
from gpugrad.models.positions import Alibi, RelativeBias, first_distances, slopes

LLAMA = GPTConfig(
    vocab_size=23,
    block_size=16,
    n_layer=2,
    n_head=4,
    n_kv_head=2,
    n_embd=16,
    bias=False,
    positions="rotary",
    activation="swiglu",
    norm="rms",
    tied_head=False,
    dtype="float64",
)
VARIANTS = {
    "llama": LLAMA,
    "one-head-for-all": replace(LLAMA, n_kv_head=1, positions="learned", bias=True),
    "alibi": replace(LLAMA, positions="alibi", activation="gelu", n_kv_head=None),
    "relative": replace(LLAMA, positions="relative", norm="layer", bias=True),
    "post-norm": replace(LLAMA, norm_first=False, positions="sinusoidal"),
}


def make(config, seed=3):
    gg.manual_seed(seed)
    model = GPT(config)
    with gg.no_grad():  # away from the small initial values, so that every part matters
        for parameter in model.parameters():
            parameter.add_(0.3 * gg.random.normal(size=parameter.shape, dtype=config.dtype))
    return model


def ids_of(config, batch=3, length=11, seed=0):
    return np.random.default_rng(seed).integers(config.vocab_size, size=(batch, length))


def arrays_of(model):
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


def reference(p, config, ids):
    """Return the logits of one row, (T, V), from loops over heads and positions."""
    c, size, hq, hk = config.n_embd, config.head_size, config.n_head, config.kv_heads
    t = len(ids)

    def norm(x, name):
        if config.norm == "rms":
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * p[name]
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(x.var(-1, keepdims=True) + config.norm_eps)
        return scaled * p[name] + p.get(name.replace("weight", "bias"), 0)

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)

    def turned(x, place):
        half = size // 2
        angle = place * 10000.0 ** (-np.arange(half) / half)
        a, b = x[:half], x[half:]
        return np.concatenate(
            [a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)]
        )

    def attention(x, layer):
        qkv = linear(x, f"blocks.{layer}.attention.in_proj")
        out = np.zeros((t, c))
        for head in range(hq):
            shared = head // (hq // hk)
            q = qkv[:, head * size : (head + 1) * size]
            k = qkv[:, (hq + shared) * size : (hq + shared + 1) * size]
            v = qkv[:, (hq + hk + shared) * size : (hq + hk + shared + 1) * size]
            if config.positions == "rotary":
                q = np.stack([turned(row, i) for i, row in enumerate(q)])
                k = np.stack([turned(row, i) for i, row in enumerate(k)])
            for i in range(t):
                scores = k[: i + 1] @ q[i] / math.sqrt(size)
                away = i - np.arange(i + 1)
                if config.positions == "alibi":
                    scores = scores - away * 2.0 ** (-8 * (head + 1) / hq)
                elif config.positions == "relative":
                    scores = scores + p["distances.weight"][away, head]  # below 16: exact buckets
                weights = np.exp(scores - scores.max())
                out[i, head * size : (head + 1) * size] = weights / weights.sum() @ v[: i + 1]
        return linear(out, f"blocks.{layer}.attention.out_proj")

    def mlp(x, layer):
        up = linear(x, f"blocks.{layer}.mlp.up")
        if config.activation == "swiglu":
            gate = linear(x, f"blocks.{layer}.mlp.gate")
            return linear(gate / (1 + np.exp(-gate)) * up, f"blocks.{layer}.mlp.down")
        erf = np.vectorize(math.erf)(up / math.sqrt(2))
        return linear(up * (1 + erf) / 2, f"blocks.{layer}.mlp.down")

    x = p["tokens.weight"][ids]
    if config.positions == "learned":
        x = x + p["positions.weight"][:t]
    elif config.positions == "sinusoidal":
        angle = np.arange(t)[:, None] * 10000.0 ** (-np.arange(c // 2) / (c // 2))
        waves = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(t, c)
        x = x * math.sqrt(c) + waves
    for layer in range(config.n_layer):
        one, two = f"blocks.{layer}.norm1.weight", f"blocks.{layer}.norm2.weight"
        if config.norm_first:
            x = x + attention(norm(x, one), layer)
            x = x + mlp(norm(x, two), layer)
        else:
            x = norm(x + attention(x, layer), one)
            x = norm(x + mlp(x, layer), two)
    if config.has_final_norm:
        x = norm(x, "norm.weight")
    return x @ p["head.weight"].T


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_loops(name):
    config = VARIANTS[name]
    model, ids = make(config), ids_of(config)
    logits, _ = model(ids)
    expected = np.stack([reference(arrays_of(model), config, row) for row in ids])
    np.testing.assert_allclose(logits.detach().numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients(name):
    config = replace(VARIANTS[name], n_layer=1, n_embd=8)
    model, ids = make(config), ids_of(config, 2, 5)
    model.loss(ids, ids).backward()
    rng = np.random.default_rng(5)
    for parameter_name, parameter in model.named_parameters():
        direction = rng.normal(size=parameter.shape)
        before, step = parameter.detach().numpy().copy(), 1e-6
        losses = []
        for sign in (1, -1):
            parameter.data[...] = before + sign * step * direction
            losses.append(float(model.loss(ids, ids)))
        parameter.data[...] = before
        slope = (parameter.grad.numpy() * direction).sum()
        assert abs((losses[0] - losses[1]) / (2 * step) - slope) < 1e-7, parameter_name


@pytest.mark.parametrize("name", VARIANTS)
def test_count_and_files(name, tmp_path):
    config = VARIANTS[name]
    model, ids = make(config), ids_of(config)
    assert sum(p.size for p in model.parameters()) == parameter_count(config)
    model.save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path)
    assert again.config == config
    np.testing.assert_array_equal(again(ids)[0].detach(), model(ids)[0].detach())
    assert '"gpugrad"' in (tmp_path / "config.json").read_text()
    assert '"GPT2LMHeadModel"' not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_decoding_is_the_same(name):
    model = make(VARIANTS[name])
    prompts = ids_of(VARIANTS[name], 2, 4)
    cached, plain = (
        model.generate(prompts, 9, greedy=True, use_cache=cache) for cache in (True, False)
    )
    np.testing.assert_array_equal(cached, plain)
    one_by_one = [model.generate(row, 6, greedy=True) for row in (prompts[0, :2], prompts[1])]
    together = generate_batch(model, [prompts[0, :2], prompts[1]], 6, greedy=True)
    for alone, beside in zip(one_by_one, together, strict=True):
        np.testing.assert_array_equal(np.ravel(alone)[-6:], np.ravel(beside)[-6:])


@pytest.mark.parametrize("positions", ["alibi", "relative"])
def test_packed_documents_are_those_alone(positions):
    model = make(replace(LLAMA, positions=positions))
    ids = ids_of(LLAMA, 1, 9)
    documents = np.array([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    places = np.array([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    mask = nn.document_mask(documents)
    packed = model(ids, attn_mask=mask, positions=places)[0].detach().numpy()
    for part in (slice(0, 4), slice(4, 9)):
        alone = model(ids[:, part])[0].detach().numpy()
        np.testing.assert_allclose(packed[:, part], alone, atol=1e-12)


def test_positions_with_a_cache_are_refused_where_distances_count():
    model = make(replace(LLAMA, positions="alibi"))
    cache = model.new_cache()
    with gg.no_grad():
        model.features([[1, 2]], cache)
        with pytest.raises(ValueError, match="positions='alibi' needs those of the keys too"):
            model.features([[3]], cache, positions=[[0]])


@pytest.mark.parametrize("name", ["llama", "relative"])
@pytest.mark.parametrize("recompute", ["attention", "block"])
def test_recompute_has_the_same_gradients(name, recompute):
    config = replace(VARIANTS[name], dropout=0.2)
    model, ids = make(config), ids_of(config)
    gradients = []
    for kind in ("none", recompute):
        gg.manual_seed(4)
        model.zero_grad()
        model.loss(ids, ids, recompute=kind).backward()
        gradients.append({n: p.grad.numpy().copy() for n, p in model.named_parameters()})
    for key, expected in gradients[0].items():
        np.testing.assert_allclose(gradients[1][key], expected, rtol=1e-12, atol=1e-15)


def test_shared_heads_equal_repeated_ones():
    x = np.random.default_rng(1).normal(size=(2, 5, 12))
    grouped = nn.MultiHeadAttention(12, 6, causal=True, dtype="float64", num_kv_heads=2)
    whole = nn.MultiHeadAttention(12, 6, causal=True, dtype="float64")
    for kind in ("weight", "bias"):
        rows = getattr(grouped.in_proj, kind).detach().numpy()
        q, k, v = np.split(rows, [12, 16])
        k, v = (np.repeat(part.reshape(2, 2, *rows.shape[1:]), 3, 0) for part in (k, v))
        full = np.concatenate([q, k.reshape(q.shape), v.reshape(q.shape)])
        getattr(whole.in_proj, kind).data[...] = full
        getattr(whole.out_proj, kind).data[...] = getattr(grouped.out_proj, kind).data
    np.testing.assert_allclose(grouped(x).detach(), whole(x).detach(), atol=1e-14)
    assert "num_kv_heads=2" in repr(grouped)


def test_cache_holds_shared_heads_once():
    model = make(LLAMA)
    cache = model.new_cache()
    with gg.no_grad():
        model.features([[1, 2, 3]], cache)
    assert cache._layers[0][0].shape == (1, 2, 16, 4)


def test_slopes_of_alibi():
    np.testing.assert_allclose(slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(slopes(1), [2.0**-8])
    np.testing.assert_allclose(  # the paper's way where n is no power of two
        slopes(12), [*2.0 ** -np.arange(1, 9), *2.0 ** -np.arange(0.5, 4.5)]
    )
    bias = Alibi(2, dtype="float64")(2, 1, 3).numpy()
    np.testing.assert_allclose(bias, -np.array([2.0**-4, 2.0**-8])[:, None, None] * [[[2, 1, 0]]])


def test_buckets_of_relative_positions():
    first = first_distances()
    assert first[:17].tolist() == list(range(17))
    # T5: bucket 16 + floor(16 ln(distance / 16) / ln(128 / 16)) from 16 on
    distance = np.arange(16, 128)
    theirs = 16 + (np.log(distance / 16) / np.log(8) * 16).astype(int)
    ours = np.searchsorted(first, distance, side="right") - 1
    np.testing.assert_array_equal(ours, theirs)
    bias = RelativeBias(1)
    numbers = bias.of(gg.asarray([0, 15, 16, 126, 127, 5000])).detach().numpy()[0]
    np.testing.assert_array_equal(numbers, bias.weight.detach().numpy()[[0, 15, 16, 31, 31, 31], 0])


def test_relative_bias_learns():
    bias = RelativeBias(3, dtype="float64")
    bias(0, 4, 4).sum().backward()
    gradient = bias.weight.grad.numpy()
    assert gradient[:4, 0].tolist() == [10.0, 3.0, 2.0, 1.0]  # 4 + 6 keys behind the query
    assert not gradient[4:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_kv_head": 3}, "n_kv_head must be a divisor of n_head 4 or None, got 3"),
        ({"n_kv_head": 0}, "n_kv_head must be a divisor"),
        ({"n_kv_head": 2.0}, "n_kv_head must be a divisor"),
        ({"norm": "batch"}, "norm must be one of layer, rms, got 'batch'"),
        ({"activation": "relu"}, "one of gelu_tanh, gelu, swiglu"),
        ({"positions": "none"}, "alibi, relative, got 'none'"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(LLAMA, **changes)
    with pytest.raises(ValueError, match="norm must be 'layer' or 'rms'"):
        nn.TransformerBlock(8, 2, norm="batch")
    with pytest.raises(ValueError, match="does not divide into groups for 3"):
        nn.MultiHeadAttention(8, 4, num_kv_heads=3)


def test_llama_preset():
    config = preset("llama-cpu")
    assert config.hidden_size == 344
    gated = 3 * 128 * 344
    attention = 128 * (128 + 2 * 64) + 128 * 128
    assert parameter_count(config) == 256 * 128 + 4 * (gated + attention + 2 * 128) + 128


def test_every_combination_runs():
    for positions, activation, norm, groups in itertools.product(
        ("learned", "sinusoidal", "rotary", "alibi", "relative"),
        ("gelu", "swiglu"),
        ("layer", "rms"),
        (None, 1),
    ):
        config = replace(
            LLAMA, positions=positions, activation=activation, norm=norm, n_kv_head=groups
        )
        model = GPT(config)
        loss = model.loss([[1, 2, 3]], [[2, 3, 4]])
        loss.backward()
        assert abs(float(loss) - math.log(23)) < 0.5
        assert all(p.grad.numpy().any() for p in model.parameters())


@pytest.mark.parametrize("positions", ["rotary", "alibi", "relative"])
def test_recorded_steps_are_the_same(positions):
    config = replace(LLAMA, n_layer=1, positions=positions, dtype="float32")
    ids = ids_of(config, 2, 16)

    def losses(wrap):
        gg.manual_seed(1)
        model = GPT(config)
        optimizer = gg.optim.AdamW(model.parameters(), lr=1e-2)

        def step(inputs, targets):
            loss = model.loss(inputs, targets)
            loss.backward()
            norm = optimizer.step(max_norm=1.0)
            optimizer.zero_grad()
            return loss, norm

        taken = wrap(step)
        with gg.emulator.enabled("plain"):
            return [[float(x) for x in taken(ids, ids)] for _ in range(3)]

    recorded, plain = losses(gg.compile), losses(lambda step: step)
    assert recorded == plain
    assert recorded[2][0] < recorded[0][0]


KINDS = ("sinusoidal", "rotary", "alibi", "relative")


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_positions_go_where_parameters_go(kind, monkeypatch):
    monkeypatch.setattr("gpugrad.models.positions.default_device", lambda: "meta")
    config = GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=2, n_embd=8, positions=kind)
    for device, expected in ((None, "meta"), ("cpu", "cpu")):
        assert {b.device for _, b in GPT(config, device=device).named_buffers()} == {expected}


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_positions_on_the_default_device(kind):
    config = GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=2, n_embd=8, positions=kind)
    model = GPT(config)
    ids = np.array([[1, 2, 3]])
    model.loss(ids, ids).backward()
    assert model.generate(ids, 2).shape == (1, 5)
    assert {t.device for t in (*model.parameters(), *model.buffers())} == {"cuda:0"}
