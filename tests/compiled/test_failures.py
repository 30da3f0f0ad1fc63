"""gg.compile: what a replay that raises leaves behind, where NumPy computes it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from plain_and_compiled import recorded

import gpugrad as gg
from gpugrad import nn
from gpugrad.nn import functional as F

pytestmark = [
    pytest.mark.usefixtures("launched"),
    pytest.mark.parametrize("launched", ["numpy"], indirect=True),
]
TABLE = gg.tensor(np.arange(6, dtype=np.float32).reshape(3, 2))


def looks_up_first(ids):
    return F.dropout(F.embedding(ids, TABLE), 0.5)


def draws_first(ids):
    return F.dropout(TABLE, 0.5)[ids]


def draws_twice(ids):
    return F.dropout(F.dropout(TABLE, 0.5)[ids], 0.5) + gg.rand(1)


@pytest.mark.parametrize("step", [looks_up_first, draws_first, draws_twice])
def test_a_step_that_raises_draws_what_it_draws_as_it_is(step):
    found = []
    for run in (step, gg.compile(step)):
        gg.manual_seed(0)
        run(np.array([0]))
        for _ in range(2):
            with pytest.raises(IndexError):
                run(np.array([7]))
            found.append(gg.random.get_state())
        found.append([run(np.array([1])).tolist(), gg.rand(3).tolist()])
    assert found[:3] == found[3:]


def test_a_module_that_raises():
    found = []
    for wrap in (lambda model: model, gg.compile):
        gg.manual_seed(0)
        model = wrap(nn.Sequential(nn.Embedding(3, 2), nn.Dropout(0.5)))
        with gg.no_grad():
            model(np.array([0]))
            with pytest.raises(IndexError):
                model(np.array([7]))
        found.append(gg.rand(1).item())
    assert found[0] == found[1]


def test_what_others_have_drawn_meanwhile_is_not_drawn_again():
    def draw_and_raise():
        thread = threading.Thread(target=gg.rand, args=(5,))
        thread.start()
        thread.join()
        raise IndexError

    step = gg.compile(looks_up_first)
    step(np.array([0]))
    recorded(step).replay._calls[0] = draw_and_raise
    gg.manual_seed(0)
    with pytest.raises(IndexError):
        step(np.array([0]))
    assert gg.random.get_state()["offset"] == recorded(step).drawn + 2


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda ids: TABLE[ids], r"getitem: index 7 .* \(a=float32\[3, 2\], b=int64\[1\]\)"),
        (lambda ids: TABLE[:, ids], r"getitem: index 7 .* \(a=.*, b=.*array\(\[7\]\)\)\)"),
        (lambda ids: gg.take(TABLE, ids, axis=0), r"getitem: index 7 .*a=float32\[3, 2\]"),
        (lambda ids: F.embedding(ids, TABLE), r"^embedding: ids\[0\] is 7"),
    ],
    ids=["rows", "columns", "take", "embedding"],
)
def test_an_error_of_a_replay_names_the_operation(step, words):
    step = gg.compile(step)
    step(np.array([0]))
    with pytest.raises(IndexError, match=words):
        step(np.array([7]))


def test_an_error_that_is_no_refusal_of_arguments_is_as_it_was():
    class Own(Exception):
        pass

    def fail():
        raise Own("of somebody")

    step = gg.compile(draws_first)
    step(np.array([0]))
    recorded(step).replay._calls[-1] = fail
    with pytest.raises(Own, match=r"^of somebody$"):
        step(np.array([0]))
