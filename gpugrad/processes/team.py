"""The team of a step: this process and its helpers, and the works that they share."""

from __future__ import annotations

import functools
import gc
import os
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import backend, threads
from .helper import VARIABLE, Helper, Unused, forking
from .memory import Memory

_MOST_REACHED = 10_000  # objects looked at to find the arrays of a work
_LARGE = 1 << 16  # bytes of an array whose pages are worth giving back
_MOST_HELD = 300_000  # objects looked at to find such

_Calls = list[Callable[[], Any]]


class _Work(NamedTuple):
    """A work on rows, the pieces that each process takes, and the call that does all of it here."""

    run: Callable[[int, int], Any]
    pieces: list[list[tuple[int, int]]]
    alone: Callable[[], Any]


class Team:
    """Helpers for the calls in some lists, which from now on share their pieces with them.

    Those calls of ``threads.for_rows`` are replaced whose arrays all lie in ``memory`` or never
    change. Helpers do not keep the pages of other large arrays alive. Where nothing can be shared,
    or no process can be forked, the team is empty and calls are left alone.
    """

    def __init__(self, lists: Sequence[_Calls], memory: Memory) -> None:
        places = shareable(lists, memory)
        most = max((len(rows.pieces) for *_, rows in places), default=1)
        self._size = min(threads.get_num_threads(), most)
        self._works = [
            _Work(rows.work, _dealt(rows.pieces, self._size), calls[i]) for calls, i, rows in places
        ]
        self._helpers: list[Helper] = []
        self._end = weakref.finalize(self, _end, self._helpers, os.getpid())
        self._end.atexit = False  # helpers end with the process; a thread may still need them
        unused = Unused(_large_arrays() if places else [], memory.others())
        try:
            with forking():
                for rank in range(1, self._size):
                    parts = [(work.run, work.pieces[rank]) for work in self._works]
                    self._helpers.append(Helper())
                    self._helpers[-1].begin(parts, unused)
        except OSError:  # too many processes, or no memory for one
            self._end()
        else:
            for number, (calls, i, _) in enumerate(places):
                calls[i] = functools.partial(self._do, number)

    def __len__(self) -> int:
        return len(self._helpers)

    def wake(self) -> None:
        """Let helpers that sleep know that there will be something to do."""
        for helper in self._helpers:
            helper.wake()

    def _do(self, number: int) -> None:
        """Do a work together with the helpers, or alone where there are none or too many."""
        work = self._works[number]
        is_whole = len(self._helpers) == self._size - 1
        if not is_whole or threads.get_num_threads() < self._size or threads.inside():
            work.alone()
            return
        mine, *others = work.pieces
        pairs = [(h, pieces) for h, pieces in zip(self._helpers, others, strict=True) if pieces]
        try:
            for helper, _ in pairs:
                helper.tell(number)
            threads.alone(work.run, mine)
            for helper, _ in pairs:
                helper.wait()
        except BaseException:
            self._settle()
            raise
        failed = [pieces for helper, pieces in pairs if helper.has_failed()]
        for pieces in failed:
            threads.alone(work.run, pieces)  # raises it here, as it would have without helpers
        if failed:
            raise RuntimeError(
                "gg.compile: a helper process failed at work that this one can do, perhaps for "
                f"want of memory; the step is half done. {VARIABLE}=0 lets threads share it"
            )

    def _settle(self) -> None:
        """Return once no helper works, whatever interrupts."""
        while not self._is_settled():
            pass

    def _is_settled(self) -> bool:
        try:
            for helper in self._helpers:
                helper.wait()
                helper.has_failed()  # so has this process: that is what is raised
        except RuntimeError:  # one has ended
            self._end()
        except BaseException:  # Ctrl-C once more, or what another signal raises
            return False
        return True


def shareable(lists: Sequence[_Calls], memory: Memory) -> list[tuple[_Calls, int, threads.Rows]]:
    """Return the calls that helpers can take a part of: a list, the place in it, what it does."""
    found = []
    for calls in lists:
        for i, call in enumerate(calls):
            rows = threads.rows_of(call)
            if rows is None or len(rows.pieces) < 2:
                continue
            arrays = _reached(rows.work)
            if arrays is not None and all(memory.covers(a) or _is_fixed(a) for a in arrays):
                found.append((calls, i, rows))
    return found


def _reached(work: Any) -> list[np.ndarray] | None:
    """Return the arrays that a function can reach but by globals; None for too many objects."""
    found: list[np.ndarray] = []
    seen: dict[int, Any] = {}  # by id, and held: or an id might become another's
    todo: list[Any] = [work]
    while todo:
        value = todo.pop()
        if id(value) in seen or issubclass(type(value), (type, types.ModuleType)):
            continue
        seen[id(value)] = value
        if isinstance(value, np.ndarray):
            found.append(value)
        elif isinstance(value, types.FunctionType):
            todo += [*(value.__closure__ or ()), value.__defaults__, value.__kwdefaults__]
        else:
            todo += gc.get_referents(value)
        if len(seen) > _MOST_REACHED:
            return None
    return found


def _large_arrays() -> list[np.ndarray]:
    """Return the large arrays that may be written to, but those that only local variables hold."""
    objects = gc.get_objects()
    if len(objects) > _MOST_HELD:  # this would take long
        return []
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(objects), 1 << 12):  # of all at once the list would be large
        held = gc.get_referents(*objects[start : start + (1 << 12)])
        # the collector does not know of dicts that hold nothing but arrays, numbers and texts
        apart = [x for x in held if type(x) is dict and not gc.is_tracked(x)]
        found |= {id(x): x for x in (*held, *gc.get_referents(*apart)) if type(x) is np.ndarray}
    return [
        array
        for array in found.values()
        if array.nbytes >= _LARGE and array.flags.owndata and array.flags.writeable
    ]


def _is_fixed(array: np.ndarray) -> bool:
    """Return whether an array never changes: the memory is its own, and not to be written."""
    owner = backend.memory_base(array)
    return not array.size or (owner.flags.owndata and not owner.flags.writeable)


def _dealt(pieces: list[tuple[int, int]], size: int) -> list[list[tuple[int, int]]]:
    """Return the pieces of each process, one behind the other: caches hold on to neighbours."""
    bounds = [-(-len(pieces) * rank // size) for rank in range(size + 1)]
    return [pieces[bounds[rank] : bounds[rank + 1]] for rank in range(size)]


def _end(helpers: list[Helper], owner: int) -> None:
    """End helpers: those of this process, not of that which has forked it."""
    while helpers:
        helper = helpers.pop()
        if os.getpid() == owner:
            helper.end()
        else:
            helper.leave()
