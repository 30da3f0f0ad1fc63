"""The training step side by side: what is counted, taken in turns, and said of what fails."""

from __future__ import annotations

import ctypes
import importlib.util
import io
import json
import time
from pathlib import Path
from typing import Any

import bench
import numpy as np
import pytest
import train_peers
import train_step
from safetensors.numpy import load_file
from training import PEERS, NotThereError, Peer, Run

import gpugrad as gg

TINY = Run(layers=1, heads=2, width=8, block=6, batch=2, vocabulary=31)
PEAK = bench.Peaks(1e9, 1e12)
WITH_TORCH = importlib.util.find_spec("torch") is not None

# A process that answers as train_peers.py does, and goes wrong in every way there is.
STUB = """
import json, os, sys, time
task = json.loads(sys.argv[1])
name = task["peer"].split("-")[1]
losses = {"other": [3.0, 2.9, 2.8, 2.7, 2.6], "diverging": [3.0, float("nan")] + [2.0] * 3}
calls = 0
def answer(**values):
    print(json.dumps(values), flush=True)
def fail(kind):
    answer(failure=kind, text=kind + "\\nmore", trace="the trace")
    sys.exit()
if name == "missing":
    fail("not there")
if name == "crashing":
    print("a last word", file=sys.stderr, flush=True)
    os.abort()
if name == "hanging":
    time.sleep(60)
if name == "killed":
    os.kill(os.getpid(), 9)
answer(imported=time.time(), built=time.time(), about={"torch": "0.0"})
for line in sys.stdin:
    command = json.loads(line)
    if command["do"] == "rest":
        answer()
    elif command["do"] == "losses":
        if name == "large":
            fail("out of memory")
        found = losses.get(name, [3.0, 2.0, 1.5, 1.2, 1.0])
        memory = {"rss_mib": 10.0, "imported_mib": 5.0}
        answer(losses=found, first=time.time(), launches=7.0, memory=memory)
    else:
        calls += 1
        if name == "late" and calls == 3:
            fail("out of memory")
        answer(seconds={"fast": 0.01, "slow": 0.04}.get(name, 0.02))
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put peers in place that compute nothing."""
    script = tmp_path / "stub.py"
    script.write_text(STUB)
    monkeypatch.setattr(train_step, "SCRIPT", str(script))


def measured(folder: Path, *peers: str, **how: Any) -> dict[str, dict[str, Any]]:
    how = {"rounds": 4, "seconds": 0.02, **how}
    rows = train_step.measure("tiny", TINY, peers, "cpu", "float32", PEAK, folder, **how)
    assert [row["peer"] for row in rows] == list(peers)
    json.dumps(rows, allow_nan=False)
    return {row["peer"]: row for row in rows}


def test_operations_are_those_counted_by_hand() -> None:
    run = train_step.CASES["cuda"]["gpt2-124m-b64"]
    products = 6 * (12 * 12 * 768 * 768 + 50304 * 768)
    attention = 12 * 7 * 1024 * 768
    assert train_step.flops(run) == 65536 * (products + attention)
    assert products == pytest.approx(741e6, rel=1e-3)
    assert attention == pytest.approx(66e6, rel=1e-3)


def test_cases_and_peers_are_what_they_are_called() -> None:
    for device, cases in train_step.CASES.items():
        for name, run in cases.items():
            assert name.endswith(f"-b{run.batch}")
            default = train_step.default_peers(device, run)
            assert set(default) <= set(PEERS[device])
            libraries = {"gpugrad", "torch"} | ({"jax", "tinygrad"} if device == "cpu" else set())
            assert {Peer(peer).library for peer in default} == libraries
    peer = Peer("torch-compile-flash-autocast")
    parts = peer.library, peer.mode, peer.attention, peer.precision
    assert parts == ("torch", "compile", "flash", "autocast")
    assert Peer("gpugrad-eager").precision == ""


def test_patterns_name_peers_in_order() -> None:
    found = train_step.chosen_peers(["torch-eager-*-autocast", "gpugrad-*"], "cuda", TINY)
    assert found == [
        "torch-eager-flash-autocast",
        "torch-eager-cudnn-autocast",
        "torch-eager-default-autocast",
        "gpugrad-compiled",
        "gpugrad-eager",
    ]
    with pytest.raises(ValueError, match="no peer 'mlx'; there are gpugrad-eager, gpugrad-comp"):
        train_step.chosen_peers(["mlx"], "cpu", TINY)


