"""metrics.jsonl: appended line by line, read back, cut to a step."""

from __future__ import annotations

import errno
import io

import pytest

from gpugrad.train.metrics import append_metrics, keep_metrics, read_metrics


def test_records_come_back_and_are_appended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        append_metrics(path, step=step, loss=0.1 + step)
    assert read_metrics(path) == [{"step": 1, "loss": 1.1}, {"step": 2, "loss": 2.1}]


def test_no_file_is_no_records(tmp_path):
    assert read_metrics(tmp_path / "none") == []


@pytest.mark.parametrize("rest", [b'{"step": 3, "lo', b"{", b'{"step": 3}', b"\xff"])
def test_a_last_line_without_its_end_is_left_out(tmp_path, rest):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + rest)
    assert [record["step"] for record in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize(
    ("line", "what"), [(b"{", "not JSON"), (b"\xff", "not JSON"), (b"[1]", "not a JSON object")]
)
def test_other_damage_is_named(tmp_path, line, what):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(ValueError, match=f"metrics.jsonl, line 2 is {what}"):
        read_metrics(path)


def test_only_kept_records_stay(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "x": 0.1}\n{"step": 3}\n{"st')
    keep_metrics(path, lambda record: record["step"] <= 2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2, "x": 0.1}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_half_a_line_is_taken_back_when_the_disk_fails(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, step=1)

    class Failing(io.FileIO):
        def write(self, data):
            if len(data) < 5:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data[:4])  # short writes are no errors

    monkeypatch.setattr("builtins.open", lambda path, mode, buffering: Failing(path, "ab"))
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics.jsonl'"):
        append_metrics(path, step=2)
    monkeypatch.undo()
    append_metrics(path, step=3)
    assert read_metrics(path) == [{"step": 1}, {"step": 3}]


def test_a_number_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_metrics(tmp_path / "metrics.jsonl", loss=float("nan"))
    assert read_metrics(tmp_path / "metrics.jsonl") == []
