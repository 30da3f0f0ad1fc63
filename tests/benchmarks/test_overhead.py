from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import overhead
import pytest
from overhead import CASES, Case, Chain


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_numpy_calls_give_the_same_bits_as_gpugrad(case: Case) -> None:
    chain = Chain(case, length=7)
    assert (chain.numpy_forward() != chain.x).any() or case.name in ("sum", "reshape")


def test_numpy_calls_that_compute_something_else_are_refused() -> None:
    tanh = next(case for case in CASES if case.name == "tanh")
    wrong = dataclasses.replace(tanh, backward=lambda g, w, ys, outs: (g * 1.001, None))
    with pytest.raises(AssertionError, match="tanh"):
        Chain(wrong, length=3)


def test_chains_stay_finite_at_full_length() -> None:
    for case in CASES:
        chain = Chain(case)
        chain.gpugrad_both()
        assert abs(chain.tensor.grad.numpy()).max() < 1e30, case.name


@pytest.mark.parametrize(
    ("budget", "check", "status"),
    [(1e12, True, 0), (-1e12, True, 1), (-1e12, False, 0)],
    ids=["within budget", "over budget", "over budget, not checked"],
)
def test_check_fails_exactly_when_over_budget(
    budget: float, check: bool, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overhead, "CASES", CASES[:2])
    monkeypatch.setattr(overhead, "LENGTH", 5)
    monkeypatch.setattr(overhead, "BUDGET_NS", budget)
    monkeypatch.setattr(overhead, "REPLAY_BUDGET_NS", 1e12)
    monkeypatch.setattr(overhead, "IMPORT_BUDGET_MS", 1e12)
    out = tmp_path / "overhead.json"
    arguments = ["--rounds", "1", "--out", str(out), *(["--check"] if check else [])]
    assert overhead.main(arguments) == status
    record = json.loads(out.read_text())
    names = [row["what"] for row in record["rows"]]
    assert names == ["add", "multiply", "launch of a compiled step", "import gpugrad"]
    assert all(row["numpy"] > 0 for row in record["rows"])
    assert record["provenance"]["commit"]
