"""Real runs of `gpugrad` under faults: what they do, and what they leave."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from gpugrad.train import checkpoint
from gpugrad.train.folder import RunFolder

STEP = "checkpoints/step-00000000"
HERE = Path(__file__).parent
TEXT = "".join(f"{i} times {i % 7} is {i * (i % 7)}\n" for i in range(150))
SMALL = {
    "device": "cpu",
    "tokenizer": "char",
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 8,
    "block_size": 8,
    "batch_size": 2,
    "max_steps": 2,
    "warmup_steps": 1,
    "eval_interval": 1,
    "eval_windows": 2,
    "log_interval": 2,
    "sample_tokens": 2,
    "dropout": 0.1,
    "patience": 9,
}


class Outcome(NamedTuple):
    """How a command ended: `status` is its exit status, minus the signal that killed it.

    phase: what it was at when it was struck. seconds: of CPU until then. within: it ended within
    the command, not ahead of it or after.
    """

    status: int
    output: str
    phase: str
    seconds: float
    within: bool


class Runs:
    """Commands of `gpugrad` in forks of one worker, and the folder they all work in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text, self.log = folder / "input.txt", folder / "calls.txt"
        self.text.write_text(TEXT)
        self._output = folder / "output.txt"
        library = folder / "faults.so"
        compiler = os.environ.get("CC", "cc")
        source = HERE / "faults.c"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        one = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
        self._worker = subprocess.Popen(
            [sys.executable, HERE / "worker.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **one, "LD_PRELOAD": str(library)},
        )
        self.count = 0

    def close(self) -> None:
        """End the worker."""
        with self._worker as worker:  # closes what it reads, waits, closes what it writes
            pass
        assert worker.returncode == 0

    def new_folder(self) -> Path:
        """Return the path of a folder for a run, which is not there yet."""
        self.count += 1
        return self.folder / f"run-{self.count}"

    def train(self, out: Path, **settings: Any) -> Outcome:
        """Start a run; arguments of worker.run by their names with a leading underscore."""
        options, given = self._options(out, settings)
        settings = {**SMALL, "data": self.text, **given}
        return self._run(["train", f"--out={out}", *flags(settings)], **options)

    def resume(self, out: Path, **settings: Any) -> Outcome:
        """Go on with a run."""
        options, given = self._options(out, settings)
        return self._run(["train", "--resume", f"--out={out}", *flags(given)], **options)

    def calls(self) -> list[str]:
        """Return the calls that changed files in the last command that had `_fault` or `_n`."""
        return self.log.read_text().splitlines()

    def _options(self, out: Path, settings: dict[str, Any]) -> tuple[dict, dict]:
        options = {name[1:]: v for name, v in settings.items() if name.startswith("_")}
        given = {name: v for name, v in settings.items() if not name.startswith("_")}
        if "fault" in options or "n" in options:
            self.log.unlink(missing_ok=True)
            options |= {"log": str(self.log), "folder": str(out)}
        return options, given

    def _run(self, arguments: list[str], **options: Any) -> Outcome:
        trial = {"arguments": arguments, "output": str(self._output), **options}
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        self._worker.stdin.write(json.dumps(trial) + "\n")
        self._worker.stdin.flush()
        answer, phases, seconds, within = json.loads(self._worker.stdout.readline())
        status = -os.WTERMSIG(answer) if os.WIFSIGNALED(answer) else os.WEXITSTATUS(answer)
        ahead = "resuming" if "--resume" in arguments else "starting"
        return Outcome(status, self._output.read_text(), (phases or [ahead])[-1], seconds, within)


def flags(settings: dict[str, Any]) -> list[str]:
    """Return settings as arguments of `gpugrad train`."""
    found = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            found.append(f"--{flag}={value}")
    return found


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Iterator[Runs]:
    """A worker, for all tests of this process."""
    made = Runs(tmp_path_factory.mktemp("reliability"))
    yield made
    made.close()
    shutil.rmtree(made.folder)


@pytest.fixture(scope="session")
def calls(runs) -> list[str]:
    """The calls of a whole run that change files, first to last."""
    out = runs.new_folder()
    assert runs.train(out, _n=0).status == 0
    return runs.calls()


def end(runs: Runs, out: Path) -> Outcome:
    """Go on with a run as its user would: it is resumed, or started if it had not begun."""
    return runs.resume(out) if (out / "config.json").exists() else runs.train(out)


def results(out: Path) -> dict[str, Any]:
    """Return all that a run leaves, but for how long it took: digests by name of file."""
    folder = RunFolder(out)
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path == folder.metrics:
            records = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{k: v for k, v in r.items() if "second" not in k} for r in records]
        elif path.name == checkpoint.STATE:
            found[name] = numbers(checkpoint.read(path.parent).state)
        elif path == folder.config:
            found[name] = {k: v for k, v in folder.read_config().items() if k != "out"}
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder"
    return found


def ending(found: dict[str, Any]) -> dict[str, Any]:
    """Return of what a run left what does not depend on where it was stopped."""
    last = max(path for path in found if path.startswith("checkpoints/step-"))[: len(STEP)]
    names = ("metrics.jsonl", "sample.txt", "curve.svg", last)
    return {path: value for path, value in found.items() if path.startswith(names)}


def numbers(state: Any) -> Any:
    """Return a state in a form that can be compared; without times, and without its arrays."""
    if isinstance(state, dict):
        timed = ("seconds", "reported")
        return {key: numbers(value) for key, value in state.items() if key not in timed}
    if isinstance(state, list):
        return [numbers(value) for value in state]
    return "array" if isinstance(state, np.ndarray) else state


@pytest.fixture(scope="session")
def straight(runs) -> dict[str, Any]:
    """What a run leaves that nothing happened to."""
    out = runs.new_folder()
    outcome = runs.train(out)
    assert outcome.status == 0, outcome.output
    return results(out)


KILLED = -signal.SIGKILL


def pytest_addoption(parser) -> None:
    """Add what `table.py` gives."""
    parser.addoption("--trials", type=int, default=24, help="runs struck at random moments (24)")
    parser.addoption("--flip-stride", type=int, default=211, help="flip each so many bits (211)")
    parser.addoption("--strike-seed", type=int, default=1, help="of these moments (1)")


def pytest_terminal_summary(terminalreporter, config) -> None:
    """Print the table of faults and outcomes, unless told to be quiet."""
    reports = terminalreporter.stats.get("passed", [])
    rows = [
        row
        for report in reports
        if report.when == "call" and "reliability" in report.nodeid
        for name, row in report.user_properties
        if name == "fault"
    ]
    if rows and config.option.verbose >= 0:
        terminalreporter.section("faults")
        for trials, fault, outcome in sorted(rows, key=lambda row: row[1]):
            terminalreporter.write_line(f"{trials:>5}  {fault:<50}  {outcome}")
