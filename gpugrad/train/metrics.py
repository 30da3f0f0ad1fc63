"""metrics.jsonl: one JSON object per line, as training goes on."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..text import atomic_write
from ..text.files import naming, parse_json, sync_folder

Record = dict[str, Any]


def append_metrics(path: str | os.PathLike[str], **record: Any) -> None:
    """Append one record, or nothing of it should the disk fail.

    A number that is not finite raises ValueError.
    """
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    with naming(path), open(os.fspath(path), "ab", buffering=0) as file:
        end = file.tell()
        try:
            while line:
                line = line[file.write(line) :]
        except OSError:
            file.truncate(end)  # half a line would spoil the next one
            raise


def sync_metrics(path: str | os.PathLike[str]) -> None:
    """Make the records survive a power cut, as a checkpoint taken after them does."""
    with naming(path), open(os.fspath(path), "rb") as file:
        os.fsync(file.fileno())
    sync_folder(Path(path).parent)


def read_metrics(path: str | os.PathLike[str]) -> list[Record]:
    """Return the records of a metrics file, oldest first; none when there is no file.

    Left out are lines that are no records, damaged or written by somebody else, and a last one
    without its end, cut off when a process was killed.
    """
    return [record for _, record in _lines(path) if record is not None]


def keep_metrics(path: str | os.PathLike[str], keep: Callable[[Record], bool]) -> None:
    """Rewrite a metrics file with only the records that `keep` accepts.

    Lines that are no records stay as they are; a RuntimeWarning tells their numbers.
    """
    lines = _lines(path)
    strange = [str(number) for number, (_, record) in enumerate(lines, 1) if record is None]
    if strange:
        shown = ", ".join(strange[:10]) + ", ..." * (len(strange) > 10)
        warnings.warn(
            f"{path}: no record of a run is on line {shown}, which stays as it is and is not drawn",
            RuntimeWarning,
            stacklevel=2,
        )
    with atomic_write(path) as file:
        file.writelines(line + b"\n" for line, record in lines if record is None or keep(record))


def _lines(path: str | os.PathLike[str]) -> list[tuple[bytes, Record | None]]:
    """Return the lines that have an end, each with its record if it is one."""
    path = Path(path)
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [(line, _record(line)) for line in lines]


def _record(line: bytes) -> Record | None:
    """Return a line's record, if it is one that `Session` can draw and place among the steps."""
    loss = None
    try:
        record = parse_json(line)
    except ValueError:
        return None
    match record:
        case {"kind": "baseline", "step": int(step)}:
            pass
        case {"kind": "train" | "validation", "step": int(step), "loss": int() | float() | None}:
            loss = record["loss"]
        case _:
            return None
    return record if 0 <= step < 2**63 and abs(loss or 0) < 1e300 else None
