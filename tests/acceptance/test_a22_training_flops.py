"""A22: what training a model takes, 6 N D operations, in petaflop/s-days."""

from __future__ import annotations

import pytest

from gpugrad import cli
from gpugrad.models import petaflop_days, training_flops


def test_a22_training_flops() -> None:
    flops = training_flops(175 * 10**9, 300 * 10**9)
    assert flops == 315 * 10**21
    assert round(petaflop_days(flops)) == 3646
    assert petaflop_days(8.64e19) == 1


def test_a22_nothing_is_trained() -> None:
    assert training_flops(0, 10) == training_flops(10, 0) == 0
    with pytest.raises(ValueError, match=r"training_flops: 1 parameters and -1 tokens"):
        training_flops(1, -1)


def test_a22_in_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    """`gpugrad plan` says it of the whole run: 1,000 steps of 8 windows of 32 tokens."""
    assert cli.main(["plan", "--preset", "tiny", "--gpu", "h200"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("run ")]
    assert "1,000 steps, 256,000 tokens" in row
    assert "petaflop/s-days" in row
