"""A copy of the checkout at a commit, and its tests run there until the first failure.

Tests run in forks of a process that has imported pytest and NumPy already, never gpugrad: each
imports it anew, from the copy.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 8 << 30  # bytes that one run may take
OPTIONS = ["-q", "-n", "0", "--assert=plain", "--tb=no", "-p", "no:cacheprovider"]
SURVIVED = "survived"

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["pytest", "numpy", "ml_dtypes", "safetensors.numpy"])


def checkout(copy: Path, commit: str = "HEAD") -> str:
    """Write the files of a commit to a new folder and return the commit's digest."""
    git = ["git", "-C", str(ROOT)]
    digest = subprocess.check_output([*git, "rev-parse", commit], text=True).strip()
    packed = subprocess.check_output([*git, "archive", digest])
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(copy, filter="data")
    return digest


@contextlib.contextmanager
def changed(path: Path, text: str) -> Iterator[None]:
    """Let a file hold another text for as long as the context lasts."""
    before = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    try:
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()  # it could pass for the new text's: same second, same size
        yield
    finally:
        path.write_text(before, encoding="utf-8")


def run(
    copy: Path,
    tests: Sequence[str],
    seconds: float,
    limits: Mapping[str, float] | None = None,
    plugin: Callable[[Path], object] | None = None,
) -> str:
    """Run tests of a copy until the first that fails; return it and its error, or SURVIVED.

    tests: pytest's arguments: files or folders, relative to the copy.
    limits: only these tests, in this order, each given so many seconds.
    plugin: makes one more pytest plugin, in the process of the tests, which then run to the end.
    """
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_tests, args=(copy, tests, limits, plugin, send))
    process.start()
    send.close()
    assert process.pid is not None
    found = answer(receive, process.pid, seconds)
    process.join()
    return found


def answer(receive: Connection, group: int, seconds: float) -> str:
    """Return what a process sends in time, and end it with all that its tests started."""
    found = "does not end"
    try:
        if receive.poll(seconds):
            found = receive.recv()
            receive.poll(5)  # it tidies up
    except EOFError:
        found = found if found != "does not end" else "the process ends"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    return found


def settle(copy: Path) -> None:
    """Let this process, a fresh one, run tests of a copy: silent, limited, and a group."""
    os.setsid()
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)


def options(copy: Path) -> list[str]:
    """Return what pytest is told for every run."""
    return [*OPTIONS, f"--basetemp={copy.parent / 'temp'}"]


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End this process where the context lasts longer."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _tests(
    copy: Path,
    tests: Sequence[str],
    limits: Mapping[str, float] | None,
    plugin: Callable[[Path], object] | None,
    send: Connection,
) -> None:
    """Run tests in this process and send what `run` returns."""
    settle(copy)
    sys.dont_write_bytecode = limits is not None  # else later runs find what is compiled
    first = FirstFailure(send)
    plugins: list[Any] = [first]
    if limits is not None:
        plugins.append(Chosen(limits))
    if plugin is not None:
        plugins.append(plugin(copy))
    stop = ["-x"] if plugin is None else []
    status = pytest.main([*options(copy), *stop, *tests], plugins)
    if not first.sent:
        passed = status in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        send.send(SURVIVED if passed else f"pytest: {pytest.ExitCode(status).name.lower()}")


class FirstFailure:
    """A pytest plugin that sends the name of the first test that fails, and its error."""

    def __init__(self, send: Connection) -> None:
        self.send, self.sent = send, False

    def pytest_exception_interact(self, node: pytest.Item, call: pytest.CallInfo[Any]) -> None:
        """Send it while the error is at hand."""
        if not self.sent and call.excinfo is not None:
            self.sent = True
            self.send.send(f"{node.nodeid}: {call.excinfo.typename}")


class Chosen:
    """A pytest plugin that runs chosen tests only, in the order given, each for so long at most."""

    def __init__(self, limits: Mapping[str, float]) -> None:
        self.limits = limits
        self.place = {name: i for i, name in enumerate(limits)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep the chosen ones."""
        chosen = [item for item in items if item.nodeid in self.place]
        if chosen:  # else a row has another name, and so have its tests
            items[:] = sorted(chosen, key=lambda item: self.place[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[Any]:
        """End the process when a test takes too long."""
        with limited(self.limits.get(item.nodeid, 0)):
            return (yield)
