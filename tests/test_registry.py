"""Rows: how they are declared, called, sampled and explained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import registry
from gpugrad.registry import OPS, Sample, primitive
from gpugrad.testing import gradcheck, gradgradcheck


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forget the rows a test registers."""
    before = dict(OPS)
    yield
    OPS.clear()
    OPS.update(before)


def test_a_row_of_ones_own(fresh: None) -> None:
    @primitive(
        [Sample((2, 3), n=3)],
        x=lambda g, x, y, n: g * (x ** (n - 1) * n * y),
        y=lambda g, x, n: g * x**n,
    )
    def scaled_power(xp: Any, x: Any, y: Any, n: int = 2) -> Any:
        """Return x**n * y."""
        return x**n * y

    x = gg.tensor([1.0, 2.0], gg.float64, requires_grad=True)
    y = gg.tensor([3.0, 4.0], gg.float64, requires_grad=True)
    assert scaled_power(x, y).tolist() == [3.0, 16.0]
    assert scaled_power(x, y, 3).tolist() == scaled_power(x, y=y, n=3).tolist() == [3.0, 32.0]
    gradcheck(lambda x, y: scaled_power(x, y, n=3), [x, y])
    gradgradcheck(lambda x, y: scaled_power(x, y, n=3), [x, y])
    assert scaled_power.__doc__ == "Return x**n * y."
    assert OPS["scaled_power"].arguments == ("x", "y")
    assert OPS["scaled_power"].statics == {"n": 2}
    assert OPS["scaled_power"].pullback((1,)).slots == ("x", "n")


def test_two_arguments_may_have_one_rule(fresh: None) -> None:
    def rule(g: Any, x: Any, y: Any) -> Any:
        return g * (x + y)

    @primitive(x=rule, y=rule)
    def half_square(xp: Any, x: Any, y: Any) -> Any:
        return (x + y) ** 2 / 2

    op = OPS["half_square"]
    assert [op.pullback(i).wanted for i in ((0,), (1,), (0, 1))] == [("x",), ("y",), ("x", "y")]
    x, y = gg.tensor([1.0, 2.0], gg.float64), gg.tensor([3.0, 4.0], gg.float64, requires_grad=True)
    gradgradcheck(lambda y: half_square(x, y), [y])


def test_a_rule_may_ask_for_shapes_dtypes_and_the_result(fresh: None) -> None:
    seen: list[Any] = []

    @primitive(
        x=lambda g, x_shape, x_dtype, x_device, out_shape, xp: (
            seen.extend([x_shape, x_dtype, x_device, out_shape, xp]) or xp.broadcast_to(g, x_shape)
        )
    )
    def total(xp: Any, x: Any) -> Any:
        return xp.sum(x)

    x = gg.ones(2, 3, requires_grad=True)
    total(x).backward()
    assert seen == [(2, 3), gg.float32, "cpu", (), np]
    gg.grad(total(x), x, create_graph=True)
    assert seen[-1] is registry.recorded


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"x": lambda g, z: g}, r"the pullback of 'x' asks for \['z'\]; it may ask for x, out, n"),
        ({"z": lambda g: g}, "the pullback of 'z'"),
        ({"n": lambda g: g}, "the pullback of 'n'"),
    ],
)
def test_a_rule_that_asks_for_something_unknown_is_refused(
    fresh: None, rules: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):

        @primitive(**rules)
        def broken(xp: Any, x: Any, n: int = 1) -> Any:
            return x


