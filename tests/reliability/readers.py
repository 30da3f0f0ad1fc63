"""Everything that reads a file: how a sound one is made, and how it is read to the end."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import gpugrad as gg
from gpugrad import models, text
from gpugrad.cli import main
from gpugrad.nn import lora
from gpugrad.text.files import parse_json
from gpugrad.train import checkpoint, curve, search, session
from gpugrad.train.config import resolve, resumed
from gpugrad.train.config_file import read_config_file
from gpugrad.train.evaluation import evaluate
from gpugrad.train.folder import RunFolder
from gpugrad.train.metrics import keep_metrics, read_metrics
from gpugrad.train.seal import sealed

TEXT = "".join(f"{i} times {i % 7} is {i * (i % 7)}\n" for i in range(40))
SHAPE = models.GPTConfig(11, block_size=6, n_layer=1, n_head=2, n_embd=8)
REFUSALS = (ValueError, FileNotFoundError)  # of a reader; a UnicodeError is a ValueError


class Reader(NamedTuple):
    """A kind of file.

    make: writes a sound file, and what belongs beside it, into a folder and returns its path.
    read: reads it as its user would. mend: makes the checksums of a changed file right again, so
    that what lies behind them is reached.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    mend: Callable[[bytes, Path], bytes] | None = None
    refusals: tuple[type[Exception], ...] = REFUSALS


def _gpt(folder: Path) -> models.GPT:
    model = models.GPT(SHAPE, device="cpu")
    model.save_pretrained(folder)
    return model


