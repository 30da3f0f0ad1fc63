"""A helper: a process forked from this one, and how the two tell each other what to do.

Each pair has a board of words that both see; each word is stored by one side. On x86-64 stores are
seen in the order in which they were made, so what was computed is seen by whoever sees the word
that says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import mmap
import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .. import openblas, threads

VARIABLE = "GPUGRAD_FORK"

# What helpers are told by the number of: work on rows, and the pieces to call it for
Part: TypeAlias = tuple[Callable[[int, int], Any], Sequence[tuple[int, int]]]


class Unused(NamedTuple):
    """What no work of a helper reaches: arrays, and what others share, by first byte and end."""

    arrays: Sequence[np.ndarray]
    shared: Sequence[tuple[int, int]]


_SPINS = 200  # looks at the board, about 10 µs, before others may have the processor as well
_AWAKE = 3e-4  # seconds after which who waits sleeps: waking takes 50 µs
_NAP = 5e-5  # seconds between two looks of a step that waits for long
_LOOK = 1000  # milliseconds after which a sleeping helper looks whether its parent is alive
_END = 1.0  # seconds that a helper has for ending

# Words of the board. The first line of the cache is stored to by the step: how many works it has
# told the helper of, and the number of the last; the second by the helper: how many of them are
# done, and whether it sleeps; the third by both in turn: whether the last has failed, and the
# helper's process.
_TOLD, _NUMBER, _DONE, _ASLEEP, _FAILED, _PID = 0, 1, 8, 9, 16, 17
_STOP = (1 << 64) - 1  # the number of no work

# Signals that a helper leaves as they are: those of faults and of job control. It ends when its
# parent does, whatever else is sent to all processes of a group.
_FAULTS = ["SEGV", "BUS", "ILL", "FPE", "ABRT", "TRAP", "SYS"]
_JOBS = ["CHLD", "CONT", "TSTP", "TTIN", "TTOU", "STOP", "KILL"]

_one_at_a_time = threading.Lock()  # who makes helpers
_forking: int | None = None  # the thread that makes helpers; in a helper, its only one for good


def is_helper() -> bool:
    """Return whether this process is a helper, from its very beginning."""
    return _forking == threading.get_ident()


class Helper:
    """A process that does its part of works, from ``begin`` to ``end``."""

    def __init__(self) -> None:
        self._board = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
        self._voice = -1
        self._is_forked = False

    def begin(self, parts: Sequence[Part], unused: Unused) -> None:
        """Fork it, within ``forking``; OSError where that is not possible.

        ``end`` ends it whatever interrupts this.
        """
        ears, self._voice = _pipe()
        parent = os.getpid()
        try:
            self._is_forked = True
            if os.fork() == 0:
                try:
                    self._board[_PID] = os.getpid()
                    _become_helper(ears, unused)
                    _serve(parts, self._board, ears, parent)
                    os._exit(0)
                finally:
                    os._exit(1)
        except OSError:
            self._is_forked = False
            raise
        finally:
            os.close(ears)

    @property
    def pid(self) -> int:
        """The number of the process, which tells it itself."""
        begun = time.perf_counter()
        while not self._board[_PID] and time.perf_counter() - begun < _END:
            time.sleep(_NAP)
        return self._board[_PID]

    def tell(self, number: int) -> None:
        """Have it do its part of a work."""
        board = self._board
        board[_NUMBER] = number
        board[_TOLD] += 1
        self.wake()

    def wake(self) -> None:
        """Let it look at the board, if it sleeps."""
        _order()
        if self._board[_ASLEEP] and self._voice >= 0:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):  # it knows, or is gone
                os.write(self._voice, b"!")

    def wait(self) -> None:
        """Return once it has done what it was told; RuntimeError if it has ended instead."""
        board = self._board
        told = board[_TOLD]
        for _ in range(_SPINS):
            if board[_DONE] == told:
                return
        begun = time.perf_counter()
        while board[_DONE] != told:
            is_long = time.perf_counter() - begun > _AWAKE
            time.sleep(_NAP if is_long else 0)  # lets this process's other threads go on
            if is_long and not self._is_alive() and board[_DONE] != told:
                raise RuntimeError(
                    f"gg.compile: helper process {self.pid} was ended from outside; the step is "
                    f"half done. {VARIABLE}=0 lets threads share the work"
                )

    def has_failed(self) -> bool:
        """Return whether its last work raised something, and forget it."""
        failed = bool(self._board[_FAILED])
        if failed:
            self._board[_FAILED] = 0
        return failed

    def _is_alive(self) -> bool:
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] == 0
        except ChildProcessError:  # somebody has waited for it before
            return False

    def end(self) -> None:
        """Let it end, and wait for that."""
        self.tell(_STOP)
        self.leave()
        if not self._is_forked or not self.pid:
            return
        begun = time.perf_counter()
        while self._is_alive():
            if time.perf_counter() - begun > _END:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(_NAP)

    def leave(self) -> None:
        """Close what it hears this process by."""
        voice, self._voice = self._voice, -1
        if voice >= 0:
            os.close(voice)


def _order() -> None:
    """Have no load made ahead of the stores before it: an atomic operation lies in between."""
    threading.Lock().acquire()  # one of its own: Ctrl-C may come before it could be released


def _pipe() -> tuple[int, int]:
    """Return the ends of a pipe, none of which is a standard stream, even if those are closed."""
    fcntl = importlib.import_module("fcntl")  # not on Windows
    unwanted = [*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)]
    found: list[int] = []
    try:
        for end in unwanted:
            found.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3))
    except OSError:
        unwanted += found
        raise
    finally:
        for end in unwanted:
            os.close(end)
    return found[0], found[1]


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Context: processes are forked without a warning, and without a signal before they are ready.

    One thread at a time.
    """
    global _forking
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    collects = gc.isenabled()
    with _one_at_a_time:
        try:
            gc.disable()  # what the parent has to clean up is the parent's
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            _forking = threading.get_ident()
            with warnings.catch_warnings():
                # Python 3.12 says so of every process with threads: helpers take no locks of theirs
                warnings.simplefilter("ignore", DeprecationWarning)
                yield
        finally:
            _forking = None
            if collects:
                gc.enable()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In the helper


