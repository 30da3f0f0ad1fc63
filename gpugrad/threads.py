"""The threads of the NumPy path: rows of an array, worked on side by side.

NumPy lets other threads run while it computes, so a chain of ufuncs over one part of the rows and
the same chain over another use two cores. How rows are cut does not depend on the number of
threads, so neither do results, to the last bit.
"""

from __future__ import annotations

import collections
import contextvars
import functools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from . import memory, openblas, prepared

VARIABLE = "GPUGRAD_NUM_THREADS"
_OTHERS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")  # what users set for NumPy's products
_CORES = "/sys/devices/system/cpu"

_chosen: int | None = None  # by set_num_threads


def get_num_threads() -> int:
    """Return how many threads share the rows: GPUGRAD_NUM_THREADS, else one for each core.

    OPENBLAS_NUM_THREADS and OMP_NUM_THREADS, which limit NumPy's own products, count as well.
    Raises ValueError where the variable is no whole number above 0.
    """
    return _default() if _chosen is None else _chosen


def set_num_threads(count: int | None) -> None:
    """Let `count` threads share the rows from now on; None: as many as by default."""
    if count is not None and count < 1:
        raise ValueError(f"set_num_threads: count must be at least 1, got {count!r}")
    global _chosen
    _chosen = count


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Let `count` threads share the rows within the block, whoever calls."""
    before = _chosen
    set_num_threads(count)
    try:
        yield
    finally:
        set_num_threads(before)


def asked() -> int | None:
    """Return what GPUGRAD_NUM_THREADS asks for, if anything; ValueError for what is no number."""
    asked = os.environ.get(VARIABLE)
    if asked and (not asked.isdecimal() or int(asked) < 1):
        raise ValueError(f"{VARIABLE} must be a whole number above 0, got {asked!r}")
    return int(asked) if asked else None


@functools.cache
def _default() -> int:
    limits = [os.environ.get(name, "") for name in _OTHERS]
    given = [int(limit) for limit in limits if limit.isdecimal() and int(limit)]
    return asked() or (given[0] if given else physical_cores())


def physical_cores(folder: str | os.PathLike[str] = _CORES) -> int:
    """Return how many cores the process may run on; two threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = os.path.join(folder, f"cpu{cpu}", "topology", "thread_siblings_list")
        cores.add(_read(siblings) if os.path.exists(siblings) else str(cpu))
    return len(cores)


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def for_rows(
    count: int, work: Callable[[int, int], Any], grain: int, *, light: bool = False
) -> None:
    """Call work(start, stop) for every piece of range(count), on the threads that are there.

    Every piece is `grain` long, but the last. They are taken in no fixed order, so each has to
    write to memory of its own. It pays from about 100 µs of work in a piece, in calls of NumPy that
    last 20 µs or more: waking a thread takes some 10 to 30 µs, and so does waiting for one that
    holds the interpreter lock. A single piece, a single thread, and calls within `work` take place
    in this one, and so do pieces that are ``light``: only the helpers of a compiled step, which
    wait for neither, take a part of those (``gpugrad.processes``).

    NumPy's error state and other context variables are those of the caller; a matrix product within
    one of several pieces takes one thread. What `work` raises, and Ctrl-C, is raised here once no
    other piece is being worked on; the rest is left out.
    """
    if not prepared.is_plain():
        prepared.once(functools.partial(for_rows, count, work, grain, light=light))
    elif 0 < count <= grain:
        with memory.new():
            work(0, count)
    elif count:
        with openblas.serial, memory.new():
            _for_rows(count, work, grain, 1 if light else get_num_threads())


