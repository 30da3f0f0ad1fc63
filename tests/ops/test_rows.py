"""Every row of the registry, with each of its samples: derivatives, dtypes, memory layouts."""

from __future__ import annotations

import itertools
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backend
from gpugrad.registry import OPS
from gpugrad.testing import gradcheck, gradgradcheck, layouts

NARROW = (backend.float16, backend.bfloat16, backend.float32)
STEPS = ("sign", "floor", "ceil", "trunc", "round", "floor_divide")  # derivative zero


def upstream(out: gg.Tensor, seed: int = 1) -> gg.Tensor:
    values = np.random.default_rng(seed).standard_normal(out.shape)
    return gg.tensor(values.astype(out.dtype))


def gradients(row: Any, tensors: list[Any], create_graph: bool = False) -> list[np.ndarray]:
    out = row(*tensors)
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    if not out.requires_grad:
        return []
    return [g.numpy() for g in gg.grad(out, wanted, upstream(out), create_graph)]


def test_every_differentiable_row_has_samples() -> None:
    unsampled = [op.name for op in OPS.values() if op.rules and not op.samples]
    assert unsampled == ["to_device"]  # needs two devices: test_gpu.py


def test_gradient_equals_finite_differences(smooth: Any) -> None:
    gradcheck(smooth, smooth.tensors(smooth.arrays()))


def test_second_derivative_equals_finite_differences(smooth: Any) -> None:
    gradgradcheck(smooth, smooth.tensors(smooth.arrays(seed=2)))


def test_recorded_gradient_is_the_same(smooth: Any) -> None:
    tensors = smooth.tensors(smooth.arrays(seed=3))
    plain = gradients(smooth, tensors)
    recorded = gradients(smooth, tensors, create_graph=True)
    assert len(plain) == len(recorded) > 0
    for a, b in zip(plain, recorded, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-15)


def test_gradient_has_the_shape_of_its_argument(smooth: Any) -> None:
    tensors = smooth.tensors(smooth.arrays())
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    assert [g.shape for g in gradients(smooth, tensors)] == [t.shape for t in wanted]


def test_one_argument_at_a_time_gives_the_same_gradient(smooth: Any) -> None:
    tensors = smooth.tensors(smooth.arrays())
    together = iter(gradients(smooth, tensors))
    for i, t in enumerate(tensors):
        if t is None or not t.requires_grad:
            continue
        alone = [x.detach() if isinstance(x, gg.Tensor) else x for x in tensors]
        alone[i] = t
        np.testing.assert_array_equal(gradients(smooth, alone)[0], next(together))


def test_nothing_is_written_to(smooth: Any) -> None:
    tensors = smooth.tensors(smooth.arrays())
    for t in tensors:
        if t is not None:
            t.data.flags.writeable = False
    out = smooth(*tensors)
    g = upstream(out)
    g.data.flags.writeable = False
    out.data.flags.writeable = False
    for create_graph in (True, False):
        wanted = [t for t in tensors if t is not None and t.requires_grad]
        gg.grad(out, wanted, g, create_graph)


