"""NumPy and CuPy give the same: every row, its gradients, and the errors of mixing devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backend
from gpugrad.ops.indexing import _for_cupy, _summable, _without_front
from gpugrad.registry import OPS

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def moved(row: Any, arrays: list[Any], device: str) -> list[Any]:
    return [
        a
        if a is None
        else gg.tensor(a, device=device, requires_grad=name in row.op.rules and a.dtype.kind == "f")
        for name, a in zip(row.op.arguments, arrays, strict=True)
    ]


@pytest.mark.parametrize("device", DEVICES)
def test_result_and_gradients_equal_those_of_numpy(row: Any, device: str) -> None:
    arrays = row.arrays(seed=8)
    if row.op.name.startswith("bitwise"):
        arrays = [np.abs(a * 10).astype(np.int64) for a in arrays]
    here, there = moved(row, arrays, "cpu"), moved(row, arrays, device)
    expected, out = row(*here), row(*there)
    assert backend.is_device(out.device)
    assert out.device.partition(":")[0] == device
    assert (out.shape, out.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(
        out.detach().numpy(), expected.detach().numpy(), rtol=1e-12, atol=1e-13
    )
    if not expected.requires_grad:
        return
    g = np.random.default_rng(9).standard_normal(out.shape)
    for create_graph in (False, True):
        pulled = [
            gg.grad(
                result,
                [t for t in tensors if t is not None and t.requires_grad],
                gg.tensor(g, device=where),
                create_graph,
                retain_graph=True,
            )
            for result, tensors, where in ((expected, here, "cpu"), (out, there, device))
        ]
        for a, b in zip(*pulled, strict=True):
            assert b.device == out.device
            np.testing.assert_allclose(
                b.detach().numpy(), a.detach().numpy(), rtol=1e-12, atol=1e-13
            )


@pytest.mark.gpu
def test_second_derivatives_equal_those_of_numpy(smooth: Any) -> None:
    found = []
    for device in ("cpu", "cuda"):
        tensors = moved(smooth, smooth.arrays(seed=8), device)
        wanted = [t for t in tensors if t is not None and t.requires_grad]
        out = smooth(*tensors)
        first = gg.grad((out * out).sum(), wanted, create_graph=True)
        total = sum((g * g).sum() for g in first)
        second = gg.grad(total, wanted) if total.requires_grad else []
        found.append([g.detach().numpy() for g in (*first, *second)])
    for expected, there in zip(*found, strict=True):
        np.testing.assert_allclose(there, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_dtype_is_kept(smooth: Any, dtype: str) -> None:
    tensors = [
        t
        if t is None
        else t.cuda().astype(dtype).detach().requires_grad_()
        if t.dtype.kind == "f"
        else t.cuda()
        for t in smooth.tensors(smooth.arrays())
    ]
    out = smooth(*tensors)
    assert out.dtype == smooth.sample.statics.get("dtype", backend.as_dtype(dtype))
    out.sum().backward()
    for t in tensors:
        if t is not None and t.grad is not None:
            assert t.grad.dtype == t.dtype


@pytest.mark.gpu
def test_gradient_crosses_devices() -> None:
    x = gg.tensor([1.0, 2.0], device="cpu", requires_grad=True)
    y = (x.cuda() * 3.0).cpu().sum()
    y.backward()
    assert x.grad.device == "cpu"
    assert x.grad.tolist() == [3.0, 3.0]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["add", "matmul", "where", "concat"])
def test_two_devices_are_refused(name: str) -> None:
    x, y = gg.ones(2, 2, device="cpu"), gg.ones(2, 2, device="cuda")
    call = {
        "concat": lambda: gg.concat([x, y]),
        "where": lambda: gg.where(x > 0, x, y),
    }.get(name, lambda: OPS[name].function(x, y))
    with pytest.raises(ValueError, match=rf"{name}: .* is on cpu\b.* on cuda:0"):
        call()


def test_subclasses_of_arrays_are_on_the_cpu_too(tmp_path: Any) -> None:
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(3,))
    with pytest.raises(ValueError, match=r"in-place add: .*x: float32\[2\], y: float32\[3\]"):
        gg.zeros(2, device="cpu").__iadd__(mapped)


MASK, PLACES = np.array([True, False, True]), np.array([0, 3])
BESIDE = {  # what CuPy itself takes in no index
    "mask-and-places": (MASK, PLACES),
    "two-masks": (MASK, np.array([True, False, False, True])),
    "integer-and-places": (np.int64(1), PLACES),
    "mask-of-two-axes-and-places": (np.arange(12).reshape(3, 4) % 5 > 2, np.array([0, 2, 2, 1])),
    "places-slice-mask": (PLACES // 2, slice(None), np.array([False, True, True])),
}


@pytest.mark.parametrize("index", BESIDE.values(), ids=BESIDE)
def test_an_index_for_cupy_means_the_same(index: tuple) -> None:
    x = np.arange(36.0).reshape(3, 4, 3)
    found = _for_cupy(index)
    np.testing.assert_array_equal(x[found], x[index])
    assert not any(isinstance(p, np.integer) for p in found)
    assert {p.dtype.kind for p in found if isinstance(p, np.ndarray)} == {"i"}


def test_a_mask_alone_stays_one_for_cupy() -> None:
    for index in ((MASK,), (MASK, 1), (Ellipsis, MASK), (slice(0, 2), MASK)):
        found = _for_cupy(index)
        assert len(found) == len(index)
        assert any(p is MASK for p in found)


@pytest.mark.parametrize("dtype", [d.name for d in backend.DTYPES])
def test_cupy_adds_at_indices_in_dtypes_that_it_knows(dtype: str) -> None:
    """Those of ``cupyx.scatter_add``; the sums, cast back, are those of numpy.add.at."""
    wide = _summable(np.dtype(dtype), object())
    assert wide.name in ("int32", "uint64", "float16", "float32", "float64")
    value = np.array([-3, 200, 1, 7]).astype(dtype)
    expected, found = np.zeros(2, dtype), np.zeros(2, wide)
    for out, x in ((expected, value), (found, value.astype(wide))):
        np.add.at(out, [0, 1, 0, 0], x)
    if dtype != "bfloat16":
        np.testing.assert_array_equal(found.astype(dtype), expected)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 4), (3, 1, 4), (1, 0), (1, 3, 1)])
def test_axes_of_one_element_in_front_are_dropped_for_cupy(shape: tuple) -> None:
    found = _without_front(np.ones(shape))
    assert found.ndim == 0 or found.shape[0] != 1
    assert np.broadcast_shapes(found.shape, shape) == shape


@pytest.mark.gpu
@pytest.mark.parametrize("index", BESIDE.values(), ids=BESIDE)
def test_indices_beside_each_other(index: tuple) -> None:
    data = np.arange(36.0).reshape(3, 4, 3)
    there = tuple(gg.tensor(p) if isinstance(p, np.ndarray) else p for p in index)
    for given in (index, there):
        x = gg.tensor(data, requires_grad=True)
        out = x[given]
        np.testing.assert_array_equal(out.detach().numpy(), data[index])
        out.sum().backward()
        expected = np.zeros_like(data)
        np.add.at(expected, index, 1.0)
        np.testing.assert_array_equal(x.grad.numpy(), expected)
        changed, plain = gg.tensor(data), data.copy()
        changed[given], plain[index] = 7.0, 7.0
        np.testing.assert_array_equal(changed.numpy(), plain)


@pytest.mark.gpu
def test_indices_out_of_range_change_nothing() -> None:
    x = gg.zeros(3)
    for index in (gg.tensor([0, 3]), np.array([-4]), gg.tensor([True, False])):
        with pytest.raises(IndexError, match=r"setitem: .*(out of range|does not fit)"):
            x[index] = 1.0
        with pytest.raises(IndexError, match=r"getitem: .*(out of range|does not fit)"):
            x[index]
    for change in (gg.index_add, gg.put):
        with pytest.raises(IndexError, match="index 3 is out of range for axis 0 of length 3"):
            change(x, gg.tensor([3]), gg.ones(1))
    assert x.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.gpu
@pytest.mark.parametrize("value", [[1.0, 2.0], np.array([1.0, 2.0]), np.ones((1, 1, 2)), 3])
def test_what_is_assigned_comes_from_anywhere(value: Any) -> None:
    x, plain = gg.zeros(2, 2), np.zeros((2, 2), np.float32)
    x[1], plain[1] = value, value
    np.testing.assert_array_equal(x.numpy(), plain)


@pytest.mark.gpu
def test_in_place_across_devices() -> None:
    here, there = gg.ones(2, device="cpu"), gg.zeros(2)
    there += [1.0, 2.0]
    assert there.tolist() == [1.0, 2.0]
    assert gg.zeros(2).copy_(here).tolist() == [1.0, 1.0]
    assert gg.zeros(2, device="cpu").copy_(there).tolist() == [1.0, 2.0]
    for x, y in ((here, there), (there, here), (there, here.numpy())):
        with pytest.raises(ValueError, match=r"in-place add: 'x' is on .* but 'y' is on"):
            x += y
    for x, y in ((here, there), (there, here)):
        with pytest.raises(ValueError, match=r"setitem: 'x' is on .* but 'value' is on .*move one"):
            x[...] = y


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "int64", "uint64"])
def test_integers_are_added_at_indices(dtype: str) -> None:
    value = np.array([1, 1, 3]).astype(dtype)
    x = gg.index_add(gg.zeros(4, dtype=dtype), gg.tensor([0, 0, 2]), gg.tensor(value))
    expected = np.zeros(4, dtype)
    np.add.at(expected, [0, 0, 2], value)
    assert x.dtype == dtype
    np.testing.assert_array_equal(x.numpy(), expected)
    np.testing.assert_array_equal(gg.diag(gg.tensor(value)).numpy(), np.diag(value))
