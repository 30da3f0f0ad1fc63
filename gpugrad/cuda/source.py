"""Kernel sources: found, their headers written into them, their kernels' parameters read.

Headers of our own (``#include "common.cuh"``) become part of the source, marked with ``#line``, so
that compiler messages name the right file and the text is the whole cache key.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from .arguments import SCALARS, Parameter

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"[^\n]*$', re.MULTILINE)
_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)'
)
_QUALIFIERS = ("const", "volatile", "__restrict__", "__grid_constant__")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


def folder() -> Path:
    """Return the folder of the shipped kernels."""
    return shipped("kernels")


def shipped(name: str) -> Path:
    """Return a folder that ships with the package: inside an installed one, beside a checkout's.

    Raises FileNotFoundError where it is missing.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / f"_{name}", package.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"{name}/ is missing beside {package}: the installation is incomplete; "
        "install gpugrad again"
    )


def inline(path: Path) -> str:
    """Return the source with the headers it includes by "..." written into it, each once.

    Raises FileNotFoundError naming the file, the line and the header that is missing.
    """
    seen: set[Path] = set()

    def expand(file: Path) -> str:
        text = file.read_text(encoding="utf-8")
        parts = [f'#line 1 "{file.name}"\n']
        end = 0
        for match in _INCLUDE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            header = (file.parent / match.group(1)).resolve()
            if not header.is_file():
                raise FileNotFoundError(f"{file.name}:{line}: no header {match.group(1)!r}")
            parts.append(text[end : match.start()])
            if header not in seen:
                seen.add(header)
                parts.append(expand(header))
                parts.append(f'\n#line {line + 1} "{file.name}"')
            end = match.end()
        parts.append(text[end:])
        return "".join(parts)

    return expand(path)


@functools.lru_cache(maxsize=256)
def signatures(source: str) -> dict[str, tuple[Parameter, ...]]:
    """Return the parameters of every ``extern "C" __global__`` kernel of a source, by name.

    Raises ValueError for a parameter type a launch cannot pass.
    """
    found = {}
    for match in _KERNEL.finditer(_COMMENT.sub(" ", source)):
        name, declared = match.groups()
        if name in found:
            raise ValueError(f"kernel {name!r} is declared twice; kernels cannot be overloaded")
        found[name] = tuple(_parameter(name, p) for p in declared.split(",") if p.strip())
    return found


def _parameter(kernel: str, declaration: str) -> Parameter:
    words = declaration.replace("*", " * ").split()
    name = words[-1]
    kinds = [w for w in words[:-1] if w not in _QUALIFIERS]
    kind = " ".join(kinds)
    if "*" in kinds:
        return Parameter(name, kind, None)
    if kind not in SCALARS:
        raise ValueError(
            f"kernel {kernel!r}: parameter {name!r} has type {kind!r}; a kernel takes pointers and "
            f"scalars of {', '.join(SCALARS)}"
        )
    return Parameter(name, kind, SCALARS[kind])
