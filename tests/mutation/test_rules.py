"""Every rule fires, changes one place, and leaves texts alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from rules import COMPARISONS, mutants

import gpugrad

# what a mutant of the last line of a text becomes, in the order of the line
RULES = {
    "x < y": ["x <= y"],
    "x <= y > z": ["x < y > z", "x <= y >= z"],
    "x is None": ["x is not None"],
    "x is not None": ["x is None"],
    "x not in y": ["x in y"],
    "(x) == (y)": ["(x) != (y)"],
    "x + y * z": ["x - y * z", "x + y / z"],
    "x // y": ["x * y"],
    "x << y | z": ["x >> y | z", "x << y & z"],
    "x + 'text'": [],
    "f(-1)": ["pass", "f(1)", "f(-2)"],
    "f(1e30, True)": ["pass", "f(True, 1e30)", "f(2e+30, True)", "f(1e30, False)"],
    "not x": [" x"],
    "x and y and z": ["x or y and z", "x and y or z"],
    "x or y": ["x and y"],
    "x if y else z": ["x if True else z", "x if False else z"],
    "[x for x in y if z]": ["[x for x in y if True]", "[x for x in y if False]"],
    "lambda: x": ["lambda: None"],
    "x[:]": ["x[1:]", "x[:-1]"],
    "x[y:z]": ["x[(y) + 1:z]", "x[y:(z) - 1]"],
    "x[1:]": ["x[2:]", "x[1:-1]"],
    "f(x, y, z)": ["pass", "f(y, x, z)"],
    "f(*x, y)": ["pass"],
    "maximum(x, y)": ["pass"],
    "f(x, y=z)": ["pass", "f(x)"],
    "f(y=z, x=w)": ["pass", "f(x=w)", "f(y=z)"],
    "f((x), y=(z))": ["pass", "f((x))"],
    "f(x, strict=True, domain=(1, 2))": ["pass"],
    "x += y": ["pass", "x -= y"],
    "x.y = z": ["pass"],
    "x = y": [],
    "x = y; x = z": ["x = y; pass"],
    "x: int | None = 0": ["x: int | None = 1"],
    "raise ValueError(x + y)": ["pass"],
    "f'{x + y}'": [],
    "'''A docstring, 1 + 1.'''": [],
    "assert x < y": [],
    "@f(x, y)\ndef g(): pass": [],
    "def g(x: 1 | 2 = 3): pass": ["def g(x: 1 | 2 = 4): pass"],
    "def g(x, y=1, *, z=2, domain=3): pass": [
        "def g(x, y=2, *, z=2, domain=3): pass",
        "def g(x, y=1, *, z=3, domain=3): pass",
    ],
    "def g():\n return x": ["return None"],
    "def g():\n return None": [],
    "for x in y: break": ["for x in y: continue"],
    "for x in y: continue": ["for x in y: break"],
    "if x: y": ["if True: y", "if False: y"],
    "if x: y; f()": ["if True: y; f()", "if False: y; f()", "if x: y; pass"],
    "while x: y": ["while True: y", "while False: y"],
    "while True: y": [],
}


@pytest.mark.parametrize("text", RULES)
def test_what_becomes_of_a_line(text):
    assert [m.after for m in mutants("file.py", text)] == [line.strip() for line in RULES[text]]


def test_every_comparison_has_another():
    assert {*COMPARISONS} == {*ast.cmpop.__subclasses__()}


@pytest.mark.parametrize("name", ["engine.py", "fused/softmax.py", "train/checkpoint.py"])
def test_mutants_are_python_and_differ_in_one_line(name):
    text = (Path(gpugrad.__file__).parent / name).read_text(encoding="utf-8")
    made = mutants(name, text)
    tree = ast.dump(ast.parse(text))
    assert len({m.key for m in made}) == len(made) > 100
    for mutant in made[:: len(made) // 20]:
        assert ast.dump(ast.parse(mutant.text)) != tree
        assert mutant.text.splitlines()[mutant.line - 1].strip() == mutant.after
        assert text.splitlines()[mutant.line - 1].strip() == mutant.code
        assert mutant.line in mutant.lines


def test_a_line_outside_ascii_is_changed_at_the_same_place():
    (mutant,) = mutants("file.py", "'é', x < y")
    assert mutant.after == "'é', x <= y"


def test_equal_lines_are_told_apart():
    assert [m.key[-1] for m in mutants("file.py", "x < y\nx < y\n")] == [0, 1]
