"""Prompts of different lengths, stops, and repetition: what decoding shares."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.generate import beam_search, generate, generate_batch, log_probability, stream
from gpugrad.models import GPT, GPTConfig

VOCAB, BLOCK = 13, 16


def gpt(positions: str = "learned") -> GPT:
    gg.manual_seed(0)
    shared = 1 if positions == "rotary" else None  # both heads share keys and values
    config = GPTConfig(VOCAB, BLOCK, 2, 2, 8, positions=positions, n_kv_head=shared)
    model = GPT(config)
    rng = np.random.default_rng(0)
    for p in model.parameters():
        p.data = p.data + rng.normal(size=p.shape, scale=0.4).astype(p.dtype)
    return model


class Successor:
    """The likeliest token is the last one plus one, as long as the sum of all is what it should."""

    block_size = 100

    def next_logits(self, ids, cache=None):
        logits = np.eye(10)[(ids.numpy()[:, -1] + 1) % 10] * 5
        return gg.Tensor(logits + ids.numpy().sum(axis=1, keepdims=True) * 1e-3)

    def new_cache(self):
        return None


def prompts(lengths, seed: int = 3) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, VOCAB, n) for n in lengths]


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "alibi", "relative"])
@pytest.mark.parametrize(
    ("lengths", "new"),
    [((3, 7, 1, 5), 8), ((2, 9, 4), 16), ((16, 1), 3), ((30, 4, 17), 5), ((6, 6), 4)],
    ids=str,
)
def test_a_ragged_batch_is_its_prompts_one_by_one(positions, lengths, new) -> None:
    """Cached, not cached, inside the block and far beyond it."""
    model, given = gpt(positions), prompts(lengths)
    alone = [generate(model, prompt, new, greedy=True, stop=[[4, 2], 11]) for prompt in given]
    settings = {"greedy": True, "stop": [[4, 2], 11]}
    cached = generate_batch(model, given, new, **settings)
    plain = generate_batch(model, given, new, use_cache=False, **settings)
    for one, two, three in zip(alone, cached, plain, strict=True):
        assert one.tolist() == two.tolist() == three.tolist()
    assert cached[0].dtype == np.int64


def test_a_ragged_batch_feeds_one_position_per_row_and_step(monkeypatch) -> None:
    model, shapes = gpt(), []
    features = GPT.features
    monkeypatch.setattr(
        GPT,
        "features",
        lambda self, ids, *a, **k: shapes.append(ids.shape) or features(self, ids, *a, **k),
    )
    generate_batch(model, prompts((3, 7, 1)), 5, greedy=True)
    assert shapes == [(3, 7)] + [(3, 1)] * 4


@pytest.mark.parametrize(
    "options", [{"top_k": 5}, {"min_p": 0.1, "repetition_penalty": 1.3}], ids=str
)
def test_drawn_ragged_batches_are_the_same_with_and_without_cache(options) -> None:
    model, given = gpt("rotary"), prompts((3, 7, 1, 12))
    one = generate_batch(model, given, 10, seed=4, **options)
    two = generate_batch(model, given, 10, seed=4, use_cache=False, **options)
    assert [text.tolist() for text in one] == [text.tolist() for text in two]
    three = generate_batch(model, given, 10, seed=5, **options)
    assert [text.tolist() for text in one] != [text.tolist() for text in three]


def test_a_model_that_knows_no_lengths_takes_a_call_per_length() -> None:
    model = Successor()
    found = generate_batch(model, [[1], [4, 5, 6], [7], [0, 3]], 4, greedy=True, stop=9)
    assert [text.tolist() for text in found] == [
        [1, 2, 3, 4, 5],
        [4, 5, 6, 7, 8, 9],
        [7, 8, 9],
        [0, 3, 4, 5, 6, 7],
    ]


def test_equal_lengths_in_a_batch_are_those_of_generate() -> None:
    model, given = gpt(), np.stack(prompts((4, 4, 4)))
    together = generate(model, given, 9, seed=3).tolist()
    assert [text.tolist() for text in generate_batch(model, list(given), 9, seed=3)] == together


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ([[5, 6]], [3, 4, 5, 6]),
        ([[3, 4]], [3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4]),  # half of it in the prompt is no stop
        ([[5, 7], [6, 7], 9], [3, 4, 5, 6, 7]),
        ([(5, 6), np.array([4])], [3, 4]),
        ({(4, 5, 6)}, [3, 4, 5, 6]),
        ([[4]], [3, 4]),
    ],
    ids=str,
)
def test_stop_sequences(stop, expected) -> None:
    model = Successor()
    assert generate(model, [3], 11, greedy=True, stop=stop).tolist() == expected
    assert list(stream(model, [3], 11, greedy=True, stop=stop)) == expected[1:]
    batch = generate(model, [[3], [2]], 11, greedy=True, stop=stop).tolist()
    assert batch[0][: len(expected)] == expected
    assert set(batch[0][len(expected) :]) <= {expected[-1]}


@pytest.mark.parametrize(
    ("stop", "kind", "message"),
    [
        ([[]], ValueError, r"a stop is an id or a sequence of ids, got \[\]"),
        ([[[1]]], ValueError, "a stop is an id or a sequence of ids"),
        ("end", TypeError, "stop takes ids, got .*; encode text first"),
        ([0.5], TypeError, "stop takes ids"),
        ([-1], ValueError, "stop holds the negative id -1"),
    ],
    ids=str,
)
def test_bad_stops_are_refused_at_once(stop, kind, message) -> None:
    with pytest.raises(kind, match=message):
        stream(Successor(), [1], 3, stop=stop)


@pytest.mark.parametrize("stop", [10, [3, 99], [[3, 99]]], ids=str)
def test_stops_that_the_model_does_not_know_are_refused(stop) -> None:
    message = r"stop holds the id \d+, but the model knows 10 tokens"
    with pytest.raises(IndexError, match=message):
        generate(Successor(), [1], 3, stop=stop)
    with pytest.raises(IndexError, match=message):
        generate_batch(Successor(), [[1], [2, 3]], 3, stop=stop)
    with pytest.raises(IndexError, match=message):
        next(stream(Successor(), [1], 3, stop=stop))
    with pytest.raises(IndexError, match=message):
        beam_search(Successor(), [1], 3, num_beams=2, stop=stop)


@pytest.mark.parametrize("bad", [-1, VOCAB])
@pytest.mark.parametrize(
    "options", [{}, {"repetition_penalty": 2.0}, {"use_cache": False}], ids=str
)
def test_ids_ahead_of_the_window_must_be_known_too(bad, options) -> None:
    model = gpt()
    prompt = [bad] + [1] * (BLOCK + 1)
    for decode in (
        lambda: generate(model, prompt, 2, **options),
        lambda: generate_batch(model, [[1], prompt], 2, **options),
        lambda: next(stream(model, prompt, **options)),
    ):
        with pytest.raises(
            IndexError, match=rf"the prompt holds the id {bad}, .* in \[0, {VOCAB}\)"
        ):
            decode()
    for decode in (
        lambda: beam_search(model, prompt, 2),
        lambda: log_probability(model, [1, 2], prompt),
    ):
        with pytest.raises(IndexError, match=f"the prompt holds the id {bad}"):
            decode()


def test_repetition_penalty_counts_prompt_and_new_tokens() -> None:
    """So large a penalty never repeats: all ten symbols come once, before any comes again."""
    found = generate(Successor(), [[3], [7]], 9, greedy=True, repetition_penalty=1e9).tolist()
    assert [sorted(row) for row in found] == [list(range(10))] * 2
    drawn = generate_batch(Successor(), [[3, 4, 5], [7]], 7, repetition_penalty=1e9, top_k=1)
    assert sorted(drawn[0].tolist()) == list(range(10))
    assert len(set(drawn[1].tolist())) == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"prompts must be sequences of ids \(T,\), one or more of them, got \[\]"),
        ([[1], []], "prompt 1: ids must be integers"),
        ([[[1], [2]]], r"prompts must be sequences of ids \(T,\)"),
        ([[1], ["a"]], "prompt 1: ids must be integers|could not convert|dtype"),
    ],
    ids=["none", "empty", "2-d", "text"],
)
def test_refuses_prompts(given, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        generate_batch(Successor(), given, 1)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([3], r"lengths must be integers \(2,\), one for each row of ids, got int64 \(1,\)"),
        ([1.0, 2.0], r"lengths must be integers \(2,\)"),
        ([0, 2], r"lengths must lie in \[1, 3\], got 0 to 2"),
        ([1, 4], r"lengths must lie in \[1, 3\], got 1 to 4"),
    ],
    ids=str,
)
def test_gpt_refuses_lengths(lengths, message) -> None:
    with pytest.raises(ValueError, match=message):
        gpt().next_logits(np.ones((2, 3), int), None, lengths)


def test_a_ragged_cache_brings_its_own_mask_and_positions() -> None:
    model = gpt()
    with gg.no_grad():
        cache = model.new_cache()
        model.next_logits(np.ones((2, 3), int), cache, [1, 3])
        with pytest.raises(ValueError, match="attn_mask and positions follow from a cache"):
            model.features(np.ones((2, 1), int), cache, positions=np.ones((2, 1), int))
