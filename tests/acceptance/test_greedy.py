"""Greedy decoding: the argmax at each step, in linear time; a cache changes no token."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.generate import generate
from gpugrad.models import GPT, GPTConfig

VOCAB = 29
KINDS = {
    f"{positions}-{'pre' if norm_first else 'post'}": (positions, norm_first)
    for positions in ("learned", "sinusoidal", "rotary")
    for norm_first in (True, False)
}


class Counting(GPT):
    """Remembers how many positions each step fed."""

    def features(self, ids, cache=None, **settings):
        self.fed = [*getattr(self, "fed", []), np.shape(ids)[1]]
        return super().features(ids, cache, **settings)


def model_of(positions: str, norm_first: bool) -> Counting:
    gg.manual_seed(4)
    options = {"positions": positions, "norm_first": norm_first, "tied_head": False}
    model = Counting(GPTConfig(VOCAB, 24, 2, 2, 16, **options)).eval()
    rng = np.random.default_rng(6)
    for p in model.parameters():
        if p.ndim > 1:  # weights large enough that the text does not end in one repeated token
            p.data = p.data + rng.normal(size=p.shape, scale=0.5).astype(p.dtype)
    return model


@pytest.mark.parametrize(("positions", "norm_first"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("new", [1, 19, 60], ids="{} tokens".format)
def test_greedy_cached_is_uncached(positions, norm_first, new) -> None:
    """60 tokens on a prompt of 5 reach far beyond the block of 24: the window slides."""
    model = model_of(positions, norm_first)
    prompt = np.random.default_rng(new).integers(0, VOCAB, (3, 5))
    cached = generate(model, prompt, new, greedy=True).numpy()
    plain = generate(model, prompt, new, greedy=True, use_cache=False).numpy()
    np.testing.assert_array_equal(cached, plain)
    assert cached.shape == (3, 5 + new)

    expected = prompt
    for _ in range(new):
        logits = model(expected[:, -24:])[0].numpy()[:, -1]
        expected = np.concatenate([expected, logits.argmax(-1)[:, None]], axis=1)
    np.testing.assert_array_equal(cached, expected)
    assert len(np.unique(cached[:, 5:])) >= min(new, 4)


def test_greedy_is_linear_in_time() -> None:
    model = model_of("learned", True)
    generate(model, [1, 2, 3, 4, 5], 19, greedy=True)
    assert model.fed == [5] + [1] * 18


def test_greedy_without_cache_runs_the_whole_text_each_step() -> None:
    model = model_of("learned", True)
    generate(model, [1, 2, 3, 4, 5], 25, greedy=True, use_cache=False)
    assert model.fed == [*range(5, 25), 24, 24, 24, 24, 24]


def test_greedy_beyond_the_block_the_window_slides() -> None:
    model = model_of("rotary", True)
    generate(model, np.arange(30) % VOCAB, 3, greedy=True)
    assert model.fed == [24, 24, 24]
