from __future__ import annotations

import contextlib
import importlib
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import attention
import bench
import gpu_session
import pytest
import train_step
from gpu_session import SECTIONS, backend, chosen, main, session

import gpugrad as gg

PEAK = bench.Peaks(1e9, 1e12)
BROKEN = """
import os, sys, time
sys.path.insert(0, {folder!r})
import gpu_session

def raising(device, tiny, seconds):
    yield {{"what": "before", "value": 1, "unit": ""}}
    raise AssertionError("broken on purpose")

def crashing(device, tiny, seconds):
    yield {{"what": "before", "value": 2, "unit": ""}}
    os.abort()

def endless(device, tiny, seconds):
    yield {{"what": "before", "value": 3, "unit": ""}}
    time.sleep(60)

def diverging(device, tiny, seconds):
    yield {{"what": "loss", "value": float("nan"), "unit": ""}}

def good(device, tiny, seconds):
    yield {{"what": device, "value": int(tiny), "unit": ""}}

for section in (raising, crashing, endless, diverging, good):
    gpu_session.SECTIONS[section.__name__] = section
sys.exit(gpu_session.main())
"""


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the sections' processes sections that fail in every way there is."""
    script = tmp_path / "broken.py"
    script.write_text(BROKEN.format(folder=str(Path(gpu_session.__file__).parent)))
    monkeypatch.setattr(gpu_session, "SCRIPT", str(script))
    monkeypatch.setattr(gpu_session, "LIMITS", {"endless": 5})


SAME = ["step-b1", "step-b8", "step-b32", "kernels-float32", "gemm-float16"]  # as another section


def test_dry_run_takes_every_section_and_writes_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "session.json"
    assert main(["--dry-run", "--out", str(out), "--skip", *SAME]) == 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    record = json.loads(out.read_text())
    assert list(tmp_path.iterdir()) == [out]
    sections = [name for name in SECTIONS if name not in SAME]
    assert [s["section"] for s in record["sections"]] == sections
    assert {row["section"] for row in record["rows"]} == set(sections)
    assert record["settings"] == {"dry_run": True}
    assert len(record["provenance"]["sources"]) == 16
    values = {(row["section"], row["what"]): row["value"] for row in record["rows"]}
    assert values["copy", "copy 1e-06 GiB"] > 0
    assert values["train", "loss went down by"] > 0.1
    assert values["train", "largest difference of losses to NumPy"] == 0
    assert values["launch", "nodes of a graph"] > 0
    assert values["sanitizer", "racecheck"] == 0
    rows = [row for row in record["rows"] if "op" in row]
    kernels = {row["op"] for row in rows if row["section"] == "kernels-bfloat16"}
    assert {"layer_norm", "scaled_dot_product_attention", "adamw", "copy_strided"} <= kernels
    products = {row["op"] for row in rows if row["section"] == "products"}
    assert products == {"gemm", "affine", "mlp", "linear_cross_entropy"}
    steps = {r["peer"]: r for r in record["rows"] if r["section"] == "step-small"}
    assert values["step-b64", "gpt2-124m-b64 gpugrad-eager"] > 0
    assert steps["gpugrad-eager"]["launches"] > 10
    assert steps["gpugrad-eager"]["agrees"]
    compiled = steps["gpugrad-compiled"]
    assert compiled["agrees"] if hasattr(gg, "compile") else compiled["failure"] == "not there"
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "all sections passed"


