"""Runs that are killed, at every call that changes a file: resumed, they end as if nothing were."""

from __future__ import annotations

import shutil

from .conftest import KILLED, end, results


def die_and_go_on(runs, straight, n, fault):
    out = runs.new_folder()
    outcome = runs.train(out, _fault=fault, _n=n)
    call = runs.calls()[-1]
    assert outcome.status == KILLED, (n, call, outcome)
    outcome = end(runs, out)
    assert outcome.status == 0, (n, call, outcome)
    assert results(out) == straight, (n, call)
    shutil.rmtree(out)


def test_killed_at_every_call(runs, straight, calls):
    saved = [call for call in calls if "/checkpoints" in call]
    assert len(calls) > 60
    assert len(saved) > 30
    assert {"open", "write", "fsync", "rename", "mkdir", "unlinkat", "rmdir"} <= {
        call.split()[0] for call in calls
    }
    for n in range(1, len(calls) + 1):
        die_and_go_on(runs, straight, n, "kill")


def test_killed_within_every_write(runs, straight, calls):
    writes = [n for n, call in enumerate(calls, 1) if call.startswith("write")]
    assert len(writes) > 12
    for n in writes:
        die_and_go_on(runs, straight, n, "torn")
