"""Signals: the first is noted, the second acts, and everything is as before afterwards."""

from __future__ import annotations

import signal
import threading

import pytest

import gpugrad as gg
from gpugrad.train.interrupt import Stopped, StopSignals

NUMBERS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def handled():
    """Handlers that raise, whatever the process was started with."""

    def handler(number, frame):
        raise KeyboardInterrupt(number)

    before = {number: signal.signal(number, handler) for number in NUMBERS}
    yield handler
    for number, old in before.items():
        signal.signal(number, old)


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: n.name)
def test_the_first_signal_is_noted_and_the_second_acts(handled, number):
    with StopSignals() as signals:
        assert signals.received is None
        signal.raise_signal(number)
        assert signals.received is number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert [signal.getsignal(n) for n in NUMBERS] == [handled, handled]


def test_handlers_come_back_without_a_signal(handled):
    with StopSignals():
        assert signal.getsignal(signal.SIGINT) is not handled
    assert [signal.getsignal(n) for n in NUMBERS] == [handled, handled]


def test_ignored_signals_stay_ignored(handled):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
    assert signals.received is None
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_other_threads_change_nothing(handled):
    seen = []

    def work():
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [handled]


def struck(signals, number):
    """Return True if work gets past a signal."""
    with signals.leaving():
        signal.raise_signal(number)
        return True
    raise AssertionError("contexts pass errors on")


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: n.name)
def test_work_is_left_at_once(handled, number):
    with StopSignals() as signals:
        with pytest.raises(Stopped):
            struck(signals, number)
        assert signals.received is number
        with pytest.raises(Stopped):  # nor is other work begun
            struck(signals, number)


def test_other_work_is_not_left(handled):
    with StopSignals() as signals:
        with signals.leaving():
            pass
        signal.raise_signal(signal.SIGTERM)
    assert signals.received is signal.SIGTERM
    with StopSignals(at_once=False) as signals:
        assert struck(signals, signal.SIGTERM)
        with pytest.raises(Stopped):
            struck(signals, signal.SIGTERM)


def test_a_step_is_recorded_to_its_end(handled):
    x = gg.tensor([1.0, 2.0], requires_grad=True)

    @gg.compile
    def step():
        y = (x * x).sum()
        signal.raise_signal(signal.SIGTERM)
        y.backward()
        return y

    with StopSignals() as signals:
        with signals.leaving():
            step()
        assert signals.received is signal.SIGTERM
        assert type(x) is gg.Tensor
        assert x.grad.tolist() == [2.0, 4.0]