def test_a_section_that_an_exception_ends_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the dry run passes it would not pass with a broken kernel or step."""
    rows = [{"case": "c", "peer": "p", "tokens_per_s": 1.0, "agrees": False, "losses": [1.0]}]
    monkeypatch.setattr(train_step, "measure", lambda *_, **__: rows)
    with pytest.raises(AssertionError, match="computes something else"):
        list(SECTIONS["step-b1"]("cpu", True, 10.0))
    monkeypatch.setattr(bench, "names", lambda: ["layer_norm"])
    (case,) = gpu_session._tiny(bench.cases("layer_norm"))
    wrong = {"agrees": False, "difference": 0.5}
    wrong = [{**row, **wrong} for row in bench.measure(case, "float32", "cpu", PEAK, None)]
    monkeypatch.setattr(bench, "measure", lambda *_: wrong)
    with pytest.raises(AssertionError, match=r"computes something else, by 0\.5"):
        list(SECTIONS["kernels-float32"]("cpu", True, 10.0))
    monkeypatch.setattr(bench, "measure", lambda *_: 1 / 0)
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        list(SECTIONS["kernels-float32"]("cpu", True, 10.0))


def test_sections_of_steps_name_cases() -> None:
    cases = [case for names in gpu_session.STEPS.values() for case in names]
    assert set(cases) <= set(train_step.CASES["cuda"])
    assert set(gpu_session.LIMITS) <= set(SECTIONS)


def test_the_commands_of_the_readme_run_every_section_within_the_budget() -> None:
    readme = Path(gpu_session.__file__).with_name("README.md").read_text().splitlines()
    commands = [x.split("--only")[1] for x in readme if x.startswith("python benchmarks/gpu_s")]
    asked = [chosen(shlex.split(command), []) for command in commands]
    assert sorted(name for names in asked for name in names) == sorted(SECTIONS)
    for names in asked:
        limits = [gpu_session.LIMITS.get(name, gpu_session.LIMIT) for name in names]
        assert sum(limits) <= gpu_session.SECONDS


def test_patterns_choose_sections() -> None:
    assert chosen([], ["step-*", "kernels-*"])[:2] == ["copy", "gemm-bfloat16"]
    assert chosen(["step-b*"], ["step-b1"]) == ["step-b8", "step-b64", "step-b32"]


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backend, "cupy_or_reason", lambda: (None, "No driver"))
    assert main([]) == 2
    assert "no GPU to measure. No driver. --dry-run needs none." in capsys.readouterr().out


def test_unknown_section_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--dry-run", "--only", "gemv"])
    assert "no section 'gemv'; there are copy, gemm-bfloat16" in capsys.readouterr().err


@pytest.mark.usefixtures("broken")
def test_a_failing_section_loses_nothing_else(tmp_path: Path) -> None:
    names = ["raising", "crashing", "endless", "diverging", "good"]
    out = tmp_path / "session.json"
    assert session(names, True, out) == 1
    record = json.loads(out.read_text())
    measured = [(row["section"], row["value"]) for row in record["rows"]]
    assert measured == [("raising", 1), ("crashing", 2), ("endless", 3), ("good", 1)]
    failures = {s["section"]: s["failure"] for s in record["sections"]}
    assert failures["raising"].startswith("exit code 1\nTraceback")
    assert "broken on purpose" in failures["raising"]
    assert failures["crashing"].startswith("exit code -6\n")
    assert failures["endless"].startswith("stopped after 5 s\n")
    assert "not JSON compliant" in failures["diverging"]
    assert failures["good"] is None


@pytest.mark.usefixtures("broken")
def test_where_attention_for_the_gpu_is_wrong_the_others_are_measured(tmp_path, monkeypatch):
    asked, failing = [], {"attention-wgmma"}

    def supervise(name, dry_run, limit, progress, **environment):
        asked.append((name, environment))
        return [], "wrong" if name in failing else None, 0.0

    monkeypatch.setattr(gpu_session, "supervise", supervise)
    out = tmp_path / "session.json"
    names = ["copy", "attention-wgmma", "train"]
    assert session(names, True, out) == 1
    others = {"GPUGRAD_ATTENTION": "mma", attention.WRONG: "attention-wgmma"}
    assert asked == list(zip(names, ({}, {}, others), strict=True))
    assert session(["launch"], True, out, before=json.loads(out.read_text())) == 1
    assert asked[-1] == ("launch", others)
    failing = {"attention-tma"}
    assert session(["attention-tma", "launch"], True, out) == 1
    assert asked[-1] == ("launch", {attention.WRONG: "attention-tma"})


def test_kernels_that_were_wrong_are_not_timed_nor_tested_again(monkeypatch):
    monkeypatch.setenv(attention.WRONG, "copy attention-tma conformance-box")
    try:
        labels = [label for label, _ in importlib.reload(attention).OTHERS]
    finally:
        monkeypatch.undo()
        assert [label for label, _ in importlib.reload(attention).OTHERS] == ["mma.sync", "TMA"]
    assert labels == ["mma.sync"]
    monkeypatch.setenv(attention.WRONG, "copy attention-tma conformance-box")
    asked = []
    monkeypatch.setattr(gpu_session, "pytest", lambda *given, **_: asked.append(given) or 0)
    with contextlib.suppress(FileNotFoundError):  # there is no report to read
        list(SECTIONS["tests"]("cpu", True, 1.0))
    ((*_, option, chosen_tests),) = asked
    without = "not ((test_attention_sm90 and tma) or (test_conformance and box))"
    assert (option, chosen_tests) == ("-k", without)


def test_sections_that_no_time_is_left_for_are_named(tmp_path: Path) -> None:
    out = tmp_path / "session.json"
    assert session(["good"], True, out, seconds=0) == 1
    record = json.loads(out.read_text())
    assert record["rows"] == []
    assert record["sections"][0]["failure"] == "not run: the time for the session was up"


@pytest.mark.usefixtures("broken")
def test_a_second_command_adds_to_the_first(tmp_path: Path) -> None:
    out = tmp_path / "session.json"
    assert session(["raising"], True, out) == 1
    before = json.loads(out.read_text())
    assert session(["good"], True, out, before=before) == 1  # the first still failed
    assert session(["raising"], True, out, before=json.loads(out.read_text())) == 1
    record = json.loads(out.read_text())
    assert [s["section"] for s in record["sections"]] == ["good", "raising"]
    assert [row["section"] for row in record["rows"]] == ["good", "raising"]
    assert {s["commit"] for s in record["sections"]} == {record["provenance"]["commit"]}


@pytest.mark.usefixtures("broken")
def test_a_session_that_is_ended_keeps_what_it_measured(tmp_path: Path) -> None:
    out = tmp_path / "session.json"
    code = (
        f"import sys; sys.path.insert(0, {str(Path(gpu_session.__file__).parent)!r})\n"
        f"import gpu_session; gpu_session.SCRIPT = {gpu_session.SCRIPT!r}\n"
        "gpu_session.SECTIONS['endless'] = None\n"
        f"gpu_session.main(['--dry-run', '--only', 'endless', '--out', {str(out)!r}])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if out.exists() and json.loads(out.read_text())["rows"]:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
    record = json.loads(out.read_text())
    assert [row["value"] for row in record["rows"]] == [3]
