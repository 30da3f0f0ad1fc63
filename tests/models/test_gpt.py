from __future__ import annotations

import gc
import math
import tracemalloc
from itertools import product

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad.generate import generate
from gpugrad.models import GPT, GPTConfig, parameter_count
from gpugrad.optim import AdamW, decay_groups

VOCAB, BLOCK, LAYERS, HEADS, WIDTH = 11, 9, 2, 2, 12
OPTIONS = {
    f"{'pre' if first else 'post'}-{positions}-{'tied' if tied else 'untied'}-"
    f"{'bias' if bias else 'nobias'}": {
        "norm_first": first,
        "positions": positions,
        "tied_head": tied,
        "bias": bias,
    }
    for first, positions, tied, bias in product(
        (True, False), ("learned", "sinusoidal", "rotary"), (True, False), (True, False)
    )
}
every_kind = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def small(**settings) -> GPT:
    """A small GPT whose biases and norms are not at their initial, harmless values."""
    shape = {
        "vocab_size": VOCAB,
        "block_size": BLOCK,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_embd": WIDTH,
        "dtype": "float64",
    }
    gg.manual_seed(7)
    model = GPT(GPTConfig(**{**shape, **settings}))
    rng = np.random.default_rng(7)
    for p in model.parameters():
        p.data = p.data + rng.normal(size=p.shape, scale=0.3).astype(p.dtype)
    return model


def ids_of(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, shape)


# What is computed


