"""A24: grid search over L = {2, 3} and eta = {1e-2, 1e-3}: four runs, the best by dev loss."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from gpugrad.cli import main
from gpugrad.train.metrics import read_metrics

TEXT = "".join(f"{i} times {i % 7} is {i * (i % 7)}\n" for i in range(400))
SMALL = [
    *("--device", "cpu", "--tokenizer", "char", "--schedule", "constant", "--warmup-steps", "2"),
    *("--n-head", "2", "--n-embd", "16", "--block-size", "16", "--batch-size", "4"),
    *("--max-steps", "12", "--eval-interval", "6", "--eval-windows", "8", "--sample-tokens", "0"),
]


def test_a24_grid_search(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "input.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    space = ["--grid", "n_layer=2,3", "--grid", "lr=1e-2,1e-3"]
    assert main(["search", "--data", "input.txt", "--out", "found", *space, *SMALL]) == 0
    folders = sorted(path for path in Path("found").iterdir() if path.is_dir())
    configs = [json.loads((f / "config.json").read_text())["config"] for f in folders]
    tried = [(config["n_layer"], config["lr"]) for config in configs]
    assert tried == list(itertools.product((2, 3), (1e-2, 1e-3)))
    losses = {
        folder.name: min(
            r["loss"] for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "validation"
        )
        for folder in folders
    }
    best = min(losses, key=losses.__getitem__)
    assert len(set(losses.values())) == 4
    out = capsys.readouterr().out
    assert f"best      {best}: " in out
    assert f"dev loss {losses[best]:.4f}" in out
    rows = Path("found/results.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == sorted(losses, key=losses.__getitem__)
