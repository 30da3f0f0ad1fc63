"""metrics.jsonl: appended line by line, read back, cut to a step."""

from __future__ import annotations

import errno
import io
import json

import pytest

from gpugrad.train.metrics import append_metrics, keep_metrics, read_metrics


def record(step, **more):
    return {"kind": "baseline", "step": step, **more}


def line(step, **more):
    return json.dumps(record(step, **more)).encode() + b"\n"


def test_records_come_back_and_are_appended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        append_metrics(path, kind="train", step=step, loss=0.1 + step)
    assert read_metrics(path) == [
        {"kind": "train", "step": 1, "loss": 1.1},
        {"kind": "train", "step": 2, "loss": 2.1},
    ]


def test_no_file_is_no_records(tmp_path):
    assert read_metrics(tmp_path / "none") == []


@pytest.mark.parametrize("rest", [b'{"step": 3, "lo', b"{", line(3).rstrip(), b"\xff"])
def test_a_last_line_without_its_end_is_left_out(tmp_path, rest):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + line(2) + rest)
    assert [record["step"] for record in read_metrics(path)] == [1, 2]


STRANGE = [
    *(b"{", b"\xff", b"[1]", b"", b'{"a": 1}', b'{"kind": "note", "step": 5}'),
    *(b'{"kind": "baseline", "step": "5"}', b'{"kind": "baseline", "step": -1}'),
    *(b'{"kind": ["train"], "step": 5}', b'{"kind": "train", "step": 5, "lxss": 1.0}'),
    *(b'{"kind": "train", "step": 5, "loss": ' + x + b"}" for x in (b'"1"', b"1e999", b"[]")),
]


@pytest.mark.parametrize("strange", STRANGE)
def test_lines_that_are_no_records_are_named_left_out_and_kept(tmp_path, strange):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + strange + b"\n" + line(2) + b"note\n" + line(3))
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3]
    with pytest.warns(RuntimeWarning, match=r"metrics\.jsonl: no record .* on line 2, 4, which"):
        keep_metrics(path, lambda record: record["step"] <= 2)
    assert path.read_bytes() == line(1) + strange + b"\n" + line(2) + b"note\n"


def test_only_kept_records_stay(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + line(2, x=0.1) + line(3) + b'{"st')
    keep_metrics(path, lambda record: record["step"] <= 2)
    assert path.read_bytes() == line(1) + line(2, x=0.1)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_half_a_line_is_taken_back_when_the_disk_fails(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, **record(1))

    class Failing(io.FileIO):
        def write(self, data):
            if len(data) < 5:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data[:4])  # short writes are no errors

    monkeypatch.setattr("builtins.open", lambda path, mode, buffering: Failing(path, "ab"))
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics.jsonl'"):
        append_metrics(path, **record(2))
    monkeypatch.undo()
    append_metrics(path, **record(3))
    assert read_metrics(path) == [record(1), record(3)]


def test_a_number_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_metrics(tmp_path / "metrics.jsonl", loss=float("nan"))
    assert read_metrics(tmp_path / "metrics.jsonl") == []
