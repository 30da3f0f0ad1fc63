"""Reading and writing by position: every kind of index, duplicates, ties, and refused indices."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backend
from gpugrad.ops.indexing import _check_range
from gpugrad.testing import gradcheck, gradgradcheck

X = np.random.default_rng(0).uniform(-2, 2, (3, 4, 5))
MASK = np.random.default_rng(1).integers(0, 2, (3, 4)).astype(bool)


def leaf(data: Any = X) -> gg.Tensor:
    return gg.tensor(data, gg.float64, requires_grad=True)


INDICES: dict[str, Any] = {
    "integer": 1,
    "negative": -1,
    "numpy-integer": np.int64(2),
    "integers": (1, -1, 0),
    "slice": slice(1, None),
    "step": slice(None, None, 2),
    "backwards": (slice(None, None, -1), slice(3, 0, -2)),
    "empty-slice": slice(2, 1),
    "ellipsis": (Ellipsis, 0),
    "newaxis": (None, slice(None), None, 1),
    "nothing": (),
    "array": np.array([2, 0]),
    "duplicates": np.array([1, 1, 1, 0]),
    "list": [2, -1, 2],
    "empty-list": [],
    "matrix": np.array([[0, 1], [1, 1]]),
    "second-axis": (slice(None), np.array([3, 3, 0])),
    "pairs": (np.array([0, 2, 0]), np.array([1, 1, 1])),
    "broadcast": (np.array([[0], [2]]), np.array([1, 1])),
    "apart": (np.array([0, 0]), slice(None), np.array([1, 1])),
    "together": (slice(None), np.array([0, 0]), np.array([1, 1])),
    "integer-and-array": (0, slice(None), np.array([4, 4])),
    "mask": MASK,
    "mask-all": X > 0,
    "mask-one-axis": np.array([True, False, True]),
    "mask-list": [True, False, True],
    "mask-and-slice": (slice(None), np.array([True, False, True, True]), slice(0, 2)),
    "mask-nothing": np.zeros((3, 4), bool),
    "mask-and-array": (np.array([True, False, True]), np.array([3, 3])),
    "tensor": gg.tensor([2, 2], device="cpu"),
    "tensor-mask": gg.tensor(MASK, device="cpu"),
    "tensor-scalar": gg.tensor(1, device="cpu"),
}


def plain(index: Any) -> Any:
    return index.numpy() if isinstance(index, gg.Tensor) else index


@pytest.mark.parametrize("name", INDICES)
def test_getitem(name: str) -> None:
    index = INDICES[name]
    expected = X[plain(index)]
    out = leaf()[index]
    assert out.shape == expected.shape
    np.testing.assert_array_equal(out.detach().numpy(), expected)
    gradcheck(lambda x: x[index], leaf())
    gradgradcheck(lambda x: (x * x)[index], leaf())


def writes_twice(index: Any) -> bool:
    """Return whether an assignment hits an element twice: which value wins is undefined."""
    places = np.arange(X.size).reshape(X.shape)[plain(index)]
    return np.unique(places).size < places.size


ONCE = [name for name, index in INDICES.items() if not writes_twice(index)]


@pytest.mark.parametrize("name", ONCE)
def test_setitem_and_put(name: str) -> None:
    index = INDICES[name]
    value = np.random.default_rng(2).standard_normal(X[plain(index)].shape)
    expected = X.copy()
    expected[plain(index)] = value
    x = gg.tensor(X)
    x[index] = value
    np.testing.assert_array_equal(x.numpy(), expected)
    np.testing.assert_array_equal(gg.put(X, index, value).numpy(), expected)
    recorded = leaf() * 1.0
    recorded[index] = leaf(value)
    np.testing.assert_array_equal(recorded.detach().numpy(), expected)
    gradcheck(lambda x, v: gg.put(x, index, v), [leaf(), leaf(value)])
    gradgradcheck(lambda x, v: gg.put(x * x, index, v * v), [leaf(), leaf(value)])


def test_put_broadcasts_its_value() -> None:
    x, v = leaf(), leaf(np.ones((4, 1)))
    gradcheck(lambda x, v: gg.put(x, slice(0, 2), v), [x, v])
    gradcheck(lambda x, v: gg.put(x, 0, v), [x, leaf(2.0)])
    gradcheck(lambda x, v: gg.put(x, 1, v), [x, leaf(np.ones((1, *X.shape[1:])))])


@pytest.mark.parametrize("name", ["integer", "duplicates", "pairs", "mask", "slice", "list"])
def test_index_add_adds_twice_where_an_index_comes_twice(name: str) -> None:
    index = INDICES[name]
    value = np.random.default_rng(4).standard_normal(X[index].shape)
    expected = X.copy()
    np.add.at(expected, index, value)
    out = gg.index_add(leaf(), index, value)
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-14)
    gradcheck(lambda x, v: gg.index_add(x, index, v), [leaf(), leaf(value)])


@pytest.mark.parametrize("shape", [(5,), (4, 1), (1, 4, 5), ()], ids=str)
@pytest.mark.parametrize("name", ["integer", "duplicates", "slice"])
def test_index_add_broadcasts_its_value(name: str, shape: tuple[int, ...]) -> None:
    index = INDICES[name]
    gradcheck(lambda x, v: gg.index_add(x, index, v), [leaf(), leaf(np.ones(shape))])
    gradgradcheck(lambda x, v: gg.index_add(x, index, v * v), [leaf(), leaf(np.ones(shape))])


@pytest.mark.parametrize("shape", [(3,), (1,), (2, 1), (1, 3), ()], ids=str)
@pytest.mark.parametrize("wrap", [lambda i: i, lambda i: (i,), lambda i: i.tolist()])
def test_index_add_broadcasts_over_the_axes_of_one_index(shape: tuple, wrap: Any) -> None:
    """numpy.add.at (2.4) reads beyond a vector that it has to broadcast."""
    index = np.array([[2, 5, 1], [4, -4, -4]])
    value = np.random.default_rng(5).standard_normal(shape)
    expected = np.zeros(6)
    np.add.at(expected, index, np.broadcast_to(value, index.shape).copy())
    out = gg.index_add(gg.zeros(6, dtype=gg.float64), wrap(index), value)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-14)
    gradcheck(lambda v: gg.index_add(gg.zeros(6, dtype=gg.float64), wrap(index), v), leaf(value))


@pytest.mark.parametrize(
    "index",
    [
        (np.array([0]), np.array([4])),
        (np.array([0]), np.array([-4])),
        (slice(None), np.array([[3]])),
        np.array([2]),
        (np.array([0]),) * 3,
        (True, np.array([2])),
        (slice(None), slice(None), np.array([], int)),
        (np.array(1), np.array(1), slice(None)),
    ],
    ids=str,
)
def test_index_add_refuses_indices_out_of_range(index: Any) -> None:
    """Rows lie side by side: a column too far to the right would be the next row's."""
    with pytest.raises(IndexError, match="index_add"):
        gg.index_add(gg.zeros((2, 3)), index, 1.0)


