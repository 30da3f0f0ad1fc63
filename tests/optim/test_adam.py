from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import openblas
from gpugrad.optim import SGD, Adam, AdamW
from gpugrad.optim import blocks as blocks_module

SHAPES = [(), (1,), (0,), (7,), (1023,), (5, 0), (3, 5), (37, 41), (2, 3, 5)]


def reference(x, gradients, lr, betas, eps, weight_decay, decoupled):
    """The papers' formulas, step by step in float64."""
    x = np.array(x, np.float64)
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, g in enumerate(gradients, start=1):
        g = np.array(g, np.float64)
        if decoupled:
            x = x - lr * weight_decay * x
        else:
            g = g + weight_decay * x
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        x = x - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return x


def run(optimizer, parameter, gradients):
    for g in gradients:
        parameter.grad = gg.tensor(g, dtype=parameter.dtype)
        optimizer.step()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.3], ids=["plain", "decay"])
@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-14), ("float32", 2e-6)])
def test_follows_the_formula(kind, weight_decay, shape, dtype, tolerance) -> None:
    rng = np.random.default_rng(len(shape))
    x = rng.normal(size=shape).astype(dtype)
    gradients = [rng.normal(size=shape).astype(dtype) for _ in range(5)]
    settings = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": weight_decay}
    parameter = gg.tensor(x, requires_grad=True)
    memory = parameter.data
    run(kind([parameter], **settings), parameter, gradients)
    assert parameter.data is memory
    assert parameter.dtype == dtype
    expected = reference(x, gradients, **settings, decoupled=kind is AdamW)
    np.testing.assert_allclose(parameter.numpy(), expected, rtol=tolerance, atol=tolerance)


def test_defaults_are_pytorchs() -> None:
    x = gg.tensor([1.0], requires_grad=True)
    shared = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
    assert Adam([x]).defaults == {**shared, "weight_decay": 0.0}
    assert AdamW([x]).defaults == {**shared, "weight_decay": 1e-2}


