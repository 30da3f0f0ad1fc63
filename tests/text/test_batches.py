from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from gpugrad.text import (
    ConsecutiveWindows,
    RandomWindows,
    fixed_windows,
    write_tokens,
)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
@pytest.mark.parametrize(("block", "batch"), [(1, 1), (8, 4), (31, 7), (99, 3)])
def test_windows_are_neighbours(block: int, batch: int, dtype) -> None:
    tokens = np.arange(100, dtype=dtype)
    for x, y in islice(RandomWindows(tokens, block, batch, seed=1), 20):
        assert x.shape == y.shape == (batch, block)
        assert x.dtype == y.dtype == np.int64
        assert x.flags.c_contiguous
        assert y.flags.c_contiguous
        np.testing.assert_array_equal(y, x + 1)
        np.testing.assert_array_equal(x, x[:, :1] + np.arange(block))


def test_every_start_is_drawn_equally_often() -> None:
    """Chi-square with 19 degrees of freedom: above 43.8 once in 1000 seeds."""
    windows = RandomWindows(np.arange(25), block=5, batch=100, seed=0)
    starts = np.concatenate([x[:, 0] for x, _ in islice(windows, 100)])
    counts = np.bincount(starts)
    assert counts.size == 20
    assert ((counts - 500) ** 2 / 500).sum() < 43.8


def test_first_batches_never_change() -> None:
    """Runs of older versions must resume: these starts are part of the format."""
    windows = RandomWindows(np.arange(1_000_000), block=64, batch=4, seed=1337)
    starts = [x[:, 0].tolist() for x, _ in islice(windows, 2)]
    assert starts == [[296201, 660563, 384046, 864037], [751579, 393119, 223323, 333132]]


def test_seed_decides() -> None:
    def first(seed: int) -> list[int]:
        return next(RandomWindows(np.arange(10_000), 5, 8, seed))[0][:, 0].tolist()

    assert first(3) == first(3)
    assert len({tuple(first(seed)) for seed in (0, 1, 2, 2**32, 2**64 - 1)}) == 5


def test_batches_differ() -> None:
    windows = RandomWindows(np.arange(10_000), 5, 8)
    assert len({tuple(x[:, 0]) for x, _ in islice(windows, 50)}) == 50


@pytest.mark.parametrize("steps", [0, 1, 17])
def test_resumes_exactly(steps: int) -> None:
    tokens = np.random.default_rng(0).integers(0, 50, 1000)
    windows = RandomWindows(tokens, 16, 4, seed=2**63 + 5)
    for _ in range(steps):
        next(windows)
    state = json.loads(json.dumps(windows.state_dict()))
    resumed = RandomWindows(tokens, 16, 4, seed=99)
    resumed.load_state_dict(state)
    for (x, y), (x2, y2) in islice(zip(windows, resumed, strict=False), 5):
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(y, y2)


@pytest.mark.parametrize(
    ("name", "other"),
    [("block", (100, 8, 4)), ("batch", (100, 7, 5)), ("tokens", (99, 7, 4))],
    ids=["block", "batch", "tokens"],
)
def test_state_of_another_shape_is_refused(name: str, other: tuple[int, int, int]) -> None:
    state = RandomWindows(np.arange(100), 7, 4).state_dict()
    count, block, batch = other
    windows = RandomWindows(np.arange(count), block, batch)
    message = f"taken with {name} = {state[name]}, here it is {windows.state_dict()[name]}"
    with pytest.raises(ValueError, match=message):
        windows.load_state_dict(state)


@pytest.mark.parametrize("state", [{}, {"seed": 1}, {"seed": 1, "step": 2, "rng": 3}], ids=repr)
def test_foreign_state_is_refused(state: dict) -> None:
    with pytest.raises(ValueError, match=r"load_state_dict: expected the keys \['batch', 'block'"):
        RandomWindows(np.arange(100), 7, 4).load_state_dict(state)


