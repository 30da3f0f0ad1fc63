"""Whether the tests notice a broken kernel: break each line that matters, run the kernel's tests.

    python tests/mutants.py [--jobs 2] [--write tests/mutants.md] [FILE.cu ...]

The mutants are made by rule: a barrier removed, a bound one too far, a copy waited for too late, a
factor dropped in a gradient, a lane fence removed. Each is a copy of the checkout with one line
changed, in which the tests of that kernel run until the first failure. A survivor is a test that
is missing, or a change that changes nothing; EQUIVALENT says why.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
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
# (file, rule, text of the line, which of the lines with that text): why no test can notice
_PENDING = "after the last tile only q is on its way, where no key is seen and q is not read"
EQUIVALENT = {
    (
        "sort_ids.cu",
        "bound one too far",
        "for (int64_t at = first; at < end; at += TILE) {",
        0,
    ): "a tile without items has none to place",
    (
        "embedding.cu",
        "bound one too far",
        "if (!add && first < rows)",
        0,
    ): "each row is compared with rows again before it is written",
    (
        "softmax.cu",
        "bound one too far",
        "for (int64_t i = threadIdx.y; i < n; i += PARTS * AHEAD) {",
        0,
    ): "each element is compared with n again before it is touched",
    (
        "norm.cuh",
        "bound one too far",
        "for (int64_t first = static_cast<int64_t>(blockIdx.x) * teams; first < rows;",
        0,
    ): "a turn without rows has width 0: it reads nothing and adds zeros",
    (
        "common.cuh",
        "barrier removed",
        "__syncthreads();",
        1,
    ): "no kernel uses the scratch of block_sum a second time; it is for one that will",
    ("attention_forward.cu", "wait removed", "cp_async_wait<0>();", 1): _PENDING,
    ("attention_forward.cu", "waits for one copy less", "cp_async_wait<0>();", 1): _PENDING,
}
SECONDS = 1200  # that one mutant's tests may take


class Mutant(NamedTuple):
    """One changed line."""

    file: str
    line: int
    rule: str
    before: str
    after: str
    nth: int  # of the mutants with this file, rule and code


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
    """Return the test that fails for a mutant, or "survived"."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        ignored = shutil.ignore_patterns(".git", ".venv", "*.pyc", "__pycache__", "runs")
        shutil.copytree(ROOT, copy, ignore=ignored)
        path = copy / "kernels" / mutant.file
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        lines[mutant.line - 1] = mutant.after + "\n"
        path.write_text("".join(lines), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider"]
        environment = {**os.environ, "PYTHONPATH": str(copy), "OPENBLAS_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                [*command, *tests_of(mutant.file)],
                cwd=copy,
                env=environment,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "the tests do not end"
    if done.returncode == 0:
        return "survived"
    if "does not compile" in done.stdout:
        return "does not compile"
    failed = re.findall(r"^(?:FAILED|ERROR) .*?(\w+\.py::.*?)(?: - (.*))?$", done.stdout, re.M)
    if done.returncode < 0:
        return f"a crash, signal {-done.returncode}"
    if done.returncode != 1 or not failed:
        raise RuntimeError(f"pytest failed otherwise:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    test, why = failed[0]
    return f"{test}: {why.partition(':')[0].rpartition('.')[2]}" if why else test


def table(results: Sequence[tuple[Mutant, str]]) -> str:
    """Return the results as a Markdown table, survivors with their explanation."""
    lines = ["| file | line | mutant | code | noticed by |", "|---|---|---|---|---|"]
    for mutant, found in results:
        if found == "survived":
            found = f"**survived**: {explanation(mutant) or 'not explained'}"
        code = mutant.before.replace("|", "\\|")
        lines.append(f"| {mutant.file} | {mutant.line} | {mutant.rule} | `{code}` | {found} |")
    return "\n".join(lines)


def explanation(mutant: Mutant) -> str | None:
    """Return why a mutant is equivalent, if it is."""
    return EQUIVALENT.get((mutant.file, mutant.rule, mutant.before, mutant.nth))


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
        print(table([(mutant, "") for mutant in made]))
        return 0
    with ThreadPoolExecutor(given.jobs) as pool:
        results = []
        for mutant, found in zip(made, pool.map(outcome, made), strict=True):
            results.append((mutant, found))
            print(f"{mutant.file}:{mutant.line} {mutant.rule}: {found}", flush=True)
    return report(results, given.write)


def report(results: Sequence[tuple[Mutant, str]], path: Path | None) -> int:
    """Print the counts, write the table; return 1 where a survivor is not explained."""
    valid = [(m, found) for m, found in results if found != "does not compile"]
    survived = [m for m, found in valid if found == "survived"]
    unexplained = [m for m in survived if explanation(m) is None]
    summary = (
        f"{len(valid)} mutants, {len(valid) - len(survived)} noticed, {len(survived)} survived"
    )
    print(summary)
    if path:
        text = f"# Mutants of the kernels\n\nWritten by tests/mutants.py. {summary}.\n\n"
        path.write_text(text + table(valid) + "\n", encoding="utf-8")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