def reference(model: GPT, ids: np.ndarray) -> np.ndarray:
    """Logits by the textbook, one sequence, one head, one position at a time."""
    config = model.config
    p = {name: parameter.numpy() for name, parameter in model.named_parameters()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config.norm_eps)
        return x * p[f"{name}.weight"] + p.get(f"{name}.bias", 0)

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)

    def gelu(x):
        if config.activation == "gelu":
            return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
        return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2

    def turned(x, position):
        half = len(x) // 2
        z = x[:half] + 1j * x[half:]
        z = z * np.exp(1j * position * 10000.0 ** (-np.arange(half) / half))
        return np.concatenate([z.real, z.imag])

    def attention(x, name):
        q, k, v = np.split(linear(x, f"{name}.in_proj"), 3, axis=-1)
        out = np.zeros_like(x)
        size = config.head_size
        for head, t in product(range(config.n_head), range(len(x))):
            part = slice(head * size, (head + 1) * size)
            query, keys = q[t, part], k[: t + 1, part]
            if config.positions == "rotary":
                query = turned(query, t)
                keys = np.stack([turned(key, s) for s, key in enumerate(keys)])
            scores = np.exp(keys @ query / math.sqrt(size))
            out[t, part] = scores / scores.sum() @ v[: t + 1, part]
        return linear(out, f"{name}.out_proj")

    def mlp(x, name):
        return linear(gelu(linear(x, f"{name}.up")), f"{name}.down")

    x = p["tokens.weight"][ids]
    if config.positions == "learned":
        x = x + p["positions.weight"][: len(ids)]
    elif config.positions == "sinusoidal":
        c = config.n_embd
        x = x * math.sqrt(c)
        for t, i in product(range(len(ids)), range(c)):
            angle = t / 10000 ** (2 * (i // 2) / c)
            x[t, i] += math.cos(angle) if i % 2 else math.sin(angle)
    for layer in range(config.n_layer):
        b = f"blocks.{layer}"
        if config.norm_first:
            x = x + attention(norm(x, f"{b}.norm1"), f"{b}.attention")
            x = x + mlp(norm(x, f"{b}.norm2"), f"{b}.mlp")
        else:
            x = norm(x + attention(x, f"{b}.attention"), f"{b}.norm1")
            x = norm(x + mlp(x, f"{b}.mlp"), f"{b}.norm2")
    if config.has_final_norm:
        x = norm(x, "norm")
    return x @ p["tokens.weight" if config.tied_head else "head.weight"].T


@every_kind
def test_logits_are_the_textbooks(options) -> None:
    model = small(**options)
    ids = ids_of(3, BLOCK)
    logits, loss = model(ids)
    assert loss is None
    expected = np.stack([reference(model, row) for row in ids])
    np.testing.assert_allclose(logits.numpy(), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("options", [{"activation": "gelu"}, {"mlp_ratio": 2.5}, {"norm_eps": 0.1}])
@pytest.mark.parametrize("length", [1, 5])
def test_other_settings(options, length) -> None:
    model = small(**options)
    ids = ids_of(length)
    np.testing.assert_allclose(
        model(ids[None])[0].numpy()[0], reference(model, ids), rtol=0, atol=1e-11
    )


@every_kind
def test_every_parameter_has_the_gradient_finite_differences_give(options) -> None:
    model = small(**options)
    ids, targets = ids_of(2, BLOCK), ids_of(2, BLOCK, seed=1)
    model(ids, targets)[1].backward()
    rng = np.random.default_rng(5)
    step = 1e-5
    for name, p in model.named_parameters():
        direction = rng.normal(size=p.shape)
        start = p.data
        losses = []
        for sign in (1, -1):
            p.data = start + sign * step * direction
            with gg.no_grad():
                losses.append(model(ids, targets)[1].item())
        p.data = start
        slope = (losses[0] - losses[1]) / (2 * step)
        np.testing.assert_allclose(
            (p.grad.numpy() * direction).sum(), slope, rtol=1e-6, atol=1e-8, err_msg=name
        )


@every_kind
def test_a_later_token_changes_no_earlier_logit(options) -> None:
    model = small(**options)
    ids = ids_of(1, BLOCK)
    before = model(ids)[0].numpy()
    for t in range(BLOCK - 1):
        changed = ids.copy()
        changed[0, t + 1] = (ids[0, t + 1] + 1) % VOCAB
        after = model(changed)[0].numpy()
        np.testing.assert_array_equal(after[0, : t + 1], before[0, : t + 1])
        assert not np.allclose(after[0, t + 1], before[0, t + 1])


def test_without_positions_order_would_not_matter_but_does() -> None:
    for positions in ("learned", "sinusoidal", "rotary"):
        model = small(positions=positions)
        one, two = (model(np.array([ids]))[0].numpy()[0, -1] for ids in ([1, 2, 3], [2, 1, 3]))
        assert np.abs(one - two).max() > 1e-3


def test_rotary_is_relative_in_one_layer() -> None:
    """Scores depend on distances only, so shifting the positions changes nothing."""
    model = small(positions="rotary", n_layer=1)
    x = gg.tensor(np.random.default_rng(0).normal(size=(1, 2, 5, 6)))
    scores = [model.rotary(x, s) @ model.rotary(x, s).mT for s in (0, 3)]
    np.testing.assert_allclose(scores[0].numpy(), scores[1].numpy(), atol=1e-13)
    norms = np.linalg.norm(model.rotary(x, 3).numpy(), axis=-1)
    np.testing.assert_allclose(norms, np.linalg.norm(x.numpy(), axis=-1), rtol=1e-14)


# Loss


def test_loss_is_the_mean_cross_entropy_of_what_counts() -> None:
    model = small()
    ids, targets = ids_of(2, 6), ids_of(2, 6, seed=3)
    targets[0, 2:] = -100
    logits, loss = model(ids, targets)
    z = logits.numpy()
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    picked = [log_p[b, t, targets[b, t]] for b, t in np.argwhere(targets >= 0)]
    np.testing.assert_allclose(loss.item(), -np.mean(picked), rtol=1e-12)


def test_loss_starts_near_the_logarithm_of_the_vocabulary() -> None:
    gg.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=500, block_size=16, n_layer=3, n_head=4, n_embd=64))
    rng = np.random.default_rng(0)
    _, loss = model(rng.integers(0, 500, (8, 16)), rng.integers(0, 500, (8, 16)))
    assert loss.dtype == np.float32
    assert loss.item() == pytest.approx(math.log(500), abs=0.1)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
@pytest.mark.parametrize("norm_first", [True, False], ids=["pre", "post"])
def test_learns_a_text_by_heart(positions, norm_first) -> None:
    gg.manual_seed(1)
    config = GPTConfig(16, 12, 2, 2, 32, positions=positions, norm_first=norm_first)
    model = GPT(config)
    text = np.random.default_rng(2).integers(0, 16, 13)
    optimizer = AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(60):
        optimizer.zero_grad()
        _, loss = model(text[None, :-1], text[None, 1:])
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert generate(model, text[:3], 10, greedy=True).tolist() == text.tolist()


@pytest.mark.parametrize("settings", [{}, {"positions": "relative", "tied_head": False}], ids=str)
def test_weights_are_those_of_parts_that_draw_for_themselves_first(monkeypatch, settings) -> None:
    config = GPTConfig(13, 5, n_layer=2, n_head=2, n_embd=8, **settings)
    gg.manual_seed(4)
    model, state = GPT(config, "cpu"), gg.random.get_state()
    monkeypatch.setattr(gg.models.gpt, "skip_init", lambda build, *args: build(*args))
    gg.manual_seed(4)
    expected = GPT(config, "cpu").state_dict()
    assert gg.random.get_state() == state
    for name, value in model.state_dict().items():
        assert value.numpy().tobytes() == expected[name].numpy().tobytes(), name


@every_kind
def test_loss_alone_has_the_bits_of_the_loss_beside_logits(options) -> None:
    model = small(**options, dtype="float32")
    expected = loss_and_gradients(lambda x, y: model(x, y)[1], model)
    assert loss_and_gradients(model.loss, model) == expected


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_chunks_of_the_head_change_nothing_but_rounding(reduction, tied) -> None:
    model = small(tied_head=tied)
    ids, targets = ids_of(2, 6), ids_of(2, 6, seed=3)
    targets[0, 2:5] = -100
    results = []
    for chunk in (None, 5, 12):
        model.zero_grad()
        loss = model.loss(ids, targets, reduction, head_chunk=chunk)
        assert loss.shape == ((2, 6) if reduction == "none" else ())
        loss.sum().backward()
        results.append([loss.numpy(), *(p.grad.numpy() for p in model.parameters())])
    for a, b, same in zip(*results, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-11, atol=1e-13)
        np.testing.assert_array_equal(same, a)


# The way of the residual stream through the blocks


def one_by_one(model: GPT, ids: np.ndarray, targets: np.ndarray) -> gg.Tensor:
    """The loss with every sum, norm, product and the cross-entropy on its own."""
    x = model.tokens(ids)
    if model.config.positions == "learned":
        x = x + model.positions.weight[: ids.shape[1]]
    elif model.config.positions == "sinusoidal":
        x = x * math.sqrt(model.config.n_embd) + model.positions(0, ids.shape[1])
    x = model.dropout(x)
    for layer, block in enumerate(model.blocks):
        heads = model._heads(layer, 0, None)
        if block.norm_first:
            x = x + block.dropout(block.attention(block.norm1(x), heads=heads))
            x = x + block.dropout(block.mlp(block.norm2(x)))
        else:
            x = block.norm1(x + block.dropout(block.attention(x, heads=heads)))
            x = block.norm2(x + block.dropout(block.mlp(x)))
    x = x if model.norm is None else model.norm(x)
    logits = F.linear(x, model.tokens.weight if model.head is None else model.head.weight)
    return F.cross_entropy(logits.reshape(-1, VOCAB), targets.reshape(-1))


def loss_and_gradients(function, model: GPT) -> list[bytes]:
    """Everything a step computes, bit for bit; the generator starts from the same place."""
    gg.manual_seed(11)
    model.zero_grad()
    loss = function(ids_of(3, BLOCK), ids_of(3, BLOCK, seed=1))
    loss.backward()
    return [loss.data.tobytes(), *(p.grad.data.tobytes() for p in model.parameters())]


@every_kind
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_stream_of_pairs_changes_no_bit(options, dropout) -> None:
    model = small(**options, dropout=dropout, dtype="float32")
    expected = loss_and_gradients(lambda x, y: one_by_one(model, x, y), model)
    assert loss_and_gradients(lambda x, y: model(x, y)[1], model) == expected


def test_the_stream_of_pairs_without_a_final_norm() -> None:
    model = small(final_norm=False, dtype="float32")
    expected = loss_and_gradients(lambda x, y: one_by_one(model, x, y), model)
    assert loss_and_gradients(lambda x, y: model(x, y)[1], model) == expected


# Computing again instead of keeping


@every_kind
@pytest.mark.parametrize("recompute", ["attention", "block"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputing_changes_no_bit(options, recompute, dropout) -> None:
    model = small(**options, dropout=dropout, dtype="float32")
    expected = loss_and_gradients(lambda x, y: model(x, y)[1], model)
    after = gg.random.get_state()
    again = loss_and_gradients(lambda x, y: model.loss(x, y, recompute=recompute), model)
    assert again == expected
    assert gg.random.get_state() == after


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre", "post"])
def test_recomputing_keeps_less(norm_first) -> None:
    gg.manual_seed(0)
    model = GPT(GPTConfig(16, 32, 6, 2, 32, norm_first=norm_first))
    ids = np.zeros((8, 32), np.int64)

    def kept(recompute: str) -> int:
        gc.collect()
        tracemalloc.start()
        features = model.features(ids, recompute=recompute)
        size = tracemalloc.get_traced_memory()[0] - features.data.nbytes
        tracemalloc.stop()
        return size

    none, attention, block = map(kept, ("none", "attention", "block"))
    stream = 8 * 32 * 32 * 4  # one array (B, T, C) in bytes
    assert attention < none - 6 * 5 * stream
    assert block < 1.2 * (6 + 3) * stream  # a tensor per block, the embedding's and the last norm's


def test_an_unknown_way_to_recompute_is_refused() -> None:
    with pytest.raises(ValueError, match="recompute must be none, attention or block, got 'all'"):
        small().features(ids_of(1, 2), recompute="all")


# Parameters


@every_kind
def test_count_is_exact(options) -> None:
    model = small(**options)
    assert sum(p.size for p in model.parameters()) == parameter_count(model.config)


def test_initial_values_are_gpt2s() -> None:
    gg.manual_seed(3)
    model = GPT(GPTConfig(vocab_size=300, block_size=64, n_layer=8, n_head=4, n_embd=96))
    for name, p in model.named_parameters():
        values = p.numpy()
        if name.endswith("bias"):
            assert not values.any(), name
        elif "norm" in name:
            assert (values == 1).all(), name
        else:
            scaled = name.endswith(("out_proj.weight", "down.weight"))
            expected = 0.02 / math.sqrt(16) if scaled else 0.02
            assert values.std() == pytest.approx(expected, rel=0.05), name
            assert abs(values.mean()) < 0.05 * expected, name


def test_the_seed_decides_the_initial_values() -> None:
    def values(seed):
        gg.manual_seed(seed)
        return np.concatenate(
            [p.numpy().ravel() for p in GPT(GPTConfig(9, 4, 1, 1, 8)).parameters()]
        )

    np.testing.assert_array_equal(values(5), values(5))
    assert (values(5) != values(6)).any()


def test_a_tied_head_shares_the_embedding() -> None:
    tied, untied = small(), small(tied_head=False)
    assert tied.head is None
    assert "head.weight" not in tied.state_dict()
    untied.load_state_dict({**tied.state_dict(), "head.weight": tied.tokens.weight})
    ids = ids_of(2, 5)
    np.testing.assert_array_equal(tied(ids)[0].numpy(), untied(ids)[0].numpy())
    for model in (tied, untied):
        model(ids, ids)[1].backward()
    total = untied.tokens.weight.grad.numpy() + untied.head.weight.grad.numpy()
    np.testing.assert_allclose(tied.tokens.weight.grad.numpy(), total, rtol=1e-12, atol=1e-14)


def test_state_dict_round_trip() -> None:
    one = small(positions="rotary")
    other = GPT(one.config)
    other.load_state_dict({name: p.numpy() for name, p in one.state_dict().items()})
    ids = ids_of(1, 4)
    np.testing.assert_array_equal(one(ids)[0].numpy(), other(ids)[0].numpy())
    assert not any("rotary" in name for name in one.state_dict())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_narrow_dtypes(dtype, positions) -> None:
    wide = small(positions=positions)
    narrow = small(positions=positions).to(dtype)
    ids = ids_of(2, BLOCK)
    logits, loss = narrow(ids, ids)
    loss.backward()
    assert logits.dtype == dtype
    assert all(p.grad.dtype == dtype for p in narrow.parameters())
    expected = wide(ids)[0].numpy()
    tolerance = {"float32": 1e-5, "float16": 0.02, "bfloat16": 0.15}[dtype]
    error = np.abs(logits.numpy().astype(np.float64) - expected).max()
    assert error < tolerance * np.abs(expected).max()


def test_only_matrices_decay() -> None:
    model = small(tied_head=False)
    decayed, rest = (dict(group["params"]) for group in decay_groups(model))
    assert {p.ndim for p in decayed.values()} == {2}
    assert {p.ndim for p in rest.values()} == {1}
    assert sum(p.size for p in (*decayed.values(), *rest.values())) == parameter_count(model.config)


# Dropout


def test_dropout_acts_in_training_only() -> None:
    model, plain = small(dropout=0.5), small()
    ids = ids_of(2, 7)
    gg.manual_seed(1)
    one, two = model(ids)[0].numpy(), model(ids)[0].numpy()
    assert np.abs(one - two).max() > 1e-3
    gg.manual_seed(1)
    np.testing.assert_array_equal(model(ids)[0].numpy(), one)
    model.eval()
    np.testing.assert_array_equal(model(ids)[0].numpy(), plain(ids)[0].numpy())


# Cache


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
@pytest.mark.parametrize("pieces", [[9], [1] * 9, [4, 5], [1, 3, 2, 3]], ids=str)
def test_a_cache_continues_where_the_last_piece_ended(positions, pieces) -> None:
    model = small(positions=positions)
    ids = ids_of(2, BLOCK)
    cache = model.new_cache()
    found = []
    with gg.no_grad():
        for piece in np.split(ids, np.cumsum(pieces)[:-1], axis=1):
            found.append(model(piece, cache=cache)[0].numpy())
        whole = model(ids)[0].numpy()
        assert cache.length == BLOCK
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, rtol=0, atol=1e-12)


def test_next_logits_are_the_last() -> None:
    model = small()
    ids = ids_of(2, 5)
    np.testing.assert_allclose(
        model.next_logits(ids).numpy(), model(ids)[0].numpy()[:, -1], atol=1e-13
    )


def test_a_full_cache_refuses_more() -> None:
    model = small()
    cache = model.new_cache()
    with gg.no_grad():
        model(ids_of(1, 8), cache=cache)
        with pytest.raises(ValueError, match="2 positions after 8 in the cache are more than"):
            model(ids_of(1, 2), cache=cache)
        with pytest.raises(ValueError, match="began with a batch of 1, now given one of 2"):
            model(ids_of(2, 1), cache=cache)


def test_a_cache_stores_no_gradient() -> None:
    model = small()
    with pytest.raises(RuntimeError, match=r"decode under gg.no_grad\(\)"):
        model(ids_of(1, 2), cache=model.new_cache())


# Wrong input


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([1, 2, 3], ValueError, r"ids must be integers of shape \(B, T\) .* got int64\[3\]"),
        ([[1.0, 2.0]], ValueError, r"ids must be integers .* got float32\[1, 2\]"),
        (np.zeros((2, 0), np.int64), ValueError, "T >= 1, got int64"),
        (np.zeros((1, BLOCK + 1), np.int64), ValueError, "10 positions are more than block_size 9"),
        ([[0, VOCAB]], IndexError, "11"),
        ([[0, -1]], IndexError, "-1"),
    ],
    ids=["1-d", "float", "empty", "long", "large id", "negative id"],
)
def test_refuses_ids(ids, error, message) -> None:
    with pytest.raises(error, match=message):
        small()(ids)


