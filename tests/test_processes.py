"""The helpers of a step: who does what, on which memory, and what is left when something ends."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from gpugrad import processes, threads
from gpugrad.processes import Memory, Team, helper

resource = pytest.importorskip("resource")  # not on Windows
pytestmark = pytest.mark.skipif(
    not (sys.platform == "linux" and processes.platform.machine() == "x86_64"),
    reason="helpers are forked on Linux on x86-64",
)


@pytest.fixture(autouse=True)
def two():
    with threads.num_threads(2):
        yield


def numbers(memory, *shape):
    found = memory.zeros(8 * int(np.prod(shape))).view(np.float64).reshape(shape)
    found[...] = np.random.default_rng().standard_normal(shape)
    return found


def rows(count, work, grain):
    return functools.partial(threads.for_rows, count, work, grain)


def who_works(memory, count, grain=1):
    """Return calls that note which process has done a row, and where it does."""
    seen = numbers(memory, count)

    def work(start, stop):
        seen[start:stop] = os.getpid()

    return [rows(count, work, grain)], seen


def gone(pid):
    """Return whether a process has ended, and been waited for, within some seconds."""
    for _ in range(400):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(("size", "count", "grain"), [(2, 2, 1), (2, 7, 2), (3, 7, 1), (8, 5, 1)])
def test_each_process_does_its_rows(size, count, grain):
    memory = Memory()
    calls, seen = who_works(memory, count, grain)
    with threads.num_threads(size):
        team = Team([calls], memory)
        pieces = -(-count // grain)
        assert len(team) == min(size, pieces) - 1
        for _ in range(3):
            seen[...] = 0
            calls[0]()
            assert seen[0] == os.getpid()
            assert len(set(seen)) == min(size, pieces)
            assert np.count_nonzero(np.diff(seen)) == len(set(seen)) - 1  # each does neighbours


def test_what_is_stored_before_is_what_is_read():
    """Ten thousand handovers, each of new values, in both directions."""
    memory = Memory()
    x, y = numbers(memory, 2, 64), numbers(memory, 2, 64)

    def work(start, stop):
        np.add(x[start:stop], 1, out=y[start:stop])

    calls = [rows(2, work, 1)]
    team = Team([calls], memory)
    for i in range(10_000):
        x[...] = i
        calls[0]()
        assert (y == i + 1).all()
    assert len(team) == 1


def test_a_helper_that_sleeps_is_woken():
    memory = Memory()
    calls, seen = who_works(memory, 2)
    team = Team([calls], memory)
    for pause in (0, 1e-4, 3e-4, 4e-4, 1e-3, 0.05, 1.2, 0):
        time.sleep(pause)
        seen[...] = 0
        begun = time.perf_counter()
        calls[0]()
        assert len(set(seen)) == 2
        assert 0 not in seen
        assert time.perf_counter() - begun < 0.5
    assert len(team) == 1


def test_who_is_woken_ahead_is_awake():
    memory = Memory()
    calls, _ = who_works(memory, 2)
    team = Team([calls], memory)
    board = team._helpers[0]._board

    def is_woken():
        time.sleep(0.02)
        if not board[helper._ASLEEP]:
            return False
        team.wake()
        until = time.perf_counter() + 0.05
        while board[helper._ASLEEP] and time.perf_counter() < until:
            pass
        return not board[helper._ASLEEP]

    assert any(is_woken() for _ in range(50))  # it does not stay awake for long
    calls[0]()


@pytest.mark.parametrize(
    ("kind", "is_shared"),
    [
        ("shared", True),
        ("view", True),
        ("constant", True),
        ("own", False),
        ("read-only view", False),
        ("in a list", False),
        ("default", False),
        ("attribute", False),
        ("method", False),
    ],
)
def test_only_work_on_shared_memory_is_shared(kind, is_shared):
    memory = Memory()
    out, own = numbers(memory, 4), np.ones(4)
    constant = np.ones(4)
    constant.flags.writeable = False
    found = {
        "shared": numbers(memory, 4),
        "view": numbers(memory, 2, 4)[1, ::-1],
        "constant": constant,
        "own": own,
        "read-only view": np.broadcast_to(own, (4,)),
        "in a list": [{"a": own}],
    }.get(kind)

    class Adds:
        def __init__(self):
            self.x = own

        def work(self, start, stop):
            out[start:stop] += self.x[start:stop]

    def by_default(start, stop, x=own):
        out[start:stop] += x[start:stop]

    adds = Adds()

    def by_attribute(start, stop):
        adds.work(start, stop)

    def by_closure(start, stop):
        x = found[0]["a"] if isinstance(found, list) else found
        out[start:stop] += x[start:stop]

    named = {"default": by_default, "attribute": by_attribute, "method": adds.work}
    call = rows(4, named.get(kind, by_closure), 2)
    calls = [call]
    team = Team([calls], memory)
    assert len(team) == int(is_shared)
    assert (calls[0] is not call) == is_shared
    before = out.copy()
    calls[0]()
    assert (out != before).all()


def test_other_calls_and_single_pieces_are_left_alone():
    memory = Memory()
    x = numbers(memory, 4)
    calls = [lambda: x.fill(0), rows(4, lambda i, j: x[i:j].fill(1), 4)]
    before = list(calls)
    assert len(Team([calls], memory)) == 0
    assert calls == before


def test_an_error_is_raised_here_whoever_meets_it():
    memory = Memory()
    x, bad = numbers(memory, 4), numbers(memory, 1)

    def work(start, stop):
        if start == bad[0]:
            raise IndexError(f"row {start}")
        x[start:stop] += 1

    calls = [rows(4, work, 1)]
    team = Team([calls], memory)
    for row in (0, 3, 0, 2):
        bad[0] = row
        with pytest.raises(IndexError, match=f"row {row}"):
            calls[0]()
        bad[0] = -1
        x[...] = 0
        calls[0]()
        assert (x == 1).all()
    assert len(team) == 1


def test_errors_of_several_helpers_are_one():
    memory = Memory()
    x, bad = numbers(memory, 3), numbers(memory, 1)

    def work(start, stop):
        if start and bad[0]:
            raise IndexError(f"row {start}")
        x[start:stop] = 7

    calls = [rows(3, work, 1)]
    with threads.num_threads(3):
        team = Team([calls], memory)
        for bad[0] in (1, 0, 1, 0):
            x[...] = 0
            if bad[0]:
                with pytest.raises(IndexError, match="row 1"):
                    calls[0]()
            else:
                calls[0]()
                assert (x == 7).all()
    assert len(team) == 2


def test_an_error_that_only_a_helper_meets_is_one():
    memory = Memory()
    x, parent = numbers(memory, 2), os.getpid()

    def work(start, stop):
        if os.getpid() != parent:
            raise MemoryError
        x[start:stop] = 1

    calls = [rows(2, work, 1)]
    team = Team([calls], memory)
    with pytest.raises(RuntimeError, match=r"helper process failed.*GPUGRAD_FORK=0"):
        calls[0]()
    assert len(team) == 1


def test_a_helper_that_is_killed_is_an_error_once():
    memory = Memory()
    calls, seen = who_works(memory, 2)
    team = Team([calls], memory)
    os.kill(team._helpers[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"was ended from outside.*GPUGRAD_FORK=0"):
        calls[0]()
    assert len(team) == 0
    calls[0]()
    assert (seen == os.getpid()).all()


def test_a_helper_ends_with_its_team():
    memory = Memory()
    calls, _ = who_works(memory, 2)
    team = Team([calls], memory)
    pid = team._helpers[0].pid
    calls[0]()
    del team
    assert not gone_at_once(pid)  # the calls are the team's
    calls.clear()
    assert gone(pid)


def gone_at_once(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return False
    return True


@pytest.mark.parametrize("asleep", [False, True])
def test_an_interrupt_leaves_nobody_at_work(asleep):
    memory = Memory()
    x = numbers(memory, 2)
    parent = os.getpid()

    def work(start, stop):
        if os.getpid() == parent and x[0] == 0:
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.1)
        x[start:stop] += 1

    calls = [rows(2, work, 1)]
    team = Team([calls], memory)
    x[...] = 0
    time.sleep(0.01 * asleep)
    with pytest.raises(KeyboardInterrupt):
        calls[0]()
    found = x.copy()
    assert found.tolist() == [0, 1]  # the helper has finished
    time.sleep(0.2)
    assert (x == found).all()
    x[...] = 5
    calls[0]()
    assert (x == 6).all()
    assert len(team) == 1


def test_ctrl_c_at_a_terminal_is_the_parents_alone():
    memory = Memory()
    calls, seen = who_works(memory, 2)
    team = Team([calls], memory)
    for stop in (signal.SIGINT, signal.SIGTERM):  # which a terminal sends to all
        os.kill(team._helpers[0].pid, stop)
    time.sleep(0.05)
    calls[0]()
    assert len(set(seen)) == 2


def test_handlers_of_signals_are_the_parents_alone():
    memory = Memory()
    calls, seen = who_works(memory, 2)
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(os.getpid()))
    try:
        team = Team([calls], memory)
        calls[0]()
        os.kill(team._helpers[0].pid, signal.SIGUSR1)
        os.kill(team._helpers[0].pid, signal.SIGUSR2)  # as to all processes of a group
        time.sleep(0.05)
        calls[0]()
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [os.getpid()]
    assert len(set(seen)) == 2


def test_fewer_threads_do_without_helpers():
    memory = Memory()
    calls, seen = who_works(memory, 4)
    team = Team([calls], memory)
    with threads.num_threads(1):
        calls[0]()
    assert set(seen) == {os.getpid()}
    calls[0]()
    assert len(set(seen)) == 2
    assert len(team) == 1


def test_without_processes_calls_are_left_alone(monkeypatch):
    def refused():
        raise BlockingIOError("too many processes")

    memory = Memory()
    calls, seen = who_works(memory, 2)
    before = list(calls)
    opened = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "fork", refused)
    team = Team([calls], memory)
    assert len(team) == 0
    assert calls == before
    assert len(os.listdir("/proc/self/fd")) == opened
    calls[0]()
    assert set(seen) == {os.getpid()}


def test_a_thread_may_have_helpers():
    found = []

    def run():
        memory = Memory()
        calls, seen = who_works(memory, 2)
        team = Team([calls], memory)
        calls[0]()
        found.append((len(set(seen)), len(team)))

    runner = threading.Thread(target=run)
    runner.start()
    runner.join()
    assert found == [(2, 1)]


def test_a_forked_process_leaves_helpers_alone():
    memory = Memory()
    calls, seen = who_works(memory, 2)
    team = Team([calls], memory)
    child = os.fork()
    if child == 0:
        try:
            calls.clear()
            del team
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    calls[0]()
    assert len(set(seen)) == 2
    assert len(team) == 1


def test_a_helper_keeps_no_file_open():
    """Or whoever reads what this process writes would wait for it."""
    ours, theirs = os.pipe()
    memory = Memory()
    calls, _ = who_works(memory, 2)
    team = Team([calls], memory)
    calls[0]()  # by now it has begun
    pid = team._helpers[0].pid
    kept = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    assert {name for name in kept if not name.startswith("pipe:")} == {os.devnull}
    assert len(kept) == 2  # its ears
    os.close(theirs)
    assert os.read(ours, 1) == b""
    os.close(ours)


def test_pages_that_no_work_needs_are_given_back(monkeypatch):
    monkeypatch.setattr("gpugrad.processes.team._MOST_HELD", 1 << 30)  # whatever is left
    memory = Memory()
    calls, _ = who_works(memory, 2)
    (large,) = kept = [np.ones(1 << 24, np.uint8)]  # variables of functions are not found
    held = []
    for may_change in (False, True):
        large.flags.writeable = may_change
        again = list(calls)
        team = Team([again], memory)
        again[0]()
        status = Path(f"/proc/{team._helpers[0].pid}/smaps_rollup").read_text()
        held.append(int(status.split("Rss:")[1].split()[0]))
    assert held[0] - held[1] > 10_000  # kB
    assert (kept[0] == 1).all()


def test_memory_of_other_steps_is_given_back():
    """Or what a step has shared would stay for as long as another one's helpers."""

    def shared():
        return int(Path("/proc/self/status").read_text().split("RssShmem:")[1].split()[0])

    first, second = Memory(), Memory()
    large = first.zeros(1 << 25)
    large[...] = 1
    calls, seen = who_works(second, 2)
    team = Team([calls], second)
    calls[0]()
    helper_pid = team._helpers[0].pid
    names = Path(f"/proc/{helper_pid}/maps").read_text()
    start = large.ctypes.data
    assert f"{start:x}-" not in names
    assert (large == 1).all()
    assert len(set(seen)) == 2
    before = shared()
    del large, first
    assert before - shared() > 30_000  # kB


