"""Random numbers as a pure function of (seed, offset, element): Philox4x32-10.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The 64-bit
seed is the key, low word first. Block j of a draw at block offset o encrypts the 128-bit counter
o + j, low word first, into four 32-bit words; word i of the draw is word i % 4 of block i // 4.
No state is carried from element to element, so a CUDA thread can compute any of them alone, and
a draw cut into pieces at multiples of four words, each piece at its own offset, is the same draw:

    philox_uint32(xp, seed, o, n)[4 * j :] == philox_uint32(xp, seed, o + j, n - 4 * j)

A caller that must not see a number twice advances its offset by `blocks_used` after each draw.

Integers, uniforms and masks are exact integer arithmetic, equal bit for bit on every device.
Each function takes the array namespace `xp` (numpy or cupy) and returns a 1-d array of n values.
What is written here for NumPy is the definition; on a GPU and in the emulator one kernel of
kernels/random.cu computes the same. With `state`, an array {seed, offset} of uint64 that only what
is launched looks at, the seed is that one and the offset counts from there: a recorded step, whose
launches are fixed, draws other numbers whenever it is replayed.
"""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from .. import memory
from ..cuda import recording
from ..threads import for_rows
from . import _random as kernels

__all__ = ["blocks_used", "keep_mask", "normal", "philox_uint32", "randint", "uniform"]

ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85

# The state is kept as 64-bit integers below 2**32, so that one product holds both halves.
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)

# Blocks encrypted at a time: the temporaries stay in a 1 MiB second-level cache and NumPy's cost
# per call is spread over enough elements.
CPU_BLOCKS = 12288
FEW_BLOCKS = 8  # that Python encrypts faster, one by one


