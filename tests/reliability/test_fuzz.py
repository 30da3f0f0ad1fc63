"""A fixed slice of the fuzzer: changed files are read or refused, soon, in little memory."""

from __future__ import annotations

import random

import pytest

from .fuzz import changed, fuzz, limits
from .readers import READERS, REFUSALS, Reader

CASES = 40


@pytest.mark.parametrize("name", READERS)
def test_changed_files_are_read_or_refused(name, tmp_path):
    with limits():
        outcomes, findings = fuzz(name, READERS[name], tmp_path, range(CASES), seed=6)
    assert not findings
    assert outcomes["refused"] > 0
    assert outcomes.total() == CASES


def test_what_is_wrong_is_found(tmp_path):
    def read(path):
        data = path.read_bytes()
        if data == b"sound":
            return
        path.write_bytes(b"changed")
        raise KeyError("not for users")

    def make(folder):
        (folder / "file").write_bytes(b"sound")
        return folder / "file"

    _, findings = fuzz("bad", Reader(make, read), tmp_path, range(3), seed=1)
    assert {finding.error for finding in findings} == {
        "KeyError: 'not for users'",
        "the file was changed",
    }


def test_the_limit_of_memory_holds():
    with limits(), pytest.raises(MemoryError):
        bytearray(2**31)


def test_every_change_gives_another_file():
    good = b'{"a": [1, 2, {"b": "text"}], "c": 1.5}'
    made = {changed(good, random.Random(i)) for i in range(300)}
    assert len(made - {good}) > 200
    assert any(data.startswith(b"{") and len(data) > 5000 for data in made)


def test_refusals_are_for_users():
    assert all(set(reader.refusals) == set(REFUSALS) for reader in READERS.values())
