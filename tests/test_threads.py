"""The threads of the NumPy path: every row once, errors, contexts, forks, nesting."""

from __future__ import annotations

import contextvars
import os
import threading
import time

import numpy as np
import pytest

from gpugrad import threads
from gpugrad.threads import for_rows, num_threads


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 1023])
@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_every_row_is_visited_once_in_the_same_pieces(number, count):
    pieces = []
    with num_threads(number):
        for_rows(count, lambda start, stop: pieces.append((start, stop)), 3)
    assert sorted(pieces) == [(i, min(i + 3, count)) for i in range(0, count, 3)]


def test_pieces_run_side_by_side():
    both = threading.Barrier(2, timeout=20)  # broken if the second piece waits for the first
    with num_threads(2):
        for_rows(2, lambda start, stop: both.wait(), 1)


def test_one_thread_or_one_piece_run_in_place():
    seen = set()

    def work(start, stop):
        seen.add(threading.get_ident())

    with num_threads(1):
        for_rows(4, work, 1)
    with num_threads(4):
        for_rows(4, work, 4)
    assert seen == {threading.get_ident()}


def test_calls_within_work_run_in_place():
    inner = []
    both = threading.Barrier(2, timeout=20)

    def work(start, stop):
        both.wait()  # one piece here, one in another thread
        me = threading.get_ident()
        for_rows(3, lambda a, b: inner.append(threading.get_ident() == me), 1)

    with num_threads(2):
        for_rows(2, work, 1)
    assert inner == [True] * 6


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_error_is_raised_once_all_is_quiet(number):
    finished = []

    def work(start, stop):
        if start == 2:
            raise RuntimeError("piece 2")
        time.sleep(0.01)
        finished.append(start)

    with num_threads(number):
        with pytest.raises(RuntimeError, match="piece 2"):
            for_rows(100, work, 1)
        count = len(finished)
        assert count < 10
        time.sleep(0.03)
        assert len(finished) == count
        for_rows(5, lambda start, stop: finished.append(start), 1)  # and the threads go on
    assert len(finished) == count + 5


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupt_as_others_are_asked_leaves_nobody_at_work(monkeypatch, moment):
    """Or they would write to the memory of the next call."""
    ask = threads._Pool.ask

    def interrupted(pool, helpers, job):
        if moment == "after":
            ask(pool, helpers, job)
            time.sleep(0.02)  # in which they begin
        raise KeyboardInterrupt

    def work(start, stop):
        time.sleep(0.05)
        done[start:stop] += 1

    done = np.zeros(8)
    with num_threads(3):
        with monkeypatch.context() as patch:
            patch.setattr(threads._Pool, "ask", interrupted)
            with pytest.raises(KeyboardInterrupt):
                for_rows(8, work, 1)
        found = done.copy()
        time.sleep(0.2)
        np.testing.assert_array_equal(done, found)
        assert found.sum() < 8
        for_rows(8, work, 1)  # and the threads go on
    np.testing.assert_array_equal(done, found + 1)


def test_an_interrupt_on_the_way_to_waiting_leaves_nobody_at_work(monkeypatch):
    wait, struck = threads._Job.wait, []

    def interrupted(job):
        if not struck:
            struck.append(job)
            raise KeyboardInterrupt
        wait(job)

    def work(start, stop):
        time.sleep(0.05 if threading.current_thread() is not threading.main_thread() else 0)
        done[start:stop] += 1

    done = np.zeros(2)
    monkeypatch.setattr(threads._Job, "wait", interrupted)
    with num_threads(2), pytest.raises(KeyboardInterrupt):
        for_rows(2, work, 1)
    found = done.copy()
    time.sleep(0.1)
    np.testing.assert_array_equal(done, found)
    assert struck


def test_error_state_and_context_are_the_callers():
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(5)
    seen = []
    both = threading.Barrier(2, timeout=20)

    def work(start, stop):
        both.wait()
        seen.append(variable.get())
        np.log(np.zeros(3))

    with num_threads(2):
        with np.errstate(divide="ignore"):
            for_rows(2, work, 1)
        with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
            for_rows(2, work, 1)
    assert seen == [5] * 4


def test_many_callers_at_once():
    out = np.zeros((6, 400))

    def call(row):
        def work(start, stop):
            out[row, start:stop] += 1

        for _ in range(20):
            for_rows(400, work, 7)

    with num_threads(3):
        callers = [threading.Thread(target=call, args=(row,)) for row in range(6)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert (out == 20).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_has_threads_of_its_own():
    both = threading.Barrier(2, timeout=20)
    with num_threads(2):
        for_rows(2, lambda start, stop: both.wait(), 1)
        child = os.fork()
        if child == 0:
            try:
                for_rows(2, lambda start, stop: both.wait(), 1)
                os._exit(0)
            finally:
                os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_number_of_threads(monkeypatch, tmp_path):
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 9}, raising=False)
    assert threads.physical_cores(tmp_path) == 3  # nothing is known of cpu 9


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_a_number_that_makes_no_sense(monkeypatch, value):
    monkeypatch.setenv(threads.VARIABLE, value)
    with pytest.raises(ValueError, match="GPUGRAD_NUM_THREADS"):
        threads._default.__wrapped__()
    with pytest.raises(ValueError, match="set_num_threads"):
        threads.set_num_threads(0)


def test_the_environment_gives_the_number(monkeypatch):
    monkeypatch.setenv(threads.VARIABLE, "3")
    assert threads._default.__wrapped__() == 3


def test_what_limits_numpy_limits_the_threads(monkeypatch):
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert threads._default.__wrapped__() == 7
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "5")
    assert threads._default.__wrapped__() == 5
    monkeypatch.setenv(threads.VARIABLE, "3")
    assert threads._default.__wrapped__() == 3
