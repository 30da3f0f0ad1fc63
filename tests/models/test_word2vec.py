from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.models import SkipGram, SkipGramBatches, SkipGramConfig
from gpugrad.optim import AdamW


def test_loss_is_the_formula():
    model = SkipGram(SkipGramConfig(9, n_embd=4, dtype="float64"))
    gg.nn.init.normal_(model.centers.weight)
    gg.nn.init.normal_(model.contexts.weight)
    v, u = (p.detach().numpy() for p in (model.centers.weight, model.contexts.weight))
    random = np.random.default_rng(0)
    centers, contexts = random.integers(0, 9, (2, 5))
    negatives = random.integers(0, 9, (5, 3))
    total = 0.0
    for c, o, others in zip(centers, contexts, negatives, strict=True):
        total += np.log(1 + np.exp(-u[o] @ v[c])) + np.log(1 + np.exp(u[others] @ v[c])).sum()
    loss = model.loss(centers, contexts, negatives)
    assert loss.item() == pytest.approx(total / 5, rel=1e-12)
    loss.backward()
    unseen = ~np.isin(np.arange(9), centers)
    assert not model.centers.weight.grad.numpy()[unseen].any()


def test_pairs_lie_within_the_window_near_ones_more_often():
    tokens = np.arange(5000) % 50
    config = SkipGramConfig(50, window=4, subsample=1.0)
    centers, contexts, negatives = next(SkipGramBatches(tokens, config, 20_000, seed=1))
    distance = np.minimum((contexts - centers) % 50, (centers - contexts) % 50)
    share = np.bincount(distance, minlength=6) / len(centers)
    assert share[0] == share[5:].sum() == 0
    np.testing.assert_allclose(share[1:5], [0.4, 0.3, 0.2, 0.1], atol=0.015)
    assert negatives.shape == (20_000, 5)


def test_negatives_are_drawn_with_the_power_of_the_counts():
    tokens = np.repeat([0, 2, 3], [800, 150, 50])
    config = SkipGramConfig(5, power=0.5, subsample=1.0)
    negatives = next(SkipGramBatches(tokens, config, 20_000))[2]
    expected = np.sqrt([800, 0, 150, 50, 0])
    share = np.bincount(negatives.ravel(), minlength=5) / negatives.size
    np.testing.assert_allclose(share, expected / expected.sum(), atol=0.01)


def test_frequent_words_are_left_out():
    tokens = np.random.default_rng(5).choice(3, 60_000, p=[0.9, 0.09, 0.01])
    config = SkipGramConfig(3, subsample=0.01)
    centers = next(SkipGramBatches(tokens, config, 30_000))[0]
    kept = np.array([0.9, 0.09, 0.01]) * np.minimum(np.sqrt(0.01 / np.array([0.9, 0.09, 0.01])), 1)
    share = np.bincount(centers, minlength=3) / len(centers)
    np.testing.assert_allclose(share, kept / kept.sum(), atol=0.02)


def test_a_seed_decides_every_batch():
    tokens, config = np.arange(100) % 10, SkipGramConfig(10, subsample=1.0)
    one, same, other = (SkipGramBatches(tokens, config, 8, seed=s) for s in (1, 1, 2))
    for _ in range(3):
        for a, b in zip(next(one), next(same), strict=True):
            np.testing.assert_array_equal(a, b)
    assert not all(np.array_equal(a, b) for a, b in zip(next(one), next(other), strict=True))


def test_words_of_one_topic_become_neighbours():
    gg.manual_seed(0)
    random = np.random.default_rng(0)
    topics = random.integers(0, 2, 300)
    tokens = (topics[:, None] * 5 + random.integers(0, 5, (300, 12))).ravel()
    model = SkipGram(SkipGramConfig(10, n_embd=8, window=3, subsample=1.0))
    optimizer = AdamW(model.parameters(), lr=0.05)
    batches = SkipGramBatches(tokens, model.config, 256)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(*next(batches)).backward()
        optimizer.step()
    for word in range(10):
        found = [other for other, _ in model.nearest(word, 4)]
        assert {other // 5 for other in found} == {word // 5}


def test_nearest_is_by_cosine_and_leaves_the_word_out():
    model = SkipGram(SkipGramConfig(4, n_embd=2))
    vectors = [[1.0, 0.0], [10.0, 1.0], [0.0, 3.0], [-1.0, 0.0]]
    model.load_state_dict({"centers.weight": vectors}, strict=False)
    found = model.nearest(0, 10)
    assert [word for word, _ in found] == [1, 2, 3]
    np.testing.assert_allclose([c for _, c in found], [10 / 101**0.5, 0, -1], rtol=1e-6)
    with pytest.raises(IndexError, match="word 4 is none of 4"):
        model.nearest(4)


def test_save_and_load(tmp_path):
    model = SkipGram(SkipGramConfig(6, n_embd=3, window=2))
    model.save(tmp_path / "m")
    loaded = SkipGram.load(tmp_path / "m")
    assert loaded.config == model.config
    assert loaded.vectors.tolist() == model.vectors.tolist()


def test_errors():
    model = SkipGram(SkipGramConfig(6, n_embd=3))
    with pytest.raises(
        ValueError, match=r"centers and contexts must be \(N,\), negatives \(N, k\)"
    ):
        model.loss([1, 2], [1], [[1], [2]])
    with pytest.raises(ValueError, match="window must be an integer >= 1, got 0"):
        SkipGramConfig(6, window=0)
    with pytest.raises(ValueError, match="subsample must be > 0, got 0"):
        SkipGramConfig(6, subsample=0)
    with pytest.raises(ValueError, match="too few for a window of 5"):
        SkipGramBatches(np.arange(8) % 6, SkipGramConfig(6, subsample=1.0), 4)
