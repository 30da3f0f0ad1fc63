"""Numbers at the edge: what is no number stays where it is, and NumPy and the kernels agree on it.

Every fused operation gets extreme values in one row, by NumPy and by its kernels in the emulator:
all other rows keep their bits, results and gradients, and both ways find NaN, infinities and finite
values in the same places of the result. Where that is finite the same holds for the gradient. Where
it is not, the gradient is not either (so no step is taken), but 0 times NaN may be skipped by one.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backend, emulator, fused, nn
from gpugrad.fused import FUSED
from gpugrad.models import GPT, GPTConfig
from gpugrad.nn import functional as F
from gpugrad.registry import OPS
from gpugrad.train.evaluation import _loss
from gpugrad.train.loop import backward, with_targets

ROWS = 4
PLANTED = 1  # the row
EXTREMES = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "1e30": 1e30,
    "-1e30": -1e30,
    "largest": float(np.finfo(np.float32).max),
    "denormal": 1e-40,
}

# NumPy's attention multiplies values by 1 / sum(exp(scores)), up to 1e10, in the backward pass
LESS = {name: {"largest": 1e28} for name in ("scaled_dot_product_attention", "packed_attention")}
# and the norms' multiplies x by its gradient, which is more than 1 here, before 1 / std
LESS |= {name: {"largest": 1e36} for name in ("layer_norm_affine", "layer_norm_mlp")}


def fixed(*shape: int) -> gg.Tensor:
    """Return a constant."""
    return gg.tensor(np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32))


def heads(x: gg.Tensor) -> gg.Tensor:
    """Return (B, T, 2 D) as (B, 2, T, D)."""
    return x.reshape(*x.shape[:2], 2, -1).swapaxes(1, 2)


def attention(x: gg.Tensor, mask: Any = None, is_causal: bool = False) -> gg.Tensor:
    q = heads(x)
    return F.scaled_dot_product_attention(q, q * 0.5, q, mask, is_causal=is_causal)


def recurrent(x: gg.Tensor, function: Callable[..., Any], *more: Any) -> gg.Tensor:
    out = function(x.swapaxes(0, 1), *more)
    return gg.swapaxes(out[0] if isinstance(out, tuple) else out, 0, 1)


TARGETS = gg.tensor([3, 0, 36, 5])
HIDDEN = np.tril(np.ones((5, 5), bool), -1)  # the first query sees nothing

# name of a fused operation -> what computes with it, the rows of x being independent; their shape
CASES: dict[str, list[tuple[Callable[[gg.Tensor], gg.Tensor], tuple[int, ...]]]] = {
    "softmax": [(lambda x: F.softmax(x, -1), (37,))],
    "log_softmax": [(lambda x: F.log_softmax(x, -1), (37,))],
    "cross_entropy": [
        (lambda x: F.cross_entropy(x, TARGETS, reduction="none"), (37,)),
        (lambda x: F.cross_entropy(x, TARGETS, reduction="none", label_smoothing=0.1), (37,)),
    ],
    "linear_cross_entropy": [
        (
            lambda x: fused.linear_cross_entropy(x, fixed(37, 16), TARGETS, reduction="none"),
            (16,),
        ),
    ],
    "layer_norm": [(lambda x: F.layer_norm(x, (16,), fixed(16), fixed(16)), (16,))],
    "rms_norm": [(lambda x: F.rms_norm(x, (16,), fixed(16)), (16,))],
    "gelu": [(lambda x: F.gelu(x), (16,)), (lambda x: F.gelu(x, approximate="tanh"), (16,))],
    "bias_gelu": [(lambda x: fused.bias_gelu(x, fixed(16)), (16,))],
    "affine": [(lambda x: fused.affine(x, fixed(24, 16), fixed(24)), (16,))],
    "mlp": [
        (
            lambda x: fused.mlp(x, fixed(64, 16), fixed(64), fixed(16, 64), fixed(16)),
            (16,),
        )
    ],
    "layer_norm_affine": [
        (
            lambda x: fused.layer_norm_affine(
                x, fixed(16), fixed(16), None, fixed(24, 16), fixed(24)
            )[0],
            (16,),
        )
    ],
    "layer_norm_mlp": [
        (
            lambda x: fused.layer_norm_mlp(
                x, fixed(16), None, x * 0.5, fixed(64, 16), fixed(64), fixed(16, 64), fixed(16)
            )[0],
            (16,),
        )
    ],
    "scaled_dot_product_attention": [
        (attention, (5, 32)),
        (lambda x: attention(x, is_causal=True), (5, 32)),
        (lambda x: attention(x, gg.tensor(HIDDEN)), (5, 32)),
        (lambda x: attention(x, gg.tensor(np.where(HIDDEN, 0, -np.inf).astype("f4"))), (5, 32)),
    ],
    "packed_attention": [
        (lambda x: fused.packed_attention(x.reshape(ROWS, 5, 3, 2, 16), is_causal=True), (5, 96))
    ],
    "rotary": [(lambda x: fused.rotary(x, fixed(8, 8), fixed(8, 8) * 0.5), (5, 16))],
    "embedding": [(lambda x: F.embedding(gg.tensor([0, 1, 2, 3]), x), (16,))],
    "embed": [
        (lambda x: fused.embed(gg.tensor([[0], [1], [2], [3]]), x, fixed(3, 16)), (16,)),
    ],
    "rnn": [(lambda x: recurrent(x, fused.rnn, fixed(8, 8), fixed(ROWS, 8)), (3, 8))],
    "gru": [(lambda x: recurrent(x, fused.gru, fixed(24, 8), fixed(ROWS, 8)), (3, 24))],
    "lstm": [
        (
            lambda x: recurrent(x, fused.lstm, fixed(32, 8), fixed(ROWS, 8), fixed(ROWS, 8)),
            (3, 32),
        )
    ],
}
LABELS = np.array([[0.0], [1.0], [0.25], [1.0]], np.float32) * np.ones(16, np.float32)
LOSSES: dict[str, list[tuple[Callable[[gg.Tensor], gg.Tensor], tuple[int, ...]]]] = {
    "nll_loss": [(lambda x: F.nll_loss(x, TARGETS, reduction="none"), (37,))],
    "mse_loss": [(lambda x: F.mse_loss(x, fixed(ROWS, 16), reduction="none"), (16,))],
    "binary_cross_entropy_with_logits": [
        (lambda x: F.binary_cross_entropy_with_logits(x, LABELS, reduction="none"), (16,))
    ],
    "dpo_loss": [(lambda x: F.dpo_loss(*gg.unstack(x, -1), reduction="none"), (4,))],
}


def test_every_fused_operation_is_here():
    assert CASES.keys() == {name for name, op in FUSED.items() if type(op) is fused.Fused}


def both(compute: Callable[[gg.Tensor], gg.Tensor], x: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the result for x and the gradient of its sum, rows first."""
    t = gg.tensor(x, requires_grad=True)
    out = compute(t)
    out.backward(gg.ones_like(out))
    return out.numpy(), t.grad.numpy()


