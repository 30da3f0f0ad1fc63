"""The tensor itself: what it holds, leaving for other types, dtypes and devices, copies."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.registry import OPS


def leaf(data: Any, dtype: Any = gg.float64) -> gg.Tensor:
    return gg.tensor(data, dtype, requires_grad=True)


# What the array is


def test_attributes() -> None:
    x = gg.zeros(2, 3)
    assert (x.shape, x.ndim, x.size, x.nbytes) == ((2, 3), 2, 6, 24)
    assert (x.dtype, x.device) == (gg.float32, "cpu")
    assert (x.is_leaf, x.requires_grad, x.grad) == (True, False, None)
    assert isinstance(x.data, np.ndarray)
    assert len(x) == 2
    assert x.T.shape == (3, 2)
    with pytest.raises(TypeError, match="len"):
        len(gg.tensor(1.0))


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (lambda: gg.tensor([1.0, 2.0]), "tensor([1., 2.])"),
        (lambda: gg.tensor(1.5), "tensor(1.5)"),
        (lambda: gg.tensor([1, 2]), "tensor([1, 2])"),
        (lambda: gg.tensor([True]), "tensor([ True])"),
        (lambda: gg.tensor([1.0], gg.float16), "tensor([1.], dtype=float16)"),
        (lambda: gg.tensor([1.0], gg.bfloat16), "tensor([1], dtype=bfloat16)"),
        (lambda: leaf([1.0], gg.float32), "tensor([1.], requires_grad=True)"),
        (lambda: gg.exp(leaf([0.0])), "tensor([1.], dtype=float64, op=exp)"),
        (lambda: gg.zeros(0), "tensor([])"),
        (lambda: gg.zeros(2, 2), "tensor([[0., 0.],\n        [0., 0.]])"),
    ],
)
def test_repr(tensor: Callable[[], gg.Tensor], text: str) -> None:
    assert repr(tensor()) == text


def test_format() -> None:
    assert f"{gg.tensor(1.23456):.2f}" == "1.23"
    assert f"{gg.tensor([1.0])}" == "tensor([1.])"
    assert f"{gg.tensor(1.0)}" == "tensor(1.)"


# Python's numbers


def test_python_numbers() -> None:
    assert gg.tensor(2.5).item() == 2.5
    assert gg.tensor([[7]]).item() == 7
    assert float(gg.tensor(2.5)) == 2.5
    assert int(gg.tensor([3])) == 3
    assert [10, 20, 30][gg.tensor(1)] == 20
    assert bool(gg.tensor([1.0]))
    assert not gg.tensor(0)
    assert gg.tensor([[1.0], [2.0]]).tolist() == [[1.0], [2.0]]
    assert math.sqrt(gg.tensor(4.0)) == 2.0
    assert leaf(1.0).item() == 1.0


@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (lambda: gg.ones(2).item(), ValueError, "item: the tensor has 2 elements"),
        (lambda: bool(gg.ones(2)), ValueError, r"shape \(2,\) is ambiguous"),
        (lambda: bool(gg.ones(0)), ValueError, r"shape \(0,\) is ambiguous"),
        (lambda: float(gg.ones(2)), ValueError, "item"),
        (lambda: operator.index(gg.tensor(1.0)), TypeError, r"integer tensors.*float32\[\]"),
        (lambda: operator.index(gg.tensor([1])), TypeError, r"integer tensors.*int64\[1\]"),
        (lambda: list(gg.tensor(1.0)), TypeError, "len"),
    ],
)
def test_refused_as_python_number(
    f: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        f()


def test_a_tensor_is_a_key_by_identity() -> None:
    x, y = gg.ones(2), gg.ones(2)
    names = {x: "x", y: "y"}
    assert names[x] == "x"
    assert len({x, y, x}) == 2
    assert (x == y).tolist() == [True, True]


# NumPy


def test_numpy_shares_memory() -> None:
    x = gg.zeros(3)
    x.numpy()[0] = 1.0
    assert x.tolist() == [1.0, 0.0, 0.0]
    assert np.asarray(x).dtype == np.float32
    assert np.asarray(x, dtype=np.float64).dtype == np.float64
    assert np.array(x, copy=True) is not x.data
    np.testing.assert_array_equal(np.asarray(x), [1.0, 0.0, 0.0])


def test_a_tensor_that_requires_grad_does_not_silently_leave() -> None:
    x = leaf([1.0])
    with pytest.raises(RuntimeError, match="detach"):
        np.asarray(x)
    with gg.no_grad():
        assert np.asarray(x).tolist() == [1.0]
    assert x.detach().numpy().tolist() == x.numpy().tolist() == [1.0]


def test_numpy_arrays_on_the_left_give_tensors() -> None:
    x = leaf([1.0, 2.0])
    array = np.array([3.0, 4.0])
    for out in (
        array * x,
        array + x,
        array - x,
        array / x,
        np.float64(2.0) * x,
        np.multiply(array, x),
    ):
        assert isinstance(out, gg.Tensor)
        assert out.requires_grad
    (array @ x).backward()
    assert x.grad.tolist() == [3.0, 4.0]
    assert (np.array([1.0, 5.0]) < x).tolist() == [False, False]


def test_numpy_functions_that_are_not_operations_are_refused() -> None:
    with pytest.raises(TypeError):
        np.spacing(gg.ones(2))
    with pytest.raises(TypeError):
        np.add.reduce(gg.ones(2))
    with pytest.raises(TypeError):
        np.add(gg.ones(2), 1.0, out=np.zeros(2))


def test_array_api_namespace() -> None:
    xp = gg.ones(2).__array_namespace__()
    assert xp.sum(xp.exp(gg.zeros(3))).item() == 3.0
    assert not hasattr(gg.ones(2), "__cuda_array_interface__")


# dtypes and devices


def test_to() -> None:
    x = gg.ones(2)
    assert x.to("cpu") is x
    assert x.cpu() is x
    assert x.to(gg.float32) is x
    assert x.to("float64").dtype == x.to(dtype=gg.float64).dtype == gg.float64
    assert x.to(gg.zeros(1, dtype=gg.float16)).dtype == gg.float16
    assert x.to(device="cpu", dtype=gg.int32).dtype == gg.int32
    assert x.astype(gg.float32) is x
    assert x.astype(gg.float32, copy=True) is not x
    assert x.to("cpu", gg.float64).dtype == x.to(None, "float64").dtype == gg.float64
    with pytest.raises(TypeError, match="not supported"):
        x.to("gpu")


@pytest.mark.parametrize(
    ("given", "named", "message"),
    [
        ((gg.float64, "cpu"), {}, r"dtype\('float64'\) is no device, 'cpu' a second dtype"),
        ((gg.float64,), {"dtype": gg.float16}, "a second dtype"),
        (("cpu",), {"device": "cuda"}, "device is given twice, 'cpu' and 'cuda'"),
        (("cpu", "cuda"), {}, "dtype 'cuda' is not supported"),
        ((gg.zeros(1), gg.float64), {}, "a tensor stands for device and dtype"),
    ],
)
def test_to_refuses(given: tuple, named: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        gg.ones(2).to(*given, **named)


def test_casts_are_recorded() -> None:
    x = leaf([1.0, 2.0], gg.float32)
    (x.to(gg.float64) * 3.0).sum().backward()
    assert x.grad.dtype == gg.float32
    assert x.grad.tolist() == [3.0, 3.0]


@pytest.mark.gpu
def test_gpu_and_back() -> None:
    x = leaf([1.0, 2.0])
    assert x.device == "cuda:0"
    assert x.to("cuda") is x
    assert x.cpu().device == "cpu"
    (x.cpu() * 2.0).sum().backward()
    assert x.grad.device == "cuda:0"
    assert "device='cuda:0'" in repr(x)
    assert x.__cuda_array_interface__["shape"] == (2,)
    assert (x + x).cpu().tolist() == [2.0, 4.0]


# Leaves, gradients, copies


def test_requires_grad_can_be_switched_on_leaves_only() -> None:
    x = gg.ones(2)
    x.requires_grad = True
    y = x * 2.0
    y.requires_grad = True  # it does already
    with pytest.raises(RuntimeError, match=r"requires_grad of a computed tensor.*detach"):
        y.requires_grad = False
    assert x.requires_grad_(False) is x
    assert gg.ones(2).requires_grad_().requires_grad
    assert not (x * 2.0).requires_grad
    with pytest.raises(TypeError, match=r"dtype int64 has no gradient.*astype"):
        gg.tensor([1]).requires_grad = True


def test_grad_is_checked() -> None:
    x = leaf([1.0, 2.0])
    x.grad = gg.ones(2, dtype=gg.float64)
    x.sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]
    x.grad = None
    for bad, error in (
        (np.ones(2), TypeError),
        (gg.ones(2), ValueError),
        (gg.ones(3, dtype=gg.float64), ValueError),
    ):
        with pytest.raises(error, match=r"\.grad"):
            x.grad = bad


def test_detach_shares_memory_but_not_the_graph() -> None:
    x = leaf([1.0])
    y = (x * 2.0).detach()
    assert y.is_leaf
    assert not y.requires_grad
    assert np.shares_memory(x.detach().data, x.data)


def test_data_can_be_replaced_on_leaves() -> None:
    x = leaf([1.0])
    x.data = gg.tensor([5.0, 6.0], gg.float64)
    assert x.tolist() == [5.0, 6.0]
    with pytest.raises(RuntimeError, match=r"\.data of a computed tensor"):
        (x * 1.0).data = np.ones(2)
    with pytest.raises(TypeError, match="must be floating"):
        x.data = np.array([1, 2])


def test_copies() -> None:
    x = leaf([1.0, 2.0])
    x.sum().backward()
    deep, shallow = copy.deepcopy(x), copy.copy(x)
    deep.data[0] = 9.0
    deep.grad.data[0] = 9.0
    assert x.tolist() == [1.0, 2.0]
    assert x.grad.tolist() == [1.0, 1.0]
    assert deep.requires_grad
    assert shallow.data is x.data
    assert shallow.grad is None
    pair = copy.deepcopy([x, x])
    assert pair[0] is pair[1]
    with pytest.raises(RuntimeError, match="only leaf tensors can be deep-copied"):
        copy.deepcopy(x * 2.0)
    assert (x.clone() * 2.0).requires_grad


def test_new_attributes_are_refused() -> None:
    with pytest.raises(AttributeError):
        gg.ones(2).gradient = 1.0


# Changing in place


def test_in_place_operators_keep_the_array_and_dtype() -> None:
    x = gg.tensor([4.0, 9.0])
    array = x.data
    x += 1
    x -= gg.ones(2)
    x *= np.array([2.0, 2.0])
    x /= 2
    x **= 0.5
    x //= 1
    x %= 3
    assert x.tolist() == [2.0, 0.0]
    assert x.data is array
    x += np.float64(0.5)
    assert x.dtype == gg.float32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int64"])
def test_in_place_on_every_dtype(dtype: str) -> None:
    x = gg.ones(2, dtype=dtype)
    x += 2
    x *= gg.tensor([2, 3], dtype=dtype)
    x[0] = 1
    assert x.tolist() == [1, 9]
    assert x.dtype == getattr(gg, dtype)


def test_filling() -> None:
    x = gg.ones(2, 2)
    assert x.fill_(3.0) is x
    assert x.copy_([1.0, 2.0]).tolist() == [[1.0, 2.0], [1.0, 2.0]]
    assert x.zero_().tolist() == [[0.0, 0.0], [0.0, 0.0]]
    x[gg.tensor([True, False])] = 5
    x[:, gg.tensor([0])] = gg.tensor([[7.0], [8.0]])
    assert x.tolist() == [[7.0, 5.0], [8.0, 0.0]]


# Methods


METHODS = [op for op in OPS.values() if op.method and op.arguments == ("x",) and op.samples]


@pytest.mark.parametrize("op", METHODS, ids=lambda op: op.name)
def test_every_method_is_the_function_of_its_name(op: Any) -> None:
    sample = op.samples[0]
    (array,) = sample.draw(np.random.default_rng(0))
    x = gg.tensor(array > 0 if op.name.startswith("bitwise") else array)
    expected = getattr(gg.ops, op.name)(x, **sample.statics)
    np.testing.assert_array_equal(getattr(x, op.name)(**sample.statics).numpy(), expected.numpy())


def test_transpose_of_two_axes_exchanges_them() -> None:
    x = gg.zeros(2, 3)
    assert x.transpose(0, 1).shape == x.transpose(1, 0).shape == x.transpose(-2, -1).shape == (3, 2)
    assert x.transpose((0, 1)).shape == (2, 3)
    assert x.transpose().shape == x.transpose([1, 0]).shape == (3, 2)


@pytest.mark.parametrize(
    "name",
    ["abs", "absolute", "arccos", "arctan2", "matmul", "invert", "pow", "true_divide", "mod"],
)
def test_numpy_functions_under_any_of_their_names(name: str) -> None:
    arrays = [np.array([0.5, 0.25]), np.array([0.75, 1.0])][: getattr(np, name).nin]
    if name == "invert":
        arrays = [np.array([True, False])]
    expected = getattr(np, name)(*arrays)
    for position in range(len(arrays)):
        mixed = [gg.tensor(a) if i == position else a for i, a in enumerate(arrays)]
        out = getattr(np, name)(*mixed)
        assert isinstance(out, gg.Tensor)
        np.testing.assert_allclose(out.numpy(), expected, rtol=1e-15)


def test_methods_people_know_from_numpy_and_torch() -> None:
    x = leaf(np.arange(6.0).reshape(2, 3))
    assert x.sum(0).shape == x.mean(axis=0).shape == (3,)
    assert x.max(1).tolist() == [2.0, 5.0]
    assert x.argmax().item() == 5
    assert x.view(3, 2).shape == x.reshape((3, 2)).shape == (3, 2)
    assert x.transpose(0, 1).shape == x.permute(1, 0).shape == x.T.shape == (3, 2)
    assert x.permute((1, 0)).shape == (3, 2)
    assert x[0].permute(0).shape == (3,)
    assert x.unsqueeze(0).squeeze(0).shape == (2, 3)
    assert x.clamp(1.0, 2.0).tolist() == [[1.0, 1.0, 2.0], [2.0, 2.0, 2.0]]
    assert x.cumsum(1).tolist() == [[0.0, 1.0, 3.0], [3.0, 7.0, 12.0]]
    assert x.flatten().norm().item() == pytest.approx(math.sqrt(55))
    assert (x @ x.T).shape == x.dot(x.mT).shape == (2, 2)
    assert x.take([1], axis=1).tolist() == [[1.0], [4.0]]
    assert (-x).abs().tolist() == x.tolist()
    assert (+x).tolist() == abs(-x).tolist() == x.tolist()
