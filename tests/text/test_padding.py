from __future__ import annotations

import numpy as np
import pytest

from gpugrad.text import pad_batch, pad_truncate


def test_pad_truncate() -> None:
    rows = pad_truncate([[1, 2, 3, 4], np.array([5], np.uint16), [], [6, 7, 8]], 3, pad=-1)
    assert rows.dtype == np.int64
    assert rows.tolist() == [[1, 2, 3], [5, -1, -1], [-1, -1, -1], [6, 7, 8]]
    assert pad_truncate([], 3).shape == (0, 3)


def test_pad_truncate_needs_a_block() -> None:
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        pad_truncate([[1]], 0)
    with pytest.raises(TypeError, match="pad_truncate: row 0 must be 1-D integer ids"):
        pad_truncate([[0.5]], 2)


def test_ids_targets_and_mask() -> None:
    batch = pad_batch([[5, 6, 7, 8], np.array([9, 4], np.uint16), [], [3]], 3, pad=1)
    assert batch.ids.tolist() == [[5, 6, 7], [9, 4, 1], [1, 1, 1], [3, 1, 1]]
    assert batch.targets.tolist() == [[6, 7, 8], [4, -100, -100], [-100] * 3, [-100] * 3]
    assert batch.mask.tolist() == [
        [True] * 3,
        [True, True, False],
        [False] * 3,
        [True, False, False],
    ]
    assert batch.ids.dtype == batch.targets.dtype == np.int64
    assert batch.mask.dtype == bool


def test_a_token_that_is_also_the_padding_counts() -> None:
    batch = pad_batch([[0, 0, 1]], 4, ignore_index=-1)
    assert batch.mask.tolist() == [[True, True, True, False]]
    assert batch.targets.tolist() == [[0, 1, -1, -1]]


def test_no_rows() -> None:
    assert [part.shape for part in pad_batch([], 3)] == [(0, 3)] * 3


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="pad_batch: block must be at least 1, got 0"):
        pad_batch([[1]], 0)
    with pytest.raises(
        TypeError, match=r"pad_batch: row 1 must be 1-D integer ids, .* \(1,\) .*float"
    ):
        pad_batch([[1], [0.5]], 3)
    with pytest.raises(TypeError, match=r"row 0 must be 1-D integer ids, got shape \(1, 1\)"):
        pad_batch([[[1]]], 3)
