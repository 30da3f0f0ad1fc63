"""Pieces of large arrays: every one visited once, the same bits for any number of threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.optim import SGD, Adam, AdamW, blocks, clip_grad_norm_
from gpugrad.threads import num_threads

KINDS = {
    "sgd": lambda params: SGD(params, lr=0.1, momentum=0.9),
    "adam": lambda params: Adam(params, weight_decay=0.1),
    "adamw": lambda params: AdamW(params),
}
SHAPES = [(300, 700), (5,), (4000, 30), (), (2, 0), (70_001,)]


def _trained(make, dtype, number):
    """Return all bits after two steps with this many threads."""
    rng = np.random.default_rng(2)
    params = [gg.tensor(rng.normal(size=s), dtype=dtype, requires_grad=True) for s in SHAPES]
    optimizer, seen = make(params), []
    with num_threads(number):
        for _ in range(2):
            for p in params:
                p.grad = gg.tensor(rng.normal(size=p.shape), dtype=dtype)
            params[0].grad = gg.tensor(np.asfortranarray(params[0].grad.data))
            seen.append(optimizer.step(max_norm=0.5).data)
            seen.append(np.float64(clip_grad_norm_(params, 0.7)))
    seen += [a for p in params for a in (p.data, p.grad.data)]
    return b"".join(a.tobytes() for a in seen)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_the_number_of_threads_changes_no_bit(make, dtype, monkeypatch):
    for name, value in {"CPU_BLOCK": 1 << 16, "SHORT": 0}.items():  # so that all have some
        monkeypatch.setattr(blocks, name, value)
    assert len({_trained(make, dtype, number) for number in (1, 2, 3)}) == 1


def test_every_piece_is_visited_once_and_small_ones_go_together(monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", 10)
    pieces = [np.zeros(n) for n in (3, 4, 5, 0, 10, 1, 12, 2, 2)]
    groups: dict[int, list[int]] = {}
    counts = []

    def for_rows(count, work, grain):
        counts.append(count)
        for start in range(count):
            work(start, start + 1)
            groups[start] = seen[:]
            seen.clear()

    seen: list[int] = []
    monkeypatch.setattr(blocks, "for_rows", for_rows)
    blocks.for_pieces(pieces, seen.append)
    assert counts == [4]
    assert list(groups.values()) == [[0, 1, 2], [3, 4], [5, 6], [7, 8]]
    blocks.for_pieces([], seen.append)
    assert counts == [4, 0]


def test_threads_share_the_pieces():
    both = threading.Barrier(2, timeout=20)  # broken if one waits for the other
    pieces = [np.zeros(blocks.CPU_BLOCK) for _ in range(2)]
    with num_threads(2):
        blocks.for_pieces(pieces, lambda i: both.wait())


def test_short_pieces_wake_no_thread(monkeypatch):
    taken = []
    monkeypatch.setattr(blocks, "for_rows", lambda count, work, grain: taken.append((count, grain)))
    pieces = [np.zeros(blocks.CPU_BLOCK), np.zeros(blocks.CPU_BLOCK), *[np.zeros(1)] * 4]
    blocks.for_pieces(pieces, print)
    blocks.for_pieces([*pieces, *[np.zeros(1)] * 5], print)
    assert taken == [(3, 1), (3, 3)]


def test_scratch_is_each_threads_own():
    scratch = blocks.Scratch()
    like = np.zeros(7, np.float32)
    mine, _ = scratch.arrays(like, 2)
    others = []
    helper = threading.Thread(target=lambda: others.extend(scratch.arrays(like, 2)))
    helper.start()
    helper.join()
    assert np.shares_memory(scratch.arrays(like, 2)[0], mine)
    assert not any(np.shares_memory(mine, other) for other in others)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("layout", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (10,), (11,), (41,), (7, 4), (3, 25)])
def test_pieces_are_about_equal_and_cover_the_array(monkeypatch, shape, layout, parts):
    monkeypatch.setattr(blocks, "CPU_BLOCK", 10)
    x = np.arange(np.prod(shape, dtype=int)).reshape(shape, order=layout)
    rows, pieces = blocks.blocks(x, parts)
    assert np.shares_memory(rows, x) or not x.size
    seen = [rows[piece.rows].reshape(-1) for piece in pieces]
    np.testing.assert_array_equal(np.concatenate([*seen, []]), x.reshape(-1))
    for piece, elements in zip(pieces, seen, strict=True):
        np.testing.assert_array_equal(x.reshape(-1)[piece.flat], elements)
    sizes = [len(elements) for elements in seen]
    row = 25 if shape == (3, 25) and layout == "F" else 1  # a row of it lies nowhere in one piece
    assert max(sizes, default=0) <= max(10 // parts, row)
    assert max(sizes, default=0) - min(sizes, default=0) < max(10 // parts, 2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scratch_begins_with_a_line_of_the_cache(dtype):
    scratch = blocks.Scratch()
    for size in (7, 1000, 3):
        arrays = scratch.arrays(np.zeros(size, dtype), 3)
        assert [(a.size, a.dtype, a.ctypes.data % 64) for a in arrays] == [(size, dtype, 0)] * 3
        for i, a in enumerate(arrays):
            a[...] = i
        assert [set(a) for a in arrays] == [{0}, {1}, {2}]