@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided"])
def test_layout_in_memory_changes_nothing(smooth: Any, layout: str) -> None:
    arrays = smooth.arrays()
    plain = smooth.tensors(arrays)
    moved = []
    for t, a in zip(plain, arrays, strict=True):
        if t is not None and t.requires_grad and t.ndim:
            t = gg.Tensor(dict(layouts(a))[layout], requires_grad=True)
        moved.append(t)
    np.testing.assert_allclose(
        smooth(*moved).detach().numpy(), smooth(*plain).detach().numpy(), rtol=1e-13
    )
    for a, b in zip(gradients(smooth, moved), gradients(smooth, plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", NARROW, ids=lambda dtype: dtype.name)
def test_dtype_is_kept_and_values_are_right(smooth: Any, dtype: np.dtype) -> None:
    tensors = smooth.tensors(smooth.arrays(), dtype)
    wide = [
        t if t is None or not t.requires_grad else gg.tensor(t.numpy(), gg.float64).requires_grad_()
        for t in tensors
    ]
    out, exact = smooth(*tensors), smooth(*wide)
    assert out.dtype == smooth.sample.statics.get("dtype", dtype)
    assert out.shape == exact.shape
    unit = float(ml_dtypes.finfo(dtype).eps)
    close(out.detach().numpy(), exact.detach().numpy(), 4 * unit)
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    g = upstream(out)
    narrow = gg.grad(out, wanted, g)
    assert [n.dtype for n in narrow] == [dtype] * len(narrow)
    full = gg.grad(
        exact, [w for w in wide if w is not None and w.requires_grad], g.astype(gg.float64)
    )
    for a, b in zip(narrow, full, strict=True):
        close(a.numpy(), b.numpy(), 16 * unit)


def close(actual: np.ndarray, exact: np.ndarray, unit: float) -> None:
    """Assert agreement to ``unit`` of the largest value."""
    largest = max(1.0, float(np.abs(exact).max(initial=0.0)))
    np.testing.assert_allclose(actual.astype(np.float64), exact, rtol=0, atol=unit * largest)


def test_recorded_gradient_keeps_narrow_dtypes(smooth: Any) -> None:
    for dtype in NARROW:
        tensors = smooth.tensors(smooth.arrays(), dtype)
        wanted = [t for t in tensors if t is not None and t.requires_grad]
        out = smooth(*tensors)
        grads = gg.grad(out, wanted, upstream(out), create_graph=True)
        assert {g.dtype for g in grads} == {dtype}


def test_integers(row: Any) -> None:
    rng = np.random.default_rng(0)
    drawn = [
        a if a is None or a.dtype.kind != "f" else rng.choice(integers_in(domain), a.shape)
        for a, domain in zip(row.arrays(), row.sample.domains, strict=True)
    ]
    integers = [a if a is None else gg.tensor(a) for a in drawn]
    out = row(*integers)
    assert not out.requires_grad
    if row.op.name.startswith("bitwise"):
        return  # not defined for floats to compare with: test_elementwise.py
    wide = [t if t is None or t.dtype == gg.bool else t.astype(gg.float64) for t in integers]
    expected = row(*wide).numpy()
    if "dtype" in row.sample.statics:
        assert out.dtype == row.sample.statics["dtype"]
    elif row.op.floats_only:
        assert out.dtype == backend.float32
    else:
        assert out.dtype == (backend.int64 if row.op.rules else backend.bool_)
        expected = np.trunc(expected)  # pad's value, as NumPy's
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_which_rows_make_floats_of_integers() -> None:
    exact = """negative positive abs sign floor ceil trunc round square relu isnan isinf isfinite
        logical_not bitwise_invert add subtract multiply power maximum minimum remainder fmod
        floor_divide equal not_equal less less_equal greater greater_equal logical_and logical_or
        logical_xor bitwise_and bitwise_or bitwise_xor where clip copy reshape permute_dims
        broadcast_to flip roll tril triu pad getitem getitem_view scatter put argsort argtopk
        repeat_each nonzero sum prod max min any all argmax argmin count_nonzero cumulative_sum
        cumulative_prod matmul linear astype to_device"""
    assert {op.name for op in OPS.values() if not op.floats_only} == set(exact.split())


def integers_in(domain: tuple[float, float]) -> list[int]:
    low, high = domain
    return [n for n in (0, 1, 2, 3) if low <= n <= high] or [1, 2, 3]


@pytest.mark.parametrize("shape", [(0,), (3, 0), (1,), (17,), (1023,)], ids=str)
@pytest.mark.parametrize(
    "name", [o.name for o in OPS.values() if o.rules and o.arguments == ("x",) and not o.statics]
)
def test_unary_rows_at_awkward_lengths(name: str, shape: tuple[int, ...]) -> None:
    op = OPS[name]
    low, high = op.samples[0].domains[0]
    x = gg.tensor(np.random.default_rng(5).uniform(low, high, shape), requires_grad=True)
    gradcheck(op.function, x)


@pytest.mark.parametrize(
    "shapes", [((0,), (0,)), ((0, 3), (3,)), ((1023,), (1,)), ((1,), (2, 0))], ids=str
)
@pytest.mark.parametrize(
    "name", [o.name for o in OPS.values() if o.rules and o.broadcasts and o.arguments == ("x", "y")]
)
def test_binary_rows_at_awkward_lengths(name: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    op = OPS[name]
    if name == "matmul":
        shapes = tuple((*shape, 1, 1) for shape in shapes)
    rng = np.random.default_rng(6)
    sample = op.samples[0]
    x, y = (
        gg.tensor(rng.uniform(low, high, shape), requires_grad=True)
        for (low, high), shape in zip(sample.domains, shapes, strict=True)
    )
    gradcheck(op.function, [x, y])
    out = op.function(x, y)
    assert out.shape == np.broadcast_shapes(*shapes)


def with_axis() -> list[str]:
    return [op.name for op in OPS.values() if "axis" in op.statics]


@pytest.mark.parametrize(("name", "axis"), list(itertools.product(with_axis(), (-1, -2, -3))))
def test_negative_axis_counts_from_the_end(name: str, axis: int) -> None:
    op = OPS[name]
    values = np.random.default_rng(7).uniform(0.5, 2.0, (2, 3, 4))
    statics = {"shift": 1} if name == "roll" else {}
    results = []
    for a in (axis, axis + 3):
        x = gg.tensor(values, requires_grad=True)
        out = op.function(x, axis=a, **statics)
        g = gg.grad(out, [x], upstream(out))[0].numpy() if op.rules else None
        results.append((out.detach().numpy(), g))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    if op.rules:
        np.testing.assert_array_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("axis", [3, -4, (0, 5)], ids=str)
@pytest.mark.parametrize("name", with_axis())
def test_an_axis_out_of_range_is_refused_by_name(name: str, axis: Any) -> None:
    x = gg.ones(2, 3, 4)
    with pytest.raises((IndexError, ValueError, TypeError), match=name):
        OPS[name].function(x, axis=axis)


def test_steps_have_gradient_zero() -> None:
    for name in STEPS:
        arguments = [gg.tensor([0.5, -1.5, 0.0], requires_grad=True) for _ in OPS[name].arguments]
        arguments[1:] = [gg.tensor([2.0, 3.0, 1.0], requires_grad=True)] * len(arguments[1:])
        for g in gg.grad(OPS[name].function(*arguments).sum(), arguments):
            assert g.tolist() == [0.0, 0.0, 0.0]
            assert not math.copysign(1, g.numpy().min()) < 0
