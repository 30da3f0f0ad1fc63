"""Memory that is freed and taken again: no new page faults, unless the environment wants them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gpugrad import malloc

GLIBC = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ())
MEBIBYTES = 8

# Faults of 20 backward passes behind the first; their temporaries have MEBIBYTES each.
PROGRAM = f"""
import resource
import gpugrad as gg
x = gg.ones({MEBIBYTES << 18}, requires_grad=True)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(21):
    if i == 1:
        before = faults()
    (x * 2 + 1).sum().backward()
    x.grad = None
print(faults() - before)
"""


def faults_of(**environment):
    inherited = {k: v for k, v in os.environ.items() if "MALLOC" not in k.upper()}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**inherited, "GPUGRAD_DEVICE": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return int(run.stdout)


@pytest.fixture
def decide(monkeypatch):
    """Return the undecided function, in an environment without settings of malloc."""
    for name in (malloc.VARIABLE, "GLIBC_TUNABLES", *malloc.OTHERS):
        monkeypatch.delenv(name, raising=False)
    return malloc.keep_freed.__wrapped__


@pytest.mark.skipif(not GLIBC, reason="there is no glibc, whose malloc this is about")
def test_memory_of_a_step_is_used_again_in_the_next():
    kept, returned = faults_of(), faults_of(GPUGRAD_MALLOC="system")
    pages = MEBIBYTES << 20 >> 12
    assert kept < pages, f"{kept} faults: a step's memory goes back to the system"
    assert returned > 20 * 8, "the program cannot tell memory that is kept from memory that is not"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (malloc.VARIABLE, "system"),
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("MALLOC_MMAP_THRESHOLD_", "131072"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072"),
    ],
)
def test_settings_of_the_environment_stand(name, value, decide, monkeypatch):
    monkeypatch.setattr(malloc.ctypes, "CDLL", None)  # who calls it fails
    monkeypatch.setenv(name, value)
    assert decide() is False


def test_without_glibc_nothing_is_done(decide, monkeypatch):
    monkeypatch.setattr(malloc.ctypes, "CDLL", None)
    monkeypatch.setattr(malloc.os, "confstr_names", {}, raising=False)
    assert decide() is False


def test_another_choice_is_refused(decide, monkeypatch):
    monkeypatch.setenv(malloc.VARIABLE, "never")
    with pytest.raises(ValueError, match="GPUGRAD_MALLOC must be keep or system, got 'never'"):
        decide()
