"""The folder of a run: what lies where, and that no run is lost to another."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import __version__
from ..text import atomic_write
from ..text.files import (
    leftovers,
    naming,
    parse_json,
    read_small,
    remove,
    sync_folder,
    temporary_name,
)
from . import checkpoint
from .seal import is_intact, sealed

FORMAT = "gpugrad-run"
VERSION = 2
_OLD, _OLD_WHOLE = "old", "old-whole"  # where a run goes that is replaced, and once it is there


class RunFolder:
    """The paths of a run's files, and the settings it was started with."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.tokens = self.path / "tokens.bin"
        self.tokenizer = self.path / "tokenizer.json"
        self.metrics = self.path / "metrics.jsonl"
        self.curve = self.path / "curve.svg"
        self.curve_png = self.path / "curve.png"
        self.sample = self.path / "sample.txt"
        self.log = self.path / "log.txt"  # of a trial of a search
        self.test = self.path / "test.json"
        self.checkpoints = self.path / "checkpoints"

    @property
    def holds_run(self) -> bool:
        """Whether a run was started here."""
        return self.config.exists()

    def check(self, overwrite: bool) -> None:
        """Raise FileExistsError unless a run can start here.

        It cannot when the folder holds one, unless that may be overwritten; nor when one of its
        files has the name of a run's but is not part of one.
        """
        if self.holds_run:
            self.read_config()  # refuses a config.json that is something else
            if not overwrite:
                raise FileExistsError(
                    f"{self.path} holds a run already: --resume goes on with it, --overwrite "
                    "starts again and loses it, --out chooses another folder"
                )
        elif taken := self._taken():
            raise FileExistsError(
                f"{taken[0]} exists, but {self.path} holds no run; choose another folder with --out"
            )

    @contextmanager
    def replaced(self, overwrite: bool) -> Iterator[RunFolder]:
        """Yield an empty folder within this one, whose files become the run's when all is well.

        Until then the run that is here, if it may be overwritten, stays as it is, and so does what
        is no part of a run. What is raised leaves no new folder behind.
        """
        self.check(overwrite)
        new = RunFolder(temporary_name(self.checkpoints))
        old, whole = new.path / _OLD, new.path / _OLD_WHOLE
        try:
            old.mkdir(parents=True)
            yield new
            for path in self._taken():
                path.rename(old / path.name)
            old.rename(whole)
            for path in reversed(new._taken()):
                path.rename(self.path / path.name)
            with naming(self.path):
                sync_folder(self.path)
            whole.rename(new.path / "done")
        except BaseException:
            self._put_back(new.path)
            shutil.rmtree(new.path, ignore_errors=True)  # what does not go now goes next time
            if not any(self.path.iterdir()):
                self.path.rmdir()
            raise
        remove(new.path)

    def _put_back(self, new: Path) -> None:
        """Undo a replacement that has not come to its end, wherever it, or this, was interrupted.

        As long as the old run is not whole there, what lies here is of the old one.
        """
        old, whole = new / _OLD, new / _OLD_WHOLE
        if whole.exists():
            for path in self._taken():
                remove(path)
            whole.rename(old)
        for path in old.glob("*"):
            path.rename(self.path / path.name)

    def _taken(self) -> list[Path]:
        return [path for path in self._files() if os.path.lexists(path)]

    def _files(self) -> list[Path]:
        # config.json comes last: as long as it is there, the folder holds a run
        names = [path for path in vars(self).values() if path not in (self.path, self.config)]
        return [*names, self.config]

    def write_config(self, values: dict[str, Any]) -> None:
        """Write config.json."""
        description = {"format": FORMAT, "version": VERSION, "gpugrad": __version__}
        with atomic_write(self.config) as file:
            file.write(sealed({**description, "config": values}))

    def read_config(self) -> dict[str, Any]:
        """Return the settings in config.json.

        Raises FileNotFoundError when there is none, ValueError when it is something else, or was
        changed by hand: with other settings than it began with a run would not be what it says.
        """
        if not self.config.exists():
            raise FileNotFoundError(f"{self.path} holds no run: there is no {self.config}")
        try:
            data = read_small(self.config)
            description = parse_json(data)
        except ValueError as error:
            raise ValueError(f"{self.config} is not JSON: {error}") from error
        match description:
            case {"format": "gpugrad-run", "version": int(version), "config": dict(values)}:
                if version != VERSION:
                    raise ValueError(
                        f"{self.config} has version {version}; this gpugrad reads {VERSION}"
                    )
                if not is_intact(description, data):
                    raise ValueError(
                        f"{self.config} was altered: its SHA-256 is another; settings that may "
                        "change are changed by flags beside --resume"
                    )
                return values
            case _:
                raise ValueError(f"{self.config} does not describe a gpugrad run")

    def latest(self) -> checkpoint.Checkpoint:
        """Return the newest sound checkpoint."""
        return checkpoint.latest(self.checkpoints)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and keep other processes from training in it until this one ends.

        However it ends: the lock goes with the process. What a killed one left half-written is
        removed. Raises RuntimeError when another one is training here, ValueError when the folder,
        one of its files or checkpoints, or a file of these is a symbolic link: what is written here
        stays here, and what is read was.
        """
        saved = (path for pattern in ("*", "*/*") for path in self.checkpoints.glob(pattern))
        for path in (self.path, *self._files(), *saved):
            if path.is_symlink():
                raise ValueError(
                    f"{path} is a symbolic link, which a run does not follow: give what it points "
                    f"to, {path.resolve()}, or remove it"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RuntimeError(f"another process is training in {self.path}") from error
            names = "|".join(re.escape(path.name) for path in self._files())
            for path in leftovers(self.path, names):
                self._put_back(path)
                remove(path)
            yield
        finally:
            os.close(descriptor)
