"""Whether the tests notice a broken line of Python: change one place, run the tests that reach it.

    python tests/mutation/python.py FOLDER [--sample 600] [--seed 0] [--write PAGE.md] [FILE.py ...]

FOLDER keeps the checkout of a commit and what takes long, and a run that was ended goes on from it:
which tests execute which lines (recorded once, by coverage.py: pip install -e ".[mutation]"),
and what became of every mutant so far. The mutants are made by rule (rules.py), too many for all:
a sample is drawn, the same for one seed. A mutant is run against the tests that execute the changed
line, first those of its own file, then the quickest of all others. A survivor is a test that is
missing, or a change that changes nothing: equivalent.py says why. Where a test was added,

    python tests/mutation/python.py FOLDER [FILE.py ...] --again tests/test_engine.py ...

runs the survivors once more, in the checkout of HEAD and against these files.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

from equivalent import PYTHON as EQUIVALENT
from lines import Lines, record
from page import code, share, table
from rules import Mutant, mutants
from runner import SURVIVED, changed, checkout, run
from warm import Warm, codes

SOURCES = [
    *("engine.py", "registry.py", "tensor.py", "ops/*.py", "fused/*.py", "optim/*.py"),
    *(f"train/{name}.py" for name in ("seal", "state", "checkpoint", "folder")),
]
TESTS = [
    *(f"test_{name}.py" for name in ("engine", "registry", "tensor", "function", "transforms")),
    *("test_derivatives.py", "test_threads.py", "acceptance", "compiled", "fused", "kernels"),
    *("nn", "ops", "optim", "testing", "reliability/test_faults.py", "reliability/test_hostile.py"),
    *("cuda/test_elementwise.py", "cuda/test_lock.py"),
    *(f"train/test_{name}.py" for name in ("checkpoint", "folder", "loop", "seal", "session")),
    "train/test_state.py",
]
FILES = 3  # test files where gpugrad has to be imported anew
SECONDS = 600  # that the tests of a survivor may take once more
FIRST, ALL = 6.0, 30.0  # seconds that the tests of a mutant took when they were recorded


def population(copy: Path) -> list[Mutant]:
    """Return all mutants of a checkout, in the order of its files and lines."""
    paths = [path for name in SOURCES for path in sorted((copy / "gpugrad").glob(name))]
    names = [path.relative_to(copy).as_posix() for path in paths]
    return [
        mutant
        for name, path in zip(names, paths, strict=True)
        for mutant in mutants(name, path.read_text(encoding="utf-8"))
    ]


def stages(mutant: Mutant, lines: Lines, few: bool) -> Iterator[dict[str, float]]:
    """Yield the tests to run, with the seconds they take: of the file itself, then of others.

    few: from few files, for each has to be collected.
    """
    found = lines.tests(mutant.file, [mutant.line, *mutant.lines])
    if few:
        files = Counter((is_own(test, mutant.file), file_of(test)) for test in found)
        most = sorted(files, key=lambda file: (file[0], files[file]), reverse=True)[:FILES]
        found = {test for test in found if (is_own(test, mutant.file), file_of(test)) in most}
    ranks: Counter[tuple[bool, str]] = Counter()
    ranked = []
    for test in sorted(found, key=lambda test: (lines.times[test], test)):
        own, function = is_own(test, mutant.file), test.partition("[")[0]
        ranked.append((not own, ranks[own, function], lines.times[test], test))
        ranks[own, function] += 1
    left = ALL
    for other, budget in ((False, FIRST), (False, ALL), (True, ALL)):
        chosen: dict[str, float] = {}
        for entry in sorted(ranked):
            if entry[0] == other and sum(chosen.values()) + entry[2] <= min(budget, left):
                chosen[entry[3]] = entry[2]
        ranked = [entry for entry in ranked if entry[3] not in chosen]
        left -= sum(chosen.values())
        if chosen:
            yield chosen


def file_of(test: str) -> str:
    """Return the file of a test."""
    return test.partition("::")[0]


def is_own(test: str, file: str) -> bool:
    """Return whether a test is in a file named after this one: test_gelu.py for _gelu_cuda.py."""
    stem = Path(file_of(test)).stem.removeprefix("test_")
    name = Path(file).stem.strip("_")
    return name.startswith(stem) or stem.startswith(name)


def outcome(mutant: Mutant, copy: Path, lines: Lines, warm: Warm) -> str:
    """Return the test that fails for a mutant, or SURVIVED."""
    path = copy / mutant.file
    before = path.read_text(encoding="utf-8")
    found = codes(str(path), before, mutant.text)
    in_functions = found is not None and (
        found[1] == {"<lambda>"} or not lines.at_import(mutant.file, mutant.lines)
    )
    for chosen in stages(mutant, lines, few=not in_functions):
        if in_functions:
            noticed = warm.run(mutant.file, before, mutant.text, *limits(chosen))
        else:
            with changed(path, mutant.text):
                noticed = run_chosen(copy, chosen)
        if noticed != SURVIVED:
            return noticed
    return SURVIVED


def limits(chosen: dict[str, float]) -> tuple[dict[str, float], float]:
    """Return the seconds that each test may take, and all together."""
    return {test: 8 + 10 * took for test, took in chosen.items()}, 60 + 5 * sum(chosen.values())


def run_chosen(copy: Path, chosen: dict[str, float]) -> str:
    """Run these tests."""
    each, together = limits(chosen)
    return run(copy, [*dict.fromkeys(map(file_of, each))], together, each)


class Results(dict[tuple[str, str, str, int], str]):
    """What became of the mutants, by key, kept in a file as it comes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                key, found = json.loads(line)
                self[tuple(key)] = found

    def add(self, mutant: Mutant, found: str) -> None:
        """Keep and print one."""
        self[mutant.key] = found
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([mutant.key, found]) + "\n")
        print(f"{mutant.file}:{mutant.line} {mutant.rule}: {found}", flush=True)


