"""Whether the tests notice a broken kernel: break each line that matters, run the kernel's tests.

    python tests/mutation/kernels.py [--jobs 2] [--write tests/mutation/kernels.md] [FILE.cu ...]

The mutants are made by rule: a barrier removed, a bound one too far, a copy waited for too late, a
factor dropped in a gradient, a lane fence removed. Each is a copy of the checkout at a commit with
one line changed, in which the tests of that kernel run until the first failure. A survivor is a
test that is missing, or a change that changes nothing: equivalent.py says why.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from equivalent import KERNELS as EQUIVALENT
from page import code, table
from runner import ROOT, SURVIVED, changed, checkout, run

KERNELS = ROOT / "kernels"
BOUNDS = "columns|rows|n|count|keys|queries|size|length|last|end"
FACTORS = "scale|rstd|r|factor|inverse|inverse_keep|decay|g|upstream|share"
RULES = (
    ("barrier removed", re.compile(r"^\s*__syncthreads\(\);"), ""),
    ("warp fence removed", re.compile(r"^\s*__syncwarp\(\);"), ""),
    ("wait removed", re.compile(r"cp_async_wait<(\d+)>\(\);"), ""),
    ("waits for one copy less", re.compile(r"(cp_async_wait|wgmma_wait)<(\d+)>"), None),
    ("wait of a phase removed", re.compile(r"^\s*mbarrier_wait\(.*\);"), ""),
    ("arrival removed", re.compile(r"\b\w*_arrive\(.*\);"), ";"),
    ("proxy fence removed", re.compile(r"^\s*fence_proxy_async\(\);"), ""),
    ("fence of products removed", re.compile(r"^\s*wgmma_fence\(\);"), ""),
    ("bound one too far", re.compile(rf"(?<=\w) < ({BOUNDS})\b"), r" <= \1"),
    (
        "first one left out",
        re.compile(r"\bint (\w+) = threadIdx\.x;"),
        r"int \1 = threadIdx.x + 1;",
    ),
    ("factor dropped", re.compile(rf" \* ({FACTORS})\b(?! *[\[(.])"), ""),
)
SECONDS = 1200  # that one mutant's tests may take


class Mutant(NamedTuple):
    """One changed line."""

    file: str
    line: int
    rule: str
    before: str
    after: str
    nth: int  # of the mutants with this file, rule and code

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What names the mutant where lines move."""
        return self.file, self.rule, self.before, self.nth


def mutants(file: Path) -> Iterator[Mutant]:
    """Yield the mutants of a file, in the order of its lines; comments are left alone."""
    seen: Counter[tuple[str, str]] = Counter()
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        code = line.partition("//")[0]
        for rule, pattern, replacement in RULES:
            for match in pattern.finditer(code):
                new = match.expand(replacement) if replacement is not None else later(match)
                changed = code[: match.start()] + new + code[match.end() :]
                nth = seen[rule, code.strip()]
                seen[rule, code.strip()] += 1
                yield Mutant(file.name, number, rule, code.strip(), changed.strip(), nth)


def later(match: re.Match[str]) -> str:
    """Return a wait that lets one more group of copies or products be under way."""
    return f"{match[1]}<{int(match[2]) + 1}>"


def tests_of(file: str) -> list[str]:
    """Return the test files of a kernel, or of all kernels that include a header."""
    users = {file}
    while True:  # headers include headers
        more = {
            path.name
            for path in KERNELS.glob("*.cu*")
            if any(f'#include "{name}"' in path.read_text() for name in users)
        } - users
        if not more:
            break
        users |= more
    stems = {re.sub(r"_(for|back)ward(?=_sm90)", "", Path(name).stem) for name in users}
    found = [ROOT / "tests" / "kernels" / f"test_{stem}.py" for stem in sorted(stems)]
    return [str(path.relative_to(ROOT)) for path in found if path.exists()]


def outcome(mutant: Mutant) -> str:
    """Return the test that fails for a mutant, SURVIVED, or a test that says CompileError."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder) / "checkout"
        checkout(copy)
        path = copy / "kernels" / mutant.file
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        lines[mutant.line - 1] = mutant.after + "\n"
        with changed(path, "".join(lines)):
            return run(copy, tests_of(mutant.file), SECONDS)


def main() -> int:
    """Run the command line; exit code 1 where a survivor is not explained."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("files", nargs="*", help="of kernels/, default all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--write", type=Path, help="write the table")
    parser.add_argument("--list", action="store_true", help="only print the mutants")
    given = parser.parse_args()
    files = given.files or sorted(p.name for p in KERNELS.glob("*.cu*") if p.name != "ptx.cuh")
    made = [mutant for file in files for mutant in mutants(KERNELS / file)]
    if given.list:
        print(*(f"{m.file}:{m.line} {m.rule}: {m.before}" for m in made), sep="\n")
        return 0
    with ThreadPoolExecutor(given.jobs) as pool:
        results = []
        for mutant, found in zip(made, pool.map(outcome, made), strict=True):
            results.append((mutant, found))
            print(f"{mutant.file}:{mutant.line} {mutant.rule}: {found}", flush=True)
    return report(results, given.write)


def report(results: Sequence[tuple[Mutant, str]], path: Path | None) -> int:
    """Print the counts, write the table; return 1 where a survivor is not explained."""
    valid = [(m, found) for m, found in results if not found.endswith("CompileError")]
    survived = [m for m, found in valid if found == SURVIVED]
    unexplained = [m for m in survived if m.key not in EQUIVALENT]
    summary = (
        f"{len(valid)} mutants, {len(valid) - len(survived)} noticed, {len(survived)} survived"
    )
    print(summary)
    if path:
        rows = []
        for m, found in valid:
            why = EQUIVALENT.get(m.key, "not explained")
            noticed = f"**survived**: {why}" if found == SURVIVED else found
            rows.append((m.file, m.line, m.rule, code(m.before), noticed))
        head = ("file", "line", "mutant", "code", "noticed by")
        text = f"# Mutants of the kernels\n\nWritten by tests/mutation/kernels.py. {summary}.\n\n"
        path.write_text(text + table(head, rows) + "\n", encoding="utf-8")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
