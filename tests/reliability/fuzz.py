"""Feed changed files to everything that reads files, and print what became of them.

    python tests/reliability/fuzz.py [--cases 100000] [--seed 0] [--only TEXT]

Each case changes a sound file (bits, pieces, values, structure) and reads it. It has to be read, or
refused by an error that is meant for its user, within seconds, in little memory, and the file has
to stay as it was. What is not is printed with the reader, the number of the case and the error;
the case is made again by the same seed. Exits with 1 if there was any.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import json
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).parent)] if __name__ == "__main__" else []
if __name__ == "__main__":
    from readers import READERS, Reader
else:
    from .readers import READERS, Reader

SECONDS = 5  # of the processor a case may take
PATIENCE = 120  # seconds on the clock, for what waits
MEMORY = 2**30  # bytes that all cases together may need more than what was there before
VALUES: list[Any] = [
    -1, 0, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 1e308, -0.0, 0.1, None, True, "", "x",
    "\x00", "\udcff", "../../etc/passwd", "/dev/zero", "é" * 50, "x" * 5000, [], {}, [[]], [0] * 3,
    {"x": {}}, [None], "nan", "1e999",
]  # fmt: skip
PIECES = [
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 400, b"null", b"-1", b"0", b"{}", b"[]"),
    *(b"[" * 5000, b'{"a":' * 5000, b"- " * 5000, b'{"x":1,"x":2}', b'"', b"}", b"&a [*a, *a]"),
    *(b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\r\n", b"\xff" * 8, b"\x80\x04\x95"),
    *(struct.pack("<Q", 2**63), struct.pack("<Q", 2**30), b"--config", b"\n--seed\n"),
    *(b"!!python", b"!!python/object/apply:os.system ['true']"),
]
_VALUE = re.compile(rb'-?\d+(\.\d+)?|true|false|null|"[^"\n]{0,40}"')


class Finding(NamedTuple):
    """A case that was neither read nor refused as it has to be."""

    reader: str
    case: int
    error: str
    data: bytes


def changed(good: bytes, rng: random.Random) -> bytes:
    """Return a file changed in one to four places."""
    data = good
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(CHANGES)(data, rng)
    return data


def _flipped(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data or b"\x00")
    found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _removed(data: bytes, rng: random.Random) -> bytes:
    i = rng.randrange(len(data) + 1)
    return data[:i] + data[i + rng.randrange(1, 60) :]


def _inserted(data: bytes, rng: random.Random) -> bytes:
    i = rng.randrange(len(data) + 1)
    return data[:i] + rng.choice(PIECES) + data[i:]


def _spliced(data: bytes, rng: random.Random) -> bytes:
    i, j, k = (rng.randrange(len(data) + 1) for _ in range(3))
    return data[:i] + data[min(j, k) : max(j, k)] + data[i:]


def _overwritten(data: bytes, rng: random.Random) -> bytes:
    i, piece = rng.randrange(len(data) + 1), rng.choice(PIECES)
    return data[:i] + piece + data[i + len(piece) :]


def _replaced(data: bytes, rng: random.Random) -> bytes:
    """Put another value for one that is written as text."""
    found = list(_VALUE.finditer(data[:20_000]))
    if not found:
        return _overwritten(data, rng)
    place = rng.choice(found)
    other = rng.choice([json.dumps(rng.choice(VALUES)).encode(), rng.choice(PIECES)])
    return data[: place.start()] + other + data[place.end() :]


def _restructured(data: bytes, rng: random.Random) -> bytes:
    """Change the structure of a file that is JSON, or begins with JSON as safetensors files do."""
    start = next((n for n in (0, 8) if data[n : n + 1] in (b"{", b"[")), None)
    try:
        if start is None:
            return _replaced(data, rng)
        size = struct.unpack("<Q", data[:8])[0] if start else len(data)
        tree = json.loads(data[start : start + size])
    except (ValueError, RecursionError):
        return _replaced(data, rng)
    body = json.dumps(_mutated(copy.deepcopy(tree), rng)).encode()
    return struct.pack("<Q", len(body)) + body + data[8 + size :] if start else body


def _mutated(tree: Any, rng: random.Random) -> Any:
    places = list(_places(tree))
    if not places:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    action = rng.randrange(5)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        holder[str(rng.choice(VALUES))[:50]] = holder.pop(key)
    elif action == 2:
        other, at = rng.choice(places)
        with contextlib.suppress(LookupError):  # a place within another
            holder[key] = copy.deepcopy(other[at])
    else:
        holder[key] = rng.choice(VALUES)
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], (dict, list)):
            yield from _places(tree[key])


CHANGES = (
    *(_flipped, _cut, _removed, _inserted, _spliced, _overwritten),
    *(_replaced, _replaced, _restructured, _restructured, _restructured),
)


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Limit the memory of this process, ignore warnings, and let `alarm` end what hangs."""

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError("it hangs")

    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = [signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)]
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, hard))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        allow(0, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def allow(seconds: float = SECONDS, patience: float = PATIENCE) -> None:
    """Let what comes now take so long and no longer, within `limits`."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, patience)


def fuzz(
    name: str, reader: Reader, folder: Path, cases: range, seed: int, notes: Path | None = None
) -> tuple[Any, list[Finding]]:
    """Read changed files; return how many came to which end, and the findings.

    notes: a file that tells which case is being read.
    """
    path = reader.make(folder)
    reader.read(path)
    sound = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    good = sound[path]
    outcomes: collections.Counter[str] = collections.Counter()
    findings = []
    for case in cases:
        if notes is not None:
            notes.write_text(str(case))
        data = changed(good, random.Random(f"{name} {seed} {case}"))
        with contextlib.suppress(ValueError, RecursionError, TypeError, AttributeError):
            data = data if reader.mend is None else reader.mend(data, path)
        path.write_bytes(data)
        allow()
        try:
            reader.read(path)
            outcome = "read"
        except reader.refusals:
            outcome = "refused"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome = "wrong"
            findings.append(Finding(name, case, f"{type(error).__name__}: {error}", data))
        finally:
            allow(0, 0)
        if path.read_bytes() != data:
            outcome = "wrong"
            findings.append(Finding(name, case, "the file was changed", data))
        outcomes[outcome] += 1
        if reader.mend is not None or case % 100 == 99:
            for other, content in sound.items():
                other.write_bytes(content)
    left = {p for p in folder.rglob("*") if p.is_file()} - sound.keys()
    if left:
        findings.append(Finding(name, cases.stop, f"left behind: {sorted(left)}", b""))
    return outcomes, findings


def in_process(name: str, cases: int, seed: int, start: int, folder: Path) -> None:
    """Fuzz one reader and print what came of it as JSON; where it is stands in a file `case`."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with limits():
        outcomes, findings = fuzz(
            name, READERS[name], work, range(start, cases), seed, folder / "case"
        )
    print(json.dumps([outcomes, [(f.case, f.error, repr(f.data[:200])) for f in findings]]))


def apart(name: str, cases: int, seed: int) -> tuple[Any, list[Any]]:
    """Fuzz one reader in processes of its own: one that dies is a finding, and another goes on."""
    outcomes: collections.Counter[str] = collections.Counter()
    findings: list[Any] = []
    start = 0
    with tempfile.TemporaryDirectory() as folder:
        while start < cases:
            command = [sys.executable, __file__, f"--apart={name}", f"--cases={cases}"]
            command += [f"--seed={seed}", f"--start={start}", f"--folder={folder}"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                counted, found = json.loads(done.stdout.splitlines()[-1])
                outcomes.update(counted)
                findings += found
                break
            case = int(Path(folder, "case").read_text())
            error = f"the process ended with status {done.returncode}: {done.stderr[-200:]}"
            findings.append((case, error, ""))
            outcomes["wrong"] += 1
            start = case + 1
    return outcomes, findings


def main(arguments: list[str] | None = None) -> int:
    """Fuzz all readers and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=100_000, help="cases over all readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers whose name holds this text")
    for name in ("apart", "start", "folder"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.apart:
        in_process(given.apart, given.cases, given.seed, int(given.start), Path(given.folder))
        return 0
    chosen = [name for name in READERS if given.only in name]
    each = -(-given.cases // len(chosen))
    total: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    print(f"| {'reader':<32} |  cases |   read | refused | wrong |")
    print(f"|{'-' * 34}|{'-' * 7}:|{'-' * 7}:|{'-' * 8}:|------:|")
    for name in chosen:
        outcomes, findings = apart(name, each, given.seed)
        total += outcomes
        wrong += [
            f"{name}, case {case}: {error[:300]}\n    {data}" for case, error, data in findings
        ]
        print(_row(name, outcomes), flush=True)
    print(_row("all", total), *wrong[:60], sep="\n")
    return bool(wrong)


def _row(name: str, outcomes: Any) -> str:
    counts = (outcomes["read"], outcomes["refused"], outcomes["wrong"])
    return f"| {name:<32} | {sum(counts):>6} | {counts[0]:>6} | {counts[1]:>7} | {counts[2]:>5} |"


if __name__ == "__main__":
    sys.exit(main())
