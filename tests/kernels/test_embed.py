"""embed, the sum of two embeddings: with and without kernels."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, emulator, testing
from gpugrad.fused import FUSED, embed, embedding

dtypes = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
# batch, length, positions there are, start, rows of tokens, columns
SIZES = [(1, 1, 1, 0, 1, 1), (2, 3, 7, 2, 5, 13), (5, 6, 6, 0, 9, 24), (3, 4, 9, 5, 40, 1040)]


def drawn(batch, length, count, start, rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, rows, (batch, length))
    tables = rng.normal(size=(rows, columns)), rng.normal(size=(count, columns))
    return [gg.tensor(ids), *(gg.Tensor(t, requires_grad=True) for t in tables)], start


def parts(ids, tokens, positions, start):
    return embedding(ids, tokens) + positions[start : start + ids.shape[1]]


def results(function, inputs, start, dtype="float32", wanted=(True, True)):
    ids, *tables = inputs
    given = [
        gg.Tensor(t.data.astype(dtype), requires_grad=w)
        for t, w in zip(tables, wanted, strict=True)
    ]
    out = function(ids, *given, start)
    g = gg.Tensor(np.cos(np.arange(out.size)).reshape(out.shape).astype(dtype))
    return [t.data for t in (out, *gg.grad(out, [t for t in given if t.requires_grad], g))]


@dtypes
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_the_spec(size, dtype):
    inputs, start = drawn(*size)
    before = cuda.launches.copy()
    found = emulator.sweep(lambda: results(embed, inputs, start, dtype))
    launched = cuda.launches - before
    assert launched["embed_forward"] == len(emulator.SWEEP)
    assert not launched["embedding_forward"]
    np.testing.assert_array_equal(found[0], results(parts, inputs, start, dtype)[0])
    assert not np.delete(found[2], slice(start, start + size[1]), axis=0).any()
    with emulator.enabled():
        testing.assert_implements(
            lambda *tables: embed(inputs[0], *tables, start),
            lambda *tables: FUSED["embed"].spec(inputs[0], *tables, start=start),
            inputs[1:],
            dtype,
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_without_kernels_it_is_its_parts(size, dtype):
    inputs, start = drawn(*size)
    a, b = (results(f, inputs, start, dtype) for f in (embed, parts))
    assert [x.tobytes() for x in a] == [x.tobytes() for x in b]


@pytest.mark.parametrize("kind", ["int32", "uint16"])
def test_ids_of_any_integer_type_and_layout(kind):
    (ids, *tables), start = drawn(*SIZES[1])
    with emulator.enabled("checked"):
        expected = results(embed, [ids, *tables], start)
        turned = gg.tensor(np.asfortranarray(ids.data.astype(kind)))
        fortran = [gg.Tensor(np.asfortranarray(t.data), requires_grad=True) for t in tables]
        found = results(embed, [turned, *fortran], start)
    assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]


def test_a_gradient_alone_has_the_same_bits():
    inputs, start = drawn(*SIZES[1])
    with emulator.enabled("checked"):
        _, *together = results(embed, inputs, start)
        for k, wanted in enumerate([(True, False), (False, True)]):
            before = cuda.launches.copy()
            _, alone = results(embed, inputs, start, wanted=wanted)
            assert alone.tobytes() == together[k].tobytes()
            added = [name for name in cuda.launches - before if "column_sums" in name]
            assert bool(added) == wanted[1]  # the positions' gradient


@dtypes
def test_tables_that_begin_anywhere(dtype):
    inputs, start = drawn(*SIZES[2])
    with emulator.enabled("checked"):
        expected = results(embed, inputs, start, dtype)
        for k in (1, 2):
            moved = list(inputs)
            memory = np.empty(inputs[k].size + 1, dtype)[1:].reshape(inputs[k].shape)
            memory[...] = inputs[k].data
            moved[k] = gg.Tensor(memory, requires_grad=True)
            found = results(embed, moved, start, dtype)
            assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]


def test_an_id_out_of_range_is_nan_for_the_kernel():
    tables = [gg.Tensor(np.ones((n, 8), np.float32), requires_grad=True) for n in (4, 3)]
    ids = gg.tensor([[0, 4, 1], [-1, 2, 3]])
    with emulator.enabled("checked"):
        out = FUSED["embed"](ids, *tables, start=0)
        grads = gg.grad(out, tables, gg.ones_like(out))
        with pytest.raises(IndexError, match=r"ids\[0, 1\] is 4"):
            embed(ids, *tables)
    assert np.isnan(out.data).all(2).tolist() == [[False, True, False], [True, False, False]]
    np.testing.assert_array_equal(grads[0].data, np.ones((4, 8)))
    np.testing.assert_array_equal(grads[1].data, np.full((3, 8), 2.0))


@pytest.mark.parametrize(
    ("ids", "tokens", "positions", "start", "message"),
    [
        ([1, 2], (4, 3), (5, 3), 0, r"ids int64\[2\], .* must be \(B, T\), \(V, C\) and \(L, C\)"),
        ([[1, 2]], (4, 3), (5, 2), 0, r"tokens float32\[4, 3\] and positions float32\[5, 2\]"),
        ([[1, 2]], (4, 3), (5, 3), 4, "positions 4 to 6 are not in a table of 5"),
        ([[1, 2]], (4, 3), (5, 3), -1, "positions -1 to 1 are not in a table of 5"),
    ],
)
def test_errors(ids, tokens, positions, start, message):
    with pytest.raises(ValueError, match=message):
        embed(ids, gg.zeros(tokens), gg.zeros(positions), start)
