"""Nothing that is read is executed, and nothing is written outside of the folder of a run."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import gpugrad
from gpugrad.text.files import atomic_write, read_small
from gpugrad.train.config import resolve, resumed
from gpugrad.train.folder import RunFolder
from gpugrad.train.seal import sealed

PACKAGE = Path(gpugrad.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
MODULES |= {"pickletools", "zipfile", "tarfile", "xmlrpc", "telnetlib", "ftplib"}
CALLS = {"eval", "exec", "compile", "__import__", "execfile", "unpackb"}
METHODS = {("os", "system"), ("os", "popen"), ("yaml", "load"), ("yaml", "unsafe_load")}
METHODS |= {("np", "load"), ("numpy", "load"), ("torch", "load"), ("np", "save")}


def executes(tree: ast.AST) -> list[str]:
    """Return what in a program could execute what it reads."""
    found = []
    ours = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.level or node.module == "gpugrad")
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None) or ""
            names = {module.split(".")[0], *(alias.name.split(".")[0] for alias in node.names)}
            found += sorted(names & MODULES)
        elif isinstance(node, ast.Call):
            callee = node.func
            if isinstance(callee, ast.Name) and callee.id in CALLS - ours:
                found.append(callee.id)
            if isinstance(callee, ast.Attribute) and isinstance(callee.value, ast.Name):
                found += [
                    f"{a}.{b}" for a, b in METHODS if (callee.value.id, callee.attr) == (a, b)
                ]
            for keyword in node.keywords:
                is_true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
                if keyword.arg in ("shell", "allow_pickle") and is_true:
                    found.append(f"{keyword.arg}=True")
    return found


def test_the_package_has_files():
    assert len(FILES) > 150


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_that_is_read_is_executed(path):
    assert executes(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "eval(x)",
        "exec(x)",
        "compile(x)",
        "yaml.load(x)",
        "np.load(x, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "import os.path, marshal",
    ],
)
def test_the_scan_sees(text):
    assert executes(ast.parse(text))


@pytest.fixture
def run(tmp_path):
    """The folder of a run, beside a folder that is none of its business."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_config(resolve({"out": str(folder.path)}).to_dict())
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("theirs")
    return folder


@pytest.mark.parametrize(
    "name", ["checkpoints", "metrics.jsonl", "log.txt", "curve.png", "tokens.bin"]
)
def test_a_link_in_a_run_is_refused(run, name):
    outside = run.path.parent / "outside"
    (run.path / name).symlink_to(outside if name == "checkpoints" else outside / "file")
    with pytest.raises(ValueError, match=rf"{name} is a symbolic link.*outside"), run.locked():
        pass
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "theirs"


@pytest.mark.parametrize("name", ["step-00000060", "step-00000060/state.json"])
def test_a_link_among_checkpoints_is_refused(run, name):
    outside = run.path.parent / "outside"
    link = run.checkpoints / name
    link.parent.mkdir(parents=True)
    link.symlink_to(outside / "file" if link.suffix else outside)
    with pytest.raises(ValueError, match=rf"{name} is a symbolic link.*outside"), run.locked():
        pass
    assert [path.name for path in outside.iterdir()] == ["file"]


def test_a_run_that_is_a_link_is_refused(run):
    link = run.path.parent / "link"
    link.symlink_to(run.path)
    with pytest.raises(ValueError, match=r"link is a symbolic link.*run"), RunFolder(link).locked():
        pass


def test_a_file_is_replaced_not_followed(run):
    theirs = run.path.parent / "outside" / "file"
    run.sample.symlink_to(theirs)
    with atomic_write(run.sample) as file:
        file.write(b"ours")
    assert theirs.read_text() == "theirs"
    assert run.sample.read_bytes() == b"ours"
    assert not run.sample.is_symlink()


def test_the_folder_a_config_names_is_not_written_to(run):
    content = json.loads(run.config.read_bytes())
    content.pop("sha256")
    content["config"]["out"] = str(run.path.parent / "outside")
    run.config.write_bytes(sealed(content))
    config = resumed(run.read_config(), {"out": str(run.path)})
    assert config.out == str(run.path)


def test_a_description_is_not_read_without_end(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b" " * 100)
    assert read_small(path, largest=100) == b" " * 100
    with pytest.raises(ValueError, match=r"config\.json has more than 99 bytes"):
        read_small(path, largest=99)
    with pytest.raises(ValueError, match="has more than 1000 bytes"):
        read_small("/dev/zero", largest=1000)
