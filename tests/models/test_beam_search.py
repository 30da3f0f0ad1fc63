from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.generate import Beam, beam_search, beam_search_batch, generate, log_probability
from gpugrad.models import GPT, GPTConfig

SYMBOLS, LENGTH = 3, 4


class Toy:
    """Next-symbol logits that depend on the last two symbols, so that paths matter."""

    block_size = 8

    def __init__(self, seed: int = 3) -> None:
        self.table = 2 * np.random.default_rng(seed).normal(size=(SYMBOLS, SYMBOLS, SYMBOLS))

    def next_logits(self, ids, cache=None):
        ids = ids.numpy()
        return gg.Tensor(self.table[ids[:, -2], ids[:, -1]])

    def new_cache(self):
        return None

    def log_p(self, start, path) -> float:
        text, total = list(start), 0.0
        for symbol in path:
            logits = self.table[text[-2], text[-1]]
            total += logits[symbol] - np.log(np.exp(logits).sum())
            text.append(symbol)
        return total


def gpt(positions: str = "learned") -> GPT:
    gg.manual_seed(0)
    model = GPT(GPTConfig(13, 16, 2, 2, 8, positions=positions))
    rng = np.random.default_rng(0)
    for p in model.parameters():
        p.data = p.data + rng.normal(size=p.shape, scale=0.4).astype(p.dtype)
    return model


def exhaustive(model: Toy, start, length: int, stop: int | None) -> dict[tuple[int, ...], float]:
    """The log-probability of every text that ends with the first stop, or at the length."""
    found = {}
    for path in product(range(SYMBOLS), repeat=length):
        cut = path.index(stop) + 1 if stop in path else length
        found[path[:cut]] = model.log_p(start, path[:cut])
    return found


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("stop", [None, 2])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.5, -1.0])
def test_as_many_beams_as_texts_is_exhaustive_search(seed, stop, length_penalty) -> None:
    model = Toy(seed)
    texts = exhaustive(model, [0, 1], LENGTH, stop)
    beams = beam_search(
        model, [0, 1], LENGTH, num_beams=SYMBOLS**LENGTH, length_penalty=length_penalty, stop=stop
    )
    scores = {path: p / len(path) ** length_penalty for path, p in texts.items()}
    assert {tuple(beam.ids[2:].tolist()) for beam in beams} == set(texts)
    ranked = sorted(scores.values(), reverse=True)  # some texts are equally likely, to rounding
    np.testing.assert_allclose([beam.score for beam in beams], ranked, atol=1e-12)
    for beam in beams:
        path = tuple(beam.ids[2:].tolist())
        assert beam.log_probability == pytest.approx(texts[path], abs=1e-12)
        assert beam.score == pytest.approx(scores[path], abs=1e-12)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.0, -0.5])
@pytest.mark.parametrize("num_beams", [1, 2, 3, 5])
def test_stopping_early_loses_nothing(num_beams, length_penalty, monkeypatch) -> None:
    """Deciding that no text can overtake the finished ones changes no result, only the work."""
    worked = []
    next_logits = Toy.next_logits
    monkeypatch.setattr(
        Toy, "next_logits", lambda self, ids, cache=None: worked.append(1) or next_logits(self, ids)
    )
    settings = {"num_beams": num_beams, "length_penalty": length_penalty, "stop": 1}
    early = [beam_search(Toy(seed), [0, 2], 12, **settings) for seed in range(8)]
    short = len(worked)
    monkeypatch.setattr("gpugrad.models.beam_search._decided", lambda *arguments: False)
    late = [beam_search(Toy(seed), [0, 2], 12, **settings) for seed in range(8)]
    whole = len(worked) - short
    assert short < whole if length_penalty <= 1 else short <= whole
    for one, two in zip(early, late, strict=True):
        assert [b.ids.tolist() for b in one] == [b.ids.tolist() for b in two]


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_one_beam_is_greedy(positions) -> None:
    model = gpt(positions)
    for prompt in ([1], [3, 4, 5], list(range(9))):
        (beam,) = beam_search(model, prompt, 12, num_beams=1)
        assert isinstance(beam, Beam)
        assert beam.ids.tolist() == generate(model, prompt, 12, greedy=True).tolist()