def _become_helper(ears: int, unused: Unused) -> None:
    """Keep nothing of the parent's but memory, and have nothing of it run."""
    sys.settrace(None)
    sys.setprofile(None)
    signal.set_wakeup_fd(-1)
    kept = {getattr(signal, f"SIG{name}") for name in (*_FAULTS, *_JOBS)}
    for number in signal.valid_signals() - kept:
        with contextlib.suppress(OSError):  # the C library's own
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in (0, 1, 2, ears):
            with contextlib.suppress(OSError):  # what listed them is closed by now
                os.close(int(name))
    _give_back(unused)
    openblas.serial.__enter__()
    np.seterr(all="ignore")


def _give_back(unused: Unused) -> None:
    """Give back the pages of arrays, what other steps share, and what malloc has free.

    The parent would have to copy a page that is still here before it writes to it, and could not
    free what is shared.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(ctypes.c_size_t(0))
    for array in unused.arrays:
        low, high = np.lib.array_utils.byte_bounds(array)
        first, last = -(-low // mmap.PAGESIZE), high // mmap.PAGESIZE  # pages that are all its own
        if first < last:
            start, size = first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)
    for start, stop in unused.shared:
        libc.munmap(ctypes.c_void_p(start), ctypes.c_size_t(stop - start))


def _serve(parts: Sequence[Part], board: memoryview, ears: int, parent: int) -> None:
    """Do the parts that this process is told to, until it is to stop or the parent has ended."""
    while _listen(board, ears, parent) and board[_NUMBER] != _STOP:
        try:
            threads.alone(*parts[board[_NUMBER]])
        except BaseException:
            board[_FAILED] = 1
        board[_DONE] += 1


def _listen(board: memoryview, ears: int, parent: int) -> bool:
    """Return True once there is something new on the board, False if the parent has ended."""
    done = board[_DONE]
    sounds = select.poll()  # select takes no file numbers beyond 1023
    sounds.register(ears, select.POLLIN)
    heard: Any = True
    while True:
        if heard:
            for _ in range(_SPINS):
                if board[_TOLD] != done:
                    return True
            begun = time.perf_counter()
            while time.perf_counter() - begun < _AWAKE:
                os.sched_yield()
                if board[_TOLD] != done:
                    return True
        board[_ASLEEP] = 1
        _order()
        if board[_TOLD] == done:
            heard = sounds.poll(_LOOK)
            if os.getppid() != parent or (heard and not os.read(ears, 4096)):
                return False
        board[_ASLEEP] = 0


def _after_fork() -> None:
    global _one_at_a_time
    _one_at_a_time = threading.Lock()  # a thread that is not in the child may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
