"""The public generator: its state, its arguments, its distributions."""

from __future__ import annotations

import math
import subprocess
import sys
import threading

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import random
from gpugrad.nn import init
from gpugrad.ops import philox


def test_one_seed_one_sequence():
    draws = []
    for _ in range(2):
        gg.manual_seed(7)
        draws.append([random.normal(size=5).tolist(), random.uniform(size=(2, 3)).tolist()])
    assert draws[0] == draws[1]
    gg.manual_seed(8)
    assert random.normal(size=5).tolist() != draws[0][0]


def test_state_round_trip_continues_exactly():
    gg.manual_seed(1)
    random.normal(size=17)
    state = random.get_state()
    expected = random.uniform(size=9).tolist()
    random.normal(size=3)
    random.set_state(state)
    assert random.uniform(size=9).tolist() == expected


def test_drawing_from_a_place_leaves_the_generator_alone():
    gg.manual_seed(5)
    place = random.reserve(0)
    first = random.normal(size=6).tolist()
    state = random.get_state()
    with random.drawing_from(place) as draws:
        assert random.normal(size=6).tolist() == first
        assert draws.blocks == 2
        assert random.get_state() == state
        with random.drawing_from(place):
            assert random.normal(size=6).tolist() == first
        assert random.get_state() == state
        random.set_state({"seed": 9, "offset": 4})
        assert random.get_state() == {"seed": 9, "offset": 4}
    assert random.get_state() == state


def test_other_threads_draw_as_before():
    gg.manual_seed(6)
    found = []
    thread = threading.Thread(target=lambda: found.append(random.reserve(3)))
    with random.recording(np.zeros(2, np.uint64)) as draws:
        thread.start()
        thread.join()
        assert draws.blocks == 0
    assert found == [random.Draw(6, 0)]
    assert random.get_state() == {"seed": 6, "offset": 3}


def test_what_is_recorded_counts_from_the_state():
    gg.manual_seed(7)
    state = np.zeros(2, np.uint64)
    with random.recording(state) as draws:
        found = [random.reserve(3), random.reserve(0), random.reserve(5)]
        with random.drawing_from(found[0]):  # computed again: the same numbers
            assert random.reserve(3) == found[0]
    assert draws.blocks == 8
    assert [(draw.seed, draw.offset) for draw in found] == [(0, 0), (0, 3), (0, 3)]
    assert all(draw.state is state for draw in found)
    assert random.reserve(0) == (7, 0, None)


def test_a_recorded_step_has_no_state_of_its_own():
    with random.recording(np.zeros(2, np.uint64)):
        with pytest.raises(RuntimeError, match="does not know its random state"):
            random.get_state()
        with pytest.raises(RuntimeError, match="set the seed before"):
            gg.manual_seed(3)


def test_draws_do_not_overlap():
    gg.manual_seed(2)
    values = np.concatenate([random.uniform(size=5, dtype="float64").numpy() for _ in range(200)])
    assert len(np.unique(values)) == 1000


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_moments_and_dtypes(dtype):
    gg.manual_seed(3)
    x = random.normal(2.0, 3.0, 40_000, dtype=dtype)
    u = random.uniform(-1.0, 3.0, 40_000, dtype=dtype)
    assert x.dtype == u.dtype == dtype
    x, u = x.numpy().astype(float), u.numpy().astype(float)
    assert abs(x.mean() - 2) < 0.08
    assert abs(x.std() - 3) < 0.06
    assert abs(u.mean() - 1) < 0.04
    assert u.min() >= -1
    assert u.max() < 3


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 65504), ("float32", 1.7e38)])
def test_the_widest_range_of_a_dtype(dtype, bound):
    gg.manual_seed(3)
    u = random.uniform(-bound, bound, 1000, dtype=dtype).numpy().astype(float) / bound
    assert -1 <= u.min() < -0.99
    assert 0.99 < u.max() < 1


def test_a_process_begins_with_seed_0():
    program = "import gpugrad; print(gpugrad.random.get_state())"
    printed = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert printed == "{'seed': 0, 'offset': 0}\n"


def test_defaults():
    gg.manual_seed(3)
    x, u = random.normal(size=40_000).numpy(), random.uniform(size=40_000).numpy()
    assert abs(x.mean()) < 0.03
    assert abs(x.std() - 1) < 0.02
    assert 0 <= u.min() < 0.001
    assert 0.999 < u.max() < 1


