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
def test_does_again_what_was_done_with_values(count):
    rng = np.random.default_rng()
    x = rng.standard_normal((7, 3))
    with threads.num_threads(count):
        out, calls = prepared.noted(lambda: shifted(x))
        np.testing.assert_array_equal(out, x - x.min(axis=0))
        x[...] = rng.standard_normal((7, 3))
        out[...] = np.nan
        for call in calls:
            call()
    np.testing.assert_array_equal(out, x - x.min(axis=0))
    assert len(calls) == 3
    np.testing.assert_array_equal(shifted(x), out)  # with nothing noted


def test_what_work_calls_belongs_to_it():
    done: list[str] = []

    def work() -> None:
        done.append("outer")
        prepared.once(lambda: done.append("inner"))
        threads.for_rows(1, lambda i, j: done.append("row"), 1)

    _, calls = prepared.noted(lambda: prepared.once(work))
    assert len(calls) == 1
    calls[0]()
    assert done == ["outer", "inner", "row"] * 2


def test_notes_what_this_thread_does():
    def elsewhere() -> None:
        assert not prepared.is_noting()
        prepared.once(lambda: None)

    def both() -> None:
        assert prepared.is_noting()
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    _, calls = prepared.noted(both)
    assert not calls
    assert not prepared.is_noting()


def test_work_that_fails_is_not_noted():
    found = []

    def fails() -> None:
        with pytest.raises(ZeroDivisionError):
            prepared.once(lambda: 1 / 0)
        found.append(prepared.is_noting())

    _, calls = prepared.noted(fails)
    assert found == [True]
    assert not calls
    with pytest.raises(ZeroDivisionError):
        prepared.noted(lambda: 1 / 0)
    assert not prepared.is_noting()
