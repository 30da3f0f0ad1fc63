"""``kernels.lock``: what every kernel takes on every architecture, kept beside the sources.

    python -m gpugrad.cuda.lock                    write the lock of the shipped kernels anew
    python -m gpugrad.cuda.lock --check            compare instead; exit code 1 if a kernel grew
    python -m gpugrad.cuda.lock [--check] MODULE   the same for the kernels that a module declares

A kernel that starts to spill, or takes more registers or shared memory than the lock says, is
slower on the GPU though nothing fails; so a growth has to be written down by a person. Registers
depend on the version of NVRTC and are compared where it is the lock's own; spills always.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from . import source as sources
from .compiler import Resources, compile_cubin, nvrtc
from .kernel import SOURCES, Source

ARCHITECTURES = ("sm_75", "sm_80", "sm_90a", "sm_100a", "sm_120a")
NAME = "kernels.lock"
_COLUMNS = "file variant architecture kernel registers spilled_bytes stack_bytes shared_bytes"


class Row(NamedTuple):
    """One kernel of one variant for one architecture."""

    file: str
    variant: str
    architecture: str
    kernel: str


def label(variant: Mapping[str, object]) -> str:
    """Return a variant in one word."""
    return ",".join(f"{key}={value}" for key, value in variant.items()) or "-"


def supports(source: Source, architecture: str) -> bool:
    """Return whether a source is meant for an architecture."""
    return source.since <= int(architecture.removeprefix("sm_").rstrip("af")) <= source.until


def measure(
    source: Source, variant: Mapping[str, object], architecture: str
) -> dict[Row, Resources]:
    """Compile one variant and return what each of its kernels takes."""
    options = [f"-D{key}={value}" for key, value in variant.items()]
    cubin = compile_cubin(source.text, source.name, architecture, options)
    return {
        Row(source.name, label(variant), architecture, kernel): found
        for kernel, found in cubin.resources.items()
    }


def measure_all(found: Iterable[Source]) -> dict[Row, Resources]:
    """Compile every variant of the sources for every architecture they support."""
    jobs = [
        (source, variant, architecture)
        for source in found
        for variant in source.variants
        for architecture in ARCHITECTURES
        if supports(source, architecture)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda job: measure(*job), jobs))
    return {row: taken for result in results for row, taken in result.items()}


def nvrtc_version() -> str:
    """Return the version of NVRTC as the lock names it."""
    return ".".join(map(str, nvrtc().getVersion()))


def read(folder: Path) -> tuple[str, dict[Row, Resources]]:
    """Return NVRTC's version and the rows of a folder's lock.

    Raises FileNotFoundError that says how to write one.
    """
    path = folder / NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; `python -m gpugrad.cuda.lock` writes it")
    rows, version = {}, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# NVRTC "):
            version = line.split()[2]
        elif line and not line.startswith("#"):
            *key, registers, spilled, stack, shared = line.split()
            rows[Row(*key)] = Resources(int(registers), int(spilled), int(stack), int(shared))
    return version, rows


def write(folder: Path, rows: Mapping[Row, Resources]) -> None:
    """Write a folder's lock."""
    lines = [f"# NVRTC {nvrtc_version()}", "# written by: python -m gpugrad.cuda.lock"]
    lines.append(f"# {_COLUMNS}")
    lines += [" ".join(map(str, (*row, *rows[row]))) for row in sorted(rows)]
    (folder / NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")


def growth(
    locked: Mapping[Row, Resources], measured: Mapping[Row, Resources], same_version: bool
) -> list[str]:
    """Return one line for everything that is missing in the lock or takes more than it says."""
    complaints = []
    for row, now in measured.items():
        where, before = " ".join(row), locked.get(row)
        if before is None:
            complaints.append(f"{where}: not in the lock")
            continue
        for what, old, new in zip(Resources._fields, before, now, strict=True):
            if new > old and (same_version or what == "spill_bytes"):
                complaints.append(f"{where}: {what} grew from {old} to {new}")
    return complaints


DECLARING = "gpugrad.anomaly", "gpugrad.fused", "gpugrad.optim"  # what declares shipped kernels


def _declared(modules: Sequence[str]) -> dict[Path, list[Source]]:
    """Return the sources to lock, by folder: of the modules, or the shipped ones."""
    for name in (*DECLARING, *modules):
        importlib.import_module(name)
    folders: dict[Path, list[Source]] = {}
    for source in SOURCES.values():
        if (source.path.parent == sources.folder()) != bool(modules):
            folders.setdefault(source.path.parent, []).append(source)
    return folders


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gpugrad.cuda.lock",
        description="Compile every kernel and write, or check, what it takes on each architecture.",
    )
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="declare kernels of your own")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    chosen = parser.parse_args(arguments)
    try:
        return _run(chosen)
    except (RuntimeError, OSError, ImportError) as error:
        print(f"kernels.lock: {error}", file=sys.stderr)
        return 2


def _run(chosen: argparse.Namespace) -> int:
    folders = _declared(chosen.modules)
    if not folders:
        print(f"no kernels declared by {', '.join(chosen.modules)}", file=sys.stderr)
        return 2
    complaints: list[str] = []
    for folder, found in folders.items():
        rows = measure_all(found)
        if chosen.check:
            version, locked = read(folder)
            complaints += growth(locked, rows, version == nvrtc_version())
            complaints += [f"{' '.join(row)}: gone" for row in locked.keys() - rows.keys()]
        else:
            write(folder, rows)
            print(f"{folder / NAME}: {len(rows)} kernels")
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
