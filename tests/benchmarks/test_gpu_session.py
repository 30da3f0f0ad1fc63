from __future__ import annotations

import json
from pathlib import Path

import gpu_session
import pytest
from gpu_session import SECTIONS, backend, main, session

BROKEN = """
import os, sys, time
sys.path.insert(0, {folder!r})
import gpu_session

def raising(device, tiny):
    yield {{"what": "before", "value": 1, "unit": ""}}
    raise AssertionError("broken on purpose")

def crashing(device, tiny):
    yield {{"what": "before", "value": 2, "unit": ""}}
    os.abort()

def endless(device, tiny):
    yield {{"what": "before", "value": 3, "unit": ""}}
    time.sleep(60)

def diverging(device, tiny):
    yield {{"what": "loss", "value": float("nan"), "unit": ""}}

def good(device, tiny):
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


def test_dry_run_takes_every_section_and_writes_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "session.json"
    assert main(["--dry-run", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert list(tmp_path.iterdir()) == [out]
    assert [s["section"] for s in record["sections"]] == list(SECTIONS)
    assert {row["section"] for row in record["rows"]} == set(SECTIONS)
    assert record["settings"] == {"dry_run": True}
    values = {(row["section"], row["what"]): row["value"] for row in record["rows"]}
    assert values["copy", "copy 1e-06 GiB"] > 0
    assert values["train", "loss went down by"] > 0.1
    assert values["train", "largest difference of losses to NumPy"] == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "all sections passed"
    assert lines[-2].split()[:2] == ["sanitizer", "compute-sanitizer"]


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backend, "cupy_or_reason", lambda: (None, "No driver"))
    assert main([]) == 2
    assert "no GPU to measure. No driver. --dry-run needs none." in capsys.readouterr().out


def test_unknown_section_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--dry-run", "gemv"])
    assert "no section 'gemv'; there are copy, gemm-float32" in capsys.readouterr().err


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
def test_sections_that_no_time_is_left_for_are_named(tmp_path: Path) -> None:
    out = tmp_path / "session.json"
    assert session(["good"], True, out, seconds=0) == 1
    record = json.loads(out.read_text())
    assert record["rows"] == []
    assert record["sections"][0]["failure"] == "not run: the time for the session was up"