def test_memory_map_and_list(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 70_000, 500)
    tokens = write_tokens(tmp_path / "t", ids, 70_000).ids
    for make in (lambda t: next(RandomWindows(t, 9, 5)), lambda t: fixed_windows(t, 9, 5)):
        for mapped, listed, plain in zip(make(tokens), make(ids.tolist()), make(ids), strict=True):
            assert type(mapped) is np.ndarray
            np.testing.assert_array_equal(mapped, plain)
            np.testing.assert_array_equal(listed, plain)


@pytest.mark.parametrize(
    ("count", "block", "windows", "starts"),
    [
        (100, 9, 4, [0, 30, 60, 90]),
        (100, 9, 1, [0]),
        (11, 9, 2, [0, 1]),
        (12, 9, 50, [0, 1, 2]),
        (10, 9, 3, [0]),
        (20, 4, 4, [0, 5, 10, 15]),
    ],
)
def test_fixed_windows(count: int, block: int, windows: int, starts: list[int]) -> None:
    x, y = fixed_windows(np.arange(count, dtype=np.uint16), block, windows)
    assert x.dtype == y.dtype == np.int64
    np.testing.assert_array_equal(x, np.array(starts)[:, None] + np.arange(block))
    np.testing.assert_array_equal(y, x + 1)


@pytest.mark.parametrize("make", [RandomWindows, fixed_windows])
@pytest.mark.parametrize("count", [0, 1, 63, 64])
def test_short_corpus_is_refused_with_both_numbers(make, count: int) -> None:
    message = f"{make.__name__}: {count} tokens are too few for block 64: one window takes 65"
    with pytest.raises(ValueError, match=message):
        make(np.arange(count), 64, 4)
    make(np.arange(65), 64, 4)


@pytest.mark.parametrize("make", [RandomWindows, fixed_windows])
@pytest.mark.parametrize(
    ("tokens", "block", "number", "message"),
    [
        (np.arange(10), 0, 4, "block must be at least 1, got 0"),
        (np.arange(10), 4, 0, "must be at least 1, got 0"),
        (np.ones((10, 10), int), 4, 4, "tokens must be 1-D integers, got shape (10, 10)"),
        (np.ones(10), 4, 4, "tokens must be 1-D integers, got shape (10,) and dtype float64"),
    ],
    ids=["block", "number", "2-D", "float"],
)
def test_bad_arguments_are_refused(make, tokens, block: int, number: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(tokens, block, number)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_bad_seed_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed must be in .* got {seed}"):
        RandomWindows(np.arange(10), 4, 4, seed)


def test_consecutive_windows_go_on_where_they_ended() -> None:
    tokens = np.arange(100, 133)
    windows = ConsecutiveWindows(tokens, block=5, batch=3)  # three streams of 10
    starts, seen = [], []
    for _ in range(5):
        starts.append(windows.at_start)
        x, y = next(windows)
        assert x.dtype == y.dtype == np.int64
        np.testing.assert_array_equal(y, x + 1)
        seen.append(x)
    assert windows.count == 2
    assert starts == [True, False, True, False, True]
    streams = np.concatenate(seen[:2], 1)
    np.testing.assert_array_equal(
        streams, [[100 + 10 * b + t for t in range(10)] for b in range(3)]
    )
    np.testing.assert_array_equal(seen[2], seen[0])
    np.testing.assert_array_equal(seen[3], seen[1])


def test_consecutive_windows_need_a_window_for_every_stream() -> None:
    assert next(ConsecutiveWindows(np.arange(13), 4, 3))[1].max() == 12
    with pytest.raises(ValueError, match=r"12 tokens are too few for 3 streams .* take 13"):
        ConsecutiveWindows(np.arange(12), 4, 3)
    with pytest.raises(ValueError, match="ConsecutiveWindows: batch must be at least 1, got 0"):
        ConsecutiveWindows(np.arange(12), 4, 0)
