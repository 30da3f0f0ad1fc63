"""Conversations as examples: which ids count, exactly, and what is cut, padded or refused."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.models import GPT, GPTConfig
from gpugrad.text import ByteTokenizer, CharTokenizer, ChatTemplate

TOKENIZER = ByteTokenizer()
TURNS = [
    ("system", "be brief"),
    ("user", "2+2?"),
    ("assistant", "4"),
    ("user", "?"),
    ("assistant", "four"),
]


def spelled(ids):
    return bytes(ids.tolist()).decode()


def test_the_text_and_the_prompt():
    template = ChatTemplate(system="S: ")
    assert template.text(TURNS) == "S: be brief\nQ: 2+2?\nA: 4\nQ: ?\nA: four\n"
    assert template.prompt(TURNS[:2]) == "S: be brief\nQ: 2+2?\nA: "
    assert template.text(TURNS).startswith(template.prompt(TURNS[:4]) + "four")


def test_only_answers_count_each_with_its_end():
    ids, answers = ChatTemplate().encode(TOKENIZER, TURNS)
    assert spelled(ids) == ChatTemplate().text(TURNS)
    assert spelled(ids[answers]) == "4\nfour\n"


def test_a_batch():
    template = ChatTemplate("", "<", ">", ".")
    x, y = template.batch(
        TOKENIZER, [[("user", "ab"), ("assistant", "c")], [("assistant", "hello")]], block=8, pad=1
    )
    assert (x.dtype, y.dtype, x.shape, y.shape) == (np.int64, np.int64, (2, 8), (2, 8))
    i = -100
    assert x[0].tolist() == [*b"<ab.>c", 1, 1]
    assert y[0].tolist() == [i, i, i, i, *b"c.", i, i]
    assert x[1].tolist() == [*b">hello", 1, 1]
    assert y[1].tolist() == [*b"hello.", i, i]
    x, y = template.batch(TOKENIZER, [[("user", "ab"), ("assistant", "cdef")]], block=6)
    assert x[0].tolist() == [*b"<ab.>c"]  # cut at its end
    assert y[0].tolist() == [i, i, i, i, *b"cd"]


def test_the_loss_is_that_of_the_answers_alone():
    gg.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=256, block_size=48, n_layer=1, n_head=2, n_embd=8))
    x, y = ChatTemplate().batch(TOKENIZER, [TURNS, TURNS[1:3]], block=48)
    nats = []
    for turns in (TURNS, TURNS[1:3]):
        ids, answers = ChatTemplate().encode(TOKENIZER, turns)
        logits = gg.nn.functional.log_softmax(model(ids[None, :-1])[0], -1).numpy()[0]
        nats += [-logits[t, ids[t + 1]] for t in range(len(ids) - 1) if answers[t + 1]]
    assert len(nats) == 2 + 5 + 2
    assert model.loss(x, y).item() == pytest.approx(np.mean(nats), rel=1e-5)
    model.loss(x, y).backward()
    assert np.isfinite(model.tokens.weight.grad.numpy()).all()


def test_what_is_refused():
    template = ChatTemplate()
    short = [[("assistant", "x")], [("user", "12"), ("assistant", "3")]]  # "Q: 12" + end + "A: "
    with pytest.raises(ValueError, match=r"conversation 1 \(11 ids\) has no answer within block 8"):
        template.batch(TOKENIZER, short, 8)
    assert template.batch(TOKENIZER, short, 9)[1][1].tolist() == [-100] * 8 + [ord("3")]
    with pytest.raises(ValueError, match=r"role must be one of .* got 'human'"):
        template.text([("human", "hi")])
    with pytest.raises(ValueError, match="needs at least one turn"):
        template.batch(TOKENIZER, [[]], 8)
    with pytest.raises(ValueError, match="end must not be empty"):
        ChatTemplate(end="")
    with pytest.raises(ValueError, match="block must be at least 1"):
        template.batch(TOKENIZER, [TURNS], 0)
    with pytest.raises(ValueError, match="character 'Q'"):
        template.batch(CharTokenizer("abc\n"), [[("user", "a"), ("assistant", "b")]], 8)