class Lazy:
    @property
    def __class__(self):
        raise AssertionError("looked at")


def test_objects_are_left_alone():
    """A proxy of what is gone, and one that evaluates something when it is asked for its class."""
    gone_by_now = Lazy()
    held = [weakref.proxy(gone_by_now), Lazy()]
    del gone_by_now
    memory = Memory()
    calls, seen = who_works(memory, 2)
    team = Team([calls], memory)
    calls[0]()
    assert len(set(seen)) == 2
    assert len(team) == 1
    assert len(held) == 2


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_helper_that_is_forked_as_an_interrupt_comes_ends(monkeypatch, moment):
    fork, children = os.fork, []

    def interrupted():
        if moment == "before":
            raise KeyboardInterrupt
        child = fork()
        if child:
            children.append(child)
            raise KeyboardInterrupt
        return child

    memory = Memory()
    calls, seen = who_works(memory, 2)
    gc.collect()
    opened = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "fork", interrupted)
    monkeypatch.setattr(helper, "_END", 0.2)
    with pytest.raises(KeyboardInterrupt):
        Team([calls], memory)
    gc.collect()
    assert all(map(gone, children))
    assert len(os.listdir("/proc/self/fd")) == opened
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    calls[0]()
    assert set(seen) == {os.getpid()}


