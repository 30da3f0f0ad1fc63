"""Runs that are killed, at every call that changes a file: resumed, they end as if nothing were."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from .conftest import KILLED, end, results

SAME = "resumed: every file bit for bit the same"


def die_and_go_on(runs, straight, n, fault):
    out = runs.new_folder()
    outcome = runs.train(out, _fault=fault, _n=n)
    call = runs.calls()[-1]
    assert outcome.status == KILLED, (n, call, outcome)
    outcome = end(runs, out)
    assert outcome.status == 0, (n, call, outcome)
    assert results(out) == straight, (n, call)
    shutil.rmtree(out)


def test_killed_at_every_call(runs, straight, calls, record_property):
    saved = [call for call in calls if "/checkpoints" in call]
    assert len(calls) > 60
    assert len(saved) > 30
    assert {"open", "write", "fsync", "rename", "mkdir", "unlinkat", "rmdir"} <= {
        call.split()[0] for call in calls
    }
    for n in range(1, len(calls) + 1):
        die_and_go_on(runs, straight, n, "kill")
    record_property("fault", (len(calls), "killed before a call that changes a file", SAME))


def test_killed_within_every_write(runs, straight, calls, record_property):
    writes = [n for n, call in enumerate(calls, 1) if call.startswith("write")]
    assert len(writes) > 12
    for n in writes:
        die_and_go_on(runs, straight, n, "torn")
    record_property("fault", (len(writes), "killed within a write, half of it done", SAME))


def test_killed_while_another_run_is_overwritten(runs, straight, record_property):
    done, out = runs.new_folder(), runs.new_folder()
    assert runs.train(done).status == 0
    shutil.copytree(done, out)
    assert runs.train(out, seed=2, overwrite=True, _n=0).status == 0
    found, other = runs.calls(), results(out)
    first = found.index(f"rename {out}/tokens.bin") + 1
    last = next(n for n, call in enumerate(found, 1) if call.startswith("rmdir"))
    for n in range(1, last + 1):
        shutil.rmtree(out)
        shutil.copytree(done, out)
        assert runs.train(out, seed=2, overwrite=True, _fault="kill", _n=n).status == KILLED
        if n <= first:
            assert runs.resume(out).status == 0
            assert results(out) == straight, (n, found[n - 1])
        outcome = runs.train(out, seed=2, overwrite=True)
        assert outcome.status == 0, (n, found[n - 1], outcome)
        assert results(out) == other, (n, found[n - 1])
    told = "the old run as it was until the new one can start; then that one"
    record_property("fault", (last, "killed while it overwrites another run", told))


@pytest.mark.parametrize(
    ("method", "step"),
    [("update", 0), ("update", 1), ("evaluate", 0), ("evaluate", 1), ("evaluate", 2)],
)
def test_killed_within_a_step_and_an_evaluation(runs, straight, method, step):
    out = runs.new_folder()
    outcome = runs.train(out, _within=[method, step, [signal.SIGKILL]])
    assert outcome.status == KILLED, outcome
    outcome = runs.resume(out)
    assert outcome.status == 0, outcome
    assert results(out) == straight


def test_killed_at_every_call_of_the_resumption_of_one_that_was_killed(
    runs, straight, calls, record_property
):
    within_save = max(n for n, call in enumerate(calls, 1) if call.endswith("/state.json"))
    for _ in range(50):  # two threads write: the call of this number may be another one this time
        killed = runs.new_folder()
        assert runs.train(killed, _fault="torn", _n=within_save).status == KILLED
        if list(killed.glob("checkpoints/.step-*.tmp/state.json")):
            break
    else:
        pytest.fail("no run was killed within a save")
    out = runs.new_folder()
    shutil.copytree(killed, out)
    assert runs.resume(out, _n=0).status == 0
    found = runs.calls()
    first = next(n for n, call in enumerate(found) if ".tmp" in call and "mkdir" in call)
    assert any("unlinkat" in call for call in found[:first])
    for n in range(1, first + 1):
        out = runs.new_folder()
        shutil.copytree(killed, out)
        assert runs.resume(out, _fault="kill", _n=n).status == KILLED
        outcome = runs.resume(out)
        assert outcome.status == 0, (n, found[n - 1], outcome)
        assert results(out) == straight, (n, found[n - 1])
    record_property("fault", (first, "killed again before a call of the resumption", SAME))


def test_killed_while_kernels_run_in_the_emulator(runs):
    settings = {"_emulated": True, "n_embd": 64, "max_steps": 2, "sample_tokens": 1}
    straight, out = runs.new_folder(), runs.new_folder()
    outcome = runs.train(straight, **settings)
    assert outcome.status == 0, outcome
    assert "launched on the CPU by the emulator" in outcome.output
    assert runs.train(out, _within=["update", 1, [signal.SIGKILL]], **settings).status == KILLED
    outcome = runs.resume(out, _emulated=True)
    assert outcome.status == 0, outcome
    assert results(out) == results(straight)


def test_what_a_rename_makes_final_is_on_the_disk(calls):
    """A power cut loses what was not fsynced: data before the rename, the name after it."""
    events = [call.split(" ", 1) for call in calls if "/" in call]
    renamed = [(n, Path(path)) for n, (call, path) in enumerate(events) if call == "rename"]
    final = [(n, path) for n, path in renamed if path.name.endswith(".tmp")]
    assert len(final) > 8
    for n, path in final:
        before = [(call, Path(other)) for call, other in events[:n]]
        written = {
            p.parent / "tensors.safetensors" if ".tmp" in p.name[:4] else p
            for call, p in before
            if call == "write" and path in (p, p.parent)
        }
        assert written
        for file in written:
            last_write = max(
                i
                for i, (call, p) in enumerate(before)
                if call in ("write", "chmod")
                and p.parent == file.parent
                and (p == file or ".tmp" in p.name[:4])
            )
            assert ("fsync", file) in before[last_write:], file
        if path.parent.name == "checkpoints":
            # metrics may be written meanwhile, by another thread
            own = [(call, p) for call, p in before if path in (p, *p.parents)]
            assert own[-1] == ("fsync", path)
        rest = [(call, Path(other)) for call, other in events[n + 1 :]]
        synced = rest.index(("fsync", path.parent))
        assert not any(call == "rename" and p.parent == path.parent for call, p in rest[:synced])