class Rows(NamedTuple):
    """What ``for_rows`` is called with."""

    total: int
    work: Callable[[int, int], Any]
    grain: int

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Where each piece starts and stops."""
        starts = range(0, self.total, self.grain)
        return [(start, min(start + self.grain, self.total)) for start in starts]


def rows_of(call: Callable[[], Any]) -> Rows | None:
    """Return the arguments of a call of ``for_rows`` that ``gpugrad.prepared`` has noted."""
    if isinstance(call, functools.partial) and call.func is for_rows:
        return Rows(*call.args)
    return None


def inside() -> bool:
    """Return whether this thread works on a piece: what it calls takes no other threads."""
    return _local.inside


def alone(work: Callable[[int, int], Any], pieces: Iterable[tuple[int, int]]) -> None:
    """Call work(start, stop) for some pieces in this thread, and what that calls as well."""
    before = _local.inside
    try:
        _local.inside = True
        for start, stop in pieces:
            work(start, stop)
    finally:
        _local.inside = before


def _for_rows(count: int, work: Callable[[int, int], Any], grain: int, most: int) -> None:
    starts = range(0, count, grain)
    helpers = min(most, len(starts)) - 1
    if helpers < 1 or _local.inside:
        for start in starts:
            work(start, min(start + grain, count))
        return
    job = _Job(count, work, grain)
    try:
        try:
            _pool.ask(helpers, job)
            _local.inside = True
            job.run()
        except BaseException as error:  # Ctrl-C between two pieces
            job.stop(error)
        finally:
            _local.inside = False
        job.wait()
    except BaseException as error:  # Ctrl-C between two of these lines
        job.stop(error)
        job.wait()
    job.work = None  # a thread that wakes up only now should not keep its arrays
    if job.error is not None:
        raise job.error


class _Job:
    """Pieces that the threads take one after the other.

    Only the main thread is interrupted, by Ctrl-C, anywhere. So the helpers alone keep account of
    themselves: one enters before it takes a piece, and who waits for all that entered has waited
    for all pieces.
    """

    def __init__(self, count: int, work: Callable[[int, int], Any], grain: int) -> None:
        self.count, self.grain = count, grain
        self.work: Callable[[int, int], Any] | None = work
        self.todo = collections.deque(range(0, count, grain))
        self.entered: list[None] = []
        self.left: list[None] = []
        self.finished: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Work until no piece is left."""
        while True:
            try:
                start = self.todo.popleft()
            except IndexError:
                return
            if self.error is not None:
                continue
            try:
                assert self.work is not None
                self.work(start, min(start + self.grain, self.count))
            except BaseException as error:
                self.error = error

    def help(self) -> None:
        """Do the same for the thread that waits."""
        if self.todo:
            self.entered.append(None)
            self.run()
            self.left.append(None)
            self.finished.put(None)

    def stop(self, error: BaseException) -> None:
        """Leave out the pieces that nobody has taken."""
        self.error = self.error or error
        self.todo.clear()

    def wait(self) -> None:
        """Return once no piece is being worked on, whatever interrupts."""
        try:
            while len(self.left) < len(self.entered):
                self.finished.get()
        except BaseException as error:
            self.stop(error)
            while len(self.left) < len(self.entered):
                time.sleep(1e-4)


class _Local(threading.local):
    inside = False  # whether the thread works on a piece


class _Pool:
    """Threads that wait for jobs, as many as were ever asked for."""

    def __init__(self) -> None:
        self._size = 0
        self._growing = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[contextvars.Context, _Job]] = queue.SimpleQueue()

    def ask(self, helpers: int, job: _Job) -> None:
        """Let this many threads know of a job."""
        if helpers > self._size:
            with self._growing:
                while self._size < helpers:
                    name = f"gpugrad-rows-{self._size + 1}"
                    threading.Thread(target=self._serve, name=name, daemon=True).start()
                    self._size += 1
        for _ in range(helpers):
            self._jobs.put((contextvars.copy_context(), job))

    def _serve(self) -> None:
        _local.inside = True
        while True:
            context, job = self._jobs.get()
            context.run(job.help)
            del context, job  # while waiting, hold nothing


def _after_fork() -> None:
    global _pool
    _pool = _Pool()  # a child has none of the threads
    _local.inside = False


_local = _Local()
_pool = _Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