def kinds(x: np.ndarray) -> np.ndarray:
    """Return 0 for finite values, 1 for +inf, -1 for -inf, 2 for NaN."""
    return np.where(np.isnan(x), 2, np.where(np.isinf(x), np.sign(x), 0))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", [*CASES, *LOSSES])
def test_extremes_stay_in_their_row(name):
    for case, (compute, shape) in enumerate((CASES | LOSSES)[name]):
        clean = np.random.default_rng(7).normal(size=(ROWS, *shape)).astype(np.float32)
        others = np.arange(ROWS) != PLANTED
        found: dict[tuple, dict[str, tuple[np.ndarray, ...]]] = {}
        for way in ("numpy", "kernels"):
            context = contextlib.nullcontext() if way == "numpy" else emulator.enabled("plain")
            with context:
                expected = both(compute, clean)
                assert all(np.isfinite(x).all() for x in expected)
                for extreme, value in {**EXTREMES, **LESS.get(name, {})}.items():
                    for place in ((PLANTED, *(0 for _ in shape)), (PLANTED,)):
                        x = clean.copy()
                        x[place] = value
                        got = both(compute, x)
                        for a, b in zip(got, expected, strict=True):
                            assert a[others].tobytes() == b[others].tobytes(), (case, way, extreme)
                        found.setdefault((extreme, len(place)), {})[way] = got
        for what, ways in found.items():
            (out, gradient), (same, other) = [map(kinds, got) for got in ways.values()]
            np.testing.assert_array_equal(out, same, err_msg=f"{name} {case}: {what}")
            if not out.any():
                np.testing.assert_array_equal(gradient, other, err_msg=f"{name} {case}: {what}")
            assert gradient.any() == other.any(), (name, case, what)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_yes_or_no_that_is_certain_costs_what_it_should():
    x = gg.tensor([1e30, -1e30, 3e38, -3e38, 100.0, -100.0, 1e-40], requires_grad=True)
    for label, expected, slope in (
        (1.0, [0, 1e30, 0, 3e38, 0, 100, math.log(2)], [0, -1, 0, -1, 0, -1, -0.5]),
        (0.0, [1e30, 0, 3e38, 0, 100, 0, math.log(2)], [1, 0, 1, 0, 1, 0, 0.5]),
    ):
        x.grad = None
        loss = F.binary_cross_entropy_with_logits(x, gg.full(7, label), reduction="none")
        np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-6, atol=1e-30)
        loss.backward(gg.ones(7))
        np.testing.assert_allclose(x.grad.numpy(), slope, rtol=1e-6, atol=1e-30)


