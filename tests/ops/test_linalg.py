"""Matrix products of every form against NumPy, their gradients, and shapes that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.testing import gradcheck, gradgradcheck, layouts

rng = np.random.default_rng(0)


def leaf(*shape: int) -> gg.Tensor:
    return gg.tensor(rng.uniform(-2, 2, shape), requires_grad=True)


MATMUL = [
    ((3, 4), (4, 2)),
    ((4,), (4,)),
    ((4,), (4, 2)),
    ((3, 4), (4,)),
    ((2, 3, 4), (4,)),
    ((4,), (2, 4, 3)),
    ((2, 3, 4), (4, 5)),
    ((5, 1, 3, 4), (2, 4, 2)),
    ((3, 4), (5, 4, 2)),
    ((1, 1), (1, 1)),
    ((0, 4), (4, 2)),
    ((3, 0), (0, 2)),
    ((2, 0, 4), (4, 3)),
    ((0, 2, 3), (3, 2)),
    ((2, 3, 0), (0, 4)),
]


@pytest.mark.parametrize(("a", "b"), MATMUL, ids=str)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    x, y = leaf(*a), leaf(*b)
    expected = x.detach().numpy() @ y.detach().numpy()
    for out in (x @ y, gg.matmul(x, y), x.matmul(y)):
        assert out.shape == expected.shape
        np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-13, atol=1e-14)
    gradcheck(gg.matmul, [x, y])
    gradgradcheck(gg.matmul, [x, y])


def test_matmul_with_arrays() -> None:
    x, a = leaf(3, 4), np.ones((4, 2))
    np.testing.assert_allclose((x @ a).detach().numpy(), x.detach().numpy() @ a)
    np.testing.assert_allclose((a.T @ x.T).detach().numpy(), (x.detach().numpy() @ a).T)


@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided"])
def test_matmul_of_any_layout(layout: str) -> None:
    a, b = rng.standard_normal((2, 3, 4)), rng.standard_normal((4, 5))
    x = gg.Tensor(dict(layouts(a))[layout], requires_grad=True)
    y = gg.Tensor(dict(layouts(b))[layout], requires_grad=True)
    np.testing.assert_allclose((x @ y).detach().numpy(), a @ b, rtol=1e-13)
    gradcheck(gg.matmul, [x, y])


@pytest.mark.parametrize("dtype", [gg.float16, gg.bfloat16], ids=lambda dtype: dtype.name)
def test_narrow_products_accumulate_in_float32(dtype: Any) -> None:
    x = gg.tensor(np.full((2, 4096), 0.25), dtype, requires_grad=True)
    y = gg.tensor(np.full((4096, 3), 0.25), dtype, requires_grad=True)
    out = x @ y
    assert out.dtype == dtype
    assert (out.detach().astype(gg.float32).numpy() == 256.0).all()
    out.sum().backward()
    assert x.grad.dtype == y.grad.dtype == dtype


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((3, 4), (5, 2), r"matmul: x \(3, 4\) and y \(5, 2\) do not fit.* 4 long.* 5"),
        ((4,), (5,), r"matmul: x \(4,\) and y \(5,\)"),
        ((), (3,), "matmul: needs at least one dimension"),
        ((2, 3, 4), (3, 4, 2), r"matmul: .*x: float64\[2, 3, 4\], y: float64\[3, 4, 2\]"),
    ],
)
def test_matmul_refuses(a: tuple[int, ...], b: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        leaf(*a) @ leaf(*b)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4), (2, 0, 4)], ids=str)
def test_linear(shape: tuple[int, ...], bias: bool) -> None:
    linear = gg.ops.linear
    x, weight = leaf(*shape), leaf(5, 4)
    b = leaf(5) if bias else None
    expected = x.detach().numpy() @ weight.detach().numpy().T
    out = linear(x, weight, b)
    np.testing.assert_allclose(
        out.detach().numpy(), expected + b.detach().numpy() if bias else expected, rtol=1e-13
    )
    gradcheck(lambda x, w, *b: linear(x, w, *b or (None,)), [x, weight, *[b] * bias])
    gradgradcheck(lambda x, w, *b: linear(x, w, *b or (None,)), [x, weight, *[b] * bias])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(127,), (1, 1, 127), (3, 5, 127), (40, 127), (0, 127)], ids=str)
def test_linear_has_the_same_bits_without_a_gradient(
    shape: tuple[int, ...], bias: bool, dtype: str
) -> None:
    x, weight, b = (leaf(*s).detach().astype(dtype) for s in (shape, (63, 127), (63,)))
    weight.requires_grad = True
    recorded = gg.ops.linear(x, weight, b if bias else None)
    with gg.no_grad():
        found = gg.ops.linear(x, weight, b if bias else None)
    assert recorded.requires_grad
    assert not found.requires_grad
    assert found.dtype == recorded.dtype
    assert found.shape == recorded.shape
    assert found.numpy().tobytes() == recorded.detach().numpy().tobytes()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3, 4), (5, 3)), r"linear: input \(3, 4\) and weight \(5, 3\) do not fit"),
        (((3, 4), (4,)), r"linear: input \(3, 4\) and weight \(4,\) do not fit"),
        (((4,), (2, 5, 4)), "linear: input .* do not fit"),
        (((), (5, 4)), "linear: input .* do not fit"),
        (((3, 4), (5, 4), (4,)), r"linear: bias \(4,\) and weight \(5, 4\) do not fit.*\(5,\)"),
    ],
)
def test_linear_refuses(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gg.ops.linear(*(leaf(*shape) for shape in shapes))


EINSUM = [
    ("ij,jk->ik", (3, 4), (4, 2)),
    ("ij,jk", (3, 4), (4, 2)),
    ("ij,kj->ki", (3, 4), (2, 4)),
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 2)),
    ("bhtd,bhsd->bhts", (2, 2, 3, 4), (2, 2, 5, 4)),
    ("i,i->", (4,), (4,)),
    ("i,j->ij", (3,), (4,)),
    ("i,j->ji", (3,), (4,)),
    ("ij->ji", (3, 4)),
    ("ij->", (3, 4)),
    ("ij->j", (3, 4)),
    ("ii->i", (3, 3)),
    ("ii->", (3, 3)),
    ("ii", (3, 3)),
    ("iij->j", (3, 3, 2)),
    ("iii->i", (2, 2, 2)),
    ("jii->ij", (2, 3, 3)),
    ("jiik,ij->k", (2, 3, 3, 2), (3, 2)),
    ("ii,ij->j", (3, 3), (3, 2)),
    ("ij,ij->ij", (3, 4), (3, 4)),
    ("ij,i->ij", (3, 4), (3,)),
    ("ij,jk,kl->il", (2, 3), (3, 4), (4, 2)),
    ("ij,jk,ki->", (2, 3), (3, 4), (4, 2)),
    ("ij,k->i", (3, 4), (2,)),
    ("...ij,...jk->...ik", (2, 3, 4), (2, 4, 2)),
    ("...ij,jk->...ik", (5, 2, 3, 4), (4, 2)),
    ("...i,...i->...", (3, 4), (4,)),
    ("i...->...i", (3, 4, 2)),
    ("...,...", (3, 1), (1, 4)),
    ("bij,bjk->bik", (1, 3, 4), (5, 4, 2)),
    ("ij,jk->ik", (3, 1), (4, 2)),
    ("ij,ij,ij->ij", (3, 1), (1, 1), (1, 4)),
    ("ab,b->a", (3, 1), (4,)),
    ("i j , j k -> i k", (3, 4), (4, 2)),
    ("ij,jk->ik", (0, 4), (4, 2)),
    ("ij,jk->ik", (3, 0), (0, 2)),
    ("AB,Bc->Ac", (3, 4), (4, 2)),
]


@pytest.mark.parametrize("case", EINSUM, ids=lambda case: f"{case[0]} {case[1:]}")
def test_einsum(case: tuple[Any, ...]) -> None:
    subscripts, *shapes = case
    operands = [leaf(*shape) for shape in shapes]
    expected = np.einsum(subscripts, *(x.detach().numpy() for x in operands))
    out = gg.einsum(subscripts, *operands)
    assert out.shape == expected.shape
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-12, atol=1e-13)
    gradcheck(lambda *xs: gg.einsum(subscripts, *xs), operands)


def test_einsum_second_order() -> None:
    gradgradcheck(lambda x, y: gg.einsum("ij,jk->ki", x, y), [leaf(3, 2), leaf(2, 3)])
    gradgradcheck(lambda x: gg.einsum("ii,ij->j", x, x), [leaf(3, 3)])


@pytest.mark.parametrize(
    ("subscripts", "shapes", "message"),
    [
        ("ij,jk->ik", ((3, 4), (5, 2)), "'j' is 4 and 5 long"),
        ("ii->i", ((1, 3),), r"'i' is 1 and 3 long in one operand of 'ii->i'.*\(1, 3\)"),
        ("ij,jj->i", ((2, 3), (3, 1)), "'j' is 3 and 1 long in one operand"),
        ("ij,jk->ik", ((3, 4),), "names 2 operands, got 1"),
        ("ijk->i", ((3, 4),), "does not fit an operand of 2 dimensions"),
        ("ij->ik", ((3, 4),), "output label 'k'"),
        ("ij->ii", ((3, 4),), "output label 'i'"),
        ("i1->i", ((3, 4),), "may hold letters"),
        ("i->i", ((3, 4),), "does not fit"),
    ],
)
def test_einsum_refuses(subscripts: str, shapes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^einsum: .*{message}"):
        gg.einsum(subscripts, *(leaf(*shape) for shape in shapes))


@pytest.mark.parametrize(
    ("a", "b", "axes"),
    [
        ((2, 3, 4), (3, 4, 5), 2),
        ((2, 3), (3, 4), 1),
        ((2, 3), (4,), 0),
        ((2, 3, 4), (4, 2), ([0, 2], [1, 0])),
        ((2, 3, 4), (3, 2), ([-2], [0])),
        ((0, 3), (3, 2), 1),
    ],
    ids=str,
)
def test_tensordot(a: tuple[int, ...], b: tuple[int, ...], axes: Any) -> None:
    x, y = leaf(*a), leaf(*b)
    expected = np.tensordot(x.detach().numpy(), y.detach().numpy(), axes)
    np.testing.assert_allclose(
        gg.tensordot(x, y, axes).detach().numpy(), expected, rtol=1e-13, atol=1e-14
    )
    gradcheck(lambda x, y: gg.tensordot(x, y, axes), [x, y])


def test_tensordot_sums_two_axes_by_default() -> None:
    x, y = leaf(2, 3, 4), leaf(3, 4, 5)
    expected = np.tensordot(x.detach().numpy(), y.detach().numpy())
    np.testing.assert_allclose(gg.tensordot(x, y).detach().numpy(), expected, rtol=1e-13)


def test_tensordot_refuses() -> None:
    with pytest.raises(ValueError, match=r"tensordot: x \(2, 3\) and y \(2, 3\) do not fit"):
        gg.tensordot(leaf(2, 3), leaf(2, 3), 1)
    for axes in (-1, 3):
        with pytest.raises(IndexError, match=rf"tensordot: axes={axes}, but x has shape \(2, 3\)"):
            gg.tensordot(leaf(2, 3), leaf(2, 3), axes)
    for pair in (([2], [0]), ([0], [-3])):
        with pytest.raises(IndexError, match=r"tensordot: axis -?\d is out of range for 2"):
            gg.tensordot(leaf(2, 3), leaf(2, 3), pair)


@pytest.mark.parametrize(
    ("a", "b", "axis"),
    [((3,), (2, 3), -1), ((3,), (3, 2), 0), ((3, 1), (3,), 0), ((4, 3), (2, 3, 4), 1)],
)
def test_vecdot_of_different_dimensions(a: tuple, b: tuple, axis: int) -> None:
    x, y = leaf(*a), leaf(*b)
    expected = np.vecdot(x.detach().numpy(), y.detach().numpy(), axis=axis)
    out = gg.vecdot(x, y, axis)
    assert out.shape == expected.shape
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-14)
    gradcheck(lambda x, y: gg.vecdot(x, y, axis), [x, y])


def test_vecdot_refuses_axes_of_different_lengths() -> None:
    for a, b in (((3,), (1,)), ((2, 3), (3, 1)), ((3,), (2,))):
        with pytest.raises(ValueError, match=r"vecdot: x .* and y .* differ in length along"):
            gg.vecdot(leaf(*a), leaf(*b))
    with pytest.raises(IndexError, match="vecdot: axis"):
        gg.vecdot(leaf(2, 3), leaf(3), -2)


def test_outer_vecdot_trace() -> None:
    x, y = leaf(3), leaf(4)
    np.testing.assert_array_equal(
        gg.outer(x, y).detach().numpy(), np.outer(x.detach().numpy(), y.detach().numpy())
    )
    gradcheck(gg.outer, [x, y])
    a, b = leaf(2, 3), leaf(2, 3)
    for axis in (0, 1, -1):
        expected = (a.detach().numpy() * b.detach().numpy()).sum(axis)
        np.testing.assert_allclose(gg.vecdot(a, b, axis).detach().numpy(), expected, rtol=1e-14)
    gradcheck(gg.vecdot, [a, b])
    m = leaf(3, 4)
    for offset in (0, 1, -2, 9):
        assert gg.trace(m, offset).item() == pytest.approx(np.trace(m.detach().numpy(), offset))
    gradcheck(gg.trace, m)
    assert gg.trace(leaf(2, 3, 3)).shape == (2,)
