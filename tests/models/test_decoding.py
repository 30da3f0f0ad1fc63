from __future__ import annotations

import inspect
from itertools import islice

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.generate import Sampler, generate, stream
from gpugrad.models import GPT, GPTConfig
from gpugrad.ops.random import get_state


class Fixed:
    """A model whose next logits never change."""

    block_size = 4

    def __init__(self, logits) -> None:
        self.row = np.array(logits, np.float32)

    def next_logits(self, ids, cache=None):
        return gg.Tensor(np.tile(self.row, (ids.shape[0], 1)))

    def new_cache(self):
        return None


class Counting(Fixed):
    """Its most likely next token is the last one plus one."""

    def __init__(self) -> None:
        super().__init__(np.zeros(10))
        self.seen: list[list[int]] = []

    def next_logits(self, ids, cache=None):
        self.seen.append(ids.numpy()[0].tolist())
        return gg.Tensor(np.eye(10, dtype=np.float32)[(ids.numpy()[:, -1] + 1) % 10])


def small_gpt(**settings) -> GPT:
    gg.manual_seed(0)
    model = GPT(GPTConfig(**{**dict(zip(SHAPE, (13, 16, 2, 2, 8), strict=True)), **settings}))
    rng = np.random.default_rng(0)
    for p in model.parameters():
        p.data = p.data + rng.normal(size=p.shape, scale=0.4).astype(p.dtype)
    return model


SHAPE = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")


# What is drawn from


def softmax(x):
    p = np.exp(np.asarray(x, np.float64) - np.max(x))
    return p / p.sum()


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_temperature_divides_the_logits(temperature) -> None:
    logits = np.array([[1.0, -2.0, 0.5, 3.0]])
    p = Sampler(temperature=temperature).probabilities(logits)
    np.testing.assert_allclose(p[0], softmax(logits[0] / temperature), rtol=1e-14)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [0, 1, 3]),
        ({"top_k": 99}, [0, 1, 2, 3]),
        ({"top_p": 1e-9}, [1]),
        ({"top_p": 0.5}, [1]),
        ({"top_p": 0.51}, [1, 3]),
        ({"top_p": 0.75}, [1, 3]),
        ({"top_p": 0.76}, [0, 1, 3]),
        ({"top_p": 1.0}, [0, 1, 2, 3]),
        ({"top_k": 2, "top_p": 0.6}, [1]),
        ({"top_k": 2, "top_p": 0.7}, [1, 3]),
    ],
    ids=str,
)
def test_top_k_and_top_p(options, kept) -> None:
    """Probabilities 1/8, 1/2, 1/8, 1/4; of the two equal ones the smaller id ranks first."""
    p = np.array([0.125, 0.5, 0.125, 0.25])
    found = Sampler(**options).probabilities(np.log(p)[None])[0]
    expected = np.zeros(4)
    expected[kept] = p[kept] / p[kept].sum()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=0)


def test_filters_work_row_by_row() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 31))
    for sampler in (Sampler(top_k=5), Sampler(top_p=0.7), Sampler(0.5, top_k=9, top_p=0.9)):
        together = sampler.probabilities(logits)
        alone = np.concatenate([sampler.probabilities(row[None]) for row in logits])
        np.testing.assert_array_equal(together, alone)
        np.testing.assert_allclose(together.sum(-1), 1, rtol=1e-13)


@pytest.mark.parametrize("scale", [1.0, 1e30], ids=["moderate", "huge"])
def test_impossible_tokens_are_never_drawn(scale) -> None:
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf]) * scale
    drawn = generate(Fixed(logits), [[1]] * 500, 4, seed=0).numpy()[:, 1:]
    assert set(np.unique(drawn)) == {1, 3}


def test_the_smallest_and_largest_draws(monkeypatch) -> None:
    """A draw of 0 takes the first possible token, one just below 1, or rounded to it, the last."""
    logits = np.array([[-np.inf, 0.0, 0.0, 0.0, -np.inf]])
    for value, expected in ((0.0, 1), (np.nextafter(1.0, 0), 3), (1.0, 3), (0.5, 2)):
        monkeypatch.setattr(Sampler, "_uniform", lambda self, step, n, u=value: np.full(n, u))
        assert Sampler().choose(logits, 0).tolist() == [expected]