# The norm of gradients, and steps


@pytest.mark.parametrize("way", ["numpy", "kernels"])
@pytest.mark.parametrize("size", [1e25, 1e37, 1e-30, 1e-42, 0.0], ids=str)
def test_clipping_gradients_of_any_size(way, size):
    """The norm of float32 gradients is right where its square is no float32, and so is the step."""
    g = (np.random.default_rng(3).uniform(0.5, 1, (7, 11)) * size).astype(np.float32)
    norm = math.sqrt((g.astype(np.float64) ** 2).sum())
    factor = min(1.0, 1.0 / (norm + 1e-6))
    context = contextlib.nullcontext() if way == "numpy" else emulator.enabled("plain")
    with context:
        p = gg.tensor(np.ones((7, 11), np.float32), requires_grad=True)
        p.grad = gg.tensor(g)
        found = gg.optim.SGD([p], lr=1.0).step(max_norm=1.0)
        assert float(found) == pytest.approx(norm, rel=1e-12)
        np.testing.assert_allclose(1 - p.numpy(), (g * factor), rtol=0, atol=1.2e-7)
        assert gg.optim.clip_grad_norm_([p], 1.0) == pytest.approx(norm, rel=1e-12)
    expected = (g.astype(np.float64) * factor).astype(np.float32)
    np.testing.assert_allclose(p.grad.numpy(), expected, rtol=1e-6)
    assert (p.grad.numpy() != 0).all() == (size > 0)


@pytest.mark.parametrize("way", ["numpy", "kernels"])
def test_float16_overflow_shrinks_the_scale_until_it_fits(way):
    context = contextlib.nullcontext() if way == "numpy" else emulator.enabled("plain")
    with context:
        p = gg.tensor(np.full(8, 2.0, np.float16), requires_grad=True)
        optimizer = gg.optim.SGD([p], lr=0.5)
        scaler, guard = gg.optim.LossScaler(2.0**16), gg.optim.SpikeGuard()
        moved = []
        for _ in range(4):
            optimizer.zero_grad()
            scaler.scale((p * 4.0).sum()).backward()  # 4 * 2**16 overflows, 4 * 2**13 does not
            optimizer.step(scaler=scaler, guard=guard)
            moved.append(float(2.0 - p.numpy()[0]))
    assert moved == [0.0, 0.0, 0.0, 2.0]
    assert (scaler.get_scale(), scaler.skipped, guard.not_finite) == (2.0**13, 3, 3)


# Tokens that do not count