@pytest.mark.parametrize(
    ("cpuinfo", "other"),
    [
        ("vendor_id : AuthenticAMD\nflags : avx2 avx512f", "avx512"),
        ("vendor_id : GenuineIntel\nflags : avx2 avx512f", "avx2"),
        ("vendor_id : AuthenticAMD\nflags : avx2", ""),
    ],
)
def test_the_instructions_that_mkl_does_not_choose_are_measured_too(
    cpuinfo: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert train_step.not_by_mkl(path) == other
    assert train_step.not_by_mkl(tmp_path / "none") == ""
    monkeypatch.setattr(train_step, "not_by_mkl", lambda: other)
    peers = train_step.default_peers("cpu", TINY)
    forced = [Peer(name).instructions for name in peers if "avx" in name]
    assert forced == ([other] * 2 if other else [])


def test_what_is_preloaded_answers_as_an_intel_cpu(tmp_path: Path) -> None:
    library = ctypes.CDLL(str(train_step.mkl_as_on_intel(tmp_path)))
    assert library.mkl_serv_intel_cpu_true() == 1


def test_batches_are_ids_as_frequent_as_words() -> None:
    run = Run(block=64, batch=64, vocabulary=100)
    x, y = train_step.draw_batches(run)
    assert x.shape == y.shape == (train_step.BATCHES, 64, 64)
    np.testing.assert_array_equal(x[..., 1:], y[..., :-1])
    counts = np.bincount(x.reshape(-1), minlength=100)
    assert counts.size == 100
    assert counts[0] / counts[9] == pytest.approx(np.log(2) / np.log(11 / 10), rel=0.2)
    np.testing.assert_array_equal(train_step.draw_batches(run)[0], x)


@pytest.mark.usefixtures("stub")
def test_what_goes_wrong_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    rows = measured(
        tmp_path,
        *("gpugrad-fast", "torch-slow-a-b", "torch-plain-a-b", "torch-large-a-b"),
        *("torch-missing-a-b", "torch-crashing-a-b", "torch-killed-a-b", "torch-late-a-b"),
        *("torch-other-a-b", "torch-diverging-a-b"),
    )
    failures = {Peer(name).mode: row.get("failure") for name, row in rows.items()}
    assert failures == {
        **dict.fromkeys(("fast", "slow", "plain", "other", "diverging"), None),
        **dict.fromkeys(("large", "killed", "late"), "out of memory"),
        "missing": "not there",
        "crashing": "failed",
    }
    assert rows["torch-crashing-a-b"]["trace"].endswith("a last word\n")
    assert rows["torch-large-a-b"]["why"] == "out of memory"
    assert rows["torch-late-a-b"]["losses"] == [3.0, 2.0, 1.5, 1.2, 1.0]
    assert "ms" not in rows["torch-late-a-b"]
    fast, slow = rows["gpugrad-fast"], rows["torch-slow-a-b"]
    assert (fast["ms"], fast["rounds"]) == (10, 4)
    assert fast["tokens_per_s"] == pytest.approx(12 / 0.01)
    assert fast["best_peer"] == "torch-plain-a-b"
    assert (fast["times_best_peer"], slow["times_best_peer"]) == (2, 0.5)
    assert fast["mfu_measured"] == pytest.approx(train_step.flops(TINY) / 0.01 / 1e12)
    assert fast["agrees"]
    assert not rows["torch-other-a-b"]["agrees"]
    assert rows["torch-diverging-a-b"]["losses"][1] == "nan"
    wrong = train_step.faults(list(rows.values()))
    assert len(wrong) == 3
    table = train_step.summary(list(rows.values())).splitlines()
    (line,) = [x for x in table if "torch-other-a-b" in x and "computes" in x]
    assert line.endswith("computes something else")
    assert any(x.endswith("out of memory: out of memory") for x in table)


@pytest.mark.usefixtures("stub")
def test_the_time_given_is_kept(tmp_path: Path) -> None:
    start = time.monotonic()
    rows = measured(tmp_path, "gpugrad-fast", "torch-hanging-a-b", "torch-slow-a-b", budget=4.0)
    assert time.monotonic() - start < 20
    assert rows["gpugrad-fast"]["ms"] == 10
    assert rows["torch-hanging-a-b"]["failure"] == "stopped"
    assert rows["torch-slow-a-b"]["failure"] == "not run"
    assert train_step.faults(list(rows.values())) == []


@pytest.mark.usefixtures("stub")
def test_the_record_is_written_and_the_verdict_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_step, "CASES", {"cpu": {"one": TINY, "two": TINY}, "cuda": {}})
    monkeypatch.setattr(bench, "peaks", lambda device, dtype: PEAK)
    names = ["gpugrad-fast", "torch-slow-a-b", "torch-other-a-b"]
    monkeypatch.setitem(PEERS, "cpu", names)
    out = tmp_path / "rows.json"
    command = ["--device", "cpu", "--rounds", "2", "--seconds", "0.02", "--json", str(out)]
    assert train_step.main([*command, "--peers", *names[:2]]) == 0
    record = json.loads(out.read_text())
    assert [(row["case"], row["peer"]) for row in record["rows"]] == [
        (case, peer) for case in ("one", "two") for peer in names[:2]
    ]
    assert record["provenance"]["torch"] == "0.0"
    assert record["settings"]["peaks"]["flops_per_second"] == PEAK.flops_per_second
    assert train_step.main([*command, "--cases", "t*", "--peers", *names]) == 1
    assert "two, torch-other-a-b: computes something else" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_step.main([*command, "--cases", "three"])
    assert "no case 'three'; there are one, two" in capsys.readouterr().err


