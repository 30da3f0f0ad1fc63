"""layer_norm_affine and layer_norm_mlp by NumPy: what they stand for, in parts and from threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.fused import (
    FUSED,
    affine,
    layer_norm,
    layer_norm_affine,
    layer_norm_mlp,
    mlp,
)
from gpugrad.ops import linear
from gpugrad.threads import num_threads

NORM = ("x", "norm_weight", "norm_bias", "residual")


def drawn(*shapes: Any, dtype: str = "float32") -> list[Any]:
    rng = np.random.default_rng(0)
    return [
        None if s is None else gg.Tensor(rng.normal(size=s).astype(dtype), requires_grad=True)
        for s in shapes
    ]


def gradients(function: Any, inputs: list[Any], given: tuple[int, ...] = (0, 1)) -> list[Any]:
    """Return both results and all gradients, from gradients of the results ``given``."""
    outs = function(*inputs)
    chosen = [outs[i] for i in given]
    upstream = [
        gg.Tensor(np.cos(np.arange(o.size, dtype=o.dtype)).reshape(o.shape)) for o in chosen
    ]
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    return [*outs, *gg.grad(chosen, wanted, upstream)]


def bits(tensors: list[Any]) -> list[Any]:
    return [t.data.tobytes() for t in tensors]


AFFINE = [
    ((2, 19, 7), (7,), (7,), (2, 19, 7), (9, 7), (9,)),
    ((16, 3), (3,), None, None, (8, 3), None),
    ((1, 3), None, None, (1, 3), (1, 3), (1,)),
    ((3, 90, 2), None, (2,), (3, 90, 2), (6, 2), (6,)),  # four parts of several blocks
]
MLP = [(*shapes, (5, shapes[4][0]), (5,)) for shapes in AFFINE]
EACH = [
    *[pytest.param("layer_norm_affine", layer_norm_affine, s, {}) for s in AFFINE],
    *[
        pytest.param("layer_norm_mlp", layer_norm_mlp, s, {"approximate": form})
        for s in MLP
        for form in ("none", "tanh")
    ],
]
each = pytest.mark.parametrize(("name", "function", "shapes", "statics"), EACH)


def chosen(name: str, inputs: list[Any], **statics: Any) -> str:
    arrays = [x if x is None else x.data for x in inputs]
    return FUSED[name].choose(arrays, {"eps": 1e-5, **statics})


@each
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_obeys_the_tolerance_rule(name, function, shapes, statics, dtype, in_parts, check):
    check(name, function, drawn(*shapes), dtype, eps=1e-5, **statics)


@each
def test_few_rows_are_the_parts_bit_by_bit(name, function, shapes, statics):
    def parts(x, weight, bias, residual, *layers):
        normalized, h = layer_norm(x, weight, bias, residual, 1e-5, paired=True)
        if name == "layer_norm_mlp":
            return mlp(normalized, *layers, **statics), h
        return (linear if layers[1] is None else affine)(
            normalized, *[p for p in layers if p is not None]
        ), h

    inputs = drawn(*shapes)
    assert chosen(name, inputs, **statics) == "spec"
    found = bits(gradients(lambda *a: function(*a, **statics), inputs))
    assert found == bits(gradients(parts, inputs))


@each
@pytest.mark.parametrize("given", [(0,), (1,)])
def test_either_result_alone_has_a_gradient(name, function, shapes, statics, given, in_parts):
    inputs = drawn(*shapes)
    fast = gradients(lambda *a: function(*a, **statics), inputs, given)
    spec = gradients(lambda *a: FUSED[name].spec(*a, eps=1e-5, **statics), inputs, given)
    assert chosen(name, inputs, **statics) == "numpy"
    for a, b in zip(fast, spec, strict=True):
        np.testing.assert_allclose(a.data, b.data, rtol=2e-5, atol=2e-5)


@each
def test_each_gradient_alone_has_the_same_bits(name, function, shapes, statics, in_parts):
    inputs = drawn(*shapes)
    together = gradients(lambda *a: function(*a, **statics), inputs, (0,))[2:]
    for i, x in enumerate(x for x in inputs if x is not None):
        alone = [a if a is None or a is x else a.detach() for a in inputs]
        (single,) = gradients(lambda *a: function(*a, **statics), alone, (0,))[2:]
        assert bits([single]) == bits([together[i]])


@each
def test_without_a_gradient_the_bits_are_the_same(name, function, shapes, statics, in_parts):
    inputs = drawn(*shapes)
    expected = bits(function(*inputs, **statics))
    with gg.no_grad():
        assert bits(function(*inputs, **statics)) == expected


@pytest.mark.parametrize("rows", [700, 2100])
@pytest.mark.parametrize("kind", ["affine", "mlp"])
def test_the_number_of_threads_changes_no_bit(kind, rows):
    name = f"layer_norm_{kind}"
    function = gg.fused.__dict__[name]
    layers = ((130, 96), (130,)) + (((40, 130), (40,)) if kind == "mlp" else ())
    inputs = drawn((rows, 96), (96,), (96,), (rows, 96), *layers)
    statics = {"approximate": "tanh"} if kind == "mlp" else {}
    assert chosen(name, inputs, **statics) == "numpy"
    found = []
    for count in (1, 2, 3):
        with num_threads(count):
            found.append(bits(gradients(lambda *a: function(*a, **statics), inputs)))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("kind", ["affine", "mlp"])
@np.errstate(all="ignore")
def test_extremes_stay_in_their_rows(kind, in_parts):
    shapes = AFFINE[0] if kind == "affine" else MLP[0]
    name = f"layer_norm_{kind}"
    inputs = drawn(*shapes)
    expected = gradients(gg.fused.__dict__[name], inputs, (0,))
    x = inputs[0].data
    x[0, 0], x[0, 1, 2], x[1, 2, 3], x[1, 4] = 1e30, np.inf, np.nan, 0
    found = gradients(gg.fused.__dict__[name], inputs, (0,))
    statics = {"eps": 1e-5} | ({"approximate": "none"} if kind == "mlp" else {})
    spec = gradients(lambda *a: FUSED[name].spec(*a, **statics), inputs, (0,))
    for a, b in zip(found[:3], spec[:3], strict=True):  # out, h and the gradient of x
        np.testing.assert_array_equal(np.isnan(a.data), np.isnan(b.data))
        np.testing.assert_allclose(a.data, b.data, rtol=1e-4, atol=1e-5)
    others = np.ones(38, bool)
    others[[0, 1, 19 + 2, 19 + 4]] = False
    for a, b in zip(found[:3], expected[:3], strict=True):
        rows_a, rows_b = (t.data.reshape(38, -1)[others] for t in (a, b))
        np.testing.assert_array_equal(rows_a, rows_b)


def test_what_the_norm_makes_is_not_kept(in_parts):
    inputs = drawn(*AFFINE[0])
    out, h = layer_norm_affine(*inputs)
    node = out._node.parents[0]
    large = [a for a in node.saved if a is not None and a.size == h.size]
    # x, residual and their sum: no fourth array of this size
    assert len({a.__array_interface__["data"][0] for a in large}) == 3


@pytest.mark.parametrize("mode", ["plain", "checked"])
def test_in_the_emulator_both_take_kernels(mode, in_parts):
    inputs = drawn((4, 8), (8,), (8,), (4, 8), (8, 8), (8,), (8, 8), (8,))
    with gg.emulator.enabled(mode):
        before = {n: FUSED[n].launches["cuda"] for n in ("layer_norm", "affine", "mlp")}
        layer_norm_affine(*inputs[:6])
        layer_norm_mlp(*inputs)
        moved = {n: FUSED[n].launches["cuda"] - count for n, count in before.items()}
    assert moved == {"layer_norm": 2, "affine": 1, "mlp": 1}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": ()}, "layer_norm: x has no axes"),
        ({"norm_weight": (5,)}, r"layer_norm: weight has shape \(5,\)"),
        ({"norm_bias": (5,)}, r"layer_norm: bias has shape \(5,\)"),
        ({"residual": (4, 3)}, r"layer_norm: residual has shape \(4, 3\) but x has \(3, 4\)"),
        ({"up_weight": (6, 5)}, r"mlp: x float32\[3, 4\], up_weight float32\[6, 5\]"),
        ({"up_bias": (5,)}, r"mlp: up_bias float32\[5\]"),
        ({"down_weight": (4, 5)}, r"down_weight float32\[4, 5\] do not fit"),
        ({"down_bias": (5,)}, r"mlp: down_bias float32\[5\]"),
    ],
)
def test_shapes_that_do_not_fit_are_named(changed, message, in_parts):
    shapes = dict(zip(NORM, ((3, 4), (4,), (4,), (3, 4)), strict=True))
    shapes |= {"up_weight": (6, 4), "up_bias": (6,), "down_weight": (4, 6), "down_bias": (4,)}
    with pytest.raises(ValueError, match=message):
        layer_norm_mlp(*drawn(*(shapes | changed).values()))


@pytest.mark.parametrize("function", [layer_norm_affine, layer_norm_mlp])
def test_settings_that_do_not_fit_are_named(function):
    name = function.__name__
    inputs = drawn(*(AFFINE if function is layer_norm_affine else MLP)[0])
    with pytest.raises(ValueError, match=f"{name}: eps must not be negative, got -1"):
        function(*inputs, eps=-1)
    if function is layer_norm_mlp:
        with pytest.raises(ValueError, match=f"{name}: approximate must be"):
            function(*inputs, approximate="erf")


def test_parameters_may_be_of_another_dtype(in_parts):
    x, *others = drawn(*MLP[0])
    out, h = layer_norm_mlp(gg.Tensor(x.data, "bfloat16"), *others)
    assert out.dtype == h.dtype == gg.float32  # the residual is
