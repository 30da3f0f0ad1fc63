"""Ctrl-C while gpugrad is imported: silent for the command, as ever for a program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gpugrad

ROOT = Path(gpugrad.__file__).parents[1]
# Started in the background, a process inherits that SIGINT is ignored; this undoes it.
AT_IMPORT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.orig_argv[:] = {command}
class Finder:
    def find_spec(self, name, *rest):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
import gpugrad, gpugrad.cli
print("imported")
status = gpugrad.cli.main(["train", "--out", "/dev/null/none"])
print(signal.getsignal(signal.SIGINT).__name__)
sys.exit(status)
"""


def start(command, module):
    return subprocess.run(
        [sys.executable, "-c", AT_IMPORT.format(command=command, module=module)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("module", ["numpy", "gpugrad.cli"])
@pytest.mark.parametrize(
    "command", [["python", "-m", "gpugrad", "train"], ["python", "/usr/bin/gpugrad", "train"]]
)
def test_the_command_ends_without_a_word(command, module):
    result = start(command, module)
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")


def test_a_program_that_imports_it_gets_the_exception():
    result = start(["python", "train.py"], "gpugrad.models")
    assert (result.returncode, result.stdout) == (-signal.SIGINT, "")
    assert result.stderr.endswith("KeyboardInterrupt\n")


def test_later_the_command_takes_it_as_any_program():
    result = start(["python", "-m", "gpugrad", "train"], "none")
    assert (result.returncode, result.stdout) == (1, "imported\ndefault_int_handler\n")
