from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import harness
import pytest
from harness import Timing, compare

import gpugrad as gg


class Machine:
    """A clock and calls that take a known time on it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now

    def call(self, name: str, *seconds: float) -> Callable[[], None]:
        """Return a call that takes the given times in turn, the last one from then on."""
        left = list(seconds)

        def run() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]
            self.calls.append(name)

        return run


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_percentiles_of_known_samples() -> None:
    timing = Timing((5.0, 1.0, 2.0, 4.0, 3.0))
    assert timing.median == 3.0
    assert timing.row("time", 10.0) == pytest.approx(
        {"time": 30.0, "time_p20": 18.0, "time_p80": 42.0}
    )


def test_difference_is_taken_round_by_round() -> None:
    slow_second_round = Timing((3.0, 13.0, 3.0)) - Timing((1.0, 11.0, 1.0))
    assert slow_second_round.samples == (2.0, 2.0, 2.0)


def test_rounds_are_interleaved_and_rotated(machine: Machine) -> None:
    variants = {name: machine.call(name, 1.0) for name in "ABC"}
    compare(variants, rounds=4, warmup=0, before=lambda: None, clock=machine.clock)
    assert "".join(machine.calls) == "ABC" + "BCA" + "CAB" + "ABC"


def test_warm_up_is_not_timed(machine: Machine) -> None:
    first_is_slow = machine.call("A", 100.0, 1.0)
    timing = compare({"A": first_is_slow}, rounds=5, warmup=1, clock=machine.clock)["A"]
    assert timing.samples == (1.0,) * 5


@pytest.mark.parametrize(
    ("seconds", "repeats"), [(1.0, 1), (0.25, 4), (0.3, 4), (0.0625, 16)], ids=str
)
def test_short_calls_repeat_until_a_sample_is_long_enough(
    machine: Machine, seconds: float, repeats: int
) -> None:
    run = machine.call("A", seconds)
    timing = compare({"A": run}, rounds=3, min_seconds=1.0, clock=machine.clock)["A"]
    assert timing.repeats == repeats
    assert timing.samples == pytest.approx((seconds,) * 3)


def test_before_runs_untimed_before_every_single_call(machine: Machine) -> None:
    timing = compare(
        {"A": machine.call("A", 0.125)},
        rounds=3,
        warmup=0,
        min_seconds=1.0,
        before=machine.call("flush", 8.0),
        clock=machine.clock,
    )["A"]
    assert machine.calls == ["flush", "A"] * 3
    assert timing == Timing((0.125,) * 3, 1)


def test_the_gpu_is_idle_whenever_the_clock_is_read(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clock() -> float:
        machine.calls.append("clock")
        return machine.now

    monkeypatch.setattr(gg, "synchronize", machine.call("wait", 0.0))
    compare({"A": machine.call("A", 1.0)}, rounds=1, warmup=0, before=list, clock=clock)
    assert machine.calls == ["wait", "clock", "A", "wait", "clock"]


@pytest.mark.parametrize(("variants", "rounds"), [({}, 3), ({"A": list}, 0)], ids=["none", "zero"])
def test_nothing_to_measure_is_refused(variants: dict, rounds: int) -> None:
    with pytest.raises(ValueError, match="compare: needs variants and rounds"):
        compare(variants, rounds=rounds)


def test_cold_cache_writes_its_whole_buffer() -> None:
    flush = harness.cold_cache("cpu", 1000)
    flush()
    (cell,) = flush.__closure__ or ()
    assert cell.cell_contents.shape == (1000,)
    assert (cell.cell_contents == 1).all()


def test_provenance_says_what_was_measured_on_what() -> None:
    found = harness.provenance()
    assert found["gpugrad"] == gg.__version__
    assert found["device"] == "cpu"
    assert found["device_name"] == found["cpu"] != ""
    assert found["cpus"] >= 1
    assert found["date"].endswith("+00:00")
    json.dumps(found)


def test_commit_names_head_and_marks_changed_code(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert harness.commit(tmp_path) == "not a git checkout"
    git("init", "-q")
    (tmp_path / "gpugrad").mkdir()
    (tmp_path / "gpugrad" / "x.py").write_text("1\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    head = git("rev-parse", "HEAD")
    assert harness.commit(tmp_path) == head
    (tmp_path / "notes.txt").write_text("not code\n")
    assert harness.commit(tmp_path) == head
    (tmp_path / "gpugrad" / "x.py").write_text("2\n")
    assert harness.commit(tmp_path) == head + "+changes"


def test_the_commit_of_one_checkout_is_not_taken_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gg, "__file__", str(tmp_path / "gpugrad" / "__init__.py"))
    with pytest.raises(RuntimeError, match="but gpugrad is that of"):
        harness.provenance()


def test_json_and_csv_hold_rows_and_provenance(tmp_path: Path) -> None:
    rows = [{"what": "add", "ns": 1.5}, {"what": "copy", "note": "a, b"}]
    made = harness.record("example", rows, rounds=3)
    harness.write_json(made, tmp_path / "new" / "example.json")
    harness.write_csv(made, tmp_path / "example.csv")
    assert json.loads((tmp_path / "new" / "example.json").read_text()) == made
    with open(tmp_path / "example.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["benchmark"], first["what"], first["ns"], first["rounds"]) == (
        "example",
        "add",
        "1.5",
        "3",
    )
    assert (second["note"], second["ns"]) == ("a, b", "")
    assert first["commit"] == second["commit"] == made["provenance"]["commit"]


def test_a_record_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "example.json"
    harness.write_json({"rows": []}, path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        harness.write_json({"rows": [{"ns": float("nan")}]}, path)
    assert json.loads(path.read_text()) == {"rows": []}
    assert list(tmp_path.iterdir()) == [path]


def test_table_aligns_numbers_right_and_marks_what_is_missing() -> None:
    rows = [{"what": "add", "ns": 1.23456}, {"what": "matmul", "ns": 12345.6, "note": None}]
    assert harness.table(rows).splitlines() == [
        "what       ns  note",
        "add     1.235  -",
        "matmul  12346  -",
    ]


def test_importing_the_harness_loads_no_optional_library() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(harness.ROOT / 'benchmarks')!r}); import harness;"
        "sys.exit(bool({'cupy', 'torch', 'matplotlib', 'tokenizers'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
def test_gpu_time_includes_the_work_not_only_the_launch() -> None:
    small, large = (gg.ones((n, n), device="cuda") for n in (256, 8192))
    timings = compare({"small": lambda: small @ small, "large": lambda: large @ large}, rounds=5)
    assert timings["large"].median > 20 * timings["small"].median