def test_refuses_targets() -> None:
    with pytest.raises(ValueError, match=r"targets \(2, 4\) must have ids' shape \(2, 5\)"):
        small()(ids_of(2, 5), ids_of(2, 4))


def test_loss_refuses_targets() -> None:
    with pytest.raises(ValueError, match=r"targets \(2, 4\) must have ids' shape \(2, 5\)"):
        small().loss(ids_of(2, 5), ids_of(2, 4))
    with pytest.raises(ValueError, match="chunk must be a number of rows >= 1, got 0"):
        small().loss(ids_of(2, 5), ids_of(2, 5), head_chunk=0)


def test_ids_of_any_integer_type() -> None:
    model = small()
    ids = ids_of(2, 5)
    expected = model(ids)[0].numpy()
    for given in (ids.astype(np.uint16), ids.astype(np.int32), ids.tolist(), gg.tensor(ids)):
        np.testing.assert_array_equal(model(given)[0].numpy(), expected)


def test_repr_tells_the_size() -> None:
    model = small()
    assert f"{parameter_count(model.config):,} parameters, block_size=9" in repr(model)


# Masks and positions


@every_kind
def test_positions_and_masks_as_without_them(options) -> None:
    """0, 1, 2, ... and a mask that hides nothing change nothing."""
    model = small(**options, dtype="float64")
    ids = ids_of(3, BLOCK)
    plain = model(ids)[0].numpy()
    places = np.tile(np.arange(BLOCK), (3, 1))
    settings = {"positions": places, "attn_mask": np.ones((1, 1, 1, BLOCK), bool)}
    np.testing.assert_allclose(model(ids, **settings)[0].numpy(), plain, atol=1e-13)
    targets = ids_of(3, BLOCK, seed=1)
    for recompute in ("none", "attention", "block"):
        losses = []
        for given in ({}, settings):
            model.zero_grad()
            loss = model.loss(ids, targets, recompute=recompute, **given)
            loss.backward()
            losses.append([loss.numpy(), *(p.grad.numpy() for p in model.parameters())])
        for one, two in zip(*losses, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-12)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
