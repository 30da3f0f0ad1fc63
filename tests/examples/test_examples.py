"""Every example prints what its docstring says, draws its picture and stands in the gallery."""

import doctest
import importlib
import re
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import gpugrad as gg
from gpugrad import examples

README = Path(examples.__file__).with_name("README.md").read_text()
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NAMES = examples.names()
CONCEPTS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in README.partition("## From the textbook to the code")[2].splitlines()[6:]
]


def load(name):
    return importlib.import_module(f"gpugrad.examples.{name}")


@pytest.mark.parametrize("name", NAMES)
def test_output_is_the_docstrings(name, tmp_path, monkeypatch, capsys):
    """Run once with the picture: it adds a line and nothing else."""
    monkeypatch.chdir(tmp_path)
    module = load(name)
    (promise,) = doctest.DocTestFinder(recurse=False).find(module, name, module)
    (example,) = promise.examples
    assert example.source == "main([])\n"
    assert example.want.strip() not in ("", "...")
    picture = Path("new", "picture.svg")
    module.main(["--picture", str(picture)])
    printed = capsys.readouterr().out
    assert f"picture: {picture}\n" in printed
    printed = printed.replace(f"picture: {picture}\n", "")
    root = ET.parse(picture).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(list(root.iter())) > 10
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"new"}, "an example leaves nothing that nobody asked for"
    checker = doctest.OutputChecker()
    assert checker.check_output(example.want, printed, FLAGS), checker.output_difference(
        example, printed, FLAGS
    )


@pytest.mark.parametrize("name", NAMES)
def test_docstring_and_gallery(name):
    lines = load(name).__doc__.splitlines()
    assert lines[0].endswith(".")
    assert any(line.startswith(f"    python -m gpugrad.examples.{name}") for line in lines)
    assert f"\n| `{name}` |" in README


@pytest.mark.parametrize("row", CONCEPTS, ids=lambda row: row[0])
def test_concepts_are_where_the_table_says(row):
    _, names, shown = row
    for name in re.findall("`(.+?)`", names):
        assert eval(name, {"gg": gg}).__doc__, name  # noqa: S307 - names from our own README
    assert set(re.findall("`(.+?)`", shown)) <= set(NAMES)


def test_every_example_shows_a_concept():
    shown = {name for row in CONCEPTS for name in re.findall("`(.+?)`", row[2])}
    assert shown == set(NAMES)


def test_gallery_names_no_other():
    rows = [line.split("`")[1] for line in README.splitlines() if line.startswith("| `")]
    assert sorted(rows) == NAMES


def test_list(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpugrad.examples"])
    importlib.import_module("gpugrad.examples.__main__").main()
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == NAMES


def test_list_whose_reader_has_left():
    """`python -m gpugrad.examples | head -1` ends without a traceback."""
    command = [sys.executable, "-m", "gpugrad.examples"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_wrong_picture_format(capsys):
    with pytest.raises(SystemExit):
        load("finite_differences").main(["--picture", "error.txt"])
    assert "--picture error.txt: the name has to end in .svg" in capsys.readouterr().err
