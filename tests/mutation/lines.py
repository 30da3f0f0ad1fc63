"""Which tests execute which lines, and how long each takes: recorded once, by coverage.py."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

try:
    import coverage
except ModuleNotFoundError as error:
    raise SystemExit(f'{error}: pip install -e ".[mutation]"') from None
import pytest
from runner import run

DATA, TIMES = "lines.coverage", "times.json"
SECONDS = 3600  # that the tests of one folder may take under coverage.py


class Recorder:
    """A pytest plugin that records the lines and the seconds of every test that passes."""

    def __init__(self, folder: Path, copy: Path) -> None:
        self.folder = folder
        self.times: dict[str, float] = {}
        self.failed: set[str] = set()
        self.coverage = coverage.Coverage(
            data_file=str(folder / DATA), include=[f"{copy}/gpugrad/*"], config_file=False
        )
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[Any]:
        """Let what runs now count as the test's, its fixtures included."""
        self.coverage.switch_context(item.nodeid)
        begin = time.perf_counter()
        result = yield
        self.times[item.nodeid] = time.perf_counter() - begin
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what does not pass: such a test notices nothing."""
        if not report.passed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Write both files."""
        self.coverage.stop()
        self.coverage.save()
        passed = {name: took for name, took in self.times.items() if name not in self.failed}
        (self.folder / TIMES).write_text(json.dumps(passed), encoding="utf-8")


def record(copy: Path, tests: Sequence[str], folder: Path) -> None:
    """Run tests of a copy, one process for each argument of pytest, and keep what they execute."""
    for name in tests:
        part = folder / name.replace("/", "-")
        if (part / TIMES).exists():
            continue
        part.mkdir(parents=True, exist_ok=True)
        found = run(copy, [name], SECONDS, plugin=functools.partial(Recorder, part))
        if not (part / TIMES).exists():
            raise RuntimeError(f"{name}: {found}")


class Lines:
    """What `record` kept."""

    def __init__(self, folder: Path) -> None:
        self.times: dict[str, float] = {}
        self.parts = []
        self.files: dict[str, dict[int, set[str]]] = {}
        for part in sorted(folder.iterdir()):
            self.times |= json.loads((part / TIMES).read_text(encoding="utf-8"))
            data = coverage.CoverageData(str(part / DATA))
            data.read()
            self.parts.append(data)

    def _of(self, file: str) -> dict[int, set[str]]:
        """Return the tests by line; "" stands for what runs before the first, at import."""
        if file in self.files:
            return self.files[file]
        found: dict[int, set[str]] = self.files.setdefault(file, {})
        for data in self.parts:
            for path in data.measured_files():
                if path.endswith(f"/{file}"):
                    for line, tests in data.contexts_by_lineno(path).items():
                        found.setdefault(line, set()).update(tests)
        return found

    def tests(self, file: str, lines: Iterable[int]) -> set[str]:
        """Return the tests that execute one of these lines, or any line if they run at import."""
        of = self._of(file)
        found = set().union(*(of.get(line, ()) for line in lines))
        if "" in found:
            found = set().union(*of.values())
        return found & self.times.keys()

    def at_import(self, file: str, lines: Iterable[int]) -> bool:
        """Return whether one of these lines runs before the first test."""
        return any("" in self._of(file).get(line, ()) for line in lines)