@pytest.mark.parametrize("index", [True, False, (True, 1), (slice(None), True)], ids=str)
def test_true_and_false_index_like_masks_without_axes(index: Any) -> None:
    x = leaf(np.arange(6.0).reshape(2, 3))
    out = x[index]
    np.testing.assert_array_equal(out.detach().numpy(), x.detach().numpy()[index])
    out.backward(np.full(out.shape, 2.0))
    expected = np.zeros((2, 3))
    expected[index] = 2
    np.testing.assert_array_equal(x.grad.numpy(), expected)


@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (2, 2)], ids=str)
@pytest.mark.parametrize("repeats", [1, 2, [2]], ids=str)
def test_what_is_repeated_is_a_copy(shape: tuple, repeats: Any) -> None:
    for x in (gg.zeros(shape), gg.broadcast_to(gg.zeros(1), shape)):
        for axis in (0, 1):
            out = gg.repeat(x, repeats, axis)
            out[...] = 1.0
            out += 1
            assert out.flatten().tolist() == [2.0] * out.size
            assert not x.numpy().any()
    x = leaf(np.ones(shape))
    out = gg.repeat(x, repeats, 0)
    out[...] = 2.0  # recorded
    out.sum().backward()
    assert not x.grad.numpy().any()


def test_repeat_of_nothing_by_nothing() -> None:
    assert gg.repeat(gg.zeros(0), []).shape == (0,)


