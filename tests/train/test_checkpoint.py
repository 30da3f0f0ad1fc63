"""Checkpoints: what is saved comes back bit by bit; what was damaged is refused, by name."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import warnings

import ml_dtypes
import numpy as np
import pytest

from gpugrad.train import checkpoint, seal
from gpugrad.train.checkpoint import CheckpointError

DTYPES = ["float16", "float32", "float64", "int8", "int32", "int64", "uint8", "uint16", "uint64"]


def some_state(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "model": {"wte.weight": rng.normal(size=(5, 3)).astype(np.float32)},
        "optimizer": {"groups": [{"m": rng.normal(size=7), "lr": 0.1 + 0.2}], "t": 3},
        "rng": {"seed": 2**64 - 1, "offset": 2**63 + 5},
        "best": None,
        "tiny": 5e-324,
        "done": False,
        "text": "a\ud800\u2028é",
    }


def assert_same(x: object, y: object) -> None:
    assert type(x) is type(y)
    if isinstance(x, dict):
        assert list(x) == list(y)
        for key in x:
            assert_same(x[key], y[key])
    elif isinstance(x, list):
        assert len(x) == len(y)
        for a, b in zip(x, y, strict=True):
            assert_same(a, b)
    elif isinstance(x, np.ndarray):
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
    else:
        assert x == y


def test_state_comes_back_exactly(tmp_path):
    path = checkpoint.save(tmp_path / "new" / "folder", 12, some_state())
    back = checkpoint.read(path)
    assert back.step == 12
    assert back.path == path
    assert_same(some_state(), back.state)


@pytest.mark.parametrize("dtype", [*DTYPES, "bool", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 5)], ids=str)
def test_arrays_of_every_dtype_and_shape(tmp_path, dtype, shape):
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    size = int(np.prod(shape)) * kind.itemsize
    bits = np.random.default_rng(1).integers(0, 2 if dtype == "bool" else 256, size, np.uint8)
    array = bits.view(kind).reshape(shape)
    state = {"x": array, "list": [array, {"y": array}]}
    assert_same(state, checkpoint.read(checkpoint.save(tmp_path, 0, state)).state)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.T,
        lambda x: x[::-2],
        lambda x: x[:, 1:2],
        lambda x: np.broadcast_to(x[0], (4, 6)),
    ],
    ids=["transposed", "negative stride", "column", "broadcast"],
)
def test_memory_layout_does_not_matter(tmp_path, view):
    x = view(np.arange(30.0).reshape(5, 6))
    back = checkpoint.read(checkpoint.save(tmp_path, 1, {"x": x})).state["x"]
    np.testing.assert_array_equal(back, x)
    assert back.flags.writeable
    assert back.flags.owndata


def test_big_endian_and_special_values(tmp_path):
    x = np.array([np.nan, -np.inf, -0.0, 5e-324], ">f8")
    back = checkpoint.read(checkpoint.save(tmp_path, 1, {"x": x})).state["x"]
    assert back.astype("<f8").tobytes() == x.astype("<f8").tobytes()


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"a": {"b": [1.0, float("nan")]}}, ValueError, r"state\['a'\]\['b'\]\[1\] is nan"),
        ({"a": float("inf")}, ValueError, r"state\['a'\] is inf"),
        ({"a": {3: 1}}, TypeError, r"key 3 in state\['a'\]"),
        ({"a": np.float32(1)}, TypeError, r"state\['a'\] is a float32"),
        ({"a": object()}, TypeError, r"state\['a'\] is a object"),
        ({"a": np.array([None])}, TypeError, r"state\['a'\] has the dtype object"),
        ({"a": np.array("x")}, TypeError, r"state\['a'\] has the dtype <U1"),
        ({"a/b": np.ones(1), "a": {"b": np.ones(1)}}, ValueError, "two arrays .* 'a/b'"),
    ],
    ids=["nan", "inf", "key", "scalar", "object", "object array", "text array", "names"],
)
def test_what_cannot_be_saved_is_named_and_leaves_nothing(tmp_path, state, error, message):
    with pytest.raises(error, match=message):
        checkpoint.save(tmp_path, 3, state)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("step", "keep", "name"), [(-1, 2, "step"), (0, 1, "keep"), (0, 0, "keep")]
)
def test_bad_arguments(tmp_path, step, keep, name):
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        checkpoint.save(tmp_path, step, {}, keep)


def test_newest_are_kept_and_protected_ones(tmp_path):
    for step in (5, 10, 15, 20, 123456789, 25):
        checkpoint.save(tmp_path, step, {"x": np.ones(2)}, keep=2, protect={10})
    # 25 is written last: the larger number is left alone and does not count.
    assert checkpoint.steps(tmp_path) == [10, 20, 25, 123456789]
    assert sorted(path.name for path in tmp_path.iterdir())[:2] == [
        "step-00000010",
        "step-00000020",
    ]


def test_no_checkpoint(tmp_path):
    assert checkpoint.steps(tmp_path / "nowhere") == []
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoint.latest(tmp_path)


def two_checkpoints(folder):
    checkpoint.save(folder, 1, some_state(1))
    return checkpoint.save(folder, 2, some_state(2))


def assert_previous_loads(folder, what):
    with pytest.warns(RuntimeWarning, match=r"step-00000002.*using step 1 instead") as record:
        back = checkpoint.latest(folder)
    assert len(record) == 1
    assert what in str(record[0].message)
    assert back.step == 1
    assert_same(some_state(1), back.state)


@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.STATE])
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.999])
def test_truncated_file(tmp_path, name, fraction):
    newest = two_checkpoints(tmp_path)
    size = (newest / name).stat().st_size
    os.truncate(newest / name, int(size * fraction))
    assert_previous_loads(tmp_path, name)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(newest)


@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.STATE])
def test_every_flipped_bit_is_refused(tmp_path, name):
    state = {"x": np.float32([1.5, -0.0]), "step": 3, "rate": 1e-3}
    path = checkpoint.save(tmp_path, 1, state)
    good = (path / name).read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        (path / name).write_bytes(bad)
        with pytest.raises(CheckpointError):
            checkpoint.read(path)
    (path / name).write_bytes(good)
    assert_same(state, checkpoint.read(path).state)


@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.STATE])
def test_every_truncation_is_refused(tmp_path, name):
    path = checkpoint.save(tmp_path, 1, some_state())
    size = (path / name).stat().st_size
    for length in range(size - 1, -1, -7):
        os.truncate(path / name, length)
        with pytest.raises(CheckpointError):
            checkpoint.read(path)


def reseal(path, change):
    """Let `change` work on the content of a checkpoint's state.json, and seal it anew."""
    content = json.loads((path / checkpoint.STATE).read_bytes())
    del content[seal.SEAL]
    change(content)
    (path / checkpoint.STATE).write_bytes(seal.sealed(content))


