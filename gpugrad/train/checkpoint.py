"""Checkpoints: a training state on disk that is either complete and sound or refused.

A checkpoint is a folder `step-00002000` of two files:

    tensors.safetensors   every array of the state
    state.json            everything else, the name and place of every array, and the SHA-256 of
                          the tensor file and of this file's own content

It is written under a temporary name in the same folder, fsynced (files and folder) and renamed, so
a power cut leaves the whole of it or nothing; an old one loses its name before it is removed. Of
either file every single bit counts: one that differs from what was written is refused. Nothing in
it is ever executed: no pickle.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from ml_dtypes import bfloat16
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..text.files import (
    leftovers,
    naming,
    parse_json,
    read_small,
    remove,
    sync_folder,
    temporary_name,
)
from .seal import is_intact, sealed
from .state import Place, put, take_arrays

FORMAT = "gpugrad-checkpoint"
VERSION = 2
TENSORS = "tensors.safetensors"
STATE = "state.json"

_NAME = re.compile(r"step-(\d{8,})")


class CheckpointError(ValueError):
    """A checkpoint that is truncated, altered, incomplete, or something else altogether."""


class Checkpoint(NamedTuple):
    """A state, the step it was taken after, and where it was read from."""

    step: int
    state: dict[str, Any]
    path: Path


def save(
    folder: str | os.PathLike[str],
    step: int,
    state: dict[str, Any],
    keep: int = 2,
    protect: Collection[int] = (),
    go_on: Callable[[], None] = lambda: None,
) -> Path:
    """Write a checkpoint and return its path; then remove all but the newest `keep`.

    state: nested dicts (str keys) and lists of arrays, str, int, float, bool and None; tuples come
        back as lists. Floats keep every bit. Raises TypeError for anything else, ValueError for a
        float that is not finite, before anything is written.
    keep: how many to keep, at least 2, so that one that goes bad never was the only one.
    protect: steps to keep beside those.
    go_on: called between parts of the work; what it raises ends it, with nothing written.
    """
    if step < 0:
        raise ValueError(f"checkpoint.save: step must be at least 0, got {step}")
    if keep < 2:
        raise ValueError(
            f"checkpoint.save: keep must be at least 2, got {keep}: should the newest checkpoint "
            "be damaged, the one before it is what is left"
        )
    places: dict[Place, npt.NDArray[Any]] = {}
    content = {"format": FORMAT, "version": VERSION, "step": step}
    content["state"] = take_arrays(state, (), places)
    folder = Path(folder)
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
    target = folder / f"step-{step:08d}"
    temporary = temporary_name(target)
    try:
        with naming(target):
            temporary.mkdir()
            content["tensors"] = _write_tensors(temporary / TENSORS, places)
            go_on()
            content["tensors_sha256"] = _file_digest(temporary / TENSORS, go_on)
            with open(temporary / STATE, "xb") as file:
                file.write(sealed(content))
                file.flush()
                os.fsync(file.fileno())
            sync_folder(temporary)
            go_on()
            _replace(temporary, target)
            sync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # what does not go now goes next time
    prune(folder, step, keep, protect)
    return target


def steps(folder: str | os.PathLike[str]) -> list[int]:
    """Return the steps of the checkpoints in `folder`, sound or not, oldest first."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    names = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(name[1]) for name in names if name)


