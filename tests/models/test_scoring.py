from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.generate import LogProbability, log_probability
from gpugrad.models import GPT, GPTConfig, scoring

BLOCK = 12


class Toy:
    """Next-symbol logits from a table; no logits of whole sequences."""

    block_size = 5

    def __init__(self) -> None:
        self.table = np.random.default_rng(3).normal(size=(3, 3))

    def next_logits(self, ids, cache=None):
        return gg.Tensor(self.table[ids.numpy()[:, -1]])

    def new_cache(self):
        return None


def gpt(**settings) -> GPT:
    gg.manual_seed(0)
    model = GPT(GPTConfig(11, BLOCK, 2, 2, 8, dtype="float64", **settings))
    for p in model.parameters():
        p.data = p.data + 0.4 * np.random.default_rng(p.size).normal(size=p.shape)
    return model


def by_hand(model: GPT, text, first: int) -> list[float]:
    found = []
    for t in range(first, len(text)):
        logits = model(np.array([text[max(0, t - BLOCK) : t]]))[0].numpy()[0, -1]
        found.append(logits[text[t]] - math.log(np.exp(logits).sum()))
    return found


@pytest.mark.parametrize("known", [1, 3, 12, 15], ids="prompt of {}".format)
@pytest.mark.parametrize("new", [1, 4, 20], ids="{} tokens".format)
def test_each_token_given_those_before_it(known, new) -> None:
    model = gpt()
    text = np.random.default_rng(new).integers(0, 11, known + new)
    found = log_probability(model, text[known:], text[:known])
    np.testing.assert_allclose(found.tokens, by_hand(model, text, known), atol=1e-12)
    assert found.tokens.shape == (new,)
    assert found.total == pytest.approx(sum(found.tokens))
    assert found.perplexity == pytest.approx(math.exp(-found.total / new))
    assert found.bits_per(7) == pytest.approx(-found.total / 7 / math.log(2))
    plain = log_probability(model, text[known:], text[:known], use_cache=False)
    np.testing.assert_array_equal(found.tokens, plain.tokens)


def test_windows_beyond_the_block_go_through_the_model_together(monkeypatch) -> None:
    model, text = gpt(), np.random.default_rng(5).integers(0, 11, BLOCK + 8)
    seen, next_logits = [], model.next_logits
    monkeypatch.setattr(scoring, "TOGETHER", 3 * BLOCK)
    monkeypatch.setattr(
        model, "next_logits", lambda ids, *a: seen.append(ids.shape) or next_logits(ids, *a)
    )
    found = log_probability(model, text)
    assert seen == [(1, BLOCK), (3, BLOCK), (3, BLOCK)]
    np.testing.assert_allclose(found.tokens, by_hand(model, text, 1), atol=1e-12)


def test_without_prompt_the_first_id_is_given() -> None:
    model = gpt()
    text = np.random.default_rng(1).integers(0, 11, 9)
    found = log_probability(model, text)
    np.testing.assert_array_equal(found.tokens, log_probability(model, text[1:], text[:1]).tokens)
    losses = model.loss(text[None, :-1], text[None, 1:], "none").numpy()[0]
    np.testing.assert_allclose(found.tokens, -losses, atol=1e-12)


def test_the_probabilities_of_all_texts_add_up_to_1() -> None:
    total = sum(
        math.exp(log_probability(Toy(), path, [1]).total) for path in product(range(3), repeat=6)
    )
    assert total == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("use_cache", [True, False])
def test_token_by_token_is_the_same_as_all_at_once(use_cache) -> None:
    class Stepwise:
        """A GPT's steps alone, as other models offer them."""

        def __init__(self, model) -> None:
            self.block_size, self.new_cache = model.block_size, model.new_cache
            self.next_logits = model.next_logits

    text = np.random.default_rng(1).integers(0, 11, 30)
    one = log_probability(gpt(), text)
    two = log_probability(Stepwise(gpt()), text, use_cache=use_cache)
    np.testing.assert_allclose(one.tokens, two.tokens, atol=1e-12)


def test_dropout_is_off_and_training_mode_comes_back() -> None:
    model = gpt(dropout=0.5)
    text = [1, 2, 3, 4]
    one = log_probability(model, text).tokens
    np.testing.assert_array_equal(one, log_probability(model.eval(), text).tokens)
    assert model.train().training
    log_probability(model, text)
    assert model.training


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (([1],), ValueError, "a single id and no prompt"),
        (([],), ValueError, "log_probability: ids must be integers"),
        (([1, 2], []), ValueError, "log_probability: ids must be integers"),
        (([[1, 2]],), ValueError, r"one sequence \(T,\) each, got shapes \(1, 2\)"),
        (([1, 3],), IndexError, "ids 3 to 3, but the vocabulary has 3"),
        (([1, -1],), IndexError, "ids -1 to -1, but the vocabulary has 3"),
    ],
    ids=str,
)
def test_refuses(arguments, kind, message) -> None:
    with pytest.raises(kind, match=message):
        log_probability(Toy(), *arguments)


def test_a_perplexity_that_no_float_holds_is_infinite() -> None:
    assert LogProbability(np.array([-800.0, -900.0])).perplexity == math.inf
    assert LogProbability(np.array([-700.0])).perplexity == math.exp(700)


def test_bits_per_nothing() -> None:
    with pytest.raises(ValueError, match="bits_per: count must be at least 1, got 0"):
        LogProbability(np.zeros(1)).bits_per(0)
