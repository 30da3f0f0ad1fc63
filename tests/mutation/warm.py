"""Tests collected once and run in forks, each with the code of some functions exchanged.

To import gpugrad and to collect its tests takes longer than the tests that notice a mutant. So one
process does it once, and each mutant is a fork of it in which the functions that differ get their
new code. That is the whole change if none of them ran before the first test; where one did, and
for rows, constants and defaults, the import has to be repeated: `runner.run`.
"""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import CodeType, FunctionType

import pytest
from runner import SURVIVED, FirstFailure, answer, context, limited, options, settle


def codes(file: str, before: str, after: str) -> tuple[dict[CodeType, CodeType], set[str]] | None:
    """Return the new code of each function by its old one, and the names of those that differ.

    None where what differs is not inside functions, or a function takes other variables from
    outside.
    """
    texts = (before, after)
    pairs = [tuple(compile(text, file, "exec", dont_inherit=True) for text in texts)]
    exchanged: dict[CodeType, CodeType] = {}
    names: set[str] = set()
    while pairs:
        old, new = pairs.pop()
        inner = [[c for c in code.co_consts if inspect.iscode(c)] for code in (old, new)]
        if len(inner[0]) != len(inner[1]) or old.co_freevars != new.co_freevars:
            return None
        pairs += zip(*inner, strict=True)
        if _own(old) != _own(new):
            if not old.co_flags & inspect.CO_OPTIMIZED:  # of a module or a class
                return None
            names.add(old.co_name)
        exchanged[old] = new
    return exchanged, names


def _own(code: CodeType) -> tuple[object, ...]:
    """Return what a code says, apart from lines and from the codes in it."""
    constants = [repr(c) for c in code.co_consts if not inspect.iscode(c)]
    return code.co_code, constants, code.co_names, code.co_varnames


class Warm:
    """A process that has collected tests of a copy."""

    def __init__(self, copy: Path, tests: Sequence[str]) -> None:
        self.copy = copy
        self._there, there = Pipe()
        self._process = context.Process(target=_collect, args=(copy, tests, there), daemon=True)
        self._process.start()
        there.close()
        if self._there.recv() != "ready":
            raise RuntimeError("the tests cannot be collected")

    def run(
        self, file: str, before: str, after: str, limits: Mapping[str, float], seconds: float
    ) -> str:
        """Run these tests with a file's functions exchanged, as `runner.run` would."""
        self._there.send((str(self.copy / file), before, after, dict(limits), seconds))
        found: str = self._there.recv()
        return found


def _collect(copy: Path, tests: Sequence[str], there: Connection) -> None:
    settle(copy)
    pytest.main([*options(copy), *tests], [Server(there)])


class Server:
    """A pytest plugin that forks instead of running what was collected."""

    def __init__(self, there: Connection) -> None:
        self.there = there

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Serve until the other end is closed."""
        items = {item.nodeid: item for item in session.items}
        gc.collect()
        self.there.send("ready")
        while True:
            try:
                *texts, limits, seconds = self.there.recv()
            except EOFError:
                return True
            receive, send = Pipe(duplex=False)
            child = os.fork()
            if not child:
                try:
                    _run(session, items, texts, limits, send)
                finally:
                    os._exit(0)
            send.close()
            self.there.send(answer(receive, child, seconds))
            os.waitpid(child, 0)


def _run(
    session: pytest.Session,
    items: Mapping[str, pytest.Item],
    texts: Sequence[str],
    limits: Mapping[str, float],
    send: Connection,
) -> None:
    """Run tests in this process, a fork, and end it."""
    os.setsid()
    found = codes(*texts)
    assert found is not None
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__.co_filename == texts[0]:
            function.__code__ = found[0].get(function.__code__, function.__code__)
    first = FirstFailure(send)
    session.config.pluginmanager.register(first)
    chosen = [items[name] for name in limits if name in items]
    for item, following in zip(chosen, [*chosen[1:], None], strict=True):
        with limited(limits[item.nodeid]):
            session.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        if first.sent:
            return
    send.send(SURVIVED)