def blocks_used(n: int, words_per_element: int = 1) -> int:
    """Counter blocks that a draw of n elements consumes: ceil(n * words_per_element / 4).

    Words per element: philox_uint32, keep_mask 1; uniform, normal 1 in float32 and 2 in float64;
    randint 2.
    """
    return -(-n * words_per_element // 4)


@recording.whole
def philox_uint32(xp: ModuleType, seed: int, offset: int, n: int, state: Any = None) -> Any:
    """Words 0 to n of the draw, (n,) uint32."""
    draw = _draw("philox_uint32", seed, offset, n, 1, state)
    if _launches(xp, state):
        return kernels.words(xp, *draw, state)
    out = memory.empty((n,), np.uint32)

    def fill(part: slice, words: np.ndarray) -> None:
        out[part] = words

    _for_pieces(*draw, 1, fill)
    return out


@recording.whole
def uniform(
    xp: ModuleType,
    seed: int,
    offset: int,
    n: int,
    dtype: Any = np.float32,
    state: Any = None,
    low: float = 0.0,
    width: float = 1.0,
    last: float = np.inf,
) -> Any:
    """low + width * u, at most last, for uniform u on [0, 1), (n,) in dtype.

    u lies on a grid that makes every step to it exact. float32: (word >> 8) * 2**-24, one word per
    element. float64: (pair >> 11) * 2**-53, where the pair of words 2i and 2i + 1 is read as one
    64-bit integer, low word first.
    """
    dtype = _float_dtype("uniform", dtype)
    per = dtype.itemsize // 4
    draw = _draw("uniform", seed, offset, n, per, state)
    if _launches(xp, state):
        return kernels.uniform(xp, *draw, state, dtype, low, width, last)
    out = memory.empty((n,), dtype)

    def fill(part: slice, words: np.ndarray) -> None:
        target = out[part]
        _unit(words, target)
        _affine(target, width, low)
        if last < math.inf:
            np.minimum(target, last, out=target)

    _for_pieces(*draw, per, fill)
    return out


@recording.whole
def normal(
    xp: ModuleType,
    seed: int,
    offset: int,
    n: int,
    dtype: Any = np.float32,
    state: Any = None,
    loc: float = 0.0,
    scale: float = 1.0,
) -> Any:
    """loc + scale * z for standard normal z by Box and Muller (1958), (n,) evaluated in dtype.

    z of elements 2j and 2j + 1 is r cos(a) and r sin(a), where r = sqrt(-2 log(u)), a = 2 pi v:

    float32, words w and w' = words 2j and 2j + 1:
        u = float32(w) * 2**-32 + 2**-33, in (0, 1], so |z| <= 6.77
        v = (w' >> 8) * 2**-24
    float64, pairs p and p' = words 4j, 4j + 1 and 4j + 2, 4j + 3, low word first:
        u = (p >> 11) * 2**-53 + 2**-54, in (0, 1], so |z| <= 8.66
        v = (p' >> 11) * 2**-53

    Each operation is rounded to dtype, 2 pi too. u and a are equal on every device; log, sqrt,
    cos and sin may differ by a few units in the last place between maths libraries.
    """
    dtype = _float_dtype("normal", dtype)
    per = dtype.itemsize // 4
    seed, offset, n = _draw("normal", seed, offset, n, per, state)
    if _launches(xp, state):
        return kernels.normal(xp, seed, offset, n, state, dtype, loc, scale)
    out = memory.empty((n,), dtype)

    def fill(part: slice, words: np.ndarray) -> None:
        pairs = words.reshape(-1, 2, per)
        radius = np.empty(len(pairs), dtype)
        angle = np.empty_like(radius)
        _unit(np.ascontiguousarray(pairs[:, 1]).reshape(-1), angle)
        if per == 1:
            radius[...] = pairs[:, 0, 0]
            radius *= 2.0**-32
            radius += 2.0**-33
        else:
            _unit(np.ascontiguousarray(pairs[:, 0]).reshape(-1), radius)
            radius += 2.0**-54
        np.log(radius, out=radius)
        radius *= -2
        np.sqrt(radius, out=radius)
        angle *= 2 * math.pi
        target = out[part]
        np.multiply(radius, np.cos(angle), out=target[::2])
        sine = np.sin(angle, out=angle)
        odd = target[1::2]
        np.multiply(radius[: len(odd)], sine[: len(odd)], out=odd)
        _affine(target, scale, loc)

    _for_pieces(seed, offset, n + n % 2, per, fill)
    return out


@recording.whole
def keep_mask(xp: ModuleType, seed: int, offset: int, n: int, p: float, state: Any = None) -> Any:
    """Dropout mask, (n,) bool: True, meaning keep, where word >= round(p * 2**32).

    An element is dropped with probability p to within 2**-33; p = 0 keeps all, p = 1 none.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"keep_mask: p is a probability, expected 0 <= p <= 1, got {p}")
    threshold = round(p * 2**32)
    draw = _draw("keep_mask", seed, offset, n, 1, state)
    if _launches(xp, state):
        return kernels.keep_mask(xp, *draw, state, threshold)
    if threshold == 2**32:  # does not fit the 32 bits of a word
        return np.zeros(n, np.bool_)
    mask = memory.empty((n,), np.bool_)

    def fill(part: slice, words: np.ndarray) -> None:
        np.greater_equal(words, np.uint32(threshold), out=mask[part])

    _for_pieces(*draw, 1, fill)
    return mask


@recording.whole
def randint(
    xp: ModuleType, seed: int, offset: int, n: int, low: int, high: int, state: Any = None
) -> Any:
    """Integers in [low, high), (n,) int64: low + ((pair * (high - low)) >> 64).

    The pair of words 2i and 2i + 1 is one 64-bit integer, low word first; the product is exact
    (128 bits). Without rejection element i depends on nothing but i; the price is a bias: the
    probability of a value is off by less than 2**-64, a relative (high - low) / 2**64.
    """
    low, high = operator.index(low), operator.index(high)
    if not -(2**63) <= low < high <= 2**63:
        raise ValueError(
            f"randint: expected low < high, both within int64, got low={low}, high={high}"
        )
    draw = _draw("randint", seed, offset, n, 2, state)
    if _launches(xp, state):
        return kernels.integers(xp, *draw, state, low, high)
    span_high, span_low = (np.uint64(half) for half in divmod(high - low, 2**32))
    out = memory.empty((n,), np.int64)

    def fill(part: slice, words: np.ndarray) -> None:
        pair = words.view(np.uint64)
        pair_high, pair_low = pair >> HALF, pair & LOW
        # Schoolbook product of 32-bit halves, high 64 bits only; no sum here reaches 2**64.
        upper = pair_high * span_low + (pair_low * span_low >> HALF)
        lower = pair_low * span_high + (upper & LOW)
        value = pair_high * span_high + (upper >> HALF) + (lower >> HALF)
        np.add(value.view(np.int64), np.int64(low), out=out[part])

    _for_pieces(*draw, 2, fill)
    return out


def _launches(xp: ModuleType, state: Any) -> bool:
    """Return whether a kernel draws; raise if NumPy would have to look at the state for it."""
    if kernels.active(xp):
        return True
    if state is not None and not isinstance(state, np.ndarray):
        raise TypeError(
            "philox: a recorded step draws its numbers on the device; draw those that the host "
            "needs outside of the step"
        )
    return False


def _draw(name: str, seed: int, offset: int, n: int, per: int, state: Any) -> tuple[int, int, int]:
    """Return seed, offset and n of a draw of `per` words per element as Python integers.

    NumPy reads seed and offset from the state, if there is one, itself.
    """
    seed, offset, n = (operator.index(value) for value in (seed, offset, n))
    if isinstance(state, np.ndarray) and not kernels.active(np):
        seed, offset = seed + int(state[0]), offset + int(state[1])
    if n < 0:
        raise ValueError(f"{name}: n is a number of elements, expected n >= 0, got {n}")
    blocks = blocks_used(n, per)
    if not 0 <= seed < 2**64:
        raise ValueError(f"philox: the seed is the 64-bit key, expected 0 <= seed < 2**64: {seed}")
    if not 0 <= offset <= 2**64 - blocks:
        raise ValueError(f"philox: blocks {offset} to {offset + blocks} are not within 0 to 2**64")
    return seed, offset, n


def _float_dtype(name: str, dtype: Any) -> Any:
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"{name}: dtype must be float32 or float64, got {dtype}; cast the result")
    return dtype


def _unit(words: np.ndarray, out: np.ndarray) -> None:
    """Write the uniforms on [0, 1) made of the words into out; the words are overwritten."""
    bits = 24 if out.itemsize == 4 else 53
    integers = words if out.itemsize == 4 else words.view(np.uint64)
    unused = integers.dtype.type(8 * integers.itemsize - bits)
    np.right_shift(integers, unused, out=integers)
    out[...] = integers
    out *= 2.0**-bits


def _affine(values: np.ndarray, factor: float, summand: float) -> None:
    """Multiply and then add, in place; each is rounded to the dtype."""
    if factor != 1.0:
        values *= factor
    if summand:
        values += summand


def _for_pieces(
    seed: int, offset: int, n: int, per: int, fill: Callable[[slice, np.ndarray], None]
) -> None:
    """Call fill(slice of elements, their words) for n elements of `per` words, piece by piece.

    The words are uint32 in a buffer of the thread that fill may overwrite.
    """
    blocks = blocks_used(n, per)
    pieces = -(-blocks // CPU_BLOCKS)
    size = -(-blocks // max(pieces, 1))  # equal pieces: a short last one would cost as much

    def work(start: int, stop: int) -> None:
        index, room, words = _kept.buffers
        count = stop - start
        first, last = start * 4 // per, min(stop * 4 // per, n)
        if count <= FEW_BLOCKS:
            words[:count] = [_block(seed, offset + i) for i in range(start, stop)]
            fill(slice(first, last), words.reshape(-1)[: (last - first) * per])
            return
        even, odd, product = room[: 6 * count].reshape(3, 2, count)
        np.add(index[:count], np.uint64(offset + start), out=product[0])
        np.bitwise_and(product[0], LOW, out=even[0])
        np.right_shift(product[0], HALF, out=odd[0])
        even[1] = odd[1] = 0
        _encrypt(even, odd, product, seed)
        words[:count, 0], words[:count, 1] = even[0], odd[0]
        words[:count, 2], words[:count, 3] = even[1], odd[1]
        fill(slice(first, last), words.reshape(-1)[: (last - first) * per])

    for_rows(blocks, work, max(size, 1))


class _Kept(threading.local):
    """Buffers of one thread, kept: fresh pages can cost as much as the draw itself.

    0, 1, 2, ... (blocks,); room for the state, 48 bytes per block; the words.
    """

    def __init__(self) -> None:
        index = np.arange(CPU_BLOCKS, dtype=np.uint64)
        index.flags.writeable = False
        work = np.empty(6 * CPU_BLOCKS, np.uint64)
        self.buffers = index, work, np.empty((CPU_BLOCKS, 4), np.uint32)


_kept = _Kept()


def _block(seed: int, counter: int) -> tuple[int, int, int, int]:
    """The words of one block, by Python's integers."""
    m0, m1 = MULTIPLIERS
    s0, s1 = KEY_STEPS
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    a, b, c, d = counter & 0xFFFFFFFF, counter >> 32, 0, 0
    for _ in range(ROUNDS):
        p, q = m0 * a, m1 * c
        a, b, c, d = q >> 32 ^ b ^ k0, q & 0xFFFFFFFF, p >> 32 ^ d ^ k1, p & 0xFFFFFFFF
        k0, k1 = k0 + s0 & 0xFFFFFFFF, k1 + s1 & 0xFFFFFFFF
    return a, b, c, d


def _encrypt(even: np.ndarray, odd: np.ndarray, product: np.ndarray, seed: int) -> None:
    """Ten rounds, in place, on counter words 0 and 2 (even) and 1 and 3 (odd), each (2, blocks).

    A round with key (k0, k1) maps the counter (c0, c1, c2, c3) to
    (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)) and adds KEY_STEPS to the key.
    Here what comes of c0 stays in its row although it is the next c2, so that nothing moves:
    multipliers and keys alternate between the rows, and ten rounds end where they began.
    """
    (a, b), (a_low, b_low), (a_product, b_product) = even, odd, product
    for a_multiplier, b_multiplier, a_key, b_key in _schedule(seed):
        np.multiply(a, a_multiplier, out=a_product)
        np.multiply(b, b_multiplier, out=b_product)
        np.right_shift(product, HALF, out=even)
        np.bitwise_xor(a, b_low, out=a)
        np.bitwise_xor(b, a_low, out=b)
        np.bitwise_xor(a, a_key, out=a)
        np.bitwise_xor(b, b_key, out=b)
        np.bitwise_and(product, LOW, out=odd)


@lru_cache(maxsize=64)
def _schedule(seed: int) -> list[tuple[np.uint64, ...]]:
    """The multipliers and keys of the two rows, round by round."""
    m0, m1 = MULTIPLIERS
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    rounds = []
    for r in range(ROUNDS):
        values = (m0, m1, k1, k0) if r % 2 == 0 else (m1, m0, k0, k1)
        rounds.append(tuple(np.uint64(value) for value in values))
        k0, k1 = ((k + step) & 0xFFFFFFFF for k, step in zip((k0, k1), KEY_STEPS, strict=True))
    return rounds
