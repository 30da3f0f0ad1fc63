"""Random fills by CUDA kernels in the emulator: the numbers that NumPy draws, one launch each."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backend, cuda, emulator
from gpugrad.cuda import recording
from gpugrad.models import GPT, GPTConfig
from gpugrad.ops import _random, philox

EXACT = {  # bit for bit, whoever draws
    "words": philox.philox_uint32,
    "uniform-float32": philox.uniform,
    "uniform-float64": lambda *draw, **state: philox.uniform(*draw, np.float64, **state),
    "mask-0": lambda *draw, **state: philox.keep_mask(*draw, 0.0, **state),
    "mask-0.1": lambda *draw, **state: philox.keep_mask(*draw, 0.1, **state),
    "mask-1": lambda *draw, **state: philox.keep_mask(*draw, 1.0, **state),
    "integers": lambda *draw, **state: philox.randint(*draw, -3, 50257, **state),
    "integers-one": lambda *draw, **state: philox.randint(*draw, 7, 8, **state),
    "integers-wide": lambda *draw, **state: philox.randint(*draw, -(2**62), 2**63 - 5, **state),
    "integers-all": lambda *draw, **state: philox.randint(*draw, -(2**63), 2**63, **state),
}
DTYPES = ["float32", "bfloat16", "float16", "float64"]
SIZES = [1, 2, 3, 4, 5, 1023, 9001]  # the last: two blocks of threads, several rounds of each

exact = pytest.mark.parametrize("draw", EXACT.values(), ids=EXACT)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(autouse=True)
def _numpy_outside(monkeypatch):
    monkeypatch.delenv("GPUGRAD_EMULATE", raising=False)


def launched(run):
    """Return what run() gives in the emulator, and the kernels it launched."""
    before = cuda.launches.copy()
    with emulator.enabled():
        result = run()
    return result, dict(cuda.launches - before)


@exact
def test_numpy_draws_from_a_state_that_it_is_given(draw):
    state = np.array([3, 5], np.uint64)
    np.testing.assert_array_equal(draw(np, 4, 3, 9, state=state), draw(np, 7, 8, 9))


@exact
def test_numpy_does_not_look_at_a_state_on_the_device(draw):
    with pytest.raises(TypeError, match="draws its numbers on the device"):
        draw(np, 7, 8, 9, state=recording.new(recording.META, (2,), np.uint64))


@exact
@pytest.mark.parametrize("n", SIZES)
def test_equals_numpy(draw, n):
    found = emulator.sweep(lambda: draw(np, 2**40 + 7, 11, n))
    expected = draw(np, 2**40 + 7, 11, n)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


DRAWS = {
    "uniform": lambda: gg.random.uniform(-1.0, 2.0, 4101),
    "uniform-float64": lambda: gg.random.uniform(size=7, dtype="float64"),
    "normal": lambda: gg.random.normal(1.0, 2.0, (3, 5), dtype="bfloat16"),
    "normal-float64": lambda: gg.random.normal(size=9, dtype="float64"),
    "integers": lambda: gg.random.integers(-3, 50257, 1001),
    "bernoulli": lambda: gg.random.bernoulli(0.3, 1001),
    "permutation": lambda: gg.random.permutation(99),
    "words": lambda: philox.philox_uint32(np, *reserve_words(23)),
}


def reserve_words(n):
    draw = gg.random.reserve(philox.blocks_used(n))
    return draw.seed, draw.offset, n, draw.state


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_state_on_the_device_moves_draws(draw):
    """The same launches draw whatever is next whenever the state is written anew."""
    seed = 2**63 + 9
    gg.manual_seed(seed)
    with emulator.enabled():  # logarithms and sines are not NumPy's to the last bit
        expected = [[np.asarray(draw()) for _ in range(2)] for _ in range(3)]
    drawn = gg.random.get_state()["offset"] // 3
    state = np.zeros(2, np.uint64)
    for run in range(3):
        state[:] = seed, run * drawn
        with emulator.enabled("checked"), gg.random.recording(state) as draws:
            found = [np.asarray(draw()) for _ in range(2)]
        assert draws.blocks == drawn
        for a, b in zip(found, expected[run], strict=True):
            np.testing.assert_array_equal(a, b)


@exact
@pytest.mark.parametrize(
    ("seed", "offset"),
    [(0, 0), (2**64 - 1, 2**32 - 3), (0x123456789ABCDEF0, 2**63 + 7), (3, 2**64 - 12)],
    ids=["zero", "carry-into-high-word", "large", "last-blocks"],
)
def test_the_whole_range_of_seeds_and_offsets(draw, seed, offset):
    with emulator.enabled("checked"):
        found = draw(np, seed, offset, 23)
    np.testing.assert_array_equal(found, draw(np, seed, offset, 23))


def box_muller(seed, offset, n, dtype, exact):
    """The formulas of philox.normal: u and the angle rounded to dtype, the rest in ``exact``."""
    even = n + n % 2
    words = philox.philox_uint32(np, seed, offset, even * np.dtype(dtype).itemsize // 4)
    if dtype == "float32":
        u = words[::2].astype(dtype) * np.float32(2**-32) + np.float32(2**-33)
        v = (words[1::2] >> 8).astype(dtype) * np.float32(2**-24)
    else:
        pairs = words.view(np.uint64) >> np.uint64(11)
        u, v = pairs[::2] * 2.0**-53 + 2.0**-54, pairs[1::2] * 2.0**-53
    angle = (v * np.dtype(dtype).type(2 * np.pi)).astype(exact)
    radius = np.sqrt(-2 * np.log(u.astype(exact)))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:n]


# Near a zero of the cosine, and of the logarithm, one unit of u or the angle is thousands of units
# of the result: these tests see whether both have the right bits.
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("dtype", "wider"), [("float32", "float64"), ("float64", "longdouble")])
def test_normal_numbers_are_right_to_a_few_units(dtype, wider, n):
    found = emulator.sweep(lambda: philox.normal(np, 5, 6, n, dtype))
    expected = box_muller(5, 6, n, dtype, wider)
    unit = np.spacing(np.abs(expected).astype(dtype))
    assert found.dtype == dtype
    assert found.shape == (n,)
    assert (np.abs(found - expected) / unit).max() <= 4


def test_a_small_word_makes_a_large_normal_number():
    """The first word of this block is 121: what is added to it, half a unit, counts here."""
    with emulator.enabled("checked"):
        found = philox.normal(np, 0, 17758991, 2)
    expected = box_muller(0, 17758991, 2, "float32", "float64")
    assert np.hypot(*expected) > 5.8
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_word_equal_to_the_threshold_is_kept():
    p = int(philox.philox_uint32(np, 4, 0, 6)[5]) / 2**32
    with emulator.enabled("checked"):
        found = philox.keep_mask(np, 4, 0, 6, p)
    assert found[5]
    np.testing.assert_array_equal(found, philox.keep_mask(np, 4, 0, 6, p))


def test_float64_rounded_up_to_the_end_of_the_interval():
    high = 1 + 2.0**-50  # there are three numbers between

    def draw():
        gg.manual_seed(3)
        return gg.random.uniform(1.0, high, 99, "float64")

    with emulator.enabled("checked"):
        found = draw()
    assert len(np.unique(found.data)) == 4
    assert found.data.max() < high
    np.testing.assert_array_equal(found, draw())


@dtypes
@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-1.3, 2.7), (5.0, 5.0), (-(2.0**-20), 0.0), (1e3, 1e4)]
)
def test_uniform_between_bounds(low, high, dtype):
    def draw():
        gg.manual_seed(3)
        return gg.random.uniform(low, high, (3, 2001), dtype)

    found, expected = emulator.sweep(draw), draw()
    assert found.dtype == expected.dtype == dtype
    assert found.shape == (3, 2001)
    np.testing.assert_array_equal(found, expected)
    if low < high:
        assert (found.data < np.asarray(high, dtype)).all()


@dtypes
@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (0.0, 0.02), (2.5, 0.3), (-1e3, 0.0)])
def test_normal_with_mean_and_scale(loc, scale, dtype):
    """Rounded after the product and after the sum, then to the dtype, as NumPy does it."""

    def draw():
        gg.manual_seed(4)
        return gg.random.normal(loc, scale, 2001, dtype)

    computed = np.float64 if dtype == "float64" else np.float32
    with emulator.enabled():
        expected = philox.normal(np, 4, 0, 2001, computed)
    expected = (expected * computed(scale) + computed(loc)).astype(backend.as_dtype(dtype))
    found = emulator.sweep(draw)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("draw", "kernel"),
    [
        (lambda: gg.random.normal(1.0, 2.0, (3, 5)), "random_normal"),
        (lambda: gg.random.normal(size=7, dtype="bfloat16"), "random_normal"),
        (lambda: gg.random.normal(1.0, 2.0, 7, "float64"), "random_normal_float64"),
        (lambda: gg.random.uniform(1.0, 2.0, 7), "random_uniform"),
        (lambda: gg.random.uniform(1.0, 2.0, 7, "float64"), "random_uniform_float64"),
        (lambda: gg.random.integers(3, size=7), "random_integers"),
        (lambda: gg.random.bernoulli(0.5, 7), "random_keep_mask"),
        (lambda: gg.random.permutation(7), "random_uniform_float64"),
    ],
)
def test_a_draw_is_one_launch_and_advances_the_generator_as_on_numpy(draw, kernel):
    draw()
    expected = gg.random.get_state()
    gg.manual_seed(0)
    _, kernels = launched(draw)
    assert kernels == {kernel: 1}
    assert gg.random.get_state() == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_initial_weights_of_a_gpt(dtype):
    def weights():
        gg.manual_seed(1)
        config = GPTConfig(
            vocab_size=65, block_size=16, n_layer=2, n_head=2, n_embd=32, dtype=dtype
        )
        return {name: p.numpy() for name, p in GPT(config, "cpu").state_dict().items()}

    expected = weights()
    found, kernels = launched(weights)
    assert kernels == {}  # drawn by NumPy, so that the bits are the same everywhere
    for name, weight in expected.items():
        np.testing.assert_array_equal(found[name], weight, err_msg=name)


@exact
def test_nothing_to_draw_launches_nothing(draw):
    found, kernels = launched(lambda: draw(np, 1, 2, 0))
    assert found.shape == (0,)
    assert found.dtype == draw(np, 1, 2, 1).dtype
    assert not kernels


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: philox.uniform(np, -1, 0, 1), "seed.*-1"),
        (lambda: philox.normal(np, 0, 2**64 - 1, 5), "not within"),
        (lambda: philox.keep_mask(np, 0, 0, -3, 0.5), "keep_mask: n .*-3"),
        (lambda: philox.randint(np, 0, 0, 1, 3, 3), "low=3, high=3"),
    ],
)
def test_misuse_is_explained_as_on_numpy(draw, message):
    with emulator.enabled(), pytest.raises(ValueError, match=message):
        draw()


@pytest.mark.parametrize(
    ("kernel", "dtype", "numbers"),
    [
        ("random_words", "uint32", ()),
        ("random_uniform", "float32", (0.0, 1.0, 1.0)),
        ("random_normal", "float32", (0.0, 1.0)),
        ("random_keep_mask", "bool", (2**31,)),
        ("random_integers", "int64", (0, 9)),
        ("random_normal_float64", "float64", (0.0, 1.0)),
    ],
)
def test_an_unaligned_array_is_filled_alike_and_nothing_beside_it(kernel, dtype, numbers):
    memory = np.zeros(64, dtype)
    args = (23, 7, 8, None, *numbers)
    with emulator.enabled("checked"):
        out = np.empty(23, dtype)
        _random.SOURCE.launch(kernel, (1,), (256,), (out, *args), GPUGRAD_DTYPE=0)
        part = memory[1:24]
        _random.SOURCE.launch(kernel, (1,), (256,), (part, *args), GPUGRAD_DTYPE=0)
    np.testing.assert_array_equal(part, out)
    assert not memory[:1].any()
    assert not memory[24:].any()


@pytest.mark.parametrize(
    ("items", "blocks"), [(1, 1), (2048, 1), (2049, 2), (10**6, 489), (2**60, 2**31 - 1)]
)
def test_grids_are_possible_for_any_size(items, blocks):
    assert _random.grid(items) == (blocks,)


@pytest.mark.gpu
@exact
@pytest.mark.parametrize("n", [0, 5, 9001, 10**6 + 3])
def test_a_gpu_draws_what_numpy_draws(draw, n):
    found = draw(backend.cupy_module(), 2**40 + 7, 2**32 - 50, n)
    np.testing.assert_array_equal(backend.to_numpy(found), draw(np, 2**40 + 7, 2**32 - 50, n))


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "wider"), [("float32", "float64"), ("float64", "longdouble")])
def test_a_gpu_draws_normal_numbers_right_to_a_few_units(dtype, wider):
    found = backend.to_numpy(philox.normal(backend.cupy_module(), 5, 6, 9001, dtype))
    expected = box_muller(5, 6, 9001, dtype, wider)
    unit = np.spacing(np.abs(expected).astype(dtype))
    assert (np.abs(found - expected) / unit).max() <= 6


@pytest.mark.gpu
@dtypes
def test_a_gpu_rounds_as_numpy(dtype):
    """The product with the width and the sum with low are two operations: no fma."""
    gg.manual_seed(3)
    found = gg.random.uniform(-1.3, 2.7, 9001, dtype, device="cuda")
    gg.manual_seed(3)
    expected = gg.random.uniform(-1.3, 2.7, 9001, dtype, device="cpu")
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