def test_integers_bernoulli_permutation():
    gg.manual_seed(4)
    drawn = random.integers(-2, 3, (100, 50)).numpy()
    assert drawn.dtype == np.int64
    assert set(np.unique(drawn)) == {-2, -1, 0, 1, 2}
    counts = np.bincount((drawn + 2).ravel(), minlength=5)
    assert ((counts - 1000) ** 2 / 1000).sum() < 18.5  # chi-square, 4 degrees, p = 0.001
    assert abs(random.bernoulli(0.3, 20_000).numpy().mean() - 0.3) < 0.015
    assert random.bernoulli(0.0, 100).numpy().sum() == 0
    assert random.bernoulli(1.0, 100).numpy().sum() == 100
    assert sorted(random.permutation(101).tolist()) == list(range(101))
    assert random.permutation(0).shape == (0,)


@pytest.mark.parametrize("step", [0.0, 2.0**-10])  # so coarse that many keys are equal
def test_a_permutation_orders_its_keys_and_leaves_equal_ones_in_their_order(step, monkeypatch):
    uniform, n = philox.uniform, 5000

    def keys(*draw):
        found = uniform(*draw)
        return np.floor(found / step) * step if step else found

    monkeypatch.setattr(philox, "uniform", keys)
    gg.manual_seed(8)
    found = random.permutation(n).numpy()
    expected = keys(np, 8, 0, n, np.float64).argsort(kind="stable")
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int64


@pytest.mark.parametrize("size", [None, (), 0, (0, 3), 1, 7, (3, 1, 5)])
def test_sizes(size):
    shape = () if size is None else size if isinstance(size, tuple) else (size,)
    for draw in (random.normal, random.uniform):
        assert draw(size=size).shape == shape
    assert random.integers(3, size=size).shape == shape
    assert random.bernoulli(0.5, size).shape == shape


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(-128, 128, "int8"), (0, 256, "uint8"), (0, 2, "bool"), (-2048, 2049, "float16")],
)
def test_integers_of_a_narrow_dtype_are_those_of_int64(low, high, dtype):
    gg.manual_seed(7)
    wide = random.integers(low, high, 1000)
    gg.manual_seed(7)
    np.testing.assert_array_equal(random.integers(low, high, 1000, dtype).numpy(), wide.numpy())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gg.manual_seed(-1), "seed"),
        (lambda: gg.manual_seed(1.5), "seed"),
        (lambda: random.set_state({"seed": 1, "offset": -1}), "offset"),
        (lambda: random.normal(scale=-1.0), "scale"),
        (lambda: random.uniform(1.0, 0.0), "larger than high"),
        (lambda: random.uniform(-3e38, 3e38), r"uniform: low -3e\+38, high 3e\+38.*float32"),
        (lambda: random.uniform(-1e308, 1e308, dtype="float64"), "overflows float64"),
        (lambda: random.uniform(0, 1e5, dtype="float16"), r"high 100000\.0 .*float16"),
        (lambda: random.uniform(math.inf, math.inf), "low inf, high inf"),
        (lambda: init.uniform_(gg.zeros(3), -3e38, 3e38), "overflows float32"),
        (lambda: random.integers(3, 3), r"\[3, 3\)"),
        (lambda: random.integers(0, 129, dtype="int8"), r"int8 does not hold all.*-128 to 127"),
        (lambda: random.integers(0, 2**31 + 1, dtype="int32"), "int32 does not hold all"),
        (lambda: random.integers(-1, 5, dtype="uint8"), "uint8 does not hold all"),
        (lambda: random.integers(3, dtype="bool"), "bool does not hold all"),
        (lambda: random.integers(0, 4097, dtype="float16"), "float16 does not .*-2048 to 2048"),
        (lambda: random.integers(0, 258, dtype="bfloat16"), "bfloat16 does not .*-256 to 256"),
        (lambda: random.bernoulli(1.5), r"\[0, 1\]"),
        (lambda: random.normal(size=(2, -1)), "negative"),
        (lambda: random.normal(dtype="int64"), "integers"),
        (lambda: random.permutation(-1), r"random\.permutation: n must be >= 0, got -1"),
    ],
)
def test_misuse_is_explained(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
