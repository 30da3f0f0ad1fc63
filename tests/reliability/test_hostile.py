"""Files from anywhere: whatever they hold, they are read or refused by a ValueError, and soon."""

from __future__ import annotations

import json
import random
import re
import signal
import struct

import numpy as np
import pytest

from gpugrad.models import GPT, GPTConfig
from gpugrad.text import (
    BPETokenizer,
    CharTokenizer,
    WordPieceTokenizer,
    load_tokenizer,
    open_tokens,
    write_tokens,
)
from gpugrad.train.folder import RunFolder

CASES = 250
VALUES = [
    b"-1", b"0", b"1e999", b"NaN", b"null", b"[]", b"{}", b'"x"', b"1.5", b"true", b"[[]]",
    b"18446744073709551615", b"9" * 30, b"1e308", b'"' + b"x" * 500 + b'"', b"[" * 2000,
]  # fmt: skip
TOKEN = re.compile(rb'-?\d+|true|false|null|"[A-Za-z_0-9]*"')


def model(folder):
    GPT(GPTConfig(11, block_size=6, n_layer=1, n_head=2, n_embd=8), device="cpu").save_pretrained(
        folder
    )


def pretrained(path):
    return GPT.from_pretrained(path.parent, device="cpu")


FILES = {
    "config.json": (model, pretrained),
    "model.safetensors": (model, pretrained),
    "char.json": (lambda f: CharTokenizer("abc def").save(f / "char.json"), load_tokenizer),
    "bpe.json": (
        lambda f: BPETokenizer.train("low lower lowest " * 20, 270).save(f / "bpe.json"),
        lambda path: load_tokenizer(path).encode("lower x"),
    ),
    "wordpiece.json": (
        lambda f: WordPieceTokenizer.train("low lower " * 20, 40).save(f / "wordpiece.json"),
        lambda path: load_tokenizer(path).encode("lower x"),
    ),
    "tokens.bin": (lambda f: write_tokens(f / "tokens.bin", np.arange(50) % 11, 11), open_tokens),
}


def mutated(good: bytes, rng: random.Random) -> bytes:
    """Return a file with a few changes of one kind."""
    data = bytearray(good)
    kind = rng.choice(["flip", "cut", "insert", "remove", "repeat", "replace"])
    for _ in range(rng.choice([1, 1, 2, 5])):
        i, size = rng.randrange(len(data) + 1), rng.randrange(1, 40)
        if kind == "flip" and data:
            data[i % len(data)] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del data[i:]
        elif kind == "insert":
            data[i:i] = rng.choice(VALUES)
        elif kind == "remove":
            del data[i : i + size]
        elif kind == "repeat":
            data[i:i] = data[i : i + size]
        elif tokens := list(TOKEN.finditer(bytes(data[:4000]))):
            found = rng.choice(tokens)
            data[found.start() : found.end()] = rng.choice(VALUES)
    return bytes(data)


@pytest.fixture
def deadline():
    """A limit in seconds for what has to end, hang or not."""

    def stop(number, frame):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    yield signal.alarm
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", FILES)
def test_mutated_files_are_read_or_refused(tmp_path, name, deadline):
    make, read = FILES[name]
    make(tmp_path)
    path = tmp_path / name
    good = path.read_bytes()
    read(path)
    rng = random.Random(4)
    refused = 0
    deadline(60)
    for _ in range(CASES):
        path.write_bytes(mutated(good, rng))
        try:
            read(path)
        except ValueError as error:
            refused += name in str(error) or "encode" in str(error)
    assert refused > CASES / 2


@pytest.mark.parametrize(
    ("setting", "value"),
    [("n_layer", 10**19), ("n_layer", 10**6), ("vocab_size", 10**12), ("n_positions", 10**12)],
)
def test_a_config_that_claims_too_much_takes_neither_time_nor_memory(
    tmp_path, setting, value, deadline
):
    model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_bytes())
    config["gpugrad"] = None
    config[setting] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    deadline(20)
    with pytest.raises(ValueError, match=f"which says .*{value:,}|the file holds"):
        GPT.from_pretrained(tmp_path, device="cpu")


def header(**entries):
    data = json.dumps(entries).encode()
    return struct.pack("<Q", len(data)) + data


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**30) + b"{}",
        header(x={"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}) + bytes(4),
        header(x={"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}) + bytes(4),
        header(x={"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}) + bytes(4),
        header(x={"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]}) + bytes(4),
        header(x={"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}) + bytes(4),
        header(x={"dtype": "O", "shape": [1], "data_offsets": [0, 8]}) + bytes(8),
        struct.pack("<Q", 10**5) + b'{"a":' * 20_000,
        struct.pack("<Q", 27) + b'{"x": 1, "x": 2, "y": NaN }',
        b"\x80\x04\x95\x10\x00\x00\x00",
    ],
    ids=[
        "header of 2**63", "header of 2**30", "negative shape", "huge shape", "offsets backwards",
        "offsets beyond", "shape of fractions", "objects", "deep", "keys twice", "pickle",
    ],
)  # fmt: skip
def test_hostile_safetensors(tmp_path, content, deadline):
    model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    deadline(20)
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or not a safetensors"):
        GPT.from_pretrained(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": "gpugrad-tokenizer", "kind": "byte", "kind": "char"}', "'kind' occurs twice"),
        (b"[" * 10**5, "nested too deeply"),
        (b'{"a":' * 10**5, "nested too deeply"),
        (b'{"version": NaN}', "NaN is not a number"),
        (b'{"version": -Infinity}', "-Infinity is not a number"),
        (b"\xff\xfe{}", "not JSON"),
        (b"9" * 10**5, "digits"),
    ],
    ids=["key twice", "deep lists", "deep objects", "NaN", "infinity", "UTF-16", "digits"],
)
@pytest.mark.parametrize("read", ["tokenizer", "run", "model"])
def test_hostile_json(tmp_path, read, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    calls = {
        "tokenizer": lambda: load_tokenizer(path),
        "run": RunFolder(tmp_path).read_config,
        "model": lambda: GPT.from_pretrained(tmp_path, device="cpu"),
    }
    with pytest.raises(ValueError, match=f"config.json .*({message}|not JSON)"):
        calls[read]()