@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.STATE])
def test_missing_file(tmp_path, name):
    newest = two_checkpoints(tmp_path)
    (newest / name).unlink()
    assert_previous_loads(tmp_path, f"incomplete: {name} is missing")


def test_file_instead_of_folder(tmp_path):
    newest = two_checkpoints(tmp_path)
    shutil.rmtree(newest)
    newest.write_text("not a folder")
    assert_previous_loads(tmp_path, "incomplete")


def test_tensors_of_another_checkpoint(tmp_path):
    newest = two_checkpoints(tmp_path)
    other = tmp_path / "step-00000001" / checkpoint.TENSORS
    shutil.copy(other, newest / checkpoint.TENSORS)
    assert_previous_loads(tmp_path, "SHA-256 differs")


@pytest.mark.parametrize(
    "content",
    [b"{}", b"[]", b"3", b'{"sha256": 1, "content": {}}', b"\x80\x04K\x01.", b"", b"\xff\xfe"],
    ids=["object", "list", "number", "wrong types", "pickle", "empty", "not UTF-8"],
)
def test_foreign_state(tmp_path, content):
    newest = two_checkpoints(tmp_path)
    (newest / checkpoint.STATE).write_bytes(content)
    assert_previous_loads(tmp_path, checkpoint.STATE)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("version", 3, "format version 3; this gpugrad reads 2"), ("format", "other", "'other'")],
)
def test_other_formats(tmp_path, field, value, message):
    newest = two_checkpoints(tmp_path)
    reseal(newest, lambda content: content.update({field: value}))
    assert_previous_loads(tmp_path, message)


