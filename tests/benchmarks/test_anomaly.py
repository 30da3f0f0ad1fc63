from __future__ import annotations

import json
from pathlib import Path

import anomaly
import pytest


def test_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(anomaly, "SHAPES", {"tiny": (1, 2, 32, 8, 2)})
    out = tmp_path / "anomaly.json"
    assert anomaly.main(["--rounds", "2", "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["ratio"] == row["detect_anomaly"] / row["plain"]
    assert row["launches_detect_anomaly"] > 2 * row["launches"] > 0
    assert "tiny" in capsys.readouterr().out
