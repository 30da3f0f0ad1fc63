"""NumPy and CuPy give the same: every row, its gradients, and the errors of mixing devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backend
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
    with pytest.raises(ValueError, match=f"{name}: .* is on cpu .* on cuda:0"):
        call()
