"""What is shown: a bar where there is a terminal, lines everywhere."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest

from gpugrad.train import Trainer, begin
from gpugrad.train.loop import Report
from gpugrad.train.progress import Progress, duration


class Terminal(io.StringIO):
    """Standard error as a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("mfu", "wanted"), [(None, ""), (0.4567, ", MFU 45.7%")])
def test_a_terminal_has_a_bar_with_loss_speed_and_time_left(monkeypatch, capsys, mfu, wanted):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with Progress(total=10, done=4) as progress:
        progress.advance()
        progress.show(Report(5, 2.34567, 0.5, 1e-3, 12345.6, mfu))
        progress.line("a line")
    shown = terminal.getvalue()
    assert f"loss 2.3457, 12,346 tokens/s{wanted}]" in shown
    assert "5/10" in shown
    assert "<" in shown  # elapsed<left
    assert capsys.readouterr().out == "a line\n"


def test_without_a_terminal_there_are_lines_only(monkeypatch, capsys):
    times = iter([100.0, 100.0 + 250 * 2.0, 100.0 + 500 * 3.0])
    clock = SimpleNamespace(perf_counter=lambda: next(times))
    monkeypatch.setattr("gpugrad.train.progress.time", clock)
    with Progress(total=2000, done=0) as progress:
        progress.evaluated(0, 5.5, True)
        progress.advance()
        progress.show(Report(1, 2.0, None, 1e-3, 100.0, None))
        progress.evaluated(250, 2.51234, False)
        progress.evaluated(500, 2.5, False)
        progress.evaluated(2000, 2.0, True)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines() == [
        "step    0  validation loss 5.5000  *",
        "step  250  validation loss 2.5123     train loss 2.0000  100 tokens/s  58:20 left",
        "step  500  validation loss 2.5000     train loss 2.0000  100 tokens/s  1:15:00 left",
        "step 2000  validation loss 2.0000  *  train loss 2.0000  100 tokens/s",
    ]


def test_the_time_left_counts_all_that_happens_between_steps(make_config, monkeypatch, capsys):
    """An evaluation that takes 10 s for each two steps: 60 s for the 12 that are left."""
    waited = 0.0
    clock = SimpleNamespace(perf_counter=lambda: waited)
    monkeypatch.setattr("gpugrad.train.progress.time", clock)
    evaluate = Trainer.evaluate

    def slow(trainer: Trainer) -> float:
        nonlocal waited
        waited += 10.0 if trainer.step else 0.0
        return evaluate(trainer)

    monkeypatch.setattr(Trainer, "evaluate", slow)
    with begin(make_config(max_steps=14, eval_interval=2, sample_tokens=0)) as run:
        run.train()
    assert re.search(r"step  2 .* 1:00 left\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        (0, "0:00"),
        (9.6, "0:10"),
        (59.7, "1:00"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (1e5, "27:46:40"),
    ],
)
def test_durations(seconds, wanted):
    assert duration(seconds) == wanted
