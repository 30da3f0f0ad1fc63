"""The thread that writes: in order, errors told, abandoned by Ctrl-C."""

from __future__ import annotations

import threading
import weakref

import pytest

from gpugrad.train.saving import Saver


@pytest.mark.parametrize("beside", [True, False])
def test_one_after_the_other(beside):
    written, threads = [], set()

    def write(n):
        threads.add(threading.current_thread())
        written.append(n)

    with Saver(beside) as saver:
        for n in range(20):
            saver.start(lambda n=n: write(n))
    assert written == list(range(20))
    assert (threading.current_thread() in threads) is not beside


def fails():
    raise OSError(28, "No space left on device")


def test_an_error_is_told_by_whatever_comes_next():
    for later in (lambda s: s.start(list), lambda s: s.check(), lambda s: None):
        saver = Saver(beside=True)

        def use(saver=saver, later=later):
            with saver:
                saver.start(fails)
                saver._join()
                later(saver)

        with pytest.raises(OSError, match="No space left"):
            use()
        saver.check()  # told once


@pytest.mark.parametrize(("kind", "finished"), [(KeyboardInterrupt, False), (SystemExit, True)])
def test_ctrl_c_abandons_what_is_being_written(kind, finished):
    begun, ended = threading.Event(), []

    def write():
        begun.set()
        for _ in range(300):
            threading.Event().wait(0.001)
            saver.go_on()
        ended.append(True)

    saver = Saver(beside=True)

    def use():
        with saver:
            saver.start(write)
            begun.wait()
            raise kind

    with pytest.raises(kind):
        use()
    assert bool(ended) is finished
    assert not [t for t in threading.enumerate() if t.name == "gpugrad-saver"]


@pytest.mark.parametrize("begun", [True, False])
def test_ctrl_c_while_the_thread_starts(begun, monkeypatch):
    """Python starts a thread in two steps, and a signal's exception comes before or after each."""
    start, written = threading.Thread.start, []

    def interrupted(thread):
        if begun:
            start(thread)
        raise KeyboardInterrupt

    saver = Saver(beside=True)

    def write():
        for _ in range(300):
            threading.Event().wait(0.001)
            saver.go_on()
        written.append(True)

    def use():
        with saver:
            saver.start(write)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        use()
    threading.Event().wait(0.4)
    assert not written
    saver.check()


def test_what_is_written_is_kept_by_nobody():
    class Snapshot:
        def __call__(self):
            pass

    with Saver(beside=True) as saver:
        snapshot = Snapshot()
        kept = weakref.ref(snapshot)
        saver.start(snapshot)
        del snapshot
        saver._thread.join()
        assert kept() is None
