"""Kernel sources: found, their headers written into them, their kernels' parameters read.

Headers included by "..." (``#include "common.cuh"``) become part of the source, marked with
``#line``, so that compiler messages name the right file and the text is the whole cache key.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .arguments import SCALARS, Parameter
from .tensor_map import NAME as TENSOR_MAP

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"[^\n]*$', re.MULTILINE)
_QUALIFIERS = {"const", "volatile", "__restrict__", "__restrict", "__grid_constant__"}
_INTEGER = {"signed", "unsigned", "char", "short", "int", "long"}
_WORDS = {*_INTEGER, "bool", "float", "double"}  # of the language: no names of parameters
# Patterns begin with characters and look at what stands before afterwards: so re skips what cannot
# match, and reads sources three times as fast.
# What the text of a declaration must not be looked for in: comments, literals, directives.
_BLANK = re.compile(
    r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?<!\w')(?:\\.|[^'\\\n])+'"""
    r"""|\#(?:\\\n|[^\n])*""",
    re.DOTALL,
)
_ATTRIBUTE = re.compile(
    r"__(?<!\w__)(launch_bounds|cluster_dims|block_size|maxnreg|attribute|align)__\s*(?=\()"
)
_GLOBAL = re.compile(r"__global__(?<!\w__global__)\b")
_BLOCK = re.compile(r'extern(?<!\wextern)\s*"C"(?=\s*\{)')
_LINKAGE = re.compile(r'\bextern\s*"C"')
_NAME = re.compile(r"\s*(?:\w+\s+)*(\w+)\s*(?=\()")
_CLOSING = {"(": ")", "{": "}", "[": "]", "<": ">"}