def transposed(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(a.T).T


@pytest.mark.parametrize("block", [1, 6, 50, 10**6])
@pytest.mark.parametrize("x_layout", [np.ascontiguousarray, transposed])
@pytest.mark.parametrize("g_layout", [np.ascontiguousarray, transposed])
def test_layout_and_block_size_do_not_matter(monkeypatch, block, x_layout, g_layout) -> None:
    rng = np.random.default_rng(3)
    x, g = rng.normal(size=(7, 11)), rng.normal(size=(7, 11))

    def stepped(x_array, g_array):
        parameter = gg.Tensor(x_array, requires_grad=True)
        parameter.grad = gg.Tensor(g_array)
        AdamW([parameter], lr=0.1).step()
        return parameter.numpy()

    expected = stepped(x.copy(), g.copy())
    monkeypatch.setattr(blocks_module, "CPU_BLOCK", block)
    np.testing.assert_array_equal(stepped(x_layout(x).copy(order="K"), g_layout(g)), expected)


def test_a_parameter_that_is_a_strided_view() -> None:
    base = np.arange(20.0)
    parameter = gg.Tensor(base[::2], requires_grad=True)
    parameter.grad = gg.ones(10, dtype="float64")
    AdamW([parameter], lr=0.5, weight_decay=0.0, eps=0.0).step()
    np.testing.assert_allclose(base[::2], np.arange(0.0, 20, 2) - 0.5, rtol=1e-15)
    np.testing.assert_array_equal(base[1::2], np.arange(1.0, 20, 2))


def test_a_step_does_not_change_the_gradient() -> None:
    parameter = gg.tensor(np.ones((4, 4), np.float32), requires_grad=True)
    for kind in (Adam, AdamW):
        g = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
        parameter.grad = gg.Tensor(g)
        before = g.copy()
        kind([parameter], weight_decay=0.1).step()
        np.testing.assert_array_equal(g, before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_moves_through_its_master(dtype: str) -> None:
    """Near 1 bfloat16 steps by 2**-8: a hundred steps of 1e-4 each vanish without a master."""
    parameter = gg.ones(3, dtype=dtype).requires_grad_()
    run(AdamW([parameter], lr=1e-4, weight_decay=0.0), parameter, [np.ones(3)] * 100)
    assert parameter.dtype == dtype
    expected = np.float32(0.99).astype(parameter.dtype)
    np.testing.assert_array_equal(parameter.numpy(), np.full(3, expected))


def test_half_precision_equals_float32_rounded() -> None:
    rng = np.random.default_rng(5)
    start = gg.tensor(rng.normal(size=(9, 5)), dtype="bfloat16")
    half = gg.tensor(start.numpy(), requires_grad=True)
    full = start.astype("float32").detach().requires_grad_()
    optimizers = AdamW([half], lr=0.03), AdamW([full], lr=0.03)
    for _ in range(10):
        half.grad = gg.tensor(rng.normal(size=(9, 5)), dtype="bfloat16")
        full.grad = half.grad.astype("float32")
        for optimizer in optimizers:
            optimizer.step()
    np.testing.assert_array_equal(half.numpy(), full.numpy().astype(half.dtype))


def test_master_follows_a_parameter_that_was_overwritten() -> None:
    parameter = gg.ones(4, dtype="bfloat16").requires_grad_()
    optimizer = AdamW([parameter], lr=2**-6, weight_decay=0.0, eps=0.0)
    run(optimizer, parameter, [np.ones(4)])
    with gg.no_grad():
        parameter[1:3] = 5.0
    run(optimizer, parameter, [np.ones(4)])
    np.testing.assert_allclose(
        parameter.numpy().astype(np.float32),
        np.array([1, 5, 5, 1]) - 2**-6 * np.array([2, 1, 1, 2]),
        rtol=2**-8,
    )


def test_moments_of_one_kind_share_a_buffer() -> None:
    wide = [gg.ones(n, dtype="float64").requires_grad_() for n in (2, 3)]
    narrow = [gg.ones(n).requires_grad_() for n in (5, 7)]
    optimizer = AdamW([{"params": [wide[0], narrow[0], narrow[1]]}, {"params": [wide[1]]}])
    for p in (*wide, *narrow):
        p.grad = gg.ones_like(p)
    optimizer.step()
    buffers = {p: optimizer._states[p].arrays["exp_avg"].base for p in (*wide, *narrow)}
    assert buffers[narrow[0]] is buffers[narrow[1]]
    assert buffers[narrow[0]].size == 12
    assert buffers[narrow[0]].dtype == np.float32
    assert buffers[wide[0]].dtype == np.float64
    assert buffers[wide[0]] is not buffers[wide[1]]


def test_bias_correction_counts_the_parameters_own_steps() -> None:
    """A parameter that joins late takes a full first step of lr."""
    early, late = (gg.zeros(1, dtype="float64").requires_grad_() for _ in range(2))
    optimizer = Adam([early, late], lr=0.1, eps=0.0)
    for i in range(5):
        early.grad = gg.ones(1, dtype="float64")
        late.grad = gg.ones(1, dtype="float64") if i == 4 else None
        optimizer.step()
    np.testing.assert_allclose(late.item(), -0.1, rtol=1e-14)
    np.testing.assert_allclose(early.item(), -0.5, rtol=1e-14)


def test_a_gradient_whose_square_overflows_is_reported() -> None:
    parameter = gg.ones(2).requires_grad_()
    parameter.grad = gg.tensor([1e25, 1.0])
    with pytest.warns(RuntimeWarning, match="overflow"):
        Adam([parameter]).step()
    np.testing.assert_allclose(parameter.numpy(), [1.0, 0.999], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr must be a number >= 0, got -1.0"),
        ({"lr": float("nan")}, "lr must be"),
        ({"lr": "fast"}, "lr must be"),
        ({"eps": -1e-8}, "eps must be"),
        ({"weight_decay": -0.1}, "weight_decay must be"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be a number in \[0, 1\), got 1.0"),
        ({"betas": (-0.1, 0.9)}, r"betas\[0\] must be"),
        ({"betas": 0.9}, "betas must be two numbers"),
        ({"betas": (0.9, 0.99, 0.999)}, "betas must be two numbers"),
    ],
    ids=str,
)
def test_refuses_settings(settings, message) -> None:
    with pytest.raises(ValueError, match=f"AdamW: {message}"):
        AdamW([gg.ones(2).requires_grad_()], **settings)


# In one pass of OpenBLAS where it is there


@pytest.fixture
def one_passes(monkeypatch):
    """The sizes of the arrays that OpenBLAS adds to others."""
    found, sizes = openblas._axpby(), []
    if not found:
        pytest.skip("NumPy has another BLAS here")

    def counted(call):
        def add(n, *args):
            sizes.append(n)
            call(n, *args)

        return add

    counting = {dtype: f._replace(call=counted(f.call)) for dtype, f in found.items()}
    monkeypatch.setattr(openblas, "_axpby", lambda: counting)
    return sizes


@pytest.fixture(params=["one pass", "passes of NumPy"])
def either(request, monkeypatch):
    """Whether there is OpenBLAS."""
    if request.param != "one pass":
        monkeypatch.setattr(openblas, "_axpby", dict)
    return request.param == "one pass"


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_sums_are_one_pass(one_passes, dtype) -> None:
    sizes = [70_001, 5000]
    for kind, per_piece in (
        (lambda params: AdamW(params), 3),
        (lambda params: Adam(params, weight_decay=0.1), 3),
        (lambda params: Adam(params, betas=(0.999, 0.999)), 3),
        (lambda params: SGD(params, momentum=0.9), 2),
        (lambda params: SGD(params), 1),
    ):
        params = [gg.zeros(n, dtype=dtype).requires_grad_() for n in sizes]
        one_passes.clear()
        run_all(kind(params), params, 1)
        assert sum(one_passes) == per_piece * sum(sizes)


def run_all(optimizer, params, steps, max_norm=None):
    rng = np.random.default_rng(7)
    drawn = []
    for _ in range(steps):
        drawn.append([rng.normal(size=p.shape).astype(np.float32) for p in params])
        for p, g in zip(params, drawn[-1], strict=True):
            p.grad = gg.tensor(g, dtype=p.dtype)
        optimizer.step(max_norm=max_norm)
    return drawn


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.0},
        {"weight_decay": 0.3},
        {"betas": (0.0, 0.9)},
        {"betas": (0.9, 0.0), "eps": 1.0, "weight_decay": 0.0},
        {"betas": (0.98, 0.99)},
        {"lr": 0.0},
        {"lr": 1e-40},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 3e-6)])