def prune(
    folder: str | os.PathLike[str], newest: int, keep: int, protect: Collection[int] = ()
) -> None:
    """Remove all but the last `keep` checkpoints up to step `newest` and those of `protect`.

    Also what processes left that were killed while saving. Later checkpoints, damaged perhaps, stay
    until their step is reached again and do not count.
    """
    folder = Path(folder)
    for old in [found for found in steps(folder) if found <= newest][:-keep]:
        if old not in protect:  # killed in between, half of one must not have its name
            (folder / f"step-{old:08d}").rename(temporary_name(folder / f"step-{old:08d}"))
    for path in leftovers(folder, _NAME.pattern):
        remove(path)


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read one checkpoint after checking every byte of it.

    Raises CheckpointError for one that is truncated, altered, incomplete, foreign, or written by a
    newer version; the message names the file and what is wrong with it.
    """
    path = Path(path)
    try:
        return _read(path)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error


def _read(path: Path) -> Checkpoint:
    content = _read_content(path / STATE)
    tensors = path / TENSORS
    if not tensors.is_file():
        raise CheckpointError(f"checkpoint {path} is incomplete: {TENSORS} is missing")
    try:
        step, state = content["step"], content["state"]
        name = _NAME.fullmatch(path.name)
        if name and int(name[1]) != step:
            raise CheckpointError(f"checkpoint {path} is that of step {step} under another name")
        if _file_digest(tensors) != content["tensors_sha256"]:
            raise CheckpointError(
                f"checkpoint {path} is damaged: {TENSORS} ({tensors.stat().st_size} bytes) is not "
                "the file that was written: its SHA-256 differs"
            )
        arrays = load_file(tensors)
        if arrays.keys() != content["tensors"].keys():
            raise ValueError("other arrays than the state lists")
        for name, (place, dtype) in content["tensors"].items():
            put(state, place, _restored(arrays[name], dtype))
    except CheckpointError:
        raise
    except (SafetensorError, AttributeError, LookupError, TypeError, ValueError) as error:
        # whoever wrote it also wrote the matching SHA-256
        what = f"checkpoint {path}: a part is missing or foreign: {error!r}"
        raise CheckpointError(what) from error
    return Checkpoint(step, state, path)


def latest(folder: str | os.PathLike[str]) -> Checkpoint:
    """Read the newest sound checkpoint in `folder`.

    Each damaged one that is newer is named in a RuntimeWarning. Raises FileNotFoundError when
    there is none at all, CheckpointError when none is sound.
    """
    found = steps(folder)
    if not found:
        raise FileNotFoundError(f"no checkpoint in {folder}")
    problems = []
    for step in reversed(found):
        try:
            checkpoint = read(Path(folder, f"step-{step:08d}"))
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warnings.warn(f"{problem}; using step {step} instead", RuntimeWarning, stacklevel=2)
        return checkpoint
    raise CheckpointError(f"no sound checkpoint in {folder}: {'; '.join(problems)}")


def set_aside(folder: str | os.PathLike[str], after: int, reason: str = "damaged") -> list[Path]:
    """Rename the checkpoints newer than step `after` to `REASON-...` and return the new names.

    For whoever goes on from there: left alone, they would count among those to keep.
    """
    folder, renamed = Path(folder), []
    for step in steps(folder):
        if step > after:
            name = f"{reason}-{step:08d}-{secrets.token_hex(4)}"
            renamed.append((folder / f"step-{step:08d}").rename(folder / name))
    return renamed


def _write_tensors(path: Path, places: dict[Place, npt.NDArray[Any]]) -> dict[str, Any]:
    """Write the arrays; return for the name of each its place and dtype."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    described: dict[str, Any] = {}
    for place, array in places.items():
        name = "/".join(map(str, place))
        if name in arrays:
            raise ValueError(f"checkpoint.save: two arrays of the state are called {name!r}")
        # safetensors' numpy side does not know bfloat16; it takes the memory as it lies, hence "C"
        stored = array.view(np.uint16) if array.dtype == bfloat16 else array
        arrays[name] = np.require(stored, requirements="C")
        described[name] = (place, array.dtype.name)
    try:
        save_file(arrays, path)
    except SafetensorError as error:  # its only error, whatever the system said
        raise OSError(f"{path.parent}: {error}") from error
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors lets nobody else read it
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return described


def _restored(array: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    if array.dtype.name != ("uint16" if dtype == "bfloat16" else dtype):
        raise TypeError(f"{array.dtype} where {dtype} is listed")
    return np.array(array.view(bfloat16) if dtype == "bfloat16" else array)  # not on mapped memory


def _read_content(path: Path) -> dict[str, Any]:
    folder = path.parent
    try:
        data = read_small(path)
    except ValueError as error:  # a state of millions of plain values is none of ours
        raise CheckpointError(f"checkpoint {folder} is damaged: {error}") from error
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"checkpoint {folder} is incomplete: {STATE} is missing") from None
    try:
        content = parse_json(data)
    except ValueError as error:
        raise CheckpointError(
            f"checkpoint {folder} is damaged: {STATE} is truncated or not JSON: {error}"
        ) from error
    match content:
        case {"format": str(kind), "version": int(version), "sha256": str()}:
            if not is_intact(content, data):
                raise CheckpointError(f"checkpoint {folder} is damaged: {STATE} was altered")
        case _:
            raise CheckpointError(f"{folder} is not a gpugrad checkpoint: {STATE} is another file")
    if kind != FORMAT:
        raise CheckpointError(f"{folder} is not a gpugrad checkpoint: its format is {kind!r}")
    if version != VERSION:
        raise CheckpointError(
            f"checkpoint {folder} has format version {version}; this gpugrad reads {VERSION}"
        )
    return content


def _file_digest(path: Path, go_on: Callable[[], None] = lambda: None) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in _pieces(file):
            digest.update(piece)
            go_on()
    return digest.hexdigest()


def _pieces(file: Any, size: int = 2**20) -> Iterator[bytes]:
    while piece := file.read(size):
        yield piece


def _replace(temporary: Path, target: Path) -> None:
    """Give `temporary` its name. A folder cannot be renamed over another, so an old one steps
    aside first (there is one only when a damaged checkpoint's step is reached again).
    """
    if not os.path.lexists(target):
        temporary.rename(target)
        return
    aside = temporary_name(target)
    target.rename(aside)
    try:
        temporary.rename(target)
    except BaseException:  # Ctrl-C too
        aside.rename(target)
        raise
    remove(aside)
