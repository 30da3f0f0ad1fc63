"""The folder of a run: nothing is overwritten by accident, nobody else's files are touched."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from gpugrad.train.folder import RunFolder


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """A folder that holds a run, with every file a run can have, and somebody's notes."""
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        folder.write_config({"n_layer": 2})
    for path in vars(folder).values():
        if path.suffix and not path.exists():
            path.write_text("x")
    (folder.checkpoints / "step-00000001").mkdir(parents=True)
    (folder.path / "notes.txt").write_text("mine")
    return folder


def test_settings_come_back(folder):
    assert folder.holds_run
    assert folder.read_config() == {"n_layer": 2}


def test_a_run_is_not_overwritten_unless_told_so(folder):
    before = sorted(folder.path.rglob("*"))
    with (
        pytest.raises(FileExistsError, match=r"holds a run already: --resume .* --overwrite"),
        folder.replaced(overwrite=False),
    ):
        pass
    assert sorted(folder.path.rglob("*")) == before
    with folder.replaced(overwrite=True) as new:
        new.write_config({"n_layer": 3})
        assert folder.read_config() == {"n_layer": 2}
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.json", "notes.txt"]
    assert folder.read_config() == {"n_layer": 3}


@pytest.mark.parametrize("renames", range(15))
def test_a_run_that_cannot_be_replaced_stays(folder, monkeypatch, renames):
    def content():
        return {path: path.is_dir() or path.read_bytes() for path in folder.path.rglob("*")}

    before, original, done = content(), Path.rename, []

    def rename(self, target):
        done.append(target)
        if len(done) == renames:
            raise KeyboardInterrupt
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)

    def replace():
        with folder.replaced(overwrite=True) as new:
            for path in (new.config, new.metrics, new.tokens, new.tokenizer):
                path.write_text("new")
            if not renames:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace()
    assert content() == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "tokens.bin", "checkpoints", "sample.txt"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_that_belong_to_no_run_are_left_alone(tmp_path, name, overwrite):
    (tmp_path / name).write_text("mine")
    with (
        pytest.raises(FileExistsError, match=f"{name} exists, but .* holds no run"),
        RunFolder(tmp_path).replaced(overwrite),
    ):
        pass
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "does not describe a gpugrad run"),
        ('{"n_layer": 12}', "does not describe a gpugrad run"),
        ("[", "is not JSON"),
        ('{"format": "gpugrad-run", "version": 7, "config": {}}', "version 7; this gpugrad reads"),
    ],
    ids=["empty", "a model's", "truncated", "newer"],
)
def test_another_config_json_is_refused(tmp_path, content, message):
    folder = RunFolder(tmp_path)
    folder.config.write_text(content)
    for call in (folder.read_config, lambda: folder.check(overwrite=True)):
        with pytest.raises(ValueError, match=message):
            call()
    assert folder.config.read_text() == content


def test_settings_changed_by_hand_are_refused(folder):
    text = folder.config.read_text()
    folder.config.write_text(text.replace('"n_layer": 2', '"n_layer": 3'))
    with pytest.raises(ValueError, match=r"config.json was altered.* by flags beside --resume"):
        folder.read_config()


def test_what_a_killed_process_left_is_removed_and_nothing_else(folder):
    for name in (".metrics.jsonl.0123abcd.tmp", ".config.json.0123abcd.tmp", ".mine.0123abcd.tmp"):
        (folder.path / name).write_text("half")
    (folder.path / ".checkpoints.0123abcd.tmp/old").mkdir(parents=True)
    with folder.locked():
        pass
    assert [path.name for path in folder.path.glob(".*")] == [".mine.0123abcd.tmp"]


def test_no_run(tmp_path):
    assert not RunFolder(tmp_path).holds_run
    with pytest.raises(FileNotFoundError, match="holds no run"):
        RunFolder(tmp_path / "nowhere").read_config()


def test_one_process_at_a_time(folder):
    with (
        folder.locked(),
        pytest.raises(RuntimeError, match="another process is training in"),
        RunFolder(folder.path).locked(),
    ):
        pass
    with RunFolder(folder.path).locked():  # free again
        pass


def test_config_json_is_for_people_too(folder):
    description = json.loads(folder.config.read_text())
    assert description["format"] == "gpugrad-run"
    assert "\n" in folder.config.read_text()


class Interrupted(Exception):
    """What comes in the middle of a replacement."""


def interrupt_at(monkeypatch: pytest.MonkeyPatch, limit: int, killed: bool) -> None:
    """Raise at a call of rename; killed, nobody puts anything back or removes it after that."""
    rename, count = Path.rename, itertools.count()

    def interrupts(path: Path, target: Path) -> Path:
        if next(count) != limit:
            return rename(path, target)
        if killed:
            monkeypatch.setattr(RunFolder, "_put_back", lambda self, new: None)
            monkeypatch.setattr("shutil.rmtree", lambda *args, **options: None)
        raise Interrupted

    monkeypatch.setattr(Path, "rename", interrupts)


def replace(folder: RunFolder) -> None:
    with folder.replaced(overwrite=True) as new:
        new.write_config({"seed": 2})
        new.tokens.write_text("new")
        new.metrics.write_text("new")


@pytest.mark.parametrize("killed", [False, True], ids=["raised", "killed"])
@pytest.mark.parametrize(
    ("held", "renames"), [(True, 7), (False, 5)], ids=["over another run", "fresh"]
)
def test_a_replacement_that_is_interrupted_anywhere_is_undone(
    tmp_path, monkeypatch, held, renames, killed
):
    for limit in range(renames):
        folder = RunFolder(tmp_path / str(limit))
        folder.path.mkdir()
        if held:
            folder.write_config({"seed": 1})
            folder.tokens.write_text("old")
        with monkeypatch.context() as patched:
            interrupt_at(patched, limit, killed)
            with pytest.raises(Interrupted):
                replace(folder)
        with folder.locked():
            left = sorted(path.name for path in folder.path.iterdir())
            assert left == (["config.json", "tokens.bin"] if held else [])
        if held:
            assert folder.tokens.read_text() == "old"
            assert folder.read_config()["seed"] == 1