@pytest.mark.parametrize("kind", ["boolean", "added"])
def test_padding_at_the_left_changes_nothing(positions, kind) -> None:
    model = small(positions=positions, dtype="float64")
    ids, padded = ids_of(2, 4), np.zeros((2, 7), np.int64)
    padded[:, 3:] = ids
    mask = np.arange(7) >= 3
    if kind == "added":
        mask = np.where(mask, 0, -np.inf)
    places = np.tile(np.maximum(np.arange(7) - 3, 0), (2, 1))
    logits = model(padded, attn_mask=mask, positions=places)[0].numpy()
    np.testing.assert_allclose(logits[:, 3:], model(ids)[0].numpy(), atol=1e-13)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("recompute", ["none", "attention", "block"])
def test_an_added_mask_has_a_gradient(recompute) -> None:
    model, ids = small(dtype="float64"), ids_of(2, 4)

    def loss(mask):
        return model.loss(ids, ids, attn_mask=mask, recompute=recompute)

    gg.testing.gradcheck(loss, [gg.tensor(np.zeros((4, 4)), requires_grad=True)])


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (np.zeros((2, 3), int), r"positions \(2, 3\) must have ids' shape \(2, 4\)"),
        (np.zeros((2, 4)), "positions must be integers of shape"),
    ],
    ids=["shape", "float"],
)
def test_refuses_positions(positions, message) -> None:
    with pytest.raises(ValueError, match=message):
        small()(ids_of(2, 4), positions=positions)


@pytest.mark.parametrize("kind", ["learned", "sinusoidal", "rotary"])
@pytest.mark.parametrize("bad", [-1, BLOCK])
def test_refuses_positions_outside_the_block(kind, bad) -> None:
    places = np.zeros((2, 4), int)
    places[1, 2] = bad
    with pytest.raises(IndexError, match=rf"positions\[1, 2\] is {bad}, but block_size is {BLOCK}"):
        small(positions=kind)(ids_of(2, 4), positions=places)


def test_refuses_a_mask_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"attn_mask \(3, 3\)"):
        small()(ids_of(2, 4), attn_mask=np.ones((3, 3), bool))
