"""New tensors: dtypes, devices, sharing or copying, and refused data."""

from __future__ import annotations

import array
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpugrad as gg


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.0, "float32"),
        (1, "int64"),
        (True, "bool"),
        ([1.0, 2.0], "float32"),
        ([1, 2], "int64"),
        ([1, 2.5], "float32"),
        ([[True], [False]], "bool"),
        ([], "float32"),
        (np.array([1.0]), "float64"),
        (np.array([1.0], np.float16), "float16"),
        (np.array([1.0], ml_dtypes.bfloat16), "bfloat16"),
        (np.array([1], np.uint16), "uint16"),
        (np.float64(1.0), "float64"),
        (np.int32(1), "int32"),
        ([np.float64(1.0)], "float64"),
        ([[1.0, np.float64(1.0)]], "float64"),
        ([(np.zeros(2), [0.0, 1.0])], "float64"),
        ([gg.tensor(1.0, "float64", "cpu")], "float64"),
        ([gg.tensor(1.0, device="cpu"), 0.5], "float32"),
        ([[np.int64(1), 0.5]], "float32"),
        (range(3), "int64"),
        ((1.0, (2.0)), "float32"),
    ],
    ids=repr,
)
def test_dtype_of_data(data: Any, dtype: str) -> None:
    for make in (gg.tensor, gg.asarray, gg.Tensor):
        t = make(data)
        assert t.dtype.name == dtype
        np.testing.assert_array_equal(t.numpy(), np.asarray(data))


@pytest.mark.parametrize(
    "dtype",
    ["float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "bool"],
)
def test_every_dtype(dtype: str) -> None:
    kind = getattr(gg, dtype)
    for made in (
        gg.tensor([0, 1, 1], dtype=dtype),
        gg.tensor([0, 1, 1], dtype=kind),
        gg.zeros(3, dtype=dtype),
        gg.ones((3,), dtype=kind),
        gg.full(3, 1, dtype=dtype),
        gg.zeros_like(gg.ones(3), dtype=kind),
    ):
        assert made.dtype == kind
        assert made.shape == (3,)
    assert gg.tensor(2.5).astype(float).dtype == gg.float32


@pytest.mark.parametrize("data", [1.1, [1.1, 2.2]], ids=str)
def test_float64_asked_for_keeps_all_digits(data: Any) -> None:
    assert gg.tensor(data, gg.float64).tolist() == data


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (1j, TypeError, "complex128.* is not supported; use one of float16"),
        (["a"], TypeError, "is not supported"),
        ([None], TypeError, "object.* is not supported|'O'"),
        (Ellipsis, TypeError, "is not supported"),
        ([[1.0], [1.0, 2.0]], ValueError, "nested data"),
        (np.array("2020-01-01", "datetime64[D]"), TypeError, "M8"),
    ],
    ids=repr,
)
def test_data_that_a_tensor_cannot_hold(data: Any, error: type[Exception], message: str) -> None:
    for make in (gg.tensor, gg.asarray, gg.Tensor):
        with pytest.raises(error, match=message):
            make(data)


@pytest.mark.parametrize(
    ("data", "dtype", "value"),
    [
        (300, "int8", "300"),
        (2**40, "int32", "1099511627776"),
        ([1, -1], "uint8", "-1"),
        ([[0.5, 1e10]], "int8", "10000000000.0"),
        (2**63, "int64", "9223372036854775808"),
        (float(2**63), "int64", "9.22.*e.18"),
        ([1.0, math.nan], "int32", "nan"),
        (-math.inf, "int64", "-inf"),
        (np.int64(300), "int8", "300"),
    ],
    ids=str,
)
def test_numbers_that_an_integer_dtype_cannot_hold(data: Any, dtype: str, value: str) -> None:
    for make in (gg.tensor, gg.asarray, gg.Tensor):
        with pytest.raises(ValueError, match=rf"{value} is no {dtype}, which holds"):
            make(data, dtype=dtype)
    if np.ndim(data) == 0:
        for made in (lambda: gg.full((2,), data, dtype), lambda: gg.full_like([1], data, dtype)):
            with pytest.raises(ValueError, match=rf"{value} is no {dtype}, which holds"):
                made()


def test_the_ends_of_integer_dtypes_are_held() -> None:
    for dtype in ("int8", "uint16", "int64", "uint64"):
        ends = [np.iinfo(dtype).min, np.iinfo(dtype).max]
        assert [gg.tensor([end], dtype).item() for end in ends] == ends
        assert gg.full(2, ends[1], dtype).tolist() == [ends[1]] * 2
    assert gg.tensor([-128.9, 127.9], "int8").tolist() == [-128, 127]
    assert gg.tensor([], "int8").shape == (0,)
    assert gg.tensor(np.array([300]), "int8").tolist() == [44]  # arrays: as NumPy converts them