class Declaration(NamedTuple):
    """What a source says of one kernel: its parameters, the first of its launch bounds if any."""

    parameters: tuple[Parameter, ...]
    bound: str | None


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

    A header lies beside the file that includes it, or is one of the shipped kernels' own.
    Raises FileNotFoundError naming the file, the line and the header that is missing.
    """
    seen: set[Path] = set()

    def expand(file: Path) -> str:
        text = file.read_text(encoding="utf-8")
        parts = [f'#line 1 "{file.name}"\n']
        end = 0
        for match in _INCLUDE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            beside, ours = ((root / match.group(1)).resolve() for root in (file.parent, folder()))
            header = beside if beside.is_file() else ours
            if not header.is_file():
                raise FileNotFoundError(
                    f"{file.name}:{line}: no header {match.group(1)!r}, neither beside it nor in "
                    f"{folder()}"
                )
            parts.append(text[end : match.start()])
            if header not in seen:
                seen.add(header)
                parts.append(expand(header))
                parts.append(f'\n#line {line + 1} "{file.name}"')
            end = match.end()
        parts.append(text[end:])
        return "".join(parts)

    return expand(path)


def signatures(source: str) -> dict[str, tuple[Parameter, ...]]:
    """Return the parameters of every ``extern "C" __global__`` kernel of a source, by name.

    Raises ValueError for a parameter type a launch cannot pass.
    """
    return {name: found.parameters for name, found in declarations(source).items()}


def check_name(kernel: str, known: Iterable[str], name: str) -> None:
    """Raise KeyError if the source of this name has no such kernel; it lists those there are."""
    if kernel not in known:
        raise KeyError(f"{name} has no kernel {kernel!r}; it has {', '.join(known)}")


@functools.lru_cache(maxsize=256)
def declarations(source: str) -> dict[str, Declaration]:
    """Return every kernel with C linkage that a source defines, by name.

    Raises ValueError for a parameter type a launch cannot pass, and for what cannot be read.
    """
    text, bounds = _plain(source)
    blocks = [
        (found.end(), _end(text, text.index("{", found.end()))) for found in _BLOCK.finditer(text)
    ]
    kernels: dict[str, Declaration] = {}
    for found in _GLOBAL.finditer(text):
        start = max(text.rfind(c, 0, found.start()) for c in ";{}") + 1
        before = text[start : found.start()]
        linked = _LINKAGE.search(before) or any(a < start <= b for a, b in blocks)
        head = _NAME.match(text, found.end())
        if not linked or not head or "template" in before.split():
            continue
        name = head[1]
        end = _end(text, head.end())
        follows = text[end:].lstrip()[:1]
        if follows == ";":
            continue
        if follows != "{":
            raise ValueError(
                f"kernel {name!r} cannot be read: a body is wanted after its parameters "
                f"({' '.join(text[head.end() + 1 : end - 1].split())}), not {follows!r}; write it "
                'as extern "C" __global__ void __launch_bounds__(...) name(...) {...}, '
                "without macros that take arguments"
            )
        if name in kernels:
            raise ValueError(f"kernel {name!r} is declared twice; kernels cannot be overloaded")
        listed = _split(text[head.end() + 1 : end - 1])
        kernels[name] = Declaration(
            tuple(_parameter(name, p) for p in listed if p.strip() != "void"),
            next((bound for at, bound in bounds if start <= at < end), None),
        )
    return kernels


def _plain(source: str) -> tuple[str, list[tuple[int, str]]]:
    """Return the text with comments, literals, directives and attributes made blank, and the first
    launch bounds with their places.
    """
    text = _BLANK.sub(lambda m: m[0] if m[0] == '"C"' else " " * len(m[0]), source)
    bounds = []
    for found in list(_ATTRIBUTE.finditer(text)):
        end = _end(text, found.end())
        if found[1] == "launch_bounds":
            bounds += [
                (found.start(), bound.strip())
                for bound in _split(text[found.end() + 1 : end - 1])[:1]
            ]
        text = text[: found.start()] + " " * (end - found.start()) + text[end:]
    return text, bounds


def _end(text: str, start: int) -> int:
    """Return the place behind the bracket that closes the one at ``start``; ValueError if none."""
    opening = text[start]
    depth = 0
    for found in re.compile(f"[{re.escape(opening + _CLOSING[opening])}]").finditer(text, start):
        depth += 1 if found[0] == opening else -1
        if depth == 0:
            return found.end()
    line = text.count("\n", 0, start) + 1
    raise ValueError(f"a kernel cannot be read: {opening!r} in line {line} is not closed")


def _split(text: str) -> list[str]:
    """Return the parts between commas that are in no brackets."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in _CLOSING) - (c in _CLOSING.values())
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [part for part in parts if part.strip()]


def _parameter(kernel: str, declaration: str) -> Parameter:
    tokens = re.findall(r"\[[^\]]*\]|[\w:]+|\S", declaration)
    words = [w for w in tokens if w not in _QUALIFIERS and w[0] != "["]
    name = ""
    if len(words) > 1 and words[-1].isidentifier() and words[-1] not in _WORDS:
        name = words.pop()
    stars = words.count("*") + any(w[0] == "[" for w in tokens)
    kind = _integer([w for w in words if w != "*"])
    if stars and not {"(", "&"} & set(words):
        constant = "const" in tokens[: tokens.index("*")] if "*" in tokens else "const" in tokens
        return Parameter(name, kind + " " + "*" * stars, None, constant)
    if kind == TENSOR_MAP and not stars:
        return Parameter(name, kind, None, "const" in tokens)
    if stars or kind not in SCALARS:
        kind = " ".join(declaration.split()) if stars else kind
        raise ValueError(
            f"kernel {kernel!r}: parameter {name!r} has type {kind!r}; a kernel takes pointers, "
            f"{TENSOR_MAP} and scalars of {', '.join(SCALARS)}"
        )
    return Parameter(name, kind, SCALARS[kind])


def _integer(words: list[str]) -> str:
    """Return a type's name, that of an integer as in SCALARS: long unsigned int: unsigned long."""
    kind = " ".join(words)
    if kind in SCALARS or not words or not _INTEGER.issuperset(words):
        return kind
    base = " ".join(w for w in words if w in ("char", "short", "long")) or "int"
    return f"unsigned {base}" if "unsigned" in words else base
