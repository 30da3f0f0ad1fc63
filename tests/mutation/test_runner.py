"""Mutants of a small package are noticed by its tests, in a process of their own and in forks."""

from __future__ import annotations

import pytest
from rules import mutants
from runner import SURVIVED, changed, run
from warm import Warm, codes

CODE = """import os
LIMIT = 3
def double(x):
    return x * 2
def below(x):
    while x > LIMIT: x -= 1
    return x
def leave(x):
    if x: os.abort()
def spare(x):
    return x + 1
"""
TESTS = """import small
def test_double(): assert small.double(3) == 6
def test_below(): assert small.below(5) == 3
def test_leave(): assert small.leave(0) is None
"""
NOTICED = {
    ("LIMIT = 3", "LIMIT = 4"): "test_small.py::test_below: AssertionError",
    ("return x * 2", "return x / 2"): "test_small.py::test_double: AssertionError",
    ("while x > LIMIT: x -= 1", "while x > LIMIT: pass"): "the process ends",  # by its alarm
    ("if x: os.abort()", "if True: os.abort()"): "the process ends",
    ("return x + 1", "return x - 1"): SURVIVED,
}
LIMITS = {f"test_small.py::test_{name}": 1.0 for name in ("double", "below", "leave")}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkout of one file and its tests."""
    copy = tmp_path_factory.mktemp("small") / "checkout"
    copy.mkdir()
    (copy / "small.py").write_text(CODE)
    (copy / "test_small.py").write_text(TESTS)
    return copy


@pytest.fixture(scope="module")
def made():
    """The mutants of NOTICED."""
    found = {(m.code, m.after): m for m in mutants("small.py", CODE)}
    return [found[change] for change in NOTICED]


def test_in_a_process_of_their_own(small, made):
    for mutant, noticed in [*zip(made, NOTICED.values(), strict=True)][::3]:  # each takes a second
        with changed(small / mutant.file, mutant.text):
            assert run(small, ["test_small.py"], 60, LIMITS) == noticed
    assert (small / "small.py").read_text() == CODE
    assert run(small, ["test_small.py"], 60) == SURVIVED


def test_in_forks(small, made):
    warm = Warm(small, ["test_small.py"])
    for mutant, noticed in zip(made, NOTICED.values(), strict=True):
        if codes("small.py", CODE, mutant.text) is None:
            assert mutant.code == "LIMIT = 3"  # which is no function
        else:
            assert warm.run(mutant.file, CODE, mutant.text, LIMITS, 60) == noticed
    assert warm.run("small.py", CODE, CODE, LIMITS, 60) == SURVIVED
