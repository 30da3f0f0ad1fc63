"""The emulated wrappers give what the hardware gave, where that was measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from gpugrad import emulator
from gpugrad.cuda import kernel

_spec = importlib.util.spec_from_file_location(
    "conformance", Path(__file__).with_name("conformance.py")
)
assert _spec is not None
assert _spec.loader is not None
conformance = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(conformance)
CASES = conformance.cases()


@pytest.fixture(autouse=True)
def _no_declaration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "SOURCES", {})


@pytest.mark.parametrize("name", CASES)
def test_every_case_runs_alike_in_both_builds(name):
    outputs = emulator.sweep(lambda: conformance.run(CASES[name], on_gpu=False))
    assert np.isfinite(outputs.astype("d")).any()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.skipif(not conformance.STORED.exists(), reason="hardware outputs: not measured")
def test_the_emulator_agrees_with_the_hardware(name):
    with np.load(conformance.STORED, allow_pickle=False) as stored, emulator.enabled():
        if name not in stored:
            pytest.skip("this output: not measured")
        found = conformance.run(CASES[name], on_gpu=False)
        assert conformance.differences(found, stored[name], *CASES[name][3:]) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_the_hardware_agrees_with_the_emulator(name):
    with emulator.enabled():
        expected = conformance.run(CASES[name], on_gpu=False)
    found = conformance.run(CASES[name], on_gpu=True)
    assert conformance.differences(found, expected, *CASES[name][3:]) == 0


def test_boxes_are_measured_apart():
    parts = [conformance.chosen(which).keys() for which in ("box", "not box")]
    assert len(parts[0]) == 16
    assert not parts[0] & parts[1]
    assert conformance.chosen().keys() == parts[0] | parts[1] == CASES.keys()


def test_differences_are_seen():
    assert conformance.differences(np.array([1.0, np.nan]), np.array([1.0, np.nan]), 0, 0) == 0
    assert conformance.differences(np.array([1.0, 2.0]), np.array([1.0, 2.0001]), 1e-6, 0) == 1
