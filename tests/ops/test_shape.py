"""Moving elements: every function against NumPy, its gradient, views, and refused arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.testing import gradcheck, gradgradcheck

X = np.random.default_rng(0).uniform(-2, 2, (2, 3, 4))
ROW = np.random.default_rng(1).uniform(-2, 2, (1, 3, 1))


def leaf(data: Any = X) -> gg.Tensor:
    return gg.tensor(data, gg.float64, requires_grad=True)


# name: (function of a tensor, the same in NumPy)
FUNCTIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "reshape": (lambda x: gg.reshape(x, (4, 6)), lambda x: x.reshape(4, 6)),
    "reshape-infer": (lambda x: x.reshape(-1, 6), lambda x: x.reshape(-1, 6)),
    "reshape-list": (lambda x: gg.reshape(x, [24]), lambda x: x.reshape(24)),
    "reshape-numpy-int": (lambda x: x.reshape(np.int64(6), 4), lambda x: x.reshape(6, 4)),
    "view": (lambda x: x.view(6, 4), lambda x: x.reshape(6, 4)),
    "ravel": (gg.ravel, np.ravel),
    "flatten": (gg.flatten, np.ravel),
    "flatten-from-1": (lambda x: x.flatten(1), lambda x: x.reshape(2, 12)),
    "flatten-to-1": (lambda x: x.flatten(0, 1), lambda x: x.reshape(6, 4)),
    "permute_dims": (lambda x: gg.permute_dims(x, (2, 0, 1)), lambda x: x.transpose(2, 0, 1)),
    "permute_dims-negative": (lambda x: x.permute(-1, 0, 1), lambda x: x.transpose(2, 0, 1)),
    "transpose": (gg.transpose, np.transpose),
    "transpose-axes": (lambda x: x.transpose(0, 2, 1), lambda x: x.transpose(0, 2, 1)),
    "transpose-two": (lambda x: x.transpose(0, 2), lambda x: x.swapaxes(0, 2)),
    "T": (lambda x: x.T, lambda x: x.T),
    "mT": (lambda x: x.mT, lambda x: x.swapaxes(-1, -2)),
    "swapaxes": (lambda x: gg.swapaxes(x, 0, -1), lambda x: x.swapaxes(0, -1)),
    "moveaxis": (lambda x: gg.moveaxis(x, 0, -1), lambda x: np.moveaxis(x, 0, -1)),
    "moveaxis-two": (
        lambda x: gg.moveaxis(x, (0, 1), (-1, 0)),
        lambda x: np.moveaxis(x, (0, 1), (-1, 0)),
    ),
    "expand_dims": (lambda x: gg.expand_dims(x, 1), lambda x: np.expand_dims(x, 1)),
    "expand_dims-two": (lambda x: gg.expand_dims(x, (0, -1)), lambda x: np.expand_dims(x, (0, -1))),
    "unsqueeze": (lambda x: x.unsqueeze(-1), lambda x: x[..., None]),
    "broadcast_to": (
        lambda x: gg.broadcast_to(x[:, :1], (5, 2, 3, 4)),
        lambda x: np.broadcast_to(x[:, :1], (5, 2, 3, 4)),
    ),
    "flip": (lambda x: gg.flip(x, axis=(0, -1)), lambda x: np.flip(x, (0, -1))),
    "roll": (
        lambda x: gg.roll(x, (1, -2), axis=(0, 2)),
        lambda x: np.roll(x, (1, -2), axis=(0, 2)),
    ),
    "tril": (lambda x: gg.tril(x, k=-1), lambda x: np.tril(x, -1)),
    "triu": (lambda x: x.triu(k=2), lambda x: np.triu(x, 2)),
    "pad-number": (lambda x: gg.pad(x, 2), lambda x: np.pad(x, 2)),
    "pad-pair": (lambda x: gg.pad(x, (1, 2), 7.0), lambda x: np.pad(x, (1, 2), constant_values=7)),
    "pad-axes": (
        lambda x: gg.pad(x, ((0, 0), (1, 0), (0, 3))),
        lambda x: np.pad(x, ((0, 0), (1, 0), (0, 3))),
    ),
    "tile": (lambda x: gg.tile(x, (2, 1, 3)), lambda x: np.tile(x, (2, 1, 3))),
    "tile-more": (lambda x: gg.tile(x, (2, 1, 1, 2)), lambda x: np.tile(x, (2, 1, 1, 2))),
    "tile-number": (lambda x: gg.tile(x, 2), lambda x: np.tile(x, 2)),
    "tile-integer": (lambda x: gg.tile(x, np.int64(2)), lambda x: np.tile(x, 2)),
    "copy": (gg.copy, np.copy),
    "concat": (lambda x: gg.concat([x, x * 2], axis=1), lambda x: np.concatenate([x, x * 2], 1)),
    "concat-flat": (
        lambda x: gg.concat([x, x[0]], axis=None),
        lambda x: np.concatenate([x, x[0]], axis=None),
    ),
    "concat-negative": (
        lambda x: gg.concatenate((x, x[..., :1]), -1),
        lambda x: np.concatenate((x, x[..., :1]), -1),
    ),
    "concat-constant": (
        lambda x: gg.concat([X[:1], x, gg.zeros(1, 3, 4, dtype=gg.float64)]),
        lambda x: np.concatenate([X[:1], x, np.zeros((1, 3, 4))]),
    ),
    "stack": (lambda x: gg.stack([x, x, x * x], -1), lambda x: np.stack([x, x, x * x], -1)),
    "split": (lambda x: gg.split(x, 2, axis=2)[1], lambda x: np.split(x, 2, 2)[1]),
    "split-at": (lambda x: gg.split(x, [1, 3], -1)[1], lambda x: np.split(x, [1, 3], -1)[1]),
    "split-all": (lambda x: tuple(x.split([1, 2], 1)), lambda x: tuple(np.split(x, [1, 2], 1))),
    "split-integer": (lambda x: gg.split(x, np.int64(2))[1], lambda x: np.split(x, 2)[1]),
    "split-first-axis": (lambda x: gg.split(x, 2)[1], lambda x: np.split(x, 2)[1]),
    "unstack-first-axis": (lambda x: gg.unstack(x), lambda x: tuple(x)),
    "unstack": (lambda x: gg.unstack(x, 1)[2], lambda x: x[:, 2]),
    "contiguous": (lambda x: x.T.contiguous(), lambda x: x.T),
    "astype": (lambda x: x.astype(gg.float64, copy=True), lambda x: x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_and_derivatives(name: str) -> None:
    f, reference = FUNCTIONS[name]
    out, expected = f(leaf()), reference(X)
    outs = out if isinstance(out, tuple) else (out,)
    for o, e in zip(outs, expected if isinstance(out, tuple) else (expected,), strict=True):
        np.testing.assert_array_equal(o.detach().numpy(), e)
    gradcheck(f, leaf())
    gradgradcheck(lambda x: f(x * x), leaf(X))


def test_squeeze() -> None:
    x = leaf(ROW)
    assert gg.squeeze(x).shape == (3,)
    assert x.squeeze(0).shape == (3, 1)
    assert gg.squeeze(x, (0, -1)).shape == (3,)
    gradcheck(lambda x: gg.squeeze(x, -1), x)
    with pytest.raises(ValueError, match=r"squeeze: axis 1 of shape \(1, 3, 1\)"):
        gg.squeeze(x, 1)


def test_broadcast_arrays() -> None:
    a, b = gg.broadcast_arrays(leaf(ROW), leaf())
    assert a.shape == b.shape == (2, 3, 4)
    gradcheck(lambda a, b: tuple(gg.broadcast_arrays(a, b)), [leaf(ROW), leaf()])


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)], ids=str)
def test_nothing_and_no_dimensions(shape: tuple[int, ...]) -> None:
    x = leaf(np.ones(shape))
    for f in (gg.ravel, gg.flatten, gg.transpose, gg.squeeze, gg.copy, lambda x: gg.pad(x, 0)):
        out = f(x)
        assert out.size == x.size
        assert gg.grad(out.sum(), [x])[0].shape == shape
    assert gg.stack([x, x]).shape == (2, *shape)
    if shape:
        assert gg.concat([x, x]).shape == (2 * shape[0], *shape[1:])


def test_reshape_of_nothing_cannot_infer() -> None:
    with pytest.raises(ValueError, match="reshape"):
        gg.zeros(0, 3).reshape(-1, 0)
    assert gg.zeros(0, 3).flatten(0).shape == (0,)


@pytest.mark.parametrize(
    ("function", "rest"),
    [
        *[(f, ()) for f in (gg.transpose, gg.matrix_transpose, gg.flatten, gg.ravel, gg.squeeze)],
        *[(f, ()) for f in (gg.flip, gg.tril, gg.triu, gg.copy, gg.sort, gg.argsort, gg.unstack)],
        *[(f, (0, 1)) for f in (gg.swapaxes, gg.moveaxis, gg.roll)],
        *[(f, (1,)) for f in (gg.expand_dims, gg.pad, gg.split, gg.repeat, gg.topk)],
        *[(gg.reshape, ((4, 6),)), (gg.permute_dims, ((2, 0, 1),)), (gg.tile, ((2, 1),))],
        *[(gg.broadcast_to, ((5, 2, 3, 4),)), (gg.take, ([1, 0], 0)), (gg.diagonal, ())],
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_nested_lists_are_arrays_too(function: Callable[..., Any], rest: tuple) -> None:
    found, expected = function(X.tolist(), *rest), function(gg.tensor(X.tolist()), *rest)
    if isinstance(expected, gg.Tensor):
        found, expected = [found], [expected]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


# Sharing memory


@pytest.mark.parametrize(
    "name", ["reshape", "transpose", "permute_dims", "flip", "expand_dims", "split", "unstack", "T"]
)
def test_a_view_shares_memory(name: str) -> None:
    x = leaf()
    assert np.shares_memory(FUNCTIONS[name][0](x).data, x.data)


@pytest.mark.parametrize("name", ["copy", "roll", "concat", "pad-number", "tile", "astype"])
def test_a_copy_does_not(name: str) -> None:
    x = leaf()
    assert not np.shares_memory(FUNCTIONS[name][0](x).data, x.data)


def test_gradients_of_views_do_not_share_memory() -> None:
    x, y = leaf(), leaf()
    (x.T.sum() + (y.reshape(24) * 2.0).sum()).backward()
    x.grad.data[...] = 7.0
    assert (y.grad.numpy() == 2.0).all()


# Dtypes


def test_concat_promotes_and_gives_each_its_own_gradient() -> None:
    x = gg.tensor([1.0], gg.float16, requires_grad=True)
    y = gg.tensor([2.0], gg.float32, requires_grad=True)
    out = gg.concat([x, y, gg.tensor([3])])
    assert out.dtype == gg.float32
    out.sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == (gg.float16, gg.float32)


def test_astype_comes_back_in_the_old_dtype() -> None:
    x = gg.tensor([1.0, 2.0], gg.float16, requires_grad=True)
    (x.astype(gg.float64) * 2.0).sum().backward()
    assert x.grad.dtype == gg.float16
    assert x.astype(gg.float16) is x
    assert not x.astype(gg.int64).requires_grad


# Refused


@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (lambda x: x.reshape(5, 5), ValueError, "reshape: .*shape=\\(5, 5\\)"),
        (lambda x: x.reshape(2.5), TypeError, "float"),
        (lambda x: x.reshape(-2, 6), ValueError, "reshape: a length is -1.*shape=\\(-2, 6\\)"),
        (lambda x: gg.permute_dims(x, (0, 1)), ValueError, "permute_dims: axes"),
        (lambda x: gg.permute_dims(x, (0, 0, 1)), ValueError, "names an axis twice"),
        (lambda x: gg.swapaxes(x, 0, 3), IndexError, "axis2 3 is out of range"),
        (lambda x: gg.expand_dims(x, 5), IndexError, "axis 5 is out of range"),
        (lambda x: gg.broadcast_to(x, (3, 3)), ValueError, "broadcast_to: .*shape=\\(3, 3\\)"),
        (lambda x: gg.pad(x, -1), ValueError, "pad: pad_width must not be negative"),
        (lambda x: gg.split(x, 5, 2), ValueError, "split: axis 2 of length 4 does not divide"),
        (lambda x: gg.concat([]), ValueError, "concat: needs at least one"),
        (
            lambda x: gg.concat([x, x[0]]),
            ValueError,
            r"concat: tensor 1 of shape \(3, 4\) does not fit",
        ),
        (lambda x: gg.stack([]), ValueError, "stack: needs at least one"),
        (lambda x: gg.stack([x, x[0]]), ValueError, "stack: tensor 1 has shape"),
        (lambda x: x.flatten(2, 0), ValueError, "flatten: start_dim 2 lies behind"),
        (lambda x: gg.moveaxis(x, (0, 1), 0), ValueError, "moveaxis: 2 source axes"),
        (lambda x: gg.roll(x, 1.5), TypeError, "roll: 'float' .* integer .*shift=1.5"),
        (lambda x: gg.roll(x, (1, 0.5), (0, 1)), TypeError, "roll: 'float' .* integer"),
        (lambda x: gg.pad(x[0, 0, 0], -1), ValueError, "pad: pad_width must not be negative"),
        (
            lambda x: gg.tril(x[0, 0]),
            ValueError,
            r"^tril: needs at least two dimensions \(x: float\d+\[4\]",
        ),
        (
            lambda x: gg.triu(x[0, 0]),
            ValueError,
            r"^triu: needs at least two dimensions \(x: float\d+\[4\]",
        ),
        (lambda x: gg.tril(x, 0.5), TypeError, "tril: 'float' .* integer .*k=0.5"),
        (lambda x: gg.triu(x, 0.5), TypeError, "triu: 'float' .* integer .*k=0.5"),
    ],
)
def test_refused(f: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        f(leaf())
