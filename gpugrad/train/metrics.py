"""metrics.jsonl: one JSON object per line, as training goes on."""

from __future__ import annotations

import json
import os
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

    A last line without its end, cut off when a process was killed, is left out. Raises ValueError
    naming the first other line that is not a JSON object.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object")
        records.append(record)
    return records


def keep_metrics(path: str | os.PathLike[str], keep: Callable[[Record], bool]) -> None:
    """Rewrite a metrics file with only the records that `keep` accepts."""
    records = [record for record in read_metrics(path) if keep(record)]
    with atomic_write(path) as file:
        file.write("".join(json.dumps(record) + "\n" for record in records).encode())