def test_large_and_small_follow_the_formula(either, kind, settings, dtype, tolerance) -> None:
    chosen = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, **settings}
    rng = np.random.default_rng(4)
    shapes = [(), (0,), (3, 5), (4097,), (257, 300)]
    start = [rng.normal(size=shape).astype(dtype) for shape in shapes]
    params = [gg.tensor(x, requires_grad=True) for x in start]
    drawn = run_all(kind(params, **chosen), params, 5)
    for i, (p, x) in enumerate(zip(params, start, strict=True)):
        expected = reference(x, [g[i] for g in drawn], **chosen, decoupled=kind is AdamW)
        np.testing.assert_allclose(p.numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("max_norm", [1e-36, 1e-20, 1.0])
def test_a_huge_gradient_is_clipped_before_it_is_squared(either, max_norm) -> None:
    params = [gg.ones(n).requires_grad_() for n in (5, 5000)]
    for p in params:
        p.grad = gg.full(p.shape, 1e25)
    optimizer = AdamW(params, lr=0.01, eps=1e-30, weight_decay=0.0)
    norm = optimizer.step(max_norm=max_norm)
    np.testing.assert_allclose(norm.item(), 1e25 * np.sqrt(5005), rtol=1e-6)
    for p in params:
        m = optimizer._states[p].arrays["exp_avg"]
        np.testing.assert_allclose(m, 0.1 * max_norm / np.sqrt(5005), rtol=1e-6, atol=3e-45)
        if max_norm == 1.0:
            np.testing.assert_allclose(p.numpy(), 0.99, rtol=1e-6)


@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9, 0.96, 0.97, 0.99, 0.999])
def test_the_first_moment_is_within_a_millionth(either, beta1) -> None:
    """A beta1 of 0.999 rounded to float32 alone would bias it by 1e-5."""
    rng = np.random.default_rng(0)
    p = gg.zeros(500).requires_grad_()
    optimizer = Adam([p], lr=0.0, betas=(beta1, 0.9))
    expected = np.zeros(500)
    for _ in range(int(8 / (1 - beta1))):
        g = rng.normal(1.0, 0.3, 500).astype(np.float32)
        expected = beta1 * expected + (1 - beta1) * g.astype(np.float64)
        p.grad = gg.tensor(g)
        optimizer.step()
    m = optimizer._states[p].arrays["exp_avg"].astype(np.float64)
    assert np.sqrt(np.mean((m - expected) ** 2) / np.mean(expected**2)) < 1e-6


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_values_that_are_not_finite_spread_alike(monkeypatch, kind) -> None:
    found = []
    for axpby in (openblas._axpby, dict):
        monkeypatch.setattr(openblas, "_axpby", axpby)
        p = gg.tensor(np.ones((3, 2000), np.float32), requires_grad=True)
        g = np.random.default_rng(0).normal(size=(3, 2000)).astype(np.float32)
        g[0, :3], g[2, -3:] = (np.nan, np.inf, -np.inf), (np.inf, 1e30, np.nan)
        optimizer = kind([p], weight_decay=0.1)
        with np.errstate(all="ignore"):
            for _ in range(3):
                p.grad = gg.tensor(g)
                optimizer.step()
        m, v = (optimizer._states[p].arrays[name] for name in ("exp_avg", "exp_avg_sq"))
        m = np.where(np.isfinite(m), m, np.nan)  # after infinity, infinity or infinity - infinity
        found.append([a.astype(np.float64) for a in (p.numpy().reshape(-1), m, v)])
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-6)


@pytest.mark.parametrize("make", [AdamW, lambda params: SGD(params, momentum=0.9)])
def test_strides_change_no_bit(make) -> None:
    rng = np.random.default_rng(2)
    x, g = (rng.normal(size=5001).astype(np.float32) for _ in range(2))
    found = []
    for x_step in (1, 3):
        for g_step in (1, 2):
            p = gg.Tensor(np.repeat(x, x_step)[::x_step], requires_grad=True)
            optimizer = make([p])
            for max_norm in (None, 0.5):
                p.grad = gg.Tensor(np.repeat(g, g_step)[::g_step])
                optimizer.step(max_norm=max_norm)
            found.append(p.numpy().tobytes())
    assert len(set(found)) == 1