@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.5}], ids=str)
def test_frequencies_follow_the_filtered_probabilities(options) -> None:
    """Chi-square with 1 degree of freedom: above 10.83 once in 1000 seeds."""
    model = Fixed(np.log([0.2, 0.45, 0.05, 0.3]))
    drawn = generate(model, [[0]] * 5000, 1, seed=2, **options).numpy()[:, 1]
    counts = np.bincount(drawn, minlength=4)
    assert counts[0] == counts[2] == 0
    expected = 5000 * np.array([0.6, 0.4])
    assert ((counts[[1, 3]] - expected) ** 2 / expected).sum() < 10.83


def test_greedy_takes_the_first_of_equals() -> None:
    assert generate(Fixed([0.0, 2.0, 2.0]), [0], 3, greedy=True).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("bad", [[np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf]], ids=str)
@pytest.mark.parametrize("greedy", [True, False])
def test_logits_that_are_no_distribution_are_reported(bad, greedy) -> None:
    with pytest.raises(FloatingPointError, match="the model's logits are NaN, \\+inf, or all -inf"):
        generate(Fixed(bad), [0], 1, greedy=greedy)


# Seeds


def test_the_seed_decides() -> None:
    model = small_gpt()
    one = generate(model, [1, 2], 12, seed=5).tolist()
    before = get_state()
    assert generate(model, [1, 2], 12, seed=5).tolist() == one
    assert list(stream(model, [1, 2], 12, seed=5)) == one[2:]
    assert generate(model, [1, 2], 12, seed=5, use_cache=False).tolist() == one
    assert get_state() == before
    assert len({tuple(generate(model, [1, 2], 12, seed=s).tolist()) for s in range(8)}) > 1


def test_without_seed_the_shared_generator_decides() -> None:
    model = Fixed(np.zeros(50))
    gg.manual_seed(3)
    one, two = generate(model, [0], 9).tolist(), generate(model, [0], 9).tolist()
    gg.manual_seed(3)
    assert generate(model, [0], 9).tolist() == one
    assert one != two


def test_rows_and_steps_have_draws_of_their_own() -> None:
    drawn = generate(Fixed(np.zeros(1000)), [[0], [0], [0]], 20, seed=1).numpy()[:, 1:]
    assert len(np.unique(drawn)) > 50


# Generating


@pytest.mark.parametrize("kind", [list, np.array, gg.tensor])
def test_shapes_and_types(kind) -> None:
    model = Counting()
    one = generate(model, kind([3]), 2, greedy=True)
    assert isinstance(one, gg.Tensor)
    assert one.dtype == np.int64
    assert one.tolist() == [3, 4, 5]
    assert generate(model, kind([[3, 4], [8, 9]]), 2, greedy=True).tolist() == [
        [3, 4, 5, 6],
        [8, 9, 0, 1],
    ]
    assert generate(model, kind([3]), 0).tolist() == [3]