def test_index_add_of_one_row_of_values_at_a_table_of_indices() -> None:
    index = np.array([[-2, 2], [3, -4], [1, 0]])
    out = gg.index_add(gg.zeros(5), index, gg.tensor([1.0, 10.0]))
    assert out.tolist() == [10.0, 11.0, 10.0, 2.0, 0.0]


@pytest.mark.parametrize("width", [1, 3, 200])
@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint64])
@pytest.mark.parametrize("few", [0, 10**9])
def test_gradients_of_arrays_of_indices_between_whole_axes(
    few: int, width: int, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpugrad.ops.indexing._FEW", few)
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 4, shape).astype(dtype) for shape in ((5, 1), (3,)))
    if dtype != np.uint64:
        first[::2] -= 4
    for shape, index in (
        ((4, width), first),
        ((4, 4, width), (first, second)),
        ((2, 4, width), (slice(None), first)),
        ((2, 4, 4, width), (slice(None), first, second)),
        ((2, width, 4), (Ellipsis, second)),
        ((4, width, 4), (first, slice(None), second)),
        ((4, 4, width), (1, second)),
        ((4, 4, width), (None, second)),
    ):
        x = leaf(rng.normal(size=shape))
        g = rng.integers(-8, 8, x[index].shape).astype(float)
        x[index].backward(g)
        expected = np.zeros(shape)
        places = np.arange(x.size).reshape(shape)[index]
        for place, value in zip(places.ravel(), g.ravel(), strict=True):
            expected.flat[place] += value
        np.testing.assert_array_equal(x.grad.numpy(), expected)


def test_duplicate_rows_add_their_gradients() -> None:
    weight = gg.zeros(3, 2, requires_grad=True)
    gg.take(weight, [1, 1, 0, 1], axis=0).sum().backward()
    assert weight.grad.tolist() == [[1.0, 1.0], [3.0, 3.0], [0.0, 0.0]]


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_take(axis: int | None) -> None:
    for indices in ([1, 1, 0], [[0], [2]], 1, []):
        expected = np.take(X, np.asarray(indices, np.int64), axis)
        f = functools.partial(gg.take, indices=np.asarray(indices, np.int64), axis=axis)
        np.testing.assert_array_equal(f(leaf()).detach().numpy(), expected)
        gradcheck(f, leaf())


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_take_along_axis(axis: int) -> None:
    shape = list(X.shape)
    shape[axis] = 6
    indices = np.random.default_rng(5).integers(0, X.shape[axis], shape)
    expected = np.take_along_axis(X, indices, axis)
    out = gg.take_along_axis(leaf(), indices, axis)
    np.testing.assert_array_equal(out.detach().numpy(), expected)
    gradcheck(lambda x: gg.take_along_axis(x, indices, axis), leaf())


# Order


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_sort(axis: int, descending: bool) -> None:
    expected = np.sort(X, axis)
    expected = np.flip(expected, axis) if descending else expected
    f = functools.partial(gg.sort, axis=axis, descending=descending)
    np.testing.assert_array_equal(f(leaf()).detach().numpy(), expected)
    gradcheck(f, leaf())
    gradgradcheck(lambda x: f(x * x), leaf())


