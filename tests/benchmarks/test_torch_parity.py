from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_gpt
import torch_parity
from training import VOCABULARY, Run

from gpugrad.models import GPT, GPTConfig

TINY = Run(layers=1, heads=2, width=8, block=6, batch=2, steps=4)


def stand_in(offset: float) -> SimpleNamespace:
    """Return a module like torch_gpt that trains with gpugrad and shifts the last loss."""

    def train(run: Run, weights: Mapping[str, np.ndarray], batches: Iterable) -> list[float]:
        dtype = next(iter(weights.values())).dtype.name
        model = GPT(GPTConfig(256, run.block, run.layers, run.heads, run.width, dtype=dtype))
        model.load_state_dict(weights)
        *losses, last = small_gpt.train(run, model).losses
        return [*losses, last + offset]

    return SimpleNamespace(train=train)


@pytest.mark.parametrize(
    ("offset", "agrees"),
    [(0.0, [True, True]), (1e-5, [True, False]), (1e-3, [False, False])],
    ids=["equal", "off in float64", "off in both"],
)
def test_verdict(
    offset: float, agrees: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_parity, "Run", lambda: TINY)
    monkeypatch.setitem(sys.modules, "torch_gpt", stand_in(offset))
    out = tmp_path / "parity.json"
    assert torch_parity.main(["--steps", "3", "--out", str(out)]) == int(not all(agrees))
    rows = json.loads(out.read_text())["rows"]
    assert [row["dtype"] for row in rows] == ["float32", "float64"]
    assert [row["agrees"] for row in rows] == agrees
    assert all(len(row["losses"]) == len(row["torch_losses"]) == 3 for row in rows)


def test_without_torch_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert torch_parity.main([]) == 2
    assert 'pip install -e ".[bench]"' in capsys.readouterr().out


def test_the_model_learns_and_every_run_is_the_same() -> None:
    run = Run(layers=1, heads=2, width=16, block=8, batch=4, steps=20, lr=1e-2)
    first, second = (small_gpt.train(run, small_gpt.build(run)).losses for _ in range(2))
    assert first == second
    assert first[0] == pytest.approx(np.log(VOCABULARY), abs=0.1)
    assert first[-1] < first[0] - 1


def test_batches_are_bytes_of_real_text_and_targets_follow_inputs() -> None:
    batches = list(small_gpt.batches(TINY))
    assert len(batches) == TINY.steps
    for x, y in batches:
        assert x.shape == y.shape == (TINY.batch, TINY.block)
        np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    assert any((x != batches[0][0]).any() for x, _ in batches[1:])