@pytest.mark.parametrize("way", ["numpy", "kernels"])
@pytest.mark.parametrize("function", ["cross_entropy", "linear_cross_entropy", "in chunks"])
def test_a_mean_is_over_the_targets_that_count(way, function):
    """Ignored targets do not dilute it; of none at all it is NaN, as in PyTorch, and the sum 0."""
    x, weight = np.random.default_rng(0).normal(size=(2, 9, 8)).astype(np.float32)
    target = np.array([3, -100, 0, -100, -100, 8, -100, 1, -100])

    def loss(target: np.ndarray, reduction: str) -> tuple[float, np.ndarray]:
        t = gg.tensor(x, requires_grad=True)
        if function == "cross_entropy":
            out = F.cross_entropy(t @ weight.T, gg.tensor(target), reduction=reduction)
        else:
            chunk = 4 if function == "in chunks" else None
            out = fused.linear_cross_entropy(
                t, gg.tensor(weight), gg.tensor(target), reduction=reduction, chunk=chunk
            )
        out.backward()
        return out.item(), t.grad.numpy()

    context = contextlib.nullcontext() if way == "numpy" else emulator.enabled("plain")
    with context:
        logits = (x @ weight.T).astype(np.float64)
        counts = target >= 0
        each = np.log(np.exp(logits).sum(1)) - logits[np.arange(9), np.where(counts, target, 0)]
        mean, gradient = loss(target, "mean")
        assert mean == pytest.approx(each[counts].mean(), rel=1e-6)
        assert (gradient[~counts] == 0).all()
        total, of_total = loss(target, "sum")
        assert total == pytest.approx(each[counts].sum(), rel=1e-6)
        np.testing.assert_allclose(of_total / counts.sum(), gradient, rtol=1e-6, atol=1e-8)
        nothing = np.full(9, -100)
        mean, gradient = loss(nothing, "mean")
        assert math.isnan(mean)
        assert np.isnan(gradient).all() or (gradient == 0).all()
        assert loss(nothing, "sum")[0] == 0


def small_gpt() -> GPT:
    gg.manual_seed(0)
    return GPT(
        GPTConfig(vocab_size=17, block_size=6, n_layer=1, n_head=2, n_embd=16, dtype="float64")
    )


def test_accumulating_unequal_batches_is_the_mean_over_all_tokens():
    model = small_gpt()
    rng = np.random.default_rng(0)
    x, y = rng.integers(17, size=(2, 8, 6))
    y[0, 1:], y[1], y[5, :4] = -100, -100, -100
    model.loss(x, y).backward()
    full = float(model.loss(x, y))
    expected = [p.grad.numpy().copy() for p in model.parameters()]
    for cuts in ([0, 1, 8], [0, 2, 4, 8], [0, 1, 2, 3, 8]):
        model.zero_grad()
        parts = [(x[a:b], y[a:b]) for a, b in itertools.pairwise(cuts)]
        batches, shares = with_targets(parts, "float64")
        assert float(backward(model, batches, shares)) == pytest.approx(full, rel=1e-13)
        for p, g in zip(model.parameters(), expected, strict=True):
            np.testing.assert_allclose(p.grad.numpy(), g, rtol=1e-9, atol=1e-14)
    with pytest.raises(ValueError, match="no target counts"):
        backward(model, *with_targets([(x[1:2], y[1:2])] * 2, "float64"))


def test_an_evaluation_is_the_mean_over_tokens_not_over_batches():
    model = small_gpt()
    ids = np.random.default_rng(1).integers(17, size=6 * 7 + 1)
    losses = {batch: _loss(model, ids, batch) for batch in (1, 3, 5, 7, 100)}  # 7 windows
    with gg.no_grad():
        each = model.loss(ids[:-1].reshape(7, 6), ids[1:].reshape(7, 6), reduction="none").numpy()
    assert {count for _, count in losses.values()} == {42}
    for loss, _ in losses.values():
        assert loss == pytest.approx(each.mean(), rel=1e-13)


# Dtypes. An array of float64, with dimensions or without, is float64 because it says so; Python's
# numbers and NumPy's scalars of float64, which arithmetic leaves behind, are weak. Losses are
# float32 for half precision, and astype gives what it is asked for: no other exceptions.

