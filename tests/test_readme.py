"""The README's examples print what it says they print, and its commands are what CI runs."""

from __future__ import annotations

import doctest
import pathlib
import re

import pytest

from gpugrad.fused import FUSED

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_examples_run_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example writes a kernel
    text = README.read_text(encoding="utf-8").replace("```", "   ")
    test = doctest.DocTestParser().get_doctest(text, {}, "README.md", str(README), 0)
    assert len(test.examples) > 15
    output: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    runner.run(test, out=output.append)
    FUSED.pop("triple", None)
    assert not output, "".join(output)


@pytest.mark.parametrize("ends_with", ["gpugrad train", "pytest"])
def test_two_commands_of_one_line(ends_with):
    pattern = r"^python3 -m venv \.venv && \.venv/bin/pip install -e .* && \.venv/bin/" + ends_with
    assert len(re.findall(pattern + "$", README.read_text(encoding="utf-8"), re.MULTILINE)) == 1