ENDING = """
import functools, os, sys, time
from gpugrad import processes, threads
threads.set_num_threads(2)
memory = processes.Memory()
x = memory.zeros(2)
def work(start, stop):
    x[start:stop] += 1
calls = [functools.partial(threads.for_rows, 2, work, 1)]
team = processes.Team([calls], memory)
calls[0]()
print(team._helpers[0].pid, flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), 9)
elif sys.argv[1] == "left":
    os._exit(3)
elif sys.argv[1] == "failed":
    raise SystemExit(4)
"""


@pytest.mark.parametrize("how", ["ended", "killed", "left", "failed"])
def test_helpers_end_with_their_process(how):
    run = [sys.executable, "-c", ENDING, how]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert done.returncode == {"ended": 0, "killed": -9, "left": 3, "failed": 4}[how]
    assert not done.stderr
    assert gone(int(done.stdout))


def test_standard_streams_may_be_closed():
    script = ENDING.replace("sys.argv[1] ==", "'' ==") + "time.sleep(0.1)\ncalls[0]()\n"
    run = f'exec "{sys.executable}" -c "$1" <&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", run, "sh", script], stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert done.returncode == 0
    assert gone(int(done.stdout))


def test_many_files_may_be_open():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < 1300:
        pytest.skip("so many files cannot be open here")
    memory = Memory()
    calls, seen = who_works(memory, 2)
    with contextlib.ExitStack() as files:
        files.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 1300), limits[1]))
        for _ in range(1100):
            files.enter_context(open(os.devnull, "rb"))
        team = Team([calls], memory)
        for _ in range(3):
            seen[...] = 0
            time.sleep(0.02)
            calls[0]()
            assert len(set(seen)) == 2
    assert len(team) == 1


@pytest.mark.parametrize(("value", "expected"), [("", True), ("1", True), ("0", False)])
def test_the_variable(monkeypatch, value, expected):
    monkeypatch.setenv(processes.VARIABLE, value)
    monkeypatch.setattr(processes.platform, "machine", lambda: "x86_64")
    assert processes.available() == expected
    monkeypatch.setattr(processes.platform, "machine", lambda: "aarch64")
    assert not processes.available()
    with threads.num_threads(1):
        assert not processes.available()


def test_a_value_that_makes_no_sense(monkeypatch):
    monkeypatch.setenv(processes.VARIABLE, "yes")
    with pytest.raises(ValueError, match="GPUGRAD_FORK must be 0 or 1, got 'yes'"):
        processes.available()


def test_memory_covers_what_lies_in_it():
    memory = Memory()
    a, b = memory.zeros(100), memory.zeros(3 * 4096)
    assert memory.covers(a)
    assert memory.covers(b[5:7])
    assert memory.covers(b[::-1])
    assert not a.any()
    assert len(a) == 100
    assert not memory.covers(np.zeros(3))
    assert not Memory().covers(a)
    assert helper.is_helper() is False
