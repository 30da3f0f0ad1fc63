from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.models import KVCache


def parts(batch: int, t: int, seed: int):
    rng = np.random.default_rng(seed)
    return tuple(gg.Tensor(rng.normal(size=(batch, 2, t, 3))) for _ in range(2))


def test_extends_every_layer_and_counts_at_the_last() -> None:
    cache = KVCache(2, 8)
    first, second = parts(1, 3, 0), parts(1, 2, 1)
    for layer in (0, 1):
        cache.extend(layer, *first)
        assert cache.length == (0, 3)[layer]
    key, value = cache.extend(0, *second)
    for found, one, two in zip((key, value), first, second, strict=True):
        np.testing.assert_array_equal(found.numpy(), np.concatenate([one.numpy(), two.numpy()], 2))


def test_rows_of_different_lengths_keep_their_own_places() -> None:
    cache = KVCache(1, 8)
    assert cache.lengths is None
    cache.expect(np.array([3, 1]))
    first, second = parts(2, 3, 0), parts(2, 2, 1)
    cache.extend(0, *first)
    assert (cache.length, cache.lengths.tolist()) == (3, [3, 1])
    places, seen = cache.places(2)
    assert places.tolist() == [[3, 4], [1, 2]]
    assert seen[:, 0].astype(int).tolist() == [
        [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
        [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]],
    ]
    key, _ = cache.extend(0, *second)
    assert cache.lengths.tolist() == [5, 3]
    k1, k2 = first[0].numpy(), second[0].numpy()
    np.testing.assert_array_equal(key.numpy()[0], np.concatenate([k1[0], k2[0]], axis=1))
    np.testing.assert_array_equal(key.numpy()[1, :, :3], np.concatenate([k1[1, :, :1], k2[1]], 1))
    assert np.isfinite(key.numpy()).all()


@pytest.mark.parametrize("ragged", [False, True])
def test_reorder(ragged) -> None:
    cache = KVCache(1, 6)
    if ragged:
        cache.expect(np.array([1, 3, 2]))
    before, _ = cache.extend(0, *parts(3, 3, 0))
    before = before.numpy().copy()
    cache.reorder([2, 0, 2, 1])
    if ragged:
        assert cache.lengths.tolist() == [2, 1, 2, 3]
    new = parts(4, 1, 2)
    after, _ = cache.extend(0, *new)
    for row, old in enumerate([2, 0, 2, 1]):
        n = [1, 3, 2][old] if ragged else 3
        np.testing.assert_array_equal(after.numpy()[row, :, :n], before[old, :, :n])
        np.testing.assert_array_equal(after.numpy()[row, :, n], new[0].numpy()[row, :, 0])


def test_refuses() -> None:
    cache = KVCache(1, 4)
    with pytest.raises(ValueError, match="0 positions and 5 new ones exceed the 4"):
        cache.extend(0, *parts(1, 5, 0))
    cache.extend(0, *parts(2, 1, 0))
    with pytest.raises(ValueError, match="began with a batch of 2, now given one of 3"):
        cache.extend(0, *parts(3, 1, 0))
    key, value = parts(2, 1, 0)
    with pytest.raises(RuntimeError, match=r"decode under gg\.no_grad"):
        cache.extend(0, gg.tensor(key.numpy(), requires_grad=True), value)