def test_gpugrad_and_torch_take_the_same_steps(tmp_path: Path) -> None:
    peers = ["gpugrad-eager", "torch-eager-default-float32", "torch-eager-math-float32"]
    rows = measured(tmp_path, *peers, rounds=1, seconds=0.0)
    ours = rows.pop("gpugrad-eager")
    assert ours["agrees"]
    assert ours["losses"][0] == pytest.approx(np.log(31), abs=0.1)
    assert ours["losses"][-1] < ours["losses"][0]
    assert ours["rss_mib"] > ours["imported_mib"] > 10
    assert ours["to_first_loss_s"] > ours["first_step_s"] > 0
    assert ours["ms"] > 0
    for row in rows.values():
        assert row.get("failure") == (None if WITH_TORCH else "not there")
        if WITH_TORCH:
            assert row["agrees"]
        else:
            assert row["why"] == "NotThereError: torch is not installed"


def test_a_compiled_step_agrees_in_the_emulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUGRAD_EMULATE", "plain")
    rows = measured(tmp_path, "gpugrad-eager", "gpugrad-compiled", rounds=1, seconds=0.0)
    eager, compiled = rows.values()
    assert eager["launches"] > 10
    if hasattr(gg, "compile"):
        assert compiled["losses"] == eager["losses"]
    else:
        assert compiled["why"] == f"NotThereError: gpugrad {gg.__version__} has no gg.compile"


def answers(tmp_path: Path, *commands: dict[str, Any], **task: Any) -> list[dict[str, Any]]:
    inputs = train_step.write_inputs(TINY, "float32", tmp_path)
    given = {"run": TINY.settings(), "device": "cpu", "dtype": "float32", **inputs, **task}
    lines = (json.dumps(command) for command in commands)
    out = io.StringIO()
    train_peers.serve(lines, out, json.loads(json.dumps(given)))
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_process_answers_each_command_once(tmp_path: Path) -> None:
    ready, losses, seconds, rest = answers(
        tmp_path,
        {"do": "losses", "steps": 3},
        {"do": "time", "warmup": 1, "steps": 2},
        {"do": "rest"},
        peer="gpugrad-eager",
    )
    assert ready["about"]["precision"] == "float32 weights and activations"
    assert len(losses["losses"]) == 3
    assert seconds["seconds"] > 0
    assert rest == {}


def test_weights_and_batches_of_narrow_runs_are_those_a_bfloat16_model_holds(
    tmp_path: Path,
) -> None:
    inputs = train_step.write_inputs(TINY, "bfloat16", tmp_path)
    for array in load_file(inputs["weights"]).values():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, array.astype(gg.bfloat16).astype(np.float32))
    (ready, narrow) = answers(
        tmp_path, {"do": "losses", "steps": 3}, peer="gpugrad-eager", dtype="bfloat16", **inputs
    )
    assert ready["about"]["precision"].endswith("float32 master weights and moments")
    _, wide = answers(tmp_path, {"do": "losses", "steps": 3}, peer="gpugrad-eager", **inputs)
    off = np.abs(np.subtract(narrow["losses"], wide["losses"])).max()
    assert 0 < off < train_step.BOUNDS["bfloat16"]


def test_what_a_process_cannot_do_is_its_last_answer(tmp_path: Path) -> None:
    ready, failure = answers(
        tmp_path, {"do": "time", "steps": 1}, {"do": "rest"}, peer="gpugrad-eager"
    )
    assert "about" in ready
    assert (failure["failure"], failure["text"]) == ("failed", "KeyError: 'warmup'")
    assert failure["trace"].startswith("Traceback")


class OutOfMemoryError(RuntimeError):
    """As PyTorch's and CuPy's are called."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "out of memory"),
        (OutOfMemoryError("Tried to allocate 20 GiB"), "out of memory"),
        (RuntimeError("cudaErrorMemoryAllocation: out of memory"), "out of memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
        ),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "out of memory"),
        (NotThereError("no"), "not there"),
        (RuntimeError("No available kernel"), "failed"),
    ],
)
def test_kinds_of_failures(error: Exception, kind: str) -> None:
    assert train_peers.kind_of(error) == kind


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_step.backend, "cuda_is_available", lambda: False)
    monkeypatch.setattr(train_step.backend, "cupy_or_reason", lambda: (None, "No driver"))
    assert train_step.main(["--device", "cuda"]) == 2
    assert "no GPU to measure. No driver." in capsys.readouterr().out


@pytest.mark.gpu
def test_on_the_gpu_memory_of_the_device_is_counted(tmp_path: Path) -> None:
    (row,) = train_step.measure(
        "tiny", TINY, ["gpugrad-eager"], "cuda", "bfloat16", PEAK, tmp_path, 1, 0.0
    )
    assert row["device_mib"] > 0
    assert row["reserved_mib"] > 0
    assert row["agrees"]
