"""affine and mlp without kernels: the compositions they stand for, and errors."""

from __future__ import annotations

import os
import weakref

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad import nn, openblas, ops
from gpugrad.fused import FUSED, affine, mlp
from gpugrad.threads import num_threads


def drawn(*shapes, dtype="float32"):
    rng = np.random.default_rng(0)
    return [
        None if s is None else gg.Tensor(rng.normal(size=s).astype(dtype), requires_grad=True)
        for s in shapes
    ]


def bits(out, inputs):
    upstream = gg.Tensor(np.cos(np.arange(out.size)).reshape(out.shape).astype(out.dtype))
    return bits_of(out, [x for x in inputs if x is not None], upstream)


def bits_of(out, inputs, upstream):
    grads = gg.grad(out, inputs, upstream, retain_graph=True)
    return [t.data.tobytes() for t in (out, *grads)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("form", ["none", "tanh"])
def test_mlp_is_its_parts(form, biases, dtype):
    inputs = drawn((2, 3, 7), (9, 7), (9,) if biases else None, (5, 9), (5,) if biases else None)
    inputs = [x if x is None else gg.Tensor(x.data, dtype, requires_grad=True) for x in inputs]
    x, up, up_bias, down, down_bias = inputs
    hidden = ops.linear(x, up)
    hidden = gg.fused.bias_gelu(hidden, up_bias, form) if biases else F.gelu(hidden, form)
    expected = bits(ops.linear(hidden, down, down_bias), inputs)
    assert bits(mlp(*inputs, approximate=form), inputs) == expected


LAYERS = [
    ((2, 19, 7), (9, 7), (9,), (5, 9), (5,)),
    ((16, 3), (8, 3), None, (4, 8), None),
    ((1, 3), (1, 3), (1,), (4, 1), None),
    ((37, 2), (6, 2), None, (1, 6), (1,)),
    ((3, 90, 2), (6, 2), (6,), (3, 6), (3,)),  # four parts
]


@pytest.mark.parametrize("shapes", LAYERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", ["none", "tanh"])
def test_mlp_in_parts(form, dtype, shapes, in_parts, check):
    scale = 1e3 if dtype == "float64" else 0.0  # the float64 spec is its own reference
    check("mlp", mlp, drawn(*shapes), dtype, scale, approximate=form)


@pytest.mark.parametrize("wanted", [0, 1, 2, 3, 4])
def test_each_gradient_alone_has_the_same_bits(wanted, in_parts):
    inputs = drawn(*LAYERS[0])
    upstream = gg.Tensor(np.cos(np.arange(190, dtype="float32")).reshape(2, 19, 5))
    together = gg.grad(mlp(*inputs), inputs, upstream)[wanted]
    alone = [x.detach() for x in inputs]
    alone[wanted] = inputs[wanted]
    (single,) = gg.grad(mlp(*alone), [inputs[wanted]], upstream)
    np.testing.assert_array_equal(single.data, together.data)


@pytest.mark.parametrize("rows", [64, 700])
def test_the_number_of_threads_changes_no_bit(rows):
    inputs = drawn((rows, 96), (700, 96), (700,), (40, 700), (40,))
    found = []
    for count in (1, 2, 3):
        with num_threads(count):
            found.append(bits(mlp(*inputs, approximate="tanh"), inputs))
    assert found[0] == found[1] == found[2]
    assert FUSED["mlp"].choose([x.data for x in inputs], {"approximate": "tanh"}) == "numpy"


def test_without_a_gradient_the_bits_are_the_same(in_parts):
    inputs = drawn(*LAYERS[0])
    expected = mlp(*inputs).data
    with gg.no_grad():
        np.testing.assert_array_equal(mlp(*inputs).data, expected)


@np.errstate(all="ignore")
def test_extremes_in_parts(in_parts):
    x, *parameters = drawn((3, 7), (9, 7), (9,), (5, 9), (5,))
    x.data[0], x.data[1, 2], x.data[2, 3] = 1e38, np.inf, np.nan
    out = mlp(x, *parameters)
    (dx,) = gg.grad(out, [x], gg.Tensor(np.ones_like(out.data)))
    parts = ops.linear(
        gg.fused.bias_gelu(ops.linear(x, parameters[0]), parameters[1]), *parameters[2:]
    )
    (expected,) = gg.grad(parts, [x], gg.Tensor(np.ones_like(out.data)))
    for a, b in ((out, parts), (dx, expected)):
        np.testing.assert_array_equal(np.isnan(a.data), np.isnan(b.data))
        np.testing.assert_allclose(a.data, b.data, rtol=1e-5)


def test_a_layer_without_outputs():
    inputs = drawn((1024, 128), (64, 128), None, (0, 64), None)
    assert (
        FUSED["mlp"].choose([a if a is None else a.data for a in inputs], {"approximate": "none"})
        == "numpy"
    )
    out = mlp(*inputs)
    dx, *_, of_down = gg.grad(out.sum(), [x for x in inputs if x is not None])
    assert out.shape == (1024, 0)
    assert of_down.shape == (0, 64)
    assert not dx.data.any()


def test_affine_is_linear():
    inputs = drawn((2, 3, 7), (5, 7), (5,))
    assert bits(affine(*inputs), inputs) == bits(ops.linear(*inputs), inputs)
    before = FUSED["affine"].launches.copy()
    affine(*inputs)
    nn.Linear(7, 5)(inputs[0])
    assert FUSED["affine"].launches == before  # on a CPU there is no detour for what is small


@pytest.mark.parametrize("wanted", [(True, True, True), (True, False, True), (False, True, False)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_affine_is_linear(dtype, wanted):
    inputs = drawn((3, 250, 80), (130, 80), (130,), dtype=dtype)
    inputs = [x if w else x.detach() for x, w in zip(inputs, wanted, strict=True)]
    grown = [x for x in inputs if x.requires_grad]
    expected = ops.linear(*inputs)
    upstream = np.cos(np.arange(expected.size, dtype=dtype)).reshape(expected.shape)
    results = []
    for count in (1, 2, 3):
        with num_threads(count):
            results += [
                bits_of(out, grown, gg.Tensor(upstream)) for out in (affine(*inputs), expected)
            ]
    assert all(r == results[0] for r in results)
    assert FUSED["affine"].choose([x.data for x in inputs], {}) == "numpy"


@pytest.mark.parametrize("size", [3, 250])
@pytest.mark.parametrize("create_graph", [False, True])
def test_affine_keeps_only_what_a_gradient_depends_on(size, create_graph):
    """Of any size: what the gradients need is saved, and the rest may change or be freed."""
    x, weight, bias = drawn((size, size), (size, size), (size,))
    expected = gg.grad(ops.linear(x, weight, bias).sum(), [x, weight, bias])
    for frozen in (0, 1):
        given = [x * 1, weight * 1, bias * 1]
        given[frozen] = gg.Tensor(given[frozen].data)
        out = affine(*given)
        changed = given[1 - frozen]
        with gg.no_grad():
            changed += 1  # its gradient depends on the frozen one alone
            given[2] += 1
        found = gg.grad(out.sum(), [(x, weight)[1 - frozen], bias], create_graph=create_graph)
        assert found[0].data.tobytes() == expected[1 - frozen].data.tobytes()
        assert found[1].data.tobytes() == expected[2].data.tobytes()


def test_large_affine_frees_the_input_of_a_frozen_layer():
    x, weight, bias = drawn((250, 250), (250, 250), (250,))
    h = x * 1
    freed = weakref.ref(h.data)
    out = affine(h, weight.detach(), bias)
    del h
    assert freed() is None
    assert out.requires_grad


def test_parameters_may_be_of_another_dtype():
    x, *parameters = drawn((3, 4), (6, 4), (6,), (4, 6), (4,))
    out = mlp(gg.Tensor(x.data, "bfloat16"), *parameters)
    assert out.dtype == gg.float32


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3, 4), (6, 5), (6,), (4, 6), (4,)), r"x float32\[3, 4\], up_weight float32\[6, 5\]"),
        (((3, 4), (6, 4), (6,), (4, 5), (4,)), r"down_weight float32\[4, 5\] do not fit"),
        (((), (6, 4), (6,), (4, 6), (4,)), r"must be \(\.\.\., C\), \(H, C\) and \(D, H\)"),
        (((3, 4), (4,), None, (4, 6), None), "do not fit"),
        (((3, 4), (6, 4), (4,), (4, 6), (4,)), r"up_bias float32\[4\] must have shape \(6,\)"),
        (((3, 4), (6, 4), (6,), (4, 6), (6,)), r"down_bias float32\[6\] must have shape \(4,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(shapes, message):
    with pytest.raises(ValueError, match=message):
        mlp(*drawn(*shapes))


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match='mlp: approximate must be "none" or "tanh", got \'erf\''):
        mlp(*drawn((3, 4), (6, 4), (6,), (4, 6), (4,)), approximate="erf")


@pytest.mark.parametrize("emulated", [False, True])
def test_affine_names_shapes_that_do_not_fit(emulated):
    with gg.emulator.enabled() if emulated else gg.no_grad():
        with pytest.raises(ValueError, match=r"linear: input \(3, 4\) and weight \(6, 5\)"):
            affine(*drawn((3, 4), (6, 5), (6,)))
        with pytest.raises(ValueError, match=r"linear: bias \(5,\) and weight \(6, 4\)"):
            affine(*drawn((3, 4), (6, 4), (5,)))


@pytest.mark.skipif(not openblas.available(), reason="NumPy has another BLAS here")
def test_the_threads_of_blas_change_no_bit():
    inputs = drawn((200, 300), (200, 300), (200,), (250, 200), (250,))
    found = []
    try:
        for count in (1, 2):
            openblas._threads().set(count)
            found.append(bits(mlp(*inputs), inputs))
    finally:
        openblas._threads().set(os.cpu_count() or 1)
    assert found[0] == found[1]
    assert FUSED["mlp"].choose([x.data for x in inputs], {"approximate": "none"}) == "numpy"