def test_ranges_that_an_integer_dtype_cannot_hold() -> None:
    assert gg.arange(127, -129, -1, dtype="int8").tolist() == list(range(127, -129, -1))
    assert gg.linspace(0, 255, 2, dtype="uint8").tolist() == [0, 255]
    with pytest.raises(ValueError, match="arange: 128 is no int8"):
        gg.arange(129, dtype="int8")
    with pytest.raises(ValueError, match="arange: -1 is no uint8"):
        gg.arange(2, -2, -1, dtype="uint8")
    with pytest.raises(ValueError, match="linspace: 1000 is no int8"):
        gg.linspace(0, 1000, 3, dtype="int8")


@pytest.mark.parametrize("dtype", ["complex64", "str", "O", "nonsense", np.complex128, list])
def test_dtypes_that_do_not_exist(dtype: Any) -> None:
    with pytest.raises(TypeError, match="is not supported; use one of float16, bfloat16"):
        gg.zeros(3, dtype=dtype)


def test_tensor_copies_and_asarray_shares() -> None:
    array = np.zeros(3, np.float32)
    copied, shared, wrapped = gg.tensor(array), gg.asarray(array), gg.from_numpy(array)
    array[0] = 1.0
    assert copied.tolist() == [0.0, 0.0, 0.0]
    assert shared.tolist() == wrapped.tolist() == [1.0, 0.0, 0.0]
    assert gg.asarray(shared) is shared
    assert gg.asarray(shared, copy=True).data is not shared.data
    assert gg.asarray(shared, gg.float64).dtype == gg.float64
    assert gg.tensor(shared).data is not shared.data
    with pytest.raises(TypeError, match="from_numpy: expected a numpy array, got list"):
        gg.from_numpy([1.0])


class Holder:
    """What hands out an array of its own."""

    def __init__(self) -> None:
        self.data = np.zeros(3)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.data

    def __setitem__(self, index: int, value: float) -> None:
        self.data[index] = value


@pytest.mark.parametrize("data", [array.array("f", [0, 0, 0]), Holder()], ids=["buffer", "array"])
def test_tensor_copies_the_memory_of_other_objects(data: Any) -> None:
    copied = gg.tensor(data)
    data[0] = 1.0
    assert copied.tolist() == [0.0, 0.0, 0.0]
    assert gg.asarray(data).tolist() == [1.0, 0.0, 0.0]


def test_tensor_of_a_tensor_is_a_leaf() -> None:
    x = gg.tensor([1.0], requires_grad=True) * 2.0
    assert gg.tensor(x).is_leaf
    assert not gg.tensor(x).requires_grad
    assert gg.tensor(x, requires_grad=True).requires_grad


def test_a_memory_mapped_array_becomes_plain(tmp_path: Any) -> None:
    mapped = np.memmap(tmp_path / "a.bin", np.float32, "w+", shape=(4,))
    t = gg.asarray(mapped)
    assert type(t.data) is np.ndarray
    assert np.shares_memory(t.data, mapped)


def test_dlpack_shares_memory_both_ways() -> None:
    array = np.arange(3.0)
    t = gg.from_dlpack(array)
    back = np.from_dlpack(t)
    assert t.__dlpack_device__() == array.__dlpack_device__()
    array[0] = 7.0
    assert t.tolist() == back.tolist() == [7.0, 1.0, 2.0]
    with pytest.raises(BufferError, match="detach"):
        np.from_dlpack(gg.ones(2, requires_grad=True))


