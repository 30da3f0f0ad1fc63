"""Calls in two halves: what is noted, and what is not."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from gpugrad import memory, prepared, threads


def shifted(x: np.ndarray) -> np.ndarray:
    """Return x less the smallest number of each column."""
    out, low = memory.zeros(x.shape, x.dtype), memory.empty(x.shape[1:], x.dtype)
    prepared.once(lambda: np.min(x, axis=0, out=low))
    threads.for_rows(len(x), lambda i, j: np.subtract(x[i:j], low, out=out[i:j]), 2)
    return out


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_noted_does_what_was_left_out(count):
    rng = np.random.default_rng()
    x = rng.standard_normal((7, 3))
    with threads.num_threads(count):
        out, calls = prepared.noted(lambda: shifted(x))
        assert len(calls) == 3
        for _ in range(3):
            x[...] = rng.standard_normal((7, 3))
            out[...] = np.nan
            for call in calls:
                call()
            np.testing.assert_array_equal(out, x - x.min(axis=0))
    np.testing.assert_array_equal(shifted(x), out)  # with nothing noted


def test_what_work_calls_belongs_to_it():
    done: list[str] = []

    def work() -> None:
        done.append("outer")
        prepared.once(lambda: done.append("inner"))
        threads.for_rows(1, lambda i, j: done.append("row"), 1)

    _, calls = prepared.noted(lambda: prepared.once(work))
    assert len(calls) == 1
    assert not done
    calls[0]()
    assert done == ["outer", "inner", "row"]


def test_notes_what_this_thread_does():
    def elsewhere() -> None:
        assert prepared.is_plain()
        prepared.once(lambda: None)

    def both() -> None:
        assert not prepared.is_plain()
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    _, calls = prepared.noted(both)
    assert not calls
    assert prepared.is_plain()


def test_nothing_is_noted_after_an_error():
    with pytest.raises(ZeroDivisionError):
        prepared.noted(lambda: 1 / 0)
    assert prepared.is_plain()


def test_left_out_is_what_this_thread_does_with_values():
    done: list[object] = []

    def note(start: int, stop: int) -> None:
        done.append((start, stop))

    def work() -> str:
        threads.for_rows(4, note, 2)
        threads.for_rows(2, note, 2)
        prepared.once(lambda: done.append("once"))
        made = memory.zeros((3,), float)
        assert made.shape == (3,)
        assert not done
        other = threading.Thread(target=threads.for_rows, args=(4, note, 2))
        other.start()
        other.join()
        return "found"

    assert prepared.left_out(work) == "found"
    assert sorted(done) == [(0, 2), (2, 4)]
    threads.for_rows(4, note, 2)
    assert len(done) == 4