@pytest.mark.parametrize("descending", [False, True])
def test_ties_keep_their_order(descending: bool) -> None:
    x = gg.tensor([1.0, 0.0, 1.0, 0.0, 1.0], requires_grad=True)
    order = [0, 2, 4, 1, 3] if descending else [1, 3, 0, 2, 4]
    assert gg.argsort(x, descending=descending).tolist() == order
    assert gg.argsort(x).tolist() == [1, 3, 0, 2, 4]
    assert gg.sort(x).tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]
    weights = gg.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    (gg.sort(x, descending=descending) * weights).sum().backward()
    assert [x.grad.tolist()[i] for i in order] == [1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_topk(axis: int) -> None:
    values, indices = gg.topk(leaf(), 2, axis)
    expected = np.flip(np.sort(X, axis), axis).take([0, 1], axis)
    np.testing.assert_array_equal(values.detach().numpy(), expected)
    np.testing.assert_array_equal(np.take_along_axis(X, indices.numpy(), axis), expected)
    gradcheck(lambda x: gg.topk(x, 2, axis)[0], leaf())
    assert gg.topk(leaf(), 0)[0].shape == (3, 4, 0)
    every, _ = gg.topk(gg.tensor(X), X.shape[axis], axis)
    np.testing.assert_array_equal(every.numpy(), -np.sort(-X, axis))
    with pytest.raises(ValueError, match="topk: k=9 is not in"):
        gg.topk(leaf(), 9)


# Diagonals, repetitions, masks


@pytest.mark.parametrize("dtype", [gg.float64, gg.float32, gg.float16, gg.bfloat16, gg.int64])
def test_topk_of_long_rows_with_ties_and_nan(dtype: Any) -> None:
    x = np.random.default_rng(0).integers(0, 20, (6, 200)).astype(dtype)
    if backend.is_float(x.dtype):
        x[1, ::3], x[2, ::100], x[3] = np.nan, np.nan, -np.inf
        x[4, :3], x[4, 3:6] = np.inf, -0.0
    order = [  # NaN first, then from the largest on, of equals the first
        sorted(range(200), key=lambda i, row=row: (0, 0) if math.isnan(row[i]) else (1, -row[i]))
        for row in x.astype(float).tolist()
    ]
    for k in (0, 1, 4, 20, 200):
        for axis, data in ((1, x), (0, x.T)):
            values, indices = gg.topk(gg.tensor(data), k, axis=axis)
            expected = np.array(order)[:, :k]
            np.testing.assert_array_equal(indices.numpy(), expected if axis else expected.T)
            found = np.take_along_axis(data, indices.numpy(), axis).astype(float)
            np.testing.assert_array_equal(values.numpy().astype(float), found)


@pytest.mark.parametrize("offset", [0, 1, -1, 3, -2, 7])
def test_diagonal(offset: int) -> None:
    np.testing.assert_array_equal(
        gg.diagonal(leaf(), offset).detach().numpy(), np.diagonal(X, offset)
    )
    np.testing.assert_array_equal(
        gg.diagonal(leaf(), offset, 2, 0).detach().numpy(), np.diagonal(X, offset, 2, 0)
    )
    gradcheck(lambda x: gg.diagonal(x, offset, 1, -1), leaf())


@pytest.mark.parametrize("k", [0, 1, -2])
def test_diag(k: int) -> None:
    vector, matrix = X[0, 0], X[0]
    np.testing.assert_array_equal(gg.diag(vector, k).numpy(), np.diag(vector, k))
    np.testing.assert_array_equal(gg.diag(matrix, k).numpy(), np.diag(matrix, k))
    np.testing.assert_array_equal(gg.diag(vector).numpy(), np.diag(vector))
    gradcheck(lambda x: gg.diag(x, k), leaf(vector))
    with pytest.raises(ValueError, match="diag: x must have one or two"):
        gg.diag(X)


@pytest.mark.parametrize(
    ("repeats", "axis"),
    [(2, None), (3, 0), (2, -1), ([1, 0, 2], 0), ([0, 0, 0], 0), (0, 1)],
    ids=str,
)
def test_repeat(repeats: Any, axis: int | None) -> None:
    expected = np.repeat(X, repeats, axis)
    np.testing.assert_array_equal(gg.repeat(leaf(), repeats, axis).detach().numpy(), expected)
    gradcheck(lambda x: gg.repeat(x, repeats, axis), leaf())


def test_masked_fill_and_nonzero() -> None:
    mask = gg.tensor(X) > 0
    out = leaf().masked_fill(mask, -1.0)
    np.testing.assert_array_equal(out.detach().numpy(), np.where(X > 0, -1.0, X))
    gradcheck(lambda x: gg.masked_fill(x, mask, -1.0), leaf())
    np.testing.assert_array_equal(gg.nonzero(mask).numpy(), np.argwhere(X > 0))
    assert gg.nonzero(gg.zeros(3)).shape == (0, 1)


def test_iteration_and_unpacking() -> None:
    x = leaf(X[0])
    assert [row.shape for row in x] == [(5,)] * 4
    a, b, c, d = x
    (a * b * c * d).sum().backward()
    np.testing.assert_allclose(x.grad.numpy()[0], X[0, 1] * X[0, 2] * X[0, 3], rtol=1e-14)


# Refused


@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (lambda x: x[3], IndexError, "getitem: .*3"),
        (lambda x: x[0, 0, 0, 0], IndexError, "getitem: too many"),
        (lambda x: x[np.array([0, 3])], IndexError, "getitem: .*3"),
        (lambda x: x[[-4]], IndexError, "getitem: .*-4"),
        (lambda x: x[np.array([0.5])], IndexError, "getitem: an index must be integer or boolean"),
        (lambda x: x[np.ones((2, 2), bool)], IndexError, "getitem: "),
        (lambda x: gg.take(x, [9], axis=1), IndexError, "9"),
        (lambda x: gg.take_along_axis(x, [0], 0), ValueError, "take_along_axis: indices have 1"),
        (lambda x: gg.repeat(x, -1), ValueError, "repeat: repeats must not be negative"),
        (lambda x: gg.put(x, 7, 0.0), IndexError, "put: .*7"),
        (lambda x: gg.put(x, 0, np.ones(3)), ValueError, r"put: .*value: float64\[3\]"),
        (lambda x: gg.sort(x, 3), Exception, "axis 3"),
    ],
)
def test_refused(f: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        f(leaf())


def test_range_check_for_libraries_that_wrap() -> None:
    for good in ((np.array([2, -3]), Ellipsis, np.array([4, -5])), (MASK, np.array([4])), None):
        _check_range(good, (3, 4, 5))
    for bad, axis in (((np.array([3]),), 0), ((Ellipsis, np.array([-6])), 2)):
        with pytest.raises(IndexError, match=f"out of range for axis {axis}"):
            _check_range(bad, (3, 4, 5))
    with pytest.raises(IndexError, match="index 5 is out of range for axis 2"):
        _check_range((MASK, np.array([5])), (3, 4, 5))
    with pytest.raises(IndexError, match="index 4 is out of range for axis 1"):
        _check_range((0, None, np.array([4])), (3, 4, 5))


@pytest.mark.parametrize("dtype", [gg.float16, gg.bfloat16], ids=str)
def test_gradients_of_repeated_elements_accumulate_in_float32(dtype: Any) -> None:
    x = gg.ones(3, dtype=dtype).requires_grad_()
    (g,) = gg.grad(x[np.repeat([0, 2], [5000, 300])].sum(), [x])
    assert g.dtype == dtype
    exact = np.array([5000, 0, 300], np.float32)
    np.testing.assert_array_equal(g.numpy(), exact.astype(dtype))
