"""Whether and how kernels run in the emulator."""

from __future__ import annotations

import pytest

from gpugrad import emulator
from gpugrad.cuda import emulation


def test_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPUGRAD_EMULATE", raising=False)
    assert emulator.active() is None
    assert emulator.settings() is None


def test_enabled_nests_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPUGRAD_EMULATE", raising=False)
    with emulator.enabled("checked", order="random", seed=3):
        assert emulator.active() == "checked"
        assert emulator.settings() == emulator.Settings("checked", "random", seed=3)
        with emulator.enabled():
            assert emulator.active() == "plain"
        assert emulator.active() == "checked"
    assert emulator.active() is None


@pytest.mark.parametrize(
    ("value", "mode"),
    [("plain", "plain"), ("Checked ", "checked"), ("", None), ("off", None), ("0", None)],
)
def test_the_environment(monkeypatch: pytest.MonkeyPatch, value: str, mode: str | None) -> None:
    monkeypatch.setenv("GPUGRAD_EMULATE", value)
    assert emulator.active() == mode
    with emulator.enabled("plain"):
        assert emulator.active() == "plain"


def test_an_unknown_mode_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUGRAD_EMULATE", "fast")
    with pytest.raises(ValueError, match="GPUGRAD_EMULATE='fast' is not a mode"):
        emulator.active()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"mode": "fast"}, "mode 'fast' is unknown"),
        ({"order": "up"}, "order 'up' is unknown"),
        ({"blocks": 0}, "blocks to run must be at least 1, not 0"),
        ({"poison": 256}, "poison 256"),
        ({"seconds": 0}, "seconds"),
    ],
)
def test_unknown_settings(how: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words), emulator.enabled(**how):
        pass


def test_disabled_inside_and_against_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUGRAD_EMULATE", "plain")
    with emulator.enabled("checked"), emulation.disabled():
        assert emulator.active() is None
        assert not emulation.expected()
    with emulation.disabled():
        assert emulator.settings() is None
        with emulator.enabled("checked"):
            assert emulator.active() == "checked"
            assert emulation.expected()
    assert emulator.active() == "plain"