HALVES = (backend.float16, backend.bfloat16)
NARROW = (backend.float32, *HALVES)
FLOATING = {name: op for name, op in OPS.items() if not name.startswith("bitwise")}
MIXED_IN: dict[str, Callable[[Any], Any]] = {
    "float": lambda x: 0.5,
    "int": lambda x: 2,
    "bool": lambda x: True,
    "numpy.float64": lambda x: np.float64(0.5),
    "numpy.float16": lambda x: np.float16(0.5),
    "numpy.int64": lambda x: np.int64(2),
    "0-d int array": lambda x: np.array(2),
    "0-d float16 tensor": lambda x: gg.tensor(0.5, "float16"),
    "int64 tensor": lambda x: gg.tensor(np.ones(x.shape, np.int64)),
    "bool tensor": lambda x: gg.tensor(np.ones(x.shape, bool)),
}


def expected_dtype(name: str, dtype: np.dtype, statics: dict[str, Any]) -> np.dtype:
    if "cross_entropy" in name:
        return np.dtype(backend.float32)
    return np.dtype(statics.get("dtype", dtype))


def check_dtypes(
    name: str, function: Callable[..., Any], given: list[Any], statics: dict, dtype: np.dtype
) -> None:
    """Assert that floating results and gradients, recorded ones too, are of the dtype."""
    wanted = [t for t in given if isinstance(t, gg.Tensor) and t.requires_grad]
    with np.errstate(all="ignore"):
        outs = function(*given, **statics)
        outs = outs if isinstance(outs, tuple) else (outs,)
        floating = [out for out in outs if backend.is_float(out.dtype)]
        assert {out.dtype for out in floating} <= {expected_dtype(name, dtype, statics)}
        floating = [out for out in floating if out.requires_grad]
        for recorded in (False, True) if floating else ():
            ones = [gg.ones_like(out) for out in floating]
            found = gg.grad(floating, wanted, ones, create_graph=recorded, retain_graph=True)
            assert [g.dtype for g in found] == [t.dtype for t in wanted]


def tensors(names: Any, able: Any, arrays: list[Any], dtype: np.dtype) -> list[Any]:
    return [
        a
        if a is None
        else gg.tensor(a)
        if a.dtype.kind != "f"
        else gg.tensor(a.astype(dtype), requires_grad=name in able)
        for name, a in zip(names, arrays, strict=True)
    ]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_no_operation_widens_its_dtype(dtype):
    rng = np.random.default_rng(0)
    for table in (FLOATING, FUSED):
        for name, op in table.items():
            function, able = (
                (op.function, op.rules) if table is FLOATING else (op, op.differentiable)
            )
            for sample in op.samples:
                given = tensors(op.arguments, able, sample.draw(rng), np.dtype(dtype))
                check_dtypes(name, function, given, sample.statics, np.dtype(dtype))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_no_kernel_widens_its_dtype(dtype):
    rng = np.random.default_rng(0)
    with emulator.enabled("plain"):
        for name, op in FUSED.items():
            sample = op.samples[0]
            given = tensors(op.arguments, op.differentiable, sample.draw(rng), np.dtype(dtype))
            check_dtypes(name, op, given, sample.statics, np.dtype(dtype))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("mixed", MIXED_IN)
def test_what_is_mixed_in_does_not_widen(mixed):
    rng = np.random.default_rng(0)
    seen = 0
    for name, op in FLOATING.items():
        takes = op.broadcasts and (name != "matmul" or mixed.endswith("4 tensor"))  # no scalars
        for sample in op.samples if takes else ():
            arrays = sample.draw(rng)
            floats = [i for i, a in enumerate(arrays) if a is not None and a.dtype.kind == "f"]
            for i in floats if len(floats) > 1 else ():
                given = tensors(op.arguments, op.rules, arrays, np.dtype("float32"))
                given[i] = MIXED_IN[mixed](given[i])
                check_dtypes(name, op.function, given, sample.statics, np.dtype("float32"))
                seen += 1
    assert seen > 50


def test_a_float64_array_says_so():
    x = gg.ones(3)
    assert (x * np.array(0.5)).dtype == (x * np.ones(3)).dtype == gg.float64
    assert (x * np.float64(0.5)).dtype == (x / 3).dtype == (x + np.int64(1)).dtype == gg.float32
    assert {nn.Linear(2, 2)(gg.ones(2)).dtype, gg.asarray([0.5]).dtype} == {gg.float32}
