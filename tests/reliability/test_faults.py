"""A full disk, errors of the disk, signals, a second run: said clearly, and nothing is lost."""

from __future__ import annotations

import re
import shutil
import signal
import time
import warnings

import numpy as np
import pytest

from gpugrad.text import open_tokens, write_tokens
from gpugrad.train import checkpoint
from gpugrad.train.folder import RunFolder
from gpugrad.train.metrics import read_metrics

from .conftest import end, ending, results

TAKES_ROOM = ("open", "write", "mkdir", "ftruncate64")


def litter(out):
    return [path for path in out.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
def test_a_disk_that_fails_at_any_call(runs, straight, calls, fault, record_property):
    reason = {"ENOSPC": "No space left on device", "EIO": "Input/output error"}[fault]
    removing = ("unlink", "unlinkat", "rmdir")
    trials = 0
    for n, call in enumerate(calls, 1):
        if fault == "ENOSPC" and call.split()[0] not in TAKES_ROOM:
            continue
        out = runs.new_folder()
        outcome = runs.train(out, _fault=fault, _n=n)
        call = runs.calls()[n - 1]  # a thread saves: calls come in another order each time
        name, context = call.split()[0], (n, call, outcome)
        assert outcome.status == 1, context
        assert reason in outcome.output, context
        assert f"{out}" in outcome.output, context
        assert "Traceback" not in outcome.output, context
        assert not litter(out) or name in removing, context
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the newest checkpoint is sound
            found = checkpoint.steps(RunFolder(out).checkpoints)
            assert not found or RunFolder(out).latest().step == found[-1], context
        if n % 7 == 0 or name in removing or "metrics" in call:
            outcome = end(runs, out)
            assert outcome.status == 0, (context, outcome)
            assert results(out) == straight, context
        shutil.rmtree(out, ignore_errors=True)
        trials += 1
    outcome = "status 1, says what and where; checkpoint before it sound"
    record_property("fault", (trials, f"{fault} ({reason.lower()}) at a call", outcome))


@pytest.fixture
def half(runs):
    """A run that was stopped after step 1."""
    out = runs.new_folder()
    outcome = runs.train(out, _within=["update", 0, [signal.SIGTERM]])
    assert outcome.status == 128 + signal.SIGTERM, outcome
    yield out
    shutil.rmtree(out)


def assert_refused(runs, out, *parts):
    before = results(out) if RunFolder(out).holds_run else None
    outcome = runs.resume(out)
    assert outcome.status == 1, outcome
    assert all(part in outcome.output for part in parts), outcome
    assert "Traceback" not in outcome.output
    return before


def test_where_nothing_may_be_written(runs, half, record_property):
    out = runs.new_folder()
    outcome = runs.train(out, _fault="EROFS", _n=1)
    assert outcome.status == 1
    assert "Read-only file system" in outcome.output
    assert not out.exists()
    before = results(half)
    outcome = runs.resume(half, _fault="EROFS", _n=1)
    assert (outcome.status, results(half)) == (1, before), outcome
    assert "Read-only file system" in outcome.output
    told = "status 1, says so; the run as it was"
    record_property("fault", (2, "a read-only disk", told))


@pytest.mark.parametrize(("method", "step"), [("update", 0), ("evaluate", 1)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_once(runs, straight, method, step, number, record_property):
    out = runs.new_folder()
    started = time.monotonic()
    outcome = runs.train(out, _within=[method, step, [number]])
    assert time.monotonic() - started < 5
    assert outcome.status == 128 + number, outcome
    assert f"Stopped by {number.name} after step 1; saved" in outcome.output
    assert RunFolder(out).latest().step == 1
    assert runs.resume(out).status == 0
    assert ending(results(out)) == ending(straight)
    told = "saved at once; resumed bit for bit the same"
    record_property("fault", (1, f"{number.name} within {method} {step}", told))


def test_a_signal_within_a_step_of_minutes_saves_at_once(runs, record_property):
    out = runs.new_folder()
    settings = {"accumulate": 30_000, "compile": False, "eval_interval": 2}
    started = time.monotonic()
    outcome = runs.train(out, _strike=(1.5, [signal.SIGTERM]), **settings)
    assert time.monotonic() - started < 20
    assert outcome.phase == "a step"
    assert outcome.status == 128 + signal.SIGTERM, outcome
    assert "Stopped by SIGTERM after step 0; saved" in outcome.output
    assert RunFolder(out).latest().step == 0
    record_property("fault", (1, "SIGTERM within a step of minutes", "saved at once"))


def test_ctrl_c_twice_ends_at_once_and_loses_nothing(runs, straight, record_property):
    out = runs.new_folder()
    outcome = runs.train(out, _within=["update", 1, [signal.SIGINT, signal.SIGINT]])
    assert outcome.status == 128 + signal.SIGINT, outcome
    assert "interrupted" in outcome.output
    assert not litter(out)
    assert RunFolder(out).latest().step in (0, 1)  # that of step 1 may not have been written yet
    assert runs.resume(out).status == 0
    assert results(out) == straight
    told = "ends at once, no litter; resumed bit for bit the same"
    record_property("fault", (1, "Ctrl-C twice", told))


def test_two_runs_in_one_folder(runs, half, straight, record_property):
    with RunFolder(half).locked():
        before = assert_refused(runs, half, "another process is training in", str(half))
        outcome = runs.train(half, overwrite="")  # a flag without a value
        assert outcome.status != 0
    assert results(half) == before
    assert runs.resume(half).status == 0
    assert ending(results(half)) == ending(straight)
    told = "refused by name; the run as it was"
    record_property("fault", (2, "a second run in one folder", told))


def test_other_data_of_the_same_length_is_refused(runs, half, record_property):
    tokens = RunFolder(half).tokens
    known = open_tokens(tokens)
    other = np.roll(known.ids, 1)
    fingerprints = known.tokenizer_fingerprint, known.text_fingerprint
    write_tokens(tokens, other, known.vocab_size, *fingerprints)
    before = assert_refused(runs, half, "the state was taken with other data", "start a new run")
    assert results(half) == before
    told = "refused by SHA-256; the run as it was"
    record_property("fault", (1, "other data than the run began with", told))


@pytest.mark.parametrize("name", ["tokens.bin", "tokenizer.json", "config.json"])
def test_a_flipped_bit_in_any_file_is_refused(runs, half, name):
    path = half / name
    good = path.read_bytes()
    rng = np.random.default_rng(3)
    for position in rng.integers(len(good), size=4):
        bad = bytearray(good)
        bad[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        outcome = runs.resume(half)
        assert outcome.status == 1, (position, outcome)
        assert name in outcome.output
        assert "Traceback" not in outcome.output
        assert path.read_bytes() == bad
    path.write_bytes(good)


def test_a_clock_that_runs_backwards(runs, straight, record_property):
    out = runs.new_folder()
    assert runs.train(out, _backwards=True, _within=["update", 1, [signal.SIGKILL]]).status < 0
    assert runs.resume(out, _backwards=True).status == 0
    assert results(out) == straight
    records = read_metrics(RunFolder(out).metrics)
    assert all(r["tokens_per_second"] > 0 for r in records if r["kind"] == "train")
    told = "every file bit for bit the same"
    record_property("fault", (2, "a clock that runs backwards", told))


@pytest.mark.parametrize(
    ("data", "part"),
    [(b"caf\xe9", "is not UTF-8"), (b"", "is empty"), (None, "no file, folder or glob")],
    ids=["latin-1", "empty", "missing"],
)
def test_unreadable_data(runs, tmp_path, data, part, record_property):
    path, out = tmp_path / "text", runs.new_folder()
    if data is not None:
        path.write_bytes(data)
    outcome = runs.train(out, data=path)
    assert outcome.status == 1
    assert part in outcome.output
    assert "Traceback" not in outcome.output
    assert not out.exists()
    told = "status 1, says so; nothing is left"
    record_property("fault", (1, f"data that is {part!r}", told))


def test_memory_that_does_not_suffice(runs, record_property):
    """A step too large for it, after an evaluation that is small enough."""
    out = runs.new_folder()
    outcome = runs.train(out, batch_size=4096, n_embd=64, eval_windows=2, _room=2**28)
    assert outcome.status == 1, outcome
    assert re.search(r"gpugrad train: out of memory: .*Unable to allocate", outcome.output)
    assert re.search(r"arrays take .* MiB, most of it these:\n +[\d.]+ KiB +\w+\[", outcome.output)
    assert re.search(r"would be largest:\n +32.0 MiB +float32\[.* written by", outcome.output)
    assert "--batch-size" in outcome.output
    assert "Traceback" not in outcome.output
    assert checkpoint.steps(RunFolder(out).checkpoints) == [0]
    assert RunFolder(out).latest().step == 0
    assert not litter(out)
    told = "status 1, names the largest arrays; checkpoint before it sound"
    record_property("fault", (1, "no memory for a step", told))
