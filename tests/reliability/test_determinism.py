"""One seed, one result: with any threads, in any process, compiled or not, on any device."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import threads
from gpugrad.cli import main
from gpugrad.cuda import source
from gpugrad.doctor import determinism
from gpugrad.doctor.determinism import EMULATOR, GPU, NUMPY, Report, Result, Row
from gpugrad.models import GPT, GPTConfig
from gpugrad.nn import functional as F

ONE = Result("a" * 64, "b" * 64, "c" * 64)


def report(*results, device=NUMPY):
    return Report([Row(device, f"run {i}", result) for i, result in enumerate(results)])


@pytest.fixture(scope="module")
def here():
    return determinism.examine()


def test_this_machine_repeats_itself(here):
    assert here.works, here.to_text()
    ways = {(row.device, row.how) for row in here.rows if row.result is not None}
    assert {(NUMPY, "1 thread"), (NUMPY, "5 threads"), (NUMPY, "3 threads, compiled")} <= ways
    others = [how for device, how in ways if device == NUMPY and how.startswith("another process")]
    assert sorted(others) == [
        "another process GPUGRAD_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1",
        "another process GPUGRAD_NUM_THREADS=3 OPENBLAS_NUM_THREADS=2",
    ]
    assert {(EMULATOR, "compiled"), (EMULATOR, "threads of a block random")} <= ways


def test_threads_really_share_that_training(monkeypatch):
    pieces = []
    share = threads._Pool.ask
    monkeypatch.setattr(
        threads._Pool, "ask", lambda pool, n, job: (pieces.append(n), share(pool, n, job))
    )
    with threads.num_threads(3):
        determinism.train(NUMPY)
    assert pieces.count(2) > 20


def test_the_report(here):
    lines = here.to_text().splitlines()
    assert lines[0].split() == ["device", "run", "start", "weights", "losses"]
    for row, line in zip(here.rows, lines[1:], strict=False):
        shown = row.result.weights[:8] if row.result else "not compared"
        assert line.startswith(row.device)
        assert row.how in line
        assert shown in line
    assert lines[-1] == "ok        all devices start alike"
    found = json.loads(here.to_json())
    assert found["same"] is True
    assert found["runs"][0]["result"]["losses"] == here.rows[0].result.losses


@pytest.mark.parametrize("field", Result._fields)
def test_any_difference_is_told(field, monkeypatch, capsys):
    found = report(ONE, ONE._replace(**{field: "d" * 64}), None)
    monkeypatch.setattr(determinism, "examine", lambda: found)
    assert main(["doctor", "--determinism"]) == 1
    assert "DIFFERENT NumPy: all runs are equal" in capsys.readouterr().out
    assert found.verdicts["start"] is (field != "start")


def test_devices_may_differ_but_in_how_they_start():
    other = ONE._replace(weights="d" * 64)
    both = [*report(ONE, ONE).rows, *report(other, other, device=GPU).rows]
    assert Report(both).works
    both.append(Row(EMULATOR, "run", ONE._replace(start="e" * 64)))
    assert Report(both).verdicts == {NUMPY: True, GPU: True, EMULATOR: True, "start": False}


def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr(determinism, "examine", lambda: report(ONE, ONE))
    assert main(["doctor", "--determinism", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdicts"] == {NUMPY: True, "start": True}


def test_a_run_that_fails_elsewhere_is_an_error():
    with pytest.raises(RuntimeError, match=r"failed with status 1: .*GPUGRAD_NUM_THREADS"):
        determinism._elsewhere(NUMPY, {"GPUGRAD_NUM_THREADS": "none"})


def start(device="cpu"):
    """Return what one seed gives: weights, masks, and batches, as numpy arrays."""
    gg.manual_seed(77)
    config = GPTConfig(vocab_size=31, block_size=9, n_layer=1, n_head=2, n_embd=18)
    ones = gg.ones((33, 7), device=device)
    found = [
        *GPT(config, device=device).state_dict().values(),
        F.dropout(ones, 0.3),
        F.dropout(ones.astype(gg.bfloat16), 0.9),
        gg.random.permutation(1000, device=device),
        gg.random.integers(-5, 2**40, size=999, device=device),
        gg.random.uniform(-1, 3, size=999, device=device),
        gg.random.bernoulli(0.3, size=999, device=device),
    ]
    return [x.numpy().copy() for x in found]


def test_a_seed_gives_the_same_start_in_the_emulator():
    expected = start()
    with gg.emulator.enabled("plain"):
        found = start()
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.gpu
def test_a_seed_gives_the_same_start_on_a_gpu():
    for x, y in zip(start("cuda"), start("cpu"), strict=True):
        np.testing.assert_array_equal(x, y)


ATOMIC = re.compile(r"\batomic\w+\(\s*&?(\w+)")
INTEGER = (
    r"\b(?:unsigned|int|uint32_t|uint64_t|int64_t|unsigned long long)\s*\*?\s*(?:__restrict__\s*)?"
)


def atomics_not_on_integers(text):
    """Return the targets of atomic operations that are not declared as integers."""
    text = re.sub(r"//.*", "", text)
    found = set(ATOMIC.findall(text))
    return {name for name in found if not re.search(rf"{INTEGER}{name}\b", text)}


def test_no_kernel_adds_floats_in_the_order_of_chance():
    """Sums of integers are the same in any order; of floats they are not."""
    sources = sorted(source.folder().glob("*.cu*"))
    assert len(sources) > 20
    for path in sources:
        text = path.read_text()
        assert not atomics_not_on_integers(text), path
        assert not re.search(
            r"\bred\.[\w.:]*add[\w.:]*\.(f|bf)|\batom\.[\w.:]*add[\w.:]*\.(f|bf)", text
        ), path


def test_the_scan_finds_an_atomic_sum_of_floats():
    planted = "__global__ void k(float* out, int* n) { atomicAdd(out, 1.0f); atomicAdd(n, 1); }"
    assert atomics_not_on_integers(planted) == {"out"}
    assert atomics_not_on_integers("atomicAdd(&out[i], x);") == {"out"}