def test_a_name_can_be_taken_once(fresh: None) -> None:
    with pytest.raises(ValueError, match="an operation named 'exp' is registered already"):

        @primitive()
        def exp(xp: Any, x: Any) -> Any:
            return x


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: gg.tril(x, 1, 2), "tril: takes at most 2 arguments, got 3"),
        (lambda x: gg.tril(x, offset=1), "tril: unknown argument 'offset'; it takes x, k"),
        (lambda x: gg.tril(x, 1, k=1), "tril: argument 'k' is given twice"),
        (lambda x: gg.tril(k=1), "tril: missing argument 'x'; it takes x, k"),
        (lambda x: gg.max(x, axes=0), "max: unknown argument 'axes'; it takes x, axis, keepdims"),
    ],
)
def test_wrong_calls_are_named(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call(gg.ones(2, 2))


def test_arguments_without_a_rule_get_no_gradient() -> None:
    condition = gg.tensor([True, False])
    x, y = gg.ones(2, requires_grad=True), gg.zeros(2, requires_grad=True)
    out = gg.where(condition, x, y)
    assert len(out._node.parents) == 2
    assert not gg.argmax(x).requires_grad
    assert not (x > y).requires_grad


def test_nodes() -> None:
    x = gg.ones(2, requires_grad=True)
    y = gg.exp(x)
    z = gg.sin(y)
    assert z._node.parents == (y._node,)
    assert y._node.parents == (x,)
    assert z._node.number > y._node.number
    assert repr(z._node) == f"<Node {z._node.number} sin>"
    assert not hasattr(z._node, "__dict__")
    with pytest.raises(AttributeError):
        z._node.children = []


def test_every_row_has_a_function_with_a_docstring() -> None:
    # through getitem, take, topk, repeat and nn
    inner = {
        "getitem_view",
        "scatter",
        "argtopk",
        "repeat_each",
        "linear",
        "dropout",
        "dropout_add",
    }
    public = {name for name in OPS if hasattr(gg, name)}
    assert {*OPS} - public <= inner | {"to_device"}
    for name in public:
        doc = getattr(gg, name).__doc__
        assert doc.startswith(("Return", "The")), name
        assert doc.rstrip().endswith("."), name


def test_public_names_are_listed() -> None:
    assert len(set(gg.__all__)) == len(gg.__all__)
    for name in gg.__all__:
        assert hasattr(gg, name), name
    for name in gg.ops.__all__:
        assert hasattr(gg.ops, name), name


# Samples


def test_samples_draw_what_they_say() -> None:
    sample = Sample((2, 3), np.array([1, 2]), None, (), domain=(0.5, 1.5), axis=0)
    x, ready, none, scalar = sample.draw(np.random.default_rng(0))
    assert (x.shape, x.dtype, scalar.shape) == ((2, 3), np.float64, ())
    assert 0.5 <= x.min() <= x.max() <= 1.5
    assert ready.tolist() == [1, 2]
    assert none is None
    again = sample.draw(np.random.default_rng(0))[0]
    np.testing.assert_array_equal(x, again)
    assert not np.array_equal(x, sample.draw(np.random.default_rng(1))[0])


def test_distinct_samples_are_far_apart() -> None:
    (x,) = Sample((5, 5), distinct=True).draw(np.random.default_rng(0))
    assert np.diff(np.sort(x.ravel())).min() > 0.1
    assert not (np.diff(x.ravel()) > 0).all()


def test_samples_have_readable_names() -> None:
    assert repr(Sample((2, 3), (), axis=(0, -1))) == "2x3,scalar,axis=(0,-1)"
    assert repr(Sample((), None, index=np.array([[1, 2]]))) == "scalar,none,index=array([[1,2]])"
    names = [f"{op.name}-{sample!r}" for op in OPS.values() for sample in op.samples]
    assert all(" " not in name and "\n" not in name for name in names)
    ambiguous = [name for name in set(names) if names.count(name) > 1 and "array" not in name]
    assert ambiguous == []


# Errors


def test_describe() -> None:
    assert registry.describe(np.ones((2, 3))) == "float64[2, 3]"
    assert registry.describe(gg.ones(2, dtype=gg.bfloat16)) == "bfloat16[2]"
    assert registry.describe(2.5) == "2.5"
    assert registry.describe(None) == "None"


@pytest.mark.parametrize("error", [ValueError("bad"), TypeError("bad"), IndexError("bad")])
def test_explained_keeps_the_kind(error: Exception) -> None:
    told = registry.explained(error, "op", ("x",), (np.ones(2),), {"axis": 1, "keepdims": None})
    assert type(told) is type(error)
    assert str(told) == "op: bad (x: float64[2], axis=1)"
