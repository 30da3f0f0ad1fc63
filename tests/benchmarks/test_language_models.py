from __future__ import annotations

import json
import math
from pathlib import Path

import language_models as bench
import numpy as np
import pytest

import gpugrad as gg
from gpugrad.models import GPT, RNNLM, GPTConfig, NGram, NGramConfig, RNNLMConfig, WindowLM

TEXT = "".join(f"def f{i}(x):\n    return x + {i * i}\n\n" for i in range(1200))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> bench.Text:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text(TEXT + "\u00e9")
    return bench.read(str(path), None, 3000)


def test_the_held_out_text_follows_and_rare_characters_are_one(text: bench.Text) -> None:
    assert (len(text.held_out) - 1) % (bench.STREAMS * bench.CHUNK) == 0
    assert text.about["held_out_characters"] == len(text.held_out) - 1
    assert len(text.train) == int(len(TEXT + "x") * 0.9)
    assert text.vocab_size == len(set(TEXT)) + 1
    with pytest.raises(SystemExit, match="held-out characters are too few"):
        bench.read(bench.__file__, 2000, 100)


@pytest.mark.parametrize("name", bench.MODELS)
def test_the_widest_model_within_the_budget(name: str) -> None:
    spec = bench.MODELS[name]
    model = bench.within(spec, 50, 30_000)
    size = bench._size(model)
    wider = spec.widths[spec.widths.index(_width(model)) + 1]
    assert size <= 30_000 < bench._size(spec.build(50, wider))
    with pytest.raises(SystemExit, match="has only 100 parameters"):
        bench.within(spec, 50, 100)


def _width(model: GPT | RNNLM | WindowLM) -> int:
    return model.config.n_hidden if isinstance(model, WindowLM) else model.config.n_embd


def test_counts_keep_to_the_budget(text: bench.Text) -> None:
    whole, some = (bench.counted(text, 5, budget) for budget in (None, 2000))
    assert whole["characters_seen"] == len(text.train)
    assert some["parameters"] <= 2000 < whole["parameters"]
    assert some["characters_seen"] < whole["characters_seen"]
    assert whole["bits_per_character"] < some["bits_per_character"]
    best = NGram(NGramConfig(text.vocab_size, 5, whole["shape"])).fit(text.train)
    assert whole["bits_per_character"] == best.loss(text.held_out) / math.log(2)


@pytest.mark.parametrize("cell", [None, "gru"])
def test_every_token_is_measured_once(text: bench.Text, cell: str | None) -> None:
    """The mean over streams or windows is that over single tokens with the same context."""
    gg.manual_seed(0)
    unit = bench.STREAMS * bench.CHUNK
    tokens = text.held_out[: unit + 1]
    if cell is None:
        model = GPT(GPTConfig(text.vocab_size, 64, n_layer=1, n_head=2, n_embd=8))
        losses = []
        for first in range(0, unit, bench.CHUNK):
            start = max(first - 32, 0)
            part = tokens[start : start + 65]
            each = model.loss(part[None, :-1], part[None, 1:], reduction="none").numpy()[0]
            losses.append(each[first - start : first - start + bench.CHUNK])
        expected = np.concatenate(losses).mean()
    else:
        model = RNNLM(RNNLMConfig(text.vocab_size, cell=cell, n_embd=8))
        rows = tokens[:-1].reshape(bench.STREAMS, bench.CHUNK)
        targets = tokens[1:].reshape(bench.STREAMS, bench.CHUNK)
        expected = model.loss(rows, targets).item()
    assert bench.bits(model, 64, tokens) == pytest.approx(expected / math.log(2), rel=1e-5)


def test_the_rate_rises_and_falls_to_zero() -> None:
    rates = [bench.rate(p / 100, 0.5) for p in range(101)]
    assert rates.index(max(rates)) == 5
    assert max(rates) == 0.5
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[0] > 0


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, out = tmp_path / "text.txt", tmp_path / "result.json"
    corpus.write_text(TEXT)
    arguments = ["--data", str(corpus), "--seconds", "0.3", "--parameters", "8000"]
    assert bench.main([*arguments, "--held-out", "2000", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    rows = {row["model"]: row for row in record["rows"]}
    assert list(rows) == ["unigram", "bigram", "5-gram", "5-gram, all text", *bench.MODELS]
    assert record["settings"]["parameters"] == 8000
    for name, row in rows.items():
        assert row["parameters"] <= 8000 or name == "5-gram, all text"
        assert 0 < row["bits_per_character"] < 8
    assert rows["bigram"]["bits_per_character"] < rows["unigram"]["bits_per_character"]
    assert all(rows[name]["steps"] >= 1 for name in bench.MODELS)
    assert "transformer" in capsys.readouterr().out