@pytest.mark.parametrize(
    ("ours", "numpys"),
    [
        (lambda: gg.arange(5), lambda: np.arange(5)),
        (lambda: gg.arange(1, 6, 2), lambda: np.arange(1, 6, 2)),
        (lambda: gg.arange(0.0, 1.0, 0.25), lambda: np.arange(0, 1, 0.25, np.float32)),
        (lambda: gg.arange(5, 0, -1), lambda: np.arange(5, 0, -1)),
        (lambda: gg.linspace(0, 1, 7), lambda: np.linspace(0, 1, 7, dtype=np.float32)),
        (
            lambda: gg.linspace(-1.5, 2.25, 5, dtype=gg.int32),
            lambda: np.linspace(-1.5, 2.25, 5, dtype=np.int32),
        ),
        (
            lambda: gg.linspace(0, 1, 4, endpoint=False),
            lambda: np.linspace(0, 1, 4, False, dtype=np.float32),
        ),
        (lambda: gg.eye(3), lambda: np.eye(3, dtype=np.float32)),
        (lambda: gg.eye(2, 3, 1), lambda: np.eye(2, 3, 1, np.float32)),
        (lambda: gg.full((2, 2), 1.5), lambda: np.full((2, 2), 1.5, np.float32)),
        (lambda: gg.full(2, 7), lambda: np.full(2, 7)),
        (lambda: gg.full((), True), lambda: np.full((), True)),
        (lambda: gg.full(2, np.int32(3)), lambda: np.full(2, 3)),
        (lambda: gg.full(2, np.True_), lambda: np.full(2, True)),
        (lambda: gg.full(2, np.float64(3)), lambda: np.full(2, 3, np.float32)),
        (lambda: gg.zeros(2, 3), lambda: np.zeros((2, 3), np.float32)),
        (lambda: gg.ones(()), lambda: np.ones((), np.float32)),
        (lambda: gg.ones([2, 0]), lambda: np.ones((2, 0), np.float32)),
    ],
)
def test_equal_to_numpy(ours: Callable[[], gg.Tensor], numpys: Callable[[], np.ndarray]) -> None:
    made, expected = ours(), numpys()
    assert (made.dtype, made.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(made.numpy(), expected)


def test_like() -> None:
    x = gg.ones(2, 3, dtype=gg.float16, requires_grad=True)
    for made, value in (
        (gg.zeros_like(x), 0.0),
        (gg.ones_like(x), 1.0),
        (gg.full_like(x, 2.5), 2.5),
    ):
        assert (made.shape, made.dtype, made.requires_grad) == ((2, 3), gg.float16, False)
        assert (made.numpy() == value).all()
    assert gg.empty_like(x).shape == gg.empty(2, 3).shape == (2, 3)
    assert gg.zeros_like(x, requires_grad=True).requires_grad
    assert gg.zeros_like(np.ones(2, np.float32)).dtype == gg.float32


@pytest.mark.parametrize("make", [gg.zeros, gg.ones, gg.empty], ids=["zeros", "ones", "empty"])
def test_shapes(make: Callable[..., gg.Tensor]) -> None:
    assert make(2, 3).shape == make((2, 3)).shape == make([2, 3]).shape == (2, 3)
    assert make(3).shape == (3,)
    assert make(()).shape == ()
    assert make(np.int64(2), 3).shape == (2, 3)
    with pytest.raises(ValueError, match=r"no negative lengths: \(2, -1\)"):
        make(2, -1)


def test_meshgrid() -> None:
    for indexing in ("xy", "ij"):
        ours = gg.meshgrid(gg.arange(3), gg.arange(4.0), indexing=indexing)
        for a, b in zip(
            ours, np.meshgrid(np.arange(3), np.arange(4.0), indexing=indexing), strict=True
        ):
            np.testing.assert_array_equal(a.numpy(), b)
    assert gg.meshgrid() == []


def test_meshgrid_passes_gradients_and_refuses_matrices() -> None:
    x, y = gg.tensor([1.0, 2.0], requires_grad=True), gg.tensor([3.0, 4.0, 5.0], requires_grad=True)
    a, b = gg.meshgrid(x, y)
    (a * b).sum().backward()
    assert x.grad.tolist() == [12.0, 12.0]
    assert y.grad.tolist() == [3.0, 3.0, 3.0]
    with pytest.raises(ValueError, match="meshgrid: vector 1"):
        gg.meshgrid(x, gg.ones(2, 2))
    with pytest.raises(ValueError, match="meshgrid: indexing"):
        gg.meshgrid(x, indexing="ji")


def test_nan_and_infinity_survive() -> None:
    assert math.isnan(gg.tensor(math.nan).item())
    assert gg.tensor([math.inf, -math.inf]).tolist() == [math.inf, -math.inf]


def test_only_floating_tensors_require_grad() -> None:
    assert gg.ones(2, requires_grad=True).requires_grad
    for make in (
        lambda: gg.tensor([1, 2], requires_grad=True),
        lambda: gg.ones(2, dtype=gg.int32, requires_grad=True),
        lambda: gg.tensor([True]).requires_grad_(),
    ):
        with pytest.raises(TypeError, match=r"requires_grad: a tensor of dtype .* has no gradient"):
            make()
