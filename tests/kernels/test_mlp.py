"""affine and mlp on the way of the GPU, in the emulator: results, gradients, launches."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, emulator, testing
from gpugrad.fused import FUSED, affine, mlp

FORMS = ["none", "tanh"]
forms = pytest.mark.parametrize("form", FORMS)
dtypes = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
SIZES = [
    ((1,), 1, 1, 1),
    ((7,), 5, 13, 3),
    ((2, 3), 24, 64, 16),
    ((33,), 8, 40, 8),
]  # rows, C, H, D


def drawn(rows, features, hidden, out, biases=(True, True), seed=0):
    """Return x, both weights and biases of a perceptron, None for a bias that is not given."""
    rng = np.random.default_rng(seed)
    shapes = [(*rows, features), (hidden, features), (hidden,), (out, hidden), (out,)]
    arrays = [rng.normal(size=shape) / np.sqrt(shape[-1]) for shape in shapes]
    arrays[0] *= np.sqrt(features)
    given = [True, True, biases[0], True, biases[1]]
    return [
        gg.Tensor(a, requires_grad=True) if k else None for a, k in zip(arrays, given, strict=True)
    ]


def results(function, inputs, dtype="float32", wanted=None, upstream=None):
    """Return the result and the gradients of what is wanted (None: all), as arrays."""
    wanted = [True] * len(inputs) if wanted is None else wanted
    given = [
        x if x is None else gg.Tensor(x.data.astype(dtype), requires_grad=w)
        for x, w in zip(inputs, wanted, strict=True)
    ]
    out = function(*given)
    g = np.cos(np.arange(out.size)).reshape(out.shape) if upstream is None else upstream
    asked = [x for x in given if x is not None and x.requires_grad]
    return [t.data for t in (out, *gg.grad(out, asked, gg.Tensor(g.astype(dtype))))]


def check(function, spec, inputs, dtype):
    with emulator.enabled():
        testing.assert_implements(function, spec, inputs, dtype)
    emulator.sweep(lambda: results(function, inputs, dtype), emulator.SWEEP[:2])


@forms
@dtypes
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_mlp(size, dtype, form):
    before = FUSED["mlp"].launches.copy()
    spec = functools.partial(FUSED["mlp"].spec, approximate=form)
    check(functools.partial(mlp, approximate=form), spec, drawn(*size), dtype)
    assert set(FUSED["mlp"].launches - before) == {"cuda"}


@forms
@pytest.mark.parametrize("biases", [(True, False), (False, True), (False, False)], ids=str)
def test_biases_are_optional(biases, form):
    inputs = drawn((2, 5), 8, 16, 8, biases)
    spec = functools.partial(FUSED["mlp"].spec, approximate=form)
    check(functools.partial(mlp, approximate=form), spec, inputs, "bfloat16")


@dtypes
@pytest.mark.parametrize(
    "size", [((1,), 1, 1), ((), 4, 2), ((2, 3), 24, 16), ((33,), 5, 7)], ids=str
)
def test_affine(size, dtype):
    rows, features, out = size
    x, weight, bias, *_ = drawn(rows, features, out, 1)
    check(affine, FUSED["affine"].spec, [x, weight, bias], dtype)


def check_subsets(run, inputs, biases):
    """Every subset of the gradients is as in the whole; biases, summed elsewhere, nearly."""
    with emulator.enabled():
        _, *together = results(run, inputs, "bfloat16")
        for code in range(1, 2 ** len(inputs)):
            wanted = [bool(code >> i & 1) for i in range(len(inputs))]
            _, *some = results(run, inputs, "bfloat16", wanted)
            for i, found in zip(np.flatnonzero(wanted), some, strict=True):
                error = np.abs((found - together[i]).astype(float)).max()
                assert error <= (1e-2 * np.abs(together[i]).max() if i in biases else 0)


@forms
def test_every_subset_of_gradients(form):
    check_subsets(functools.partial(mlp, approximate=form), drawn((2, 5), 8, 16, 8), (2, 4))


def test_every_subset_of_gradients_of_affine():
    check_subsets(affine, drawn((2, 5), 8, 16, 1)[:3], (2,))


@pytest.mark.parametrize(
    ("form", "forward", "backward", "kernels"),
    [
        ("tanh", ["gelu", "bias"], ["bgrad", "dgelu_bgrad", None, None], []),
        (
            "none",
            [None, "bias"],
            ["bgrad", None, None, None],
            ["bias_gelu_forward", "bias_gelu_backward", "column_sums_total"],
        ),
    ],
)
def test_two_products_forward_and_four_backward(form, forward, backward, kernels, products):
    given = [gg.Tensor(x.data, "bfloat16", requires_grad=True) for x in drawn((64,), 16, 32, 16)]
    before = cuda.launches.copy()
    with emulator.enabled():
        out = mlp(*given, approximate=form)
        assert [p.epilogue for p in products] == forward
        products.clear()
        out.backward(gg.ones_like(out))
    assert [p.epilogue for p in products] == backward
    assert sorted((cuda.launches - before).elements()) == sorted(kernels)


def test_a_product_forward_and_two_backward(products):
    given = [gg.Tensor(x.data, "bfloat16", requires_grad=True) for x in drawn((64,), 16, 32, 1)[:3]]
    before = cuda.launches.copy()
    with emulator.enabled():
        out = affine(*given)
        out.backward(gg.ones_like(out))
    assert [p.epilogue for p in products] == ["bias", None, "bgrad"]
    assert cuda.launches == before


@forms
def test_layouts_change_no_bit(form):
    inputs = drawn((6, 4), 8, 16, 8)
    upstream = np.random.default_rng(1).normal(size=(6, 4, 8))
    run = functools.partial(mlp, approximate=form)
    with emulator.enabled("checked"):
        expected = results(run, inputs, upstream=upstream)
        for k in range(5):
            turned = list(inputs)
            array = np.asfortranarray(inputs[k].data)
            turned[k] = gg.Tensor(array[::-1][::-1], requires_grad=True)
            found = results(run, turned, upstream=np.asfortranarray(upstream))
            assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]


def test_nan_and_infinity_stay_in_their_row():
    inputs = drawn((4,), 8, 16, 8)
    for bad in (np.nan, np.inf):
        inputs[0].data[2, 3] = bad
        with emulator.enabled():
            out, dx, *_ = results(functools.partial(mlp, approximate="tanh"), inputs)
        assert np.isfinite(out[[0, 1, 3]]).all()
        assert np.isfinite(dx[[0, 1, 3]]).all()
        assert not np.isfinite(out[2]).any()


def test_what_the_products_do_not_take_goes_elsewhere():
    inputs = drawn((4,), 8, 16, 8)
    before = FUSED["mlp"].launches.copy(), FUSED["affine"].launches.copy()
    with emulator.enabled():
        mlp(*inputs)  # float64
        affine(*inputs[:3])
        mlp(inputs[0].astype("bfloat16"), *(x.astype("float32") for x in inputs[1:]))
        mlp(gg.zeros(0, 8), *(x.astype("float32") for x in inputs[1:]))
    assert FUSED["mlp"].launches - before[0] == {"spec": 3}
    assert FUSED["affine"].launches - before[1] == {"spec": 1}
