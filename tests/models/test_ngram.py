from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.models import NGram, NGramConfig
from gpugrad.text import bigram_loss, unigram_loss

SMOOTHINGS = ["add-k", "witten-bell", "kneser-ney"]
SIZE = 7


def drawn(n: int, seed: int = 0) -> np.ndarray:
    """Tokens of which each depends on the two before."""
    random = np.random.default_rng(seed)
    table = np.random.default_rng(99).dirichlet(np.full(SIZE, 0.2), (SIZE, SIZE))
    tokens = [0, 1]
    for _ in range(n - 2):
        tokens.append(int(random.choice(SIZE, p=table[tokens[-2], tokens[-1]])))
    return np.array(tokens)


def by_hand(train: list[int], context: tuple[int, ...], w: int, smoothing: str, k: float) -> float:
    """p(w | context) from the formulas of the module, one dictionary per length."""

    def table(m: int) -> Counter:
        def at(size: int) -> list[tuple[int, ...]]:
            return [tuple(train[i : i + size]) for i in range(len(train) - size + 1)]

        if smoothing == "kneser-ney" and m < len(context) + 1:
            return Counter(g[1:] for g in set(at(m + 1)))
        return Counter(at(m))

    p = 1 / SIZE
    for m in range(1, len(context) + 2):
        h, counts = context[len(context) - m + 1 :], table(m)
        behind = {g[-1]: n for g, n in counts.items() if g[:-1] == h}
        seen, total, types = behind.get(w, 0), sum(behind.values()), len(behind)
        if smoothing == "add-k":
            p = (seen + k) / (total + k * SIZE)
        elif not types:
            continue
        elif smoothing == "witten-bell":
            p = (seen + types * p) / (total + types)
        else:
            once, twice = (sum(n == c for n in counts.values()) for c in (1, 2))
            discount = once / (once + 2 * twice) if once and twice else 0.5
            p = (max(seen - discount, 0) + discount * types * p) / total
    return p


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("order", [1, 2, 4])
def test_probabilities_are_the_formulas(order, smoothing):
    train = drawn(60)
    model = NGram(NGramConfig(SIZE, order, smoothing, k=0.3)).fit(train)
    contexts = drawn(30, seed=1)[: 9 * 3].reshape(9, 3)
    for ids, p in zip(contexts, model.probabilities(contexts), strict=True):
        context = tuple(ids[len(ids) - order + 1 :].tolist())
        expected = [by_hand(train.tolist(), context, w, smoothing, 0.3) for w in range(SIZE)]
        np.testing.assert_allclose(p, expected, rtol=1e-12)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_they_sum_to_one_behind_any_context(smoothing):
    model = NGram(NGramConfig(SIZE, 3, smoothing)).fit(drawn(50))
    every = np.stack(np.meshgrid(*[np.arange(SIZE)] * 2), -1).reshape(-1, 2)
    p = model.probabilities(every)
    assert (p > 0).all()
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-12)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("order", [1, 2, 5])
def test_loss_is_that_of_the_probabilities(order, smoothing):
    model = NGram(NGramConfig(SIZE, order, smoothing)).fit(drawn(200))
    text = drawn(40, seed=2)
    expected = [-np.log(model.probabilities(text[None, :i])[0, text[i]]) for i in range(1, 40)]
    np.testing.assert_allclose(model.token_losses(text), expected, rtol=1e-12)
    assert model.loss(text) == pytest.approx(np.mean(expected), rel=1e-12)
    assert model.perplexity(text) == pytest.approx(math.exp(np.mean(expected)), rel=1e-12)


def test_the_counted_baselines_are_its_first_two_orders():
    train, val = drawn(500), drawn(100, seed=3)
    for order, loss in ((1, unigram_loss), (2, bigram_loss)):
        model = NGram(NGramConfig(SIZE, order, "add-k", k=0.1)).fit(train)
        assert model.loss(val) == pytest.approx(loss(train, val, SIZE, 0.1), rel=1e-12)


def test_more_context_helps_and_kneser_ney_most():
    train, val = drawn(4000), drawn(1000, seed=4)
    losses = [NGram(NGramConfig(SIZE, n)).fit(train).loss(val) for n in (1, 2, 3)]
    assert losses[0] > losses[1] > losses[2]
    five = NGram(NGramConfig(SIZE, 5)).fit(train)
    assert five.loss(val) < five.smoothed("add-k").loss(val)
    assert five.smoothed("add-k").smoothed("kneser-ney").loss(val) == five.loss(val)


def test_one_token_repeated():
    model = NGram(NGramConfig(2, 3)).fit(np.zeros(50, np.int64))
    assert model.probabilities([[0, 0]])[0, 0] > 0.9
    assert np.isfinite(np.log(model.probabilities([[1, 1]]))).all()


@pytest.mark.parametrize("order", [1, 2, 4])
def test_generates_what_it_counted(order):
    model = NGram(NGramConfig(5, order)).fit(np.tile(np.arange(5), 400))
    text = model.generate([[0], [3]], 12, greedy=True).numpy()
    assert text.shape == (2, 13)
    if order > 1:
        np.testing.assert_array_equal(text, (np.array([[0], [3]]) + np.arange(13)) % 5)


def test_draws_follow_the_probabilities():
    model = NGram(NGramConfig(SIZE, 2)).fit(drawn(300))
    drawn_ids = model.generate(np.full((4000, 1), 3), 1, seed=5).numpy()[:, 1]
    share = np.bincount(drawn_ids, minlength=SIZE) / 4000
    np.testing.assert_allclose(share, model.probabilities([[3]])[0], atol=0.03)


def test_save_and_load(tmp_path):
    model = NGram(NGramConfig(SIZE, 3, "witten-bell")).fit(drawn(100))
    model.save(tmp_path / "m.safetensors")
    loaded = NGram.load(tmp_path / "m.safetensors")
    assert loaded.config == model.config
    assert loaded.loss(drawn(50, seed=5)) == model.loss(drawn(50, seed=5))
    with pytest.raises(ValueError, match=r"NGram\.load_state_dict: order 2 needs the arrays"):
        NGram(NGramConfig(SIZE, 2)).load_state_dict(model.state_dict())


def test_before_fit_it_says_so():
    with pytest.raises(RuntimeError, match=r"call fit\(tokens\) first"):
        NGram(NGramConfig(5)).loss(np.arange(5))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"order": 0}, "order must be an integer >= 1, got 0"),
        ({"vocab_size": 0}, "vocab_size must be an integer >= 1"),
        ({"smoothing": "laplace"}, "smoothing must be one of add-k, witten-bell, kneser-ney, got"),
        ({"k": 0.0}, r"k must be > 0, got 0\.0"),
    ],
    ids=str,
)
def test_config_is_checked(given, message):
    with pytest.raises(ValueError, match=f"NGramConfig: {message}"):
        NGramConfig(**{"vocab_size": 5, **given})


def test_bad_ids_are_refused():
    model = NGram(NGramConfig(5, 2)).fit(np.arange(5))
    with pytest.raises(ValueError, match=r"ids has ids 9\.\.9, the vocabulary 0\.\.4"):
        model.next_logits(gg.tensor([[9]]))
    with pytest.raises(ValueError, match=r"ids must be integers of shape \(B, T\)"):
        model.probabilities(np.zeros((2, 0), int))
