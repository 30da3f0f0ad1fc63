from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.models import BagOfWords, BagOfWordsConfig
from gpugrad.optim import AdamW


def model_of(**given) -> BagOfWords:
    config = {"vocab_size": 9, "n_classes": 3, "n_embd": 4, "dtype": "float64"}
    return BagOfWords(BagOfWordsConfig(**{**config, **given}))


@pytest.mark.parametrize("hidden", [(), (5,), (6, 5, 4)], ids=str)
def test_equations_at_any_depth(hidden):
    model = model_of(hidden=hidden)
    ids = np.random.default_rng(0).integers(0, 9, (5, 7))
    p = {name: value.numpy() for name, value in model.state_dict().items()}
    x = p["words.weight"][ids].mean(1)
    for k in range(len(hidden)):
        x = np.maximum(x @ p[f"hidden.{k}.weight"].T + p[f"hidden.{k}.bias"], 0)
    expected = x @ p["head.weight"].T + p["head.bias"]
    logits, loss = model(ids, [0, 1, 2, 0, 1])
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-12)
    log_p = expected - np.log(np.exp(expected).sum(1, keepdims=True))
    assert loss.item() == pytest.approx(-log_p[range(5), [0, 1, 2, 0, 1]].mean(), rel=1e-12)
    assert model.predict(ids).tolist() == expected.argmax(1).tolist()


def test_padding_counts_for_nothing():
    model = model_of(padding=0)
    short = model([[3, 5]])[0].detach().numpy()
    padded = model([[3, 5, 0, 0, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_allclose(padded[0].detach().numpy()[:1], short, rtol=1e-12)
    assert not model.encode([[0, 0]]).detach().numpy().any()
    model.loss([[3, 0, 0]], [1]).backward()
    grad = model.words.weight.grad.numpy()
    assert not grad[0].any()
    assert grad[3].any()


def test_learns_which_words_decide():
    gg.manual_seed(0)
    random = np.random.default_rng(1)
    ids = random.integers(1, 40, (200, 12))
    classes = (np.isin(ids, [3, 5, 7]).sum(1) > np.isin(ids, [4, 6, 8]).sum(1)).astype(int)
    model = BagOfWords(BagOfWordsConfig(40, 2, n_embd=8, hidden=(16, 16), padding=0))
    optimizer = AdamW(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(ids, classes).backward()
        optimizer.step()
    assert (model.predict(ids).numpy() == classes).mean() > 0.97


def test_save_and_load(tmp_path):
    model = model_of(hidden=(5, 6), padding=2)
    model.save(tmp_path / "m")
    loaded = BagOfWords.load(tmp_path / "m")
    assert loaded.config == model.config
    assert loaded([[1, 3]])[0].tolist() == model([[1, 3]])[0].tolist()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_classes": 0}, "n_classes must be an integer >= 1, got 0"),
        ({"hidden": (4, 0)}, r"hidden must be a tuple of integers >= 1, got \(4, 0\)"),
        ({"hidden": [4]}, r"hidden must be a tuple of integers >= 1, got \[4\]"),
        ({"padding": 9}, "padding must be an id below 9, got 9"),
        ({"dropout": 2}, r"dropout must lie in \[0, 1\), got 2"),
    ],
    ids=str,
)
def test_config_is_checked(given, message):
    with pytest.raises(ValueError, match=f"BagOfWordsConfig: {message}"):
        model_of(**given)


def test_bad_ids_are_refused():
    with pytest.raises(ValueError, match=r"BagOfWords: ids must be integers of shape \(B, T\)"):
        model_of()([1, 2, 3])
