from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.generate import beam_search, log_probability
from gpugrad.models import RNNLM, RNNLMConfig
from gpugrad.optim import AdamW
from gpugrad.text import ConsecutiveWindows

CELLS = ["rnn", "gru", "lstm"]
SHAPES = [{}, {"n_hidden": 6, "n_layer": 2}, {"n_hidden": 6, "tied_head": False}]
each_cell = pytest.mark.parametrize("cell", CELLS)


def model_of(cell: str, **given) -> RNNLM:
    config = {"vocab_size": 11, "n_embd": 4, "dtype": "float64"}
    model = RNNLM(RNNLMConfig(cell=cell, **{**config, **given}))
    if model.h0 is not None:
        gg.nn.init.normal_(model.h0)
    return model


def ids_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 11, shape)


@each_cell
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_is_the_cross_entropy_of_the_logits(cell, shape):
    model, ids, targets = model_of(cell, **shape), ids_of(3, 5), ids_of(3, 5, seed=1)
    logits, loss = model(ids, targets)
    assert logits.shape == (3, 5, 11)
    log_p = gg.nn.functional.log_softmax(logits, axis=-1).detach().numpy()
    expected = -np.take_along_axis(log_p, targets[..., None], -1).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert model.loss(ids, targets).item() == pytest.approx(expected, rel=1e-12)


@each_cell
def test_gradients_of_all_parameters_h0_too(cell):
    model, ids, targets = (
        model_of(cell, vocab_size=5, n_hidden=3),
        ids_of(2, 3) % 5,
        ids_of(3, 2).T % 5,
    )
    owners = dict(model.named_modules())
    names = [name for name, _ in model.named_parameters()]

    def loss(*values):
        for name, value in zip(names, values, strict=True):
            owner, _, leaf = name.rpartition(".")
            vars(owners[owner])[leaf] = value
        return model.loss(ids, targets)

    assert "h0" in names
    assert gg.testing.gradcheck(loss, [p.detach().requires_grad_() for p in model.parameters()])


@each_cell
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_state_flows_from_window_to_window(cell, shape):
    model, ids, targets = model_of(cell, **shape), ids_of(2, 9), ids_of(2, 9, seed=1)
    whole = model.loss(ids, targets, "none").detach().numpy()
    state, parts = None, []
    for k in range(0, 9, 3):
        window = slice(k, k + 3)
        losses, state = model.truncated_loss(ids[:, window], targets[:, window], state, "none")
        parts.append(losses.detach().numpy())
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=1e-12)


@each_cell
def test_truncation_ends_the_gradient_where_the_window_begins(cell):
    model, ids, targets = model_of(cell), ids_of(2, 6), ids_of(2, 6, seed=1)
    loss, state = model.truncated_loss(ids[:, :3], targets[:, :3])
    assert not any(s.requires_grad for s in state)
    loss.backward()
    assert model.h0.grad.numpy().any()
    model.zero_grad()
    model.truncated_loss(ids[:, 3:], targets[:, 3:], state)[0].backward()
    assert model.h0.grad is None
    # the same as a text that begins there with this state
    model.zero_grad()
    features, _ = model.features(ids[:, 3:], tuple(s.detach() for s in state))
    model.mean_loss(features, targets[:, 3:], "mean").backward()
    assert model.tokens.weight.grad.numpy().any()


@each_cell
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cached_generation_is_that_without_a_cache(cell, shape):
    model, ids = model_of(cell, **shape), ids_of(3, 4)
    cached = model.generate(ids, 20, seed=2).tolist()
    assert cached == model.generate(ids, 20, seed=2, use_cache=False).tolist()
    greedy = model.generate(ids, 6, greedy=True).numpy()
    logits = model(greedy[:, :-1])[0].detach().numpy()[:, 3:]
    np.testing.assert_array_equal(greedy[:, 4:], logits.argmax(-1))


@each_cell
def test_beams_and_log_probability(cell):
    model, ids = model_of(cell, n_hidden=5), ids_of(4)
    with_cache = beam_search(model, ids, 4, num_beams=3)
    without = beam_search(model, ids, 4, num_beams=3, use_cache=False)
    assert [b.ids.tolist() for b in with_cache] == [b.ids.tolist() for b in without]
    best = with_cache[0]
    total = log_probability(model, best.ids[4:], ids).total
    assert total == pytest.approx(best.log_probability, rel=1e-9)


def test_tied_head_is_the_embedding():
    model = model_of("gru")
    assert model.head_weight is model.tokens.weight
    assert model.head is None
    untied = model_of("gru", tied_head=False)
    assert untied.head_weight is untied.head.weight


def test_h0_may_be_zero_instead():
    model = model_of("lstm", learn_h0=False)
    assert model.h0 is None
    assert not any(s.numpy().any() for s in model.initial_state(3))


@each_cell
def test_learns_what_lies_further_back_than_a_window(cell):
    """A token that says which cycle follows, more steps ago than one window is long."""
    gg.manual_seed(0)
    model = RNNLM(RNNLMConfig(4, cell=cell, n_embd=16))
    optimizer = AdamW(model.parameters(), lr=0.02)
    text = np.tile([0, 2, 2, 2, 2, 0, 1, 3, 3, 3, 3, 1], 60)
    windows, state = ConsecutiveWindows(text, 4, 4), None
    for _ in range(100):
        state = None if windows.at_start else state
        loss, state = model.truncated_loss(*next(windows), state)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    text = model.generate([0, 2], 10, greedy=True).tolist()
    assert text == [0, 2, 2, 2, 2, 0, 1, 3, 3, 3, 3, 1]


def test_forget_gates_start_open():
    model = RNNLM(RNNLMConfig(5, cell="lstm", n_embd=4, n_layer=2))
    for layer in range(2):
        bias = getattr(model.layers, f"bias_ih_l{layer}").numpy()
        assert (bias[4:8] == 1).all()
        assert (np.abs(bias[:4]) <= 0.5).all()


def test_save_and_load(tmp_path):
    model = model_of("lstm", n_hidden=6, n_layer=2)
    model.save(tmp_path / "m")
    loaded = RNNLM.load(tmp_path / "m")
    assert loaded.config == model.config
    assert loaded(ids_of(1, 4))[0].tolist() == model(ids_of(1, 4))[0].tolist()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cell": "elman"}, "cell must be one of rnn, gru, lstm, got 'elman'"),
        ({"n_hidden": 0}, "n_hidden must be an integer >= 1, got 0"),
        ({"n_layer": 1.0}, "n_layer must be an integer >= 1, got 1.0"),
        ({"dropout": -0.1}, r"dropout must lie in \[0, 1\), got -0.1"),
    ],
    ids=str,
)
def test_config_is_checked(given, message):
    with pytest.raises(ValueError, match=f"RNNLMConfig: {message}"):
        RNNLMConfig(**{"vocab_size": 5, **given})


def test_bad_ids_are_refused():
    with pytest.raises(ValueError, match=r"RNNLM: ids must be integers of shape \(B, T\)"):
        model_of("gru")([1, 2])