def test_more_beams_find_more_likely_texts() -> None:
    """On average: a single search may lose by them. None beats the most likely text."""

    def found(beams: int) -> np.ndarray:
        best = [beam_search(Toy(seed), [1, 2], 5, num_beams=beams)[0] for seed in range(20)]
        return np.array([beam.log_probability for beam in best])

    one, two, six, exhaustive = map(found, (1, 2, 6, 3**5))
    assert one.mean() < two.mean() < six.mean() <= exhaustive.mean()
    assert (six <= exhaustive + 1e-12).all()


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "alibi"])
def test_batches_of_any_lengths_with_and_without_cache(positions) -> None:
    """Cached keys and values follow their beams; beyond the block the window slides."""
    model = gpt(positions)
    prompts = [[1, 2, 3], [7], [5, 5, 9, 1, 0, 2], [4] * 14]
    settings = {"num_beams": 4, "stop": [[3, 1], 8]}
    cached = beam_search_batch(model, prompts, 7, **settings)
    plain = beam_search_batch(model, prompts, 7, use_cache=False, **settings)
    for prompt, one, two in zip(prompts, cached, plain, strict=True):
        alone = beam_search(model, prompt, 7, **settings)
        assert len(one) == 4
        for a, b, c in zip(one, two, alone, strict=True):
            assert a.ids.tolist() == b.ids.tolist() == c.ids.tolist()
            assert a.score == pytest.approx(b.score, abs=1e-5)
            found = log_probability(model, a.ids[len(prompt) :], prompt)
            assert a.log_probability == pytest.approx(found.total, abs=1e-4)


def test_texts_end_with_their_stops() -> None:
    for beam in beam_search(Toy(), [0, 0], 6, num_beams=8, stop=[[2, 1], [0, 0, 0]]):
        new = beam.ids[2:].tolist()
        ends = [n for n in range(len(new)) if new[n - 1 : n + 1] == [2, 1] and n]
        ends += [n for n in range(2, len(new)) if new[n - 2 : n + 1] == [0, 0, 0]]
        assert min(ends, default=5) == len(new) - 1


def test_impossible_tokens_are_in_no_beam() -> None:
    model = Toy()
    model.table[:, :, 1] = -np.inf
    beams = beam_search(model, [0, 0], 3, num_beams=50)
    assert len(beams) == 8
    assert not any((beam.ids == 1).any() for beam in beams)


def test_equals_come_in_order() -> None:
    model = Toy()
    model.table[:] = 0
    beams = beam_search(model, [0, 0], 2, num_beams=4)
    assert [beam.ids[2:].tolist() for beam in beams] == [[0, 0], [0, 1], [0, 2], [1, 0]]


def test_no_new_tokens() -> None:
    (beam,) = beam_search(Toy(), [1, 2], 0)
    assert (beam.ids.tolist(), beam.log_probability, beam.score) == ([1, 2], 0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams must be an integer >= 1, got 0"),
        ({"num_beams": 2.5}, "num_beams must be an integer >= 1, got 2.5"),
        ({"length_penalty": float("nan")}, "length_penalty must be finite, got nan"),
        ({"max_new_tokens": -1}, "max_new_tokens must be an integer >= 0, got -1"),
        ({"ids": [[1], [2]]}, r"one sequence \(T,\), got shape \(2, 1\); for several there is"),
        ({"ids": []}, "beam_search: ids must be integers"),
        ({"stop": [[]]}, "a stop is an id or a sequence"),
    ],
    ids=str,
)
def test_refuses(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        beam_search(Toy(), **{"ids": [0, 1], "max_new_tokens": 3, **options})


def test_a_model_that_has_diverged() -> None:
    model = Toy()
    model.table[0, 2] = np.nan
    with pytest.raises(FloatingPointError, match="it has diverged"):
        beam_search(model, [0, 0], 5, num_beams=9)