@pytest.mark.parametrize("part", ["step", "state", "tensors", "tensors_sha256"])
def test_a_missing_part_is_an_error(tmp_path, part):
    path = checkpoint.save(tmp_path, 1, some_state())
    reseal(path, lambda content: content.pop(part))
    with pytest.raises(CheckpointError, match=f"missing or foreign: KeyError.'{part}'"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.popitem(),
        lambda tensors: tensors.update({"other": (["model", "other"], "float32")}),
        lambda tensors: tensors.update({"model/wte.weight": (["nowhere", 3], "float32")}),
        lambda tensors: tensors.update({"model/wte.weight": ([], "float32")}),
        lambda tensors: tensors.update({"model/wte.weight": (["model", "wte.weight"], "bfloat16")}),
        lambda tensors: tensors.update({"model/wte.weight": 3}),
    ],
    ids=["fewer", "more", "elsewhere", "nowhere", "another dtype", "no place"],
)
def test_arrays_other_than_listed_are_an_error(tmp_path, change):
    path = checkpoint.save(tmp_path, 1, some_state())
    reseal(path, lambda content: change(content["tensors"]))
    with pytest.raises(CheckpointError, match="a part is missing or foreign"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"format": "gpugrad-checkpoint", "format": "gpugrad-checkpoint"}',
        b'{"step": NaN}',
        b'{"step": 1e999, "format": "gpugrad-checkpoint", "version": 2, "sha256": ""}',
        b'{"step": ' + b"9" * 10_000 + b"}",
    ],
    ids=["deep", "deep objects", "key twice", "NaN", "huge", "digits"],
)
def test_hostile_json(tmp_path, content):
    newest = two_checkpoints(tmp_path)
    (newest / checkpoint.STATE).write_bytes(content)
    assert_previous_loads(tmp_path, checkpoint.STATE)


def test_a_state_of_gigabytes_is_not_even_read(tmp_path):
    newest = two_checkpoints(tmp_path)
    os.truncate(newest / checkpoint.STATE, 2**40)  # a hole: no disk is that full
    assert_previous_loads(tmp_path, "state.json has more than 268435456 bytes")


@pytest.mark.parametrize("header", [2**63, 2**64 - 1, 10**9, 0])
def test_hostile_tensors_with_the_right_digest(tmp_path, header):
    newest = two_checkpoints(tmp_path)
    (newest / checkpoint.TENSORS).write_bytes(header.to_bytes(8, "little") + b'{"x": 1}')
    digest = checkpoint._file_digest(newest / checkpoint.TENSORS)
    reseal(newest, lambda content: content.update(tensors_sha256=digest))
    assert_previous_loads(tmp_path, "a part is missing or foreign: SafetensorError")


def test_a_checkpoint_under_the_name_of_another_step(tmp_path):
    newest = two_checkpoints(tmp_path)
    shutil.rmtree(newest)
    shutil.copytree(tmp_path / "step-00000001", newest)
    assert_previous_loads(tmp_path, "is that of step 1 under another name")
    newest.rename(tmp_path / "mine")  # any other name is as good
    assert checkpoint.read(tmp_path / "mine").step == 1


