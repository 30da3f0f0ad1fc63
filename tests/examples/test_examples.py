"""Every example prints what its docstring says, draws its picture and stands in the gallery."""

import doctest
import importlib
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from gpugrad import examples

README = Path(examples.__file__).with_name("README.md").read_text()
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NAMES = examples.names()


def load(name):
    return importlib.import_module(f"gpugrad.examples.{name}")


@pytest.mark.parametrize("name", NAMES)
def test_output_is_the_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = load(name)
    (promise,) = doctest.DocTestFinder(recurse=False).find(module, name, module)
    assert [example.source for example in promise.examples] == ["main([])\n"]
    assert promise.examples[0].want.strip() not in ("", "...")
    report: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(promise, out=report.append)
    assert not report, "".join(report)
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind that nobody asked for"


@pytest.mark.parametrize("name", [name for name in NAMES if "--picture" in load(name).__doc__])
def test_picture(name, tmp_path, capsys):
    load(name).main(["--picture", str(tmp_path / "new" / "picture.svg")])
    root = ET.parse(tmp_path / "new" / "picture.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(list(root.iter())) > 10


@pytest.mark.parametrize("name", NAMES)
def test_docstring_and_gallery(name):
    lines = load(name).__doc__.splitlines()
    assert lines[0].endswith(".")
    assert any(line.startswith(f"    python -m gpugrad.examples.{name}") for line in lines)
    assert f"\n| `{name}` |" in README


def test_gallery_names_no_other():
    rows = [line.split("`")[1] for line in README.splitlines() if line.startswith("| `")]
    assert sorted(rows) == NAMES


def test_list(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpugrad.examples"])
    importlib.import_module("gpugrad.examples.__main__").main()
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == NAMES


def test_wrong_picture_format(capsys):
    with pytest.raises(SystemExit):
        load("finite_differences").main(["--picture", "error.txt"])
    assert "--picture error.txt: the name has to end in .svg" in capsys.readouterr().err
