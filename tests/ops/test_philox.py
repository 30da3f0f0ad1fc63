"""Philox4x32-10: published vectors, a scalar reference, exact formulas, statistics."""

from __future__ import annotations

import math
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gpugrad import threads
from gpugrad.ops import philox

MASK = 0xFFFFFFFF
PIECE = 4 * philox.CPU_BLOCKS  # words encrypted at a time

DRAWS = {  # name: (words per element, draw)
    "philox_uint32": (1, philox.philox_uint32),
    "uniform_float32": (1, philox.uniform),
    "uniform_float64": (2, lambda *draw: philox.uniform(*draw, np.float64)),
    "normal_float32": (1, philox.normal),
    "normal_float64": (2, lambda *draw: philox.normal(*draw, np.float64)),
    "keep_mask": (1, lambda *draw: philox.keep_mask(*draw, 0.1)),
    "randint": (2, lambda *draw: philox.randint(*draw, -3, 50257)),
}
each_draw = pytest.mark.parametrize(("words", "draw"), DRAWS.values(), ids=DRAWS)


def reference(counter: list[int], key: list[int]) -> list[int]:
    """One block, as a CUDA thread computes it: Salmon et al. (2011), section 3.2."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 & MASK, p0 >> 32 ^ c3 ^ k1, p0 & MASK
        k0, k1 = k0 + 0x9E3779B9 & MASK, k1 + 0xBB67AE85 & MASK
    return [c0, c1, c2, c3]


def reference_word(seed: int, offset: int, i: int) -> int:
    block = offset + i // 4
    return reference([block & MASK, block >> 32, 0, 0], [seed & MASK, seed >> 32])[i % 4]


def encrypt(counter: list[int], key: list[int]) -> list[int]:
    state = np.array([counter[::2], counter[1::2], [0, 0]], np.uint64)[..., None]
    philox._encrypt(*state, key[0] | key[1] << 32)
    return [int(state[i % 2, i // 2, 0]) for i in range(4)]


@pytest.mark.parametrize("block", [encrypt, reference])
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        pytest.param(
            [0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8], id="zeros"
        ),
        pytest.param(
            [MASK] * 4, [MASK] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD], id="ones"
        ),
        pytest.param(
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
            id="digits-of-pi",
        ),
    ],
)
def test_published_vectors(block, counter, key, expected):
    assert block(counter, key) == expected


@pytest.mark.parametrize(
    ("seed", "offset"),
    [(0, 0), (1, 5), (2**64 - 1, 2**32 - 3), (0x123456789ABCDEF0, 2**63 + 7), (3, 2**64 - 6)],
    ids=["zero", "small", "carry-into-high-word", "large", "last-blocks"],
)
def test_words_are_those_of_the_scalar_reference(seed, offset):
    expected = [reference_word(seed, offset, i) for i in range(23)]
    words = philox.philox_uint32(np, seed, offset, 23)
    assert words.dtype == np.uint32
    assert words.tolist() == expected


def test_words_far_into_a_long_draw():
    n = 3 * PIECE + 17
    words = philox.philox_uint32(np, 99, 1000, n)
    picker = random.Random(0)
    places = [0, PIECE - 1, PIECE, n - 1] + [picker.randrange(n) for _ in range(300)]
    assert [int(words[i]) for i in places] == [reference_word(99, 1000, i) for i in places]


@each_draw
@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 1023, PIECE, 2 * PIECE + 6001])
def test_a_shorter_draw_is_the_beginning_of_a_longer_one(words, draw, n):
    short, long = draw(np, 7, 11, n), draw(np, 7, 11, n + 5)
    assert short.shape == (n,)
    np.testing.assert_array_equal(short, long[:n])


@each_draw
@pytest.mark.parametrize("chunk", [4, 68, 4096, PIECE + 4])
def test_a_draw_in_chunks_is_the_same_draw(words, draw, chunk):
    n = min(2 * PIECE + 1013, 50 * chunk + 3)
    whole = draw(np, 2**40 + 1, 2**32 - 50, n)
    chunks, offset = [], 2**32 - 50
    for start in range(0, n, chunk):
        size = min(chunk, n - start)
        chunks.append(draw(np, 2**40 + 1, offset, size))
        offset += philox.blocks_used(size, words)
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


@each_draw
def test_threads_do_not_disturb_each_other(words, draw):
    expected = [draw(np, seed, 0, PIECE + 5) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda seed: draw(np, seed, 0, PIECE + 5), range(8))
        for result, wanted in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize(
    ("n", "words", "blocks"),
    [(0, 1, 0), (1, 1, 1), (4, 1, 1), (5, 1, 2), (2, 2, 1), (3, 2, 2), (10**20, 2, 5 * 10**19)],
)
def test_blocks_used(n, words, blocks):
    assert philox.blocks_used(n, words) == blocks


@each_draw
def test_threads_that_share_a_draw_change_no_bit(words, draw):
    draws = []
    for count in (1, 2, 3):
        with threads.num_threads(count):
            draws.append(draw(np, 7, 2**33, 3 * PIECE // words + 5).tobytes())
    assert draws[0] == draws[1] == draws[2]


def test_the_next_draw_begins_where_the_last_one_ended():
    n = 13
    both = philox.philox_uint32(np, 1, 20, 4 * philox.blocks_used(n) + 4)
    following = philox.philox_uint32(np, 1, 20 + philox.blocks_used(n), 4)
    np.testing.assert_array_equal(both[-4:], following)


def extreme_words(monkeypatch, words):
    """Make the generator yield these words, as one piece."""

    def pieces(seed, offset, n, per, fill):
        fill(slice(0, n), np.array(words, np.uint32))

    monkeypatch.setattr(philox, "_for_pieces", pieces)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_uniform_is_exact(dtype):
    n = 1001
    words = [int(word) for word in philox.philox_uint32(np, 3, 4, 2 * n)]
    x = philox.uniform(np, 3, 4, n, dtype)
    if dtype == np.float32:
        expected = [(word >> 8) / 2**24 for word in words[:n]]
    else:
        pairs = zip(words[::2], words[1::2], strict=True)
        expected = [((high << 32 | low) >> 11) / 2**53 for low, high in pairs]
    assert x.dtype == dtype
    assert x.tolist() == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_uniform_stays_in_the_half_open_interval(dtype, monkeypatch):
    per = np.dtype(dtype).itemsize // 4
    extreme_words(monkeypatch, [0] * per + [MASK] * per)
    smallest, largest = philox.uniform(np, 0, 0, 2, dtype)
    assert smallest == 0
    assert largest == 1 - 2.0 ** -(24 if per == 1 else 53)


def test_normal_float32_follows_its_formula():
    words = philox.philox_uint32(np, 8, 9, 1002)
    u = words[::2].astype(np.float32) * np.float32(2.0**-32) + np.float32(2.0**-33)
    v = (words[1::2] >> 8).astype(np.float32) * np.float32(2.0**-24)
    radius = [math.sqrt(-2 * math.log(value)) for value in u.tolist()]
    angle = (v * np.float32(2 * math.pi)).tolist()
    pairs = zip(radius, angle, strict=True)
    expected = np.array([(r * math.cos(a), r * math.sin(a)) for r, a in pairs]).reshape(-1)
    x = philox.normal(np, 8, 9, 1001)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, expected[:1001], rtol=1e-5, atol=1e-6)


def test_normal_float64_follows_its_formula():
    words = philox.philox_uint32(np, 8, 9, 4004).tolist()
    expected = []
    for w0, w1, w2, w3 in zip(*(words[i::4] for i in range(4)), strict=True):
        u = ((w1 << 32 | w0) >> 11) * 2.0**-53 + 2.0**-54
        angle = ((w3 << 32 | w2) >> 11) * 2.0**-53 * (2 * math.pi)
        radius = math.sqrt(-2 * math.log(u))
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    x = philox.normal(np, 8, 9, 2001, np.float64)
    assert x.dtype == np.float64
    np.testing.assert_allclose(x, expected[:2001], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 6.77), (np.float64, 8.66)])
def test_normal_is_finite_at_the_extremes(dtype, bound, monkeypatch):
    per = np.dtype(dtype).itemsize // 4
    words = [0] * 2 * per + [MASK] * 2 * per + [0] * per + [MASK] * per + [MASK] * per + [0] * per
    extreme_words(monkeypatch, words)
    x = philox.normal(np, 0, 0, 8, dtype)
    assert np.isfinite(x).all()
    assert bound - 0.02 < np.abs(x).max() <= bound
    assert x[6] == 0  # u = 1: log gives 0, not a nan from the root of a negative number


@pytest.mark.parametrize("p", [0, 1e-12, 2.0**-32, 0.1, 0.5, 1 - 2.0**-32, 1, np.float32(0.2)])
def test_keep_mask_compares_integers(p):
    words = philox.philox_uint32(np, 12, 0, 5003)
    mask = philox.keep_mask(np, 12, 0, 5003, p)
    assert mask.dtype == np.bool_
    assert mask.tolist() == [word >= round(float(p) * 2**32) for word in words.tolist()]


def test_keep_mask_at_the_threshold_and_the_ends(monkeypatch):
    extreme_words(monkeypatch, [0, 2**31 - 1, 2**31, MASK])
    assert philox.keep_mask(np, 0, 0, 4, 0.5).tolist() == [False, False, True, True]
    assert philox.keep_mask(np, 0, 0, 4, 0).all()
    assert not philox.keep_mask(np, 0, 0, 4, 1).any()


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0, 1),
        (-5, -2),
        (0, 50257),
        (10, 10 + 2**32),
        (-(2**32), 7),
        (0, 2**63),
        (-(2**63), 2**63),
        (-(2**63), -(2**63) + 3),
        (0, 0xDEADBEEF12345),
    ],
    ids=lambda value: f"{value:+#x}",
)
def test_randint_is_exact(low, high):
    words = philox.philox_uint32(np, 21, 2, 2002).tolist()
    pairs = zip(words[::2], words[1::2], strict=True)
    expected = [low + ((b << 32 | a) * (high - low) >> 64) for a, b in pairs]
    x = philox.randint(np, 21, 2, 1001, low, high)
    assert x.dtype == np.int64
    assert x.tolist() == expected


def test_randint_of_extreme_words(monkeypatch):
    extreme_words(monkeypatch, [0, 0, MASK, MASK])
    for low, high in ((0, 3), (0, 2**32), (-(2**63), 2**63)):
        assert philox.randint(np, 0, 0, 2, low, high).tolist() == [low, high - 1]


# Statistics. The draws are fixed by their seeds, so a test passes always or never; the critical
# values are those of a probability of 1e-4 of rejecting a good generator.


def chi_square(counts: np.ndarray, expected: float) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def kolmogorov_smirnov(x: np.ndarray, cumulative: np.ndarray) -> float:
    """sqrt(n) times the largest distance; cumulative: the distribution at the sorted x."""
    n = len(x)
    steps = np.arange(n + 1) / n
    return math.sqrt(n) * max((steps[1:] - cumulative).max(), (cumulative - steps[:-1]).max())


KS_CRITICAL = 2.226  # sqrt(log(2 / 1e-4) / 2), Kolmogorov's limit distribution
CHI_SQUARE_255_CRITICAL = 347.7  # 255 degrees of freedom, by Wilson and Hilferty's cube root
NORMAL_CRITICAL = 3.891  # two-sided


def normal_cumulative(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x.tolist()])


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_each_byte_is_uniform(seed, shift):
    n = 200_000
    counts = np.bincount(philox.philox_uint32(np, seed, 0, n) >> shift & 255, minlength=256)
    assert chi_square(counts, n / 256) < CHI_SQUARE_255_CRITICAL


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 64])
def test_pairs_of_words_fill_the_square_evenly(lag):
    n = 200_000
    nibbles = philox.philox_uint32(np, 4, 0, n + lag) >> 28
    counts = np.bincount(16 * nibbles[:-lag] + nibbles[lag:], minlength=256)
    assert chi_square(counts, n / 256) < CHI_SQUARE_255_CRITICAL


@pytest.mark.parametrize(("seed", "offset"), [(1, 0), (2**32, 0), (0, 2**32), (0, 2**62)], ids=str)
def test_neighbouring_seeds_and_offsets_are_unrelated(seed, offset):
    n = 100_000
    first, second = philox.philox_uint32(np, 0, 0, n), philox.philox_uint32(np, seed, offset, n)
    different = int(np.unpackbits((first ^ second).view(np.uint8)).sum())
    assert abs(different - 16 * n) < NORMAL_CRITICAL * math.sqrt(8 * n)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_uniform_distribution(dtype):
    n = 100_000
    x = philox.uniform(np, 31, 0, n, dtype).astype(np.float64)
    assert abs(x.mean() - 1 / 2) < NORMAL_CRITICAL * math.sqrt(1 / 12 / n)
    assert abs((x**2).mean() - 1 / 3) < NORMAL_CRITICAL * math.sqrt(4 / 45 / n)
    ordered = np.sort(x)
    assert kolmogorov_smirnov(ordered, ordered) < KS_CRITICAL


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normal_distribution(dtype):
    n = 100_000
    x = philox.normal(np, 32, 0, n, dtype).astype(np.float64)
    moments = [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]  # power, mean, variance
    for power, mean, variance in moments:
        assert abs((x**power).mean() - mean) < NORMAL_CRITICAL * math.sqrt(variance / n), power
    ordered = np.sort(x)
    assert kolmogorov_smirnov(ordered, normal_cumulative(ordered)) < KS_CRITICAL
    # The two numbers of a pair share their radius; neither they nor their squares correlate.
    assert abs((x[::2] * x[1::2]).mean()) < NORMAL_CRITICAL / math.sqrt(n / 2)
    squares = (x[::2] ** 2 - 1) * (x[1::2] ** 2 - 1) / 2
    assert abs(squares.mean()) < NORMAL_CRITICAL / math.sqrt(n / 2)


def test_normal_is_distributed_as_numpys_own():
    n = 50_000
    x, y = philox.normal(np, 33, 0, n), np.random.default_rng(33).standard_normal(n, np.float32)
    both = np.concatenate([x, y])
    distance = np.abs(np.cumsum(np.where(np.argsort(both) < n, 1, -1))).max() / n
    assert distance * math.sqrt(n / 2) < KS_CRITICAL


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_keep_mask_drops_with_probability_p(p):
    n = 400_000
    dropped = n - np.count_nonzero(philox.keep_mask(np, 34, 0, n, p))
    assert abs(dropped - n * p) < NORMAL_CRITICAL * math.sqrt(n * p * (1 - p))


def test_randint_distribution():
    n = 200_000
    counts = np.bincount(philox.randint(np, 35, 0, n, 100, 356) - 100, minlength=256)
    assert len(counts) == 256
    assert chi_square(counts, n / 256) < CHI_SQUARE_255_CRITICAL


def test_the_statistics_reject_bad_generators():
    n = 100_000
    x = np.sort(philox.uniform(np, 36, 0, n).astype(np.float64))
    assert kolmogorov_smirnov(x**1.05, x**1.05) > KS_CRITICAL
    counts = np.bincount(philox.randint(np, 36, 0, n, 0, 255), minlength=256)
    assert chi_square(counts, n / 256) > CHI_SQUARE_255_CRITICAL


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: philox.uniform(np, -1, 0, 1), ValueError, "seed.*-1"),
        (lambda: philox.uniform(np, 2**64, 0, 1), ValueError, "seed"),
        (lambda: philox.uniform(np, 1.5, 0, 1), TypeError, "integer"),
        (lambda: philox.uniform(np, 0, -1, 1), ValueError, "blocks -1 to 0"),
        (lambda: philox.uniform(np, 0, 2**64 - 1, 5), ValueError, "not within"),
        (lambda: philox.uniform(np, 0, 0, -3), ValueError, "uniform: n .*-3"),
        (lambda: philox.keep_mask(np, 0, 0, -3, 0), ValueError, "keep_mask: n .*-3"),
        (lambda: philox.uniform(np, 0, 0, 1, np.float16), TypeError, "uniform: dtype.*float16"),
        (lambda: philox.normal(np, 0, 0, 1, np.int32), TypeError, "normal: dtype.*int32"),
        (lambda: philox.keep_mask(np, 0, 0, 1, -0.1), ValueError, "keep_mask: p .*-0.1"),
        (lambda: philox.keep_mask(np, 0, 0, 1, 1.1), ValueError, "keep_mask: p .*1.1"),
        (lambda: philox.keep_mask(np, 0, 0, 1, math.nan), ValueError, "keep_mask: p .*nan"),
        (lambda: philox.randint(np, 0, 0, 1, 3, 3), ValueError, "low=3, high=3"),
        (lambda: philox.randint(np, 0, 0, 1, 0, 2**63 + 1), ValueError, "within int64"),
        (lambda: philox.randint(np, 0, 0, 1, 0, 2.5), TypeError, "integer"),
    ],
    ids=[
        "seed-negative",
        "seed-65-bits",
        "seed-float",
        "offset-negative",
        "offset-past-the-end",
        "n-negative",
        "n-negative-mask",
        "uniform-float16",
        "normal-int32",
        "p-negative",
        "p-above-1",
        "p-nan",
        "empty-range",
        "range-beyond-int64",
        "range-float",
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@each_draw
@pytest.mark.parametrize("n", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("offset", [0, 2**32 - 3, 2**64 - 20])
def test_few_blocks_are_those_of_many(words, draw, n, offset, monkeypatch):
    monkeypatch.setattr(philox, "FEW_BLOCKS", 20)
    few = draw(np, 2**63 + 12345, offset, n)
    monkeypatch.setattr(philox, "FEW_BLOCKS", 0)
    assert few.tobytes() == draw(np, 2**63 + 12345, offset, n).tobytes()