def innocent(results: Results, lines: Lines, warm: Warm) -> bool:
    """Return whether the tests that noticed mutants pass where nothing was changed."""
    noticing = {found.rpartition(": ")[0] for found in results.values()} & lines.times.keys()
    chosen = {test: lines.times[test] for test in sorted(noticing)}
    found = warm.run("gpugrad/__init__.py", "", "", *limits(chosen))
    print(f"{len(chosen)} tests where nothing was changed: {found}")
    return found == SURVIVED


def again(drawn: Sequence[Mutant], results: Results, tests: Sequence[str]) -> None:
    """Run the survivors in the checkout of HEAD against all tests of some files."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "checkout"
        digest = checkout(copy)
        present = {mutant.key: mutant for mutant in population(copy)}
        for key in [mutant.key for mutant in drawn if results.get(mutant.key) == SURVIVED]:
            if key not in EQUIVALENT and key in present:
                with changed(copy / present[key].file, present[key].text):
                    found = run(copy, tests, SECONDS)
                if found != SURVIVED:
                    results.add(present[key], f"{found} ({digest:.10})")


def page(
    everything: Sequence[Mutant], drawn: Sequence[Mutant], results: Results, origin: str
) -> str:
    """Return what is known of the mutants drawn as Markdown."""
    done = [mutant for mutant in drawn if mutant.key in results]
    survived = [mutant for mutant in done if results[mutant.key] == SURVIVED]
    equivalent = [mutant for mutant in survived if mutant.key in EQUIVALENT]
    since = [mutant for mutant in done if results[mutant.key].endswith(")")]
    noticed, matter = len(done) - len(survived), len(done) - len(equivalent)
    text = [
        "# Mutants of the Python code",
        f"Written by tests/mutation/python.py. {origin}",
        (
            f"{len(everything)} mutants, {len(done)} of them drawn and run. {len(equivalent)} "
            f"change nothing, or nothing without a GPU. Of the {matter} others the tests chosen by "
            f"lines and time noticed {share(noticed - len(since), matter)}, which is what to "
            "expect of all mutants. When the survivors were run again, against more tests and "
            "those written for them, "
            f"{len(since)} more were noticed: {noticed} of {matter} "
            f"({noticed / max(matter, 1):.1%})."
        ),
    ]
    files: dict[str, list[int]] = {mutant.file: [0] * 4 for mutant in everything}
    for column, group in enumerate((everything, done, survived, equivalent)):
        for mutant in group:
            files[mutant.file][column] += 1
    rows = [(name, *counts) for name, counts in files.items()]
    text.append(table(("file", "mutants", "run", "survived", "that change nothing"), rows))
    rules = {rule: [0, 0] for rule in sorted({mutant.rule for mutant in done})}
    for mutant in done:
        rules[mutant.rule][0] += 1
        rules[mutant.rule][1] += mutant in survived
    text.append(table(("rule", "run", "survived"), [(name, *n) for name, n in rules.items()]))
    text.append("What survived:")
    rows = [
        (
            m.file,
            m.line,
            m.rule,
            code(m.code),
            code(m.after),
            EQUIVALENT.get(m.key, "**not explained**"),
        )
        for m in survived
    ]
    text.append(table(("file", "line", "rule", "code", "mutant", "why no test can notice"), rows))
    return "\n\n".join(text) + "\n"


def main() -> int:
    """Run the command line; exit status 1 where a survivor is not explained."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path, help="keeps lines and results")
    parser.add_argument("files", nargs="*", help="beginnings of names, such as gpugrad/fused/")
    parser.add_argument("--commit", default="HEAD", help="what a new folder is made of")
    parser.add_argument("--sample", type=int, default=600, help="how many mutants to run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", nargs="+", default=[], help="test files for the survivors")
    parser.add_argument("--write", type=Path, help="write the page")
    parser.add_argument("--list", action="store_true", help="only print the mutants drawn")
    given = parser.parse_args()
    copy, described = given.folder / "checkout", given.folder / "commit.txt"
    commit = described.read_text(encoding="utf-8") if described.exists() else given.commit
    given.folder.mkdir(parents=True, exist_ok=True)
    described.write_text(checkout(copy, commit), encoding="utf-8")  # a run may have been killed
    everything = population(copy)
    drawn = random.Random(given.seed).sample(everything, min(given.sample, len(everything)))
    drawn = [mutant for mutant in drawn if mutant.file.startswith(tuple(given.files) or "")]
    if given.list:
        print(*(f"{m.file}:{m.line} {m.rule}: {m.code}\n    {m.after}" for m in drawn), sep="\n")
        return 0
    os.environ.update(PYTHONPATH=str(copy), OPENBLAS_NUM_THREADS="1")
    tests = [f"tests/{name}" for name in TESTS]
    record(copy, tests, given.folder / "lines")
    lines = Lines(given.folder / "lines")
    results = Results(given.folder / "results.jsonl")
    if given.again:
        again(drawn, results, given.again)
    if any(mutant.key not in results for mutant in drawn):
        warm = Warm(copy, tests)
        for mutant in drawn:
            if mutant.key not in results:
                results.add(mutant, outcome(mutant, copy, lines, warm))
        if not innocent(results, lines, warm):
            return 1
    origin = f"{date.today()}, commit {described.read_text():.10}, seed {given.seed}."
    text = page(everything, drawn, results, origin)
    print(text)
    if given.write:
        given.write.write_text(text, encoding="utf-8")
    return 1 if "not explained" in text else 0


if __name__ == "__main__":
    sys.exit(main())
