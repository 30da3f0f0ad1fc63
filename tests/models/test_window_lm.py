from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

import gpugrad as gg
from gpugrad.models import WindowLM, WindowLMConfig
from gpugrad.optim import AdamW


def model_of(**given) -> WindowLM:
    config = {"vocab_size": 11, "window": 4, "n_embd": 3, "n_hidden": 5, "dtype": "float64"}
    model = WindowLM(WindowLMConfig(**{**config, **given}))
    if model.start is not None:
        gg.nn.init.normal_(model.start)
    return model


def ids_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 11, shape)


def by_hand(model: WindowLM, row: np.ndarray, t: int) -> np.ndarray:
    """The logits behind row[: t + 1], one vector at a time."""
    p = {name: value.numpy() for name, value in model.state_dict().items()}
    n = model.config.window
    vectors = [*p.get("start", []), *p["tokens.weight"][row[: t + 1]]][-n:]
    x = np.concatenate(vectors)
    hidden = np.tanh(p["hidden.weight"] @ x + p["hidden.bias"])
    return p["head.weight"] @ (np.concatenate([hidden, x]) if model.config.direct else hidden)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("window", [1, 4, 9])
def test_equations(window, direct):
    model, ids = model_of(window=window, direct=direct), ids_of(2, 6)
    logits, loss = model(ids, ids_of(2, 6, seed=1))
    for b in range(2):
        for t in range(6):
            expected = by_hand(model, ids[b], t)
            np.testing.assert_allclose(logits[b, t].detach().numpy(), expected, rtol=1e-12)
    assert loss.item() == pytest.approx(model.loss(ids, ids_of(2, 6, seed=1)).item(), rel=1e-14)
    each = model.loss(ids, ids_of(2, 6, seed=1), "none")
    assert each.shape == (2, 6)
    assert each.mean().item() == pytest.approx(loss.item(), rel=1e-12)


def test_gradients():
    model, ids, targets = model_of(direct=True), ids_of(2, 5), ids_of(2, 5, seed=1)
    names = [name for name, _ in model.named_parameters()]

    def loss(*values):
        for name, value in zip(names, values, strict=True):
            owner, _, leaf = name.rpartition(".")
            vars(dict(model.named_modules())[owner])[leaf] = value
        return model.loss(ids, targets)

    values = [p.detach().requires_grad_() for p in model.parameters()]
    assert gg.testing.gradcheck(loss, values)


def test_sees_its_window_and_no_more():
    model, ids = model_of(), ids_of(1, 9)
    changed = ids.copy()
    changed[0, 3] = (ids[0, 3] + 1) % 11
    before, after = (model(x)[0].detach().numpy()[0] for x in (ids, changed))
    same = (before == after).all(axis=-1)
    assert same.tolist() == [True] * 3 + [False] * 4 + [True] * 2


def test_generation_uses_the_last_window():
    model, ids = model_of(), ids_of(2, 3)
    text = model.generate(ids, 10, greedy=True).numpy()
    for t in range(3, 13):
        logits = [by_hand(model, row, t - 1) for row in text]
        assert text[:, t].tolist() == np.argmax(logits, axis=-1).tolist()


def test_embeddings_from_elsewhere_frozen_or_not():
    vectors = np.random.default_rng(3).normal(size=(11, 3))
    for freeze in (True, False):
        model = model_of()
        model.use_embeddings(vectors, freeze=freeze)
        np.testing.assert_array_equal(model.tokens.weight.detach().numpy(), vectors)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = AdamW(trained, lr=0.1)
        model.loss(ids_of(2, 5), ids_of(2, 5, seed=1)).backward()
        optimizer.step()
        assert (model.tokens.weight.detach().numpy() == vectors).all() == freeze
    with pytest.raises(ValueError, match=r"vectors have shape \(5, 3\), the model .* \(11, 3\)"):
        model_of().use_embeddings(np.zeros((5, 3)))


def test_learns_a_cycle():
    gg.manual_seed(0)
    model = WindowLM(WindowLMConfig(5, window=2, n_embd=4, n_hidden=16))
    optimizer, text = AdamW(model.parameters(), lr=0.05), np.arange(41)[None] % 5
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(text[:, :-1], text[:, 1:]).backward()
        optimizer.step()
    assert model.generate([2, 3], 7, greedy=True).tolist() == [2, 3, 4, 0, 1, 2, 3, 4, 0]


def test_save_and_load(tmp_path):
    model = model_of(direct=True)
    model.save(tmp_path / "m")
    state = gg.random.get_state()
    loaded = WindowLM.load(tmp_path / "m")
    assert gg.random.get_state() == state
    assert loaded.config == model.config
    assert loaded(ids_of(1, 4))[0].tolist() == model(ids_of(1, 4))[0].tolist()


def test_files_of_others_are_refused(tmp_path):
    (tmp_path / "m").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=r"WindowLM\.load: .* is damaged"):
        WindowLM.load(tmp_path / "m")
    gg.models.RNNLM(gg.models.RNNLMConfig(5, n_embd=4)).save(tmp_path / "rnn")
    with pytest.raises(ValueError, match=r"WindowLM\.load: .* holds a RNNLM"):
        WindowLM.load(tmp_path / "rnn")


@pytest.mark.parametrize("config", [None, "[3", "[]", '{"width": 3}', '{"window": NaN}'])
def test_a_file_without_a_config_of_the_model_is_refused(tmp_path, config):
    about = {"model": "WindowLM"} if config is None else {"model": "WindowLM", "config": config}
    save_file({"x": np.ones(1)}, tmp_path / "m", about)
    with pytest.raises(ValueError, match=r"WindowLM\.load: .* has no config of it"):
        WindowLM.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"window": 0}, "window must be an integer >= 1, got 0"),
        ({"n_hidden": 2.5}, "n_hidden must be an integer >= 1, got 2.5"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"dtype": "int64"}, "dtype must be floating, got 'int64'"),
    ],
    ids=str,
)
def test_config_is_checked(given, message):
    with pytest.raises(ValueError, match=f"WindowLMConfig: {message}"):
        WindowLMConfig(**{"vocab_size": 5, **given})


@pytest.mark.parametrize("ids", [[1, 2], np.zeros((2, 0), int), [[0.5]]], ids=str)
def test_bad_ids_are_refused(ids):
    with pytest.raises(ValueError, match=r"WindowLM: ids must be integers of shape \(B, T\)"):
        model_of()(ids)


def test_targets_must_fit():
    with pytest.raises(ValueError, match=r"targets \(2, 4\) must have the shape of ids, \(2, 5\)"):
        model_of().loss(ids_of(2, 5), ids_of(2, 4))
