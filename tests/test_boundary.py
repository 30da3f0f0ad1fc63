"""Errors at the edge of the package: named there, and left alone where they are somebody else's."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gpugrad as gg
from gpugrad import boundary
from gpugrad.models import GPT
from gpugrad.text import BPETokenizer, WordPieceTokenizer


def test_an_error_from_within_says_what_was_called_with_what() -> None:
    with pytest.raises(TypeError, match=r"^layer_norm: .*float32\[2, 3\]"):
        gg.nn.functional.layer_norm(gg.ones((2, 3)), object())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BPETokenizer.train(3, vocab_size=300), r"BPETokenizer\.train: .*\(text=3, "),
        (lambda: BPETokenizer.train("ab", "a"), r"BPETokenizer\.train: .*\(text='ab', "),
        (lambda: BPETokenizer.load([]), r"BPETokenizer\.load: .*\(path=\[\]\)"),
        (lambda: WordPieceTokenizer.train(3, 300), r"WordPieceTokenizer\.train: .*\(text=3, "),
        (lambda: GPT.from_pretrained(3), r"GPT\.from_pretrained: .*\(folder=3\)"),
    ],
)
def test_methods_of_classes_name_themselves(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match="^" + message):
        call()


class Missing(gg.nn.Module):
    def forward(self, x: Any) -> Any:
        return {}["missing"]


class Own(Exception):
    """Of the caller's module."""


@pytest.mark.parametrize("error", [KeyError("k"), AttributeError("a"), Own("o"), ValueError("v")])
def test_what_a_function_raises_that_was_handed_in_stays_as_it_is(error: Exception) -> None:
    def function(x: gg.Tensor) -> gg.Tensor:
        raise error

    x = gg.ones((2,), requires_grad=True)
    for call in (gg.value_and_grad(function), lambda x: gg.checkpoint(function, x)):
        with pytest.raises(type(error)) as caught:
            call(x)
        assert caught.value is error
    with pytest.raises(KeyError, match="missing"):
        gg.nn.Sequential(gg.nn.ReLU(), Missing())(x)


def test_a_module_named_like_one_of_pythons_is_the_users(tmp_path: Path) -> None:
    file = tmp_path / "profile.py"
    file.write_text("def call(x):\n    raise LookupError('mine')\n")
    spec = importlib.util.spec_from_file_location("profile", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x = gg.ones((2,), requires_grad=True)
    x.register_hook(module.call)
    with pytest.raises(LookupError, match=r"^mine$"):
        x.sum().backward()


def test_what_is_missing_is_named() -> None:
    optimizer = gg.optim.AdamW([gg.nn.Parameter(gg.ones(2))])
    with pytest.raises(ValueError, match="param_groups"):
        optimizer.load_state_dict({})
    with pytest.raises(ValueError, match="'scale' is missing"):
        gg.optim.LossScaler().load_state_dict({})


def test_an_error_that_says_all_passes_without_a_trace_of_the_edge() -> None:
    model = gg.nn.Linear(2, 2)
    for _ in range(5):
        model = gg.nn.Sequential(model)
    with pytest.raises(ValueError, match="Linear") as caught:
        model(gg.ones((2, 3)))
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert sum(frame.filename == boundary.__file__ for frame in frames) <= 7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gg.randint(5, 2, (3,)), r"randint: there is no integer in \[5, 2\) \(low=5"),
        (lambda: gg.random.integers(5, 2), r"random\.integers: there is no integer in \[5, 2\)$"),
        (lambda: gg.manual_seed(-1), r"manual_seed: the seed must be an integer"),
        (lambda: gg.randn(2, -1), r"randn: a size has no negative lengths"),
        (lambda: gg.cat([]), r"cat: needs at least one tensor"),
        (lambda: gg.index_select(gg.ones(2), 0, [5]), r"index_select: index 5 is out of bounds"),
        (lambda: gg.ones(2).max(dim=4), r"max: axis 4 is out of bounds"),
        (lambda: gg.nn.init.xavier_uniform_(gg.ones(3)), r"xavier_uniform_: fan-in"),
        (
            lambda: gg.nn.Linear(1, 1).load_state_dict({"weight": [1.0], "bias": [0.0]}),
            r"load_state_dict of Linear:\s+weight: the module has shape \(1, 1\), got \(1,\)$",
        ),
    ],
)
def test_another_spelling_of_a_function_is_the_only_name(
    call: Callable[[], Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError, IndexError), match="^" + message):
        call()


def test_a_model_that_is_built_names_itself() -> None:
    with pytest.raises(ValueError, match=r"^skip_init: Dropout: "):
        gg.nn.utils.skip_init(gg.nn.Dropout, 3.0)


def test_an_error_is_named_once() -> None:
    with pytest.raises(ValueError, match=r"^einsum") as caught:
        gg.einsum("ij,jk", gg.ones((2, 3)), gg.ones((2, 3)))
    assert str(caught.value).count("einsum") == 1
