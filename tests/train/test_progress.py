"""What is shown: a bar where there is a terminal, lines everywhere."""

from __future__ import annotations

import io

import pytest

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


def test_without_a_terminal_there_are_lines_only(capsys):
    with Progress(total=2000, done=0) as progress:
        progress.evaluated(0, 5.5, True, None)
        progress.advance()
        progress.show(Report(1, 2.0, None, 1e-3, 100.0, None))
        progress.evaluated(250, 2.51234, False, 3723.0)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines() == [
        "step    0  validation loss 5.5000  *",
        "step  250  validation loss 2.5123     train loss 2.0000  100 tokens/s  1:02:03 left",
    ]


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