def _pretrained(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        _gpt(folder)
        return folder / name

    return make


def _checkpoint(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        arrays = {"w": np.ones((2, 3), np.float32), "m": np.zeros(3, gg.bfloat16)}
        state = {"step": 3, "best": 1.5, "arrays": arrays, "list": [1, "a", None, np.arange(2)]}
        return checkpoint.save(folder, 3, state) / name

    return make


def _resealed(data: bytes, path: Path) -> bytes:
    content = json.loads(data)
    content.pop("sha256", None)
    return sealed(content)


def _retold(data: bytes, path: Path) -> bytes:
    """Write the digest of other tensors into the state beside them."""
    state = path.with_name(checkpoint.STATE)
    content = json.loads(state.read_bytes())
    content.pop("sha256")
    state.write_bytes(sealed({**content, "tensors_sha256": hashlib.sha256(data).hexdigest()}))
    return data


def _run_config(folder: Path) -> Path:
    run = RunFolder(folder)
    run.write_config(resolve({"max_steps": 300, "out": str(folder)}).to_dict())
    return run.config


def _settings(name: str, content: str) -> Reader:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return Reader(make, lambda path: _typed(lambda: resolve({}, read_config_file(path))))


def _typed(read: Callable[[], Any]) -> Any:
    """Return what settings are read; a setting of a wrong type is a TypeError that names it."""
    try:
        return read()
    except TypeError as error:
        if " must be a" not in str(error):
            raise
        raise ValueError(error) from error


def _tokenizer(kind: str) -> Reader:
    makers: dict[str, Callable[[], Any]] = {
        "char": lambda: text.CharTokenizer("low lower"),
        "word": lambda: text.WordTokenizer("low lower lowest", "<unk>"),
        "byte": text.ByteTokenizer,
        "bpe": lambda: text.BPETokenizer.train("low lower lowest " * 20, 270),
        "wordpiece": lambda: text.WordPieceTokenizer.train("low lower " * 20, 40),
    }

    def make(folder: Path) -> Path:
        makers[kind]().save(folder / "tokenizer.json")
        return folder / "tokenizer.json"

    def read(path: Path) -> str:
        tokenizer = text.load_tokenizer(path)
        return tokenizer.decode(tokenizer.encode("low lower"))

    return Reader(make, read)


def _tokens(folder: Path) -> Path:
    text.write_tokens(folder / "tokens.bin", np.arange(50) % 11, 11)
    return folder / "tokens.bin"


def _open_tokens(path: Path) -> Any:
    found = text.open_tokens(path)
    return int(found.ids.max(initial=0)), next(iter(text.ConsecutiveWindows(found.ids, 4, 2)))


def _checksummed(data: bytes, path: Path) -> bytes:
    return data[:96] + hashlib.sha256(data[:96] + data[128:]).digest() + data[128:]


def _saved(model: Callable[[], Any]) -> Reader:
    def make(folder: Path) -> Path:
        model().save(folder / "model.safetensors")
        return folder / "model.safetensors"

    return Reader(make, lambda path: type(model()).load(path))


def _adapter(folder: Path) -> Path:
    model = _gpt(folder)
    lora.adapt(model, rank=2, targets=["*.in_proj"])
    models.save_adapter(model, folder / "adapter.safetensors")
    return folder / "adapter.safetensors"


def _load_adapter(path: Path) -> Any:
    return models.load_adapter(models.GPT.from_pretrained(path.parent, device="cpu"), path)


def _corpus(folder: Path) -> Path:
    (folder / "corpus.txt").write_text(TEXT)
    return folder / "corpus.txt"


def _read_corpus(path: Path) -> Any:
    found = text.load_text(path)
    return text.CharTokenizer(found).encode(found)


def _metrics(folder: Path) -> Path:
    lines = [{"kind": "train", "step": i, "loss": 2.5 / (i + 1)} for i in range(4)]
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _read_log(path: Path) -> str:
    """Draw what is on a log; lines that are none of its records, which block nothing, are told."""
    points = [(r["step"], r["loss"] or 0.0) for r in read_metrics(path) if r["kind"] == "train"]
    drawn = curve.svg({"train": session._thinned(points)}, {})
    copy = path.with_name("copy.jsonl")
    copy.write_bytes(path.read_bytes())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        keep_metrics(copy, lambda record: record["step"] < 3)
    if told:
        raise ValueError(str(told[0].message))
    return drawn


def _search(folder: Path) -> Path:
    found = search.Search(folder, [{"lr": 1e-3}, {"lr": 2e-3}])
    found.trials[0].status, found.trials[0].loss = "finished", 2.5
    found._write()
    return folder / "search.json"


def _read_search(path: Path) -> Any:
    found = search.Search(path.parent, [{"lr": 1e-3}, {"lr": 2e-3}])
    return found.table(), found.best


def _test(folder: Path) -> Path:
    (folder / "test.json").write_bytes(sealed({"step": 3, "loss": 2.5, "tokens": 40}))
    return folder / "test.json"


def _prompt(folder: Path) -> Path:
    """Train for a step, and write the arguments of `gpugrad sample`, one a line, into the run."""
    (folder / "input.txt").write_text(TEXT)
    shape = ("--n-layer=1", "--n-head=2", "--n-embd=8", "--block-size=8", "--tokenizer=char")
    steps = ("--max-steps=1", "--warmup-steps=0", "--batch-size=2", "--sample-tokens=0")
    command = ["train", f"--data={folder / 'input.txt'}", f"--out={folder}", *shape, *steps]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main([*command, "--device=cpu", "--eval-windows=2"]) == 0
    path = folder / "arguments.txt"
    path.write_text("--prompt\n12 times\n--max-new-tokens\n2\n--stop\n3\n--top-k\n3\n--seed\n1")
    return path


def _command(name: str) -> Callable[[Path], int]:
    def read(path: Path) -> int:
        given = path.read_bytes().decode(errors="surrogateescape").split("\n")
        folder = [str(path.parent)] if name == "sample" else []
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                status = main([name, *folder, *given])
            except SystemExit as error:  # of the parser
                status = int(error.code or 0)
        if status:
            raise ValueError(printed.getvalue())
        return status

    return read


def _plan(folder: Path) -> Path:
    path = folder / "arguments.txt"
    path.write_text("--n-layer\n1\n--n-embd\n8\n--n-head\n2\n--batch-size\n2\n--vocab-size\n260")
    return path


READERS: dict[str, Reader] = {
    "checkpoint: state.json": Reader(
        _checkpoint("state.json"), lambda p: checkpoint.read(p.parent)
    ),
    "checkpoint: state.json, sealed": Reader(
        _checkpoint("state.json"), lambda p: checkpoint.read(p.parent), _resealed
    ),
    "checkpoint: tensors": Reader(
        _checkpoint("tensors.safetensors"), lambda p: checkpoint.read(p.parent)
    ),
    "checkpoint: tensors, sealed": Reader(
        _checkpoint("tensors.safetensors"), lambda p: checkpoint.read(p.parent), _retold
    ),
    "run: config.json": Reader(_run_config, lambda p: RunFolder(p.parent).read_config()),
    "run: config.json, sealed": Reader(
        _run_config,
        lambda p: _typed(lambda: resumed(RunFolder(p.parent).read_config(), {})),
        _resealed,
    ),
    "run: metrics.jsonl": Reader(_metrics, _read_log),
    "run: test.json": Reader(_test, lambda p: evaluate.__globals__["_read"](RunFolder(p.parent))),
    "run: tokens.bin": Reader(_tokens, _open_tokens),
    "run: tokens.bin, sealed": Reader(_tokens, _open_tokens, _checksummed),
    "search: search.json": Reader(_search, _read_search),
    "settings: toml": _settings(
        "c.toml", 'lr = 1e-3\nmax_steps = 300\ndata = "a.txt"\npng = true\n'
    ),
    "settings: json": _settings(
        "c.json", '{"lr": 0.001, "max_steps": 300, "data": "a", "png": true}'
    ),
    "settings: yaml": _settings("c.yaml", "lr: 1e-3\nmax-steps: 300\ndata: a.txt\npng: true\n"),
    "model: config.json": Reader(
        _pretrained("config.json"), lambda p: models.GPT.from_pretrained(p.parent, device="cpu")
    ),
    "model: model.safetensors": Reader(
        _pretrained("model.safetensors"),
        lambda p: models.GPT.from_pretrained(p.parent, device="cpu"),
    ),
    "model: WindowLM": _saved(lambda: models.WindowLM(models.WindowLMConfig(4, 2, 4, 8))),
    "model: NGram": _saved(lambda: models.NGram(models.NGramConfig(4, 2)).fit(np.arange(60) % 4)),
    "model: adapter": Reader(_adapter, _load_adapter),
    "tokenizer: char": _tokenizer("char"),
    "tokenizer: word": _tokenizer("word"),
    "tokenizer: byte": _tokenizer("byte"),
    "tokenizer: bpe": _tokenizer("bpe"),
    "tokenizer: wordpiece": _tokenizer("wordpiece"),
    "data: text": Reader(_corpus, _read_corpus),
    "data: JSON": Reader(_test, lambda p: parse_json(p.read_bytes())),
    "command: sample": Reader(_prompt, _command("sample")),
    "command: plan": Reader(_plan, _command("plan")),
}


def header(entries: Any) -> bytes:
    """Return the beginning of a safetensors file."""
    data = json.dumps(entries).encode()
    return struct.pack("<Q", len(data)) + data
