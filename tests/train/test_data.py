"""A run's text: encoded, split, stored, opened again; too little of it is refused."""

from __future__ import annotations

import numpy as np
import pytest

from gpugrad.text import bigram_loss
from gpugrad.train.config import TrainConfig
from gpugrad.train.data import baselines, open_data, read_corpus, store
from gpugrad.train.folder import RunFolder

TEXT = "".join(f"line {i} says {i * i % 97}\n" for i in range(200))


def config_for(tmp_path, **settings) -> TrainConfig:
    path = tmp_path / "input.txt"
    path.write_text(settings.pop("text", TEXT), encoding="utf-8")
    return TrainConfig(**{"data": str(path), "block_size": 8, "n_embd": 8, **settings})


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe"])
def test_stored_text_comes_back(tmp_path, tokenizer):
    config = config_for(tmp_path, tokenizer=tokenizer, vocab_size=300, text=TEXT + "é€\n")
    corpus, folder = read_corpus(config), RunFolder(tmp_path)
    store(corpus, folder)
    data = open_data(config, folder)
    ids = np.concatenate([data.train, data.val])
    np.testing.assert_array_equal(ids, corpus.ids)
    assert data.tokenizer.decode(ids) == TEXT + "é€\n"
    assert len(data.train) == int(len(ids) * 0.9)


def test_a_tokenizer_file(tmp_path):
    first = config_for(tmp_path, tokenizer="char")
    read_corpus(first).tokenizer.save(tmp_path / "mine.json")
    second = config_for(tmp_path, tokenizer=str(tmp_path / "mine.json"))
    np.testing.assert_array_equal(read_corpus(first).ids, read_corpus(second).ids)


def test_max_chars(tmp_path):
    assert len(read_corpus(config_for(tmp_path, max_chars=100)).ids) == 100
    assert len(read_corpus(config_for(tmp_path, max_chars=0)).ids) == len(TEXT)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"data": "nowhere.txt"}, FileNotFoundError, "no file, folder or glob match"),
        ({"tokenizer": "chars"}, ValueError, "tokenizer 'chars' is neither byte, char or bpe"),
        ({"max_chars": 50}, ValueError, "the validation part of .* has 5 of 50 tokens"),
        ({"max_chars": 50, "train_fraction": 0.1}, ValueError, "the train part .* has 5 of 50"),
        ({"text": " \n"}, ValueError, "is empty"),
    ],
    ids=["no file", "tokenizer", "short validation", "short train", "empty"],
)
def test_what_cannot_be_used_is_named(tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        read_corpus(config_for(tmp_path, **settings))


def test_files_that_do_not_belong_together(tmp_path):
    config, folder = config_for(tmp_path, tokenizer="char"), RunFolder(tmp_path)
    store(read_corpus(config), folder)
    read_corpus(config_for(tmp_path)).tokenizer.save(folder.tokenizer)
    with pytest.raises(ValueError, match="was not encoded by"):
        open_data(config, folder)


def test_baselines_are_counted_on_what_is_held_out(tmp_path):
    config, folder = config_for(tmp_path), RunFolder(tmp_path)
    store(read_corpus(config), folder)
    data = open_data(config, folder)
    found = baselines(data)
    assert found["bigram"] == bigram_loss(data.train, data.val, 256)
    assert found["bigram"] < found["unigram"] < np.log(256)