def test_the_window_is_the_last_block() -> None:
    model = Counting()
    generate(model, [0, 1, 2], 4, greedy=True)
    assert model.seen == [[0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]


def test_is_a_method_of_gpt() -> None:
    assert inspect.unwrap(gg.models.GPT.generate) is inspect.unwrap(generate)
    model = small_gpt()
    assert (
        model.generate([1, 2], 3, greedy=True).tolist()
        == generate(model, [1, 2], 3, greedy=True).tolist()
    )


@pytest.mark.parametrize("stop", [6, [6], {6, 8}, np.int64(6)], ids=["id", "list", "set", "numpy"])
def test_stops_after_the_stop_token(stop) -> None:
    model = Counting()
    assert generate(model, [3], 9, greedy=True, stop=stop).tolist() == [3, 4, 5, 6]
    assert list(stream(model, [3], greedy=True, stop=stop)) == [4, 5, 6]


def test_rows_that_have_stopped_repeat_the_stop_token() -> None:
    found = generate(Counting(), [[3], [5], [6]], 9, greedy=True, stop=7)
    assert found.tolist() == [[3, 4, 5, 6, 7], [5, 6, 7, 7, 7], [6, 7, 7, 7, 7]]


def test_a_stop_token_in_the_prompt_does_not_stop() -> None:
    assert generate(Counting(), [7], 2, greedy=True, stop=7).tolist() == [7, 8, 9]


def test_records_nothing_and_leaves_training_mode() -> None:
    """Dropout of 0.9 would change the tokens, were it active."""
    model = small_gpt(dropout=0.9)
    model.blocks[0].eval()
    tokens = generate(model, [1, 2, 3], 20, greedy=True)
    assert not tokens.requires_grad
    assert model.training
    assert model.blocks[1].training
    assert not model.blocks[0].training
    assert generate(model.eval(), [1, 2, 3], 20, greedy=True).tolist() == tokens.tolist()


def test_training_mode_comes_back_after_an_error() -> None:
    model = small_gpt()
    with pytest.raises(IndexError):
        generate(model, [99], 1)
    assert model.training


# Streaming


def test_a_stream_computes_when_asked() -> None:
    model = Counting()
    tokens = stream(model, [0], greedy=True)
    assert model.seen == []
    assert [next(tokens), next(tokens)] == [1, 2]
    assert len(model.seen) == 2
    assert list(islice(tokens, 12)) == [3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4]


def test_a_stream_leaves_its_reader_recording() -> None:
    x = gg.tensor([2.0], requires_grad=True)
    tokens = stream(small_gpt(), [1], 5, seed=0)
    next(tokens)
    (x * x).sum().backward()
    assert x.grad.item() == 4.0
    assert gg.is_grad_enabled()
    assert len(list(tokens)) == 4


# Wrong settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0; for the most likely token use"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"top_k": 0}, "top_k must be an integer >= 1, got 0"),
        ({"top_k": 1.5}, "top_k must be an integer >= 1, got 1.5"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"top_p must lie in"),
        ({"min_p": 0.0}, r"min_p must lie in \(0, 1\], got 0.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be > 0"),
        ({"seed": -1}, r"seed must be an integer in \[0, 2\*\*64\), got -1"),
        ({"seed": 1.5}, "seed must be an integer in .*, got 1.5"),
    ],
    ids=str,
)
@pytest.mark.parametrize("function", [generate, stream])
def test_refuses_settings_at_once(function, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        function(Counting(), [1], 1, **options)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], r"at least one to begin with; got float32\[0\]"),
        (np.zeros((2, 0), np.int64), "at least one to begin with"),
        ([1.5], r"integers of shape \(T,\) or \(B, T\)"),
        (3, "got int64"),
        ([[[1]]], r"got int64\[1, 1, 1\]"),
    ],
    ids=["empty", "no position", "float", "number", "3-d"],
)
@pytest.mark.parametrize("function", [generate, stream])
def test_refuses_ids(function, ids, message) -> None:
    with pytest.raises(ValueError, match=message):
        function(Counting(), ids, 1)


@pytest.mark.parametrize("function", [generate, stream])
def test_refuses_text(function) -> None:
    with pytest.raises(TypeError, match="ids must be integers, got 'abc'; encode text first"):
        function(Counting(), "abc", 1)


@pytest.mark.parametrize("count", [-1, 2.5])  # 2.5 is reached by no number of steps
@pytest.mark.parametrize("function", [generate, stream])
def test_refuses_a_wrong_count(function, count) -> None:
    with pytest.raises(ValueError, match=f"max_new_tokens must be an integer >= 0, got {count}"):
        function(Counting(), [1], count)


def test_refuses_a_streamed_batch() -> None:
    with pytest.raises(ValueError, match=r"one sequence \(T,\), got shape \(2, 1\)"):
        stream(Counting(), [[1], [2]], 1)