@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.STATE])
def test_an_unreadable_file(tmp_path, name, monkeypatch):
    newest = two_checkpoints(tmp_path)
    opened = io.open

    def fail(file, *arguments, **named):
        if str(file) == str(newest / name):
            raise OSError(errno.EIO, "Input/output error", str(file))
        return opened(file, *arguments, **named)

    monkeypatch.setattr(io, "open", fail)
    monkeypatch.setattr("builtins.open", fail)
    assert_previous_loads(tmp_path, "cannot be read: [Errno 5]")


def test_damaged_ones_are_set_aside_and_count_no_more(tmp_path):
    for step in (1, 2, 4, 6):
        checkpoint.save(tmp_path, step, some_state(step), keep=9)
    renamed = checkpoint.set_aside(tmp_path, after=2)
    assert [path.name[:17] for path in renamed] == ["damaged-00000004-", "damaged-00000006-"]
    for step in (3, 5):  # 4 does not count: 3 and 5 stay
        checkpoint.save(tmp_path, step, some_state(step), keep=2)
    assert checkpoint.steps(tmp_path) == [3, 5]
    assert all(path.is_dir() for path in renamed)


def test_a_checkpoint_is_as_readable_as_other_files(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    path = checkpoint.save(tmp_path, 1, some_state())
    modes = {file.stat().st_mode for file in (tmp_path / "plain", *path.iterdir())}
    assert len(modes) == 1


def test_all_damaged(tmp_path):
    for step in (1, 2):
        (checkpoint.save(tmp_path, step, some_state()) / checkpoint.TENSORS).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no sound .*step-00000002.*step-00000001"):
        checkpoint.latest(tmp_path)


def test_damaged_step_is_replaced_when_reached_again(tmp_path):
    newest = two_checkpoints(tmp_path)
    (newest / checkpoint.TENSORS).write_bytes(b"")
    checkpoint.save(tmp_path, 2, some_state(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(some_state(3), checkpoint.latest(tmp_path).state)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "rename"])
@pytest.mark.parametrize("count", range(4))
def test_failure_while_saving_leaves_the_old_and_no_litter(
    tmp_path, monkeypatch, call, count, error
):
    two_checkpoints(tmp_path)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    calls = []

    def fail(original):
        def wrapped(*arguments):
            calls.append(arguments)
            if len(calls) == count + 1:
                raise error
            return original(*arguments)

        return wrapped

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", fail(os.fsync))
    else:
        monkeypatch.setattr(type(tmp_path), "rename", fail(type(tmp_path).rename))
    step = 2  # exists: two renames and four fsyncs, the last of them after the deed
    renames = 2
    if call == "rename" and count >= renames:
        checkpoint.save(tmp_path, step, some_state(2))
    elif isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, step, some_state(2))
    else:
        with pytest.raises(OSError, match=r"No space left on device: '.*step-00000002'"):
            checkpoint.save(tmp_path, step, some_state(2))
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert_same(some_state(2), checkpoint.latest(tmp_path).state)


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path):
    two_checkpoints(tmp_path)
    leftover = tmp_path / ".step-00000003.0123abcd.tmp"
    leftover.mkdir()
    (leftover / checkpoint.TENSORS).write_bytes(b"half")
    (tmp_path / ".step-notes").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    assert checkpoint.steps(tmp_path) == [1, 2]
    checkpoint.save(tmp_path, 3, some_state())
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {".step-notes", "notes.txt", "step-00000002", "step-00000003"}


def test_nothing_is_pickled(tmp_path):
    path = checkpoint.save(tmp_path, 1, some_state())
    assert json.loads((path / checkpoint.STATE).read_text())
    header_size = int.from_bytes((path / checkpoint.TENSORS).read_bytes()[:8], "little")
    assert json.loads((path / checkpoint.TENSORS).read_bytes()[8 : 8 + header_size])
