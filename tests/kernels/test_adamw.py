"""The CUDA kernel in the emulator: no fault, and in any order the bits of the NumPy path."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, emulator, testing
from gpugrad.optim import SGD, Adam, AdamW, chunks, clip, state

pytestmark = pytest.mark.usefixtures("without_openblas")

SHAPES = [(), (1,), (3,), (0, 4), (1023,), (5, 7, 2), (2011, 3), (64, 16)]
SETTINGS = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.3}
STEPS = 10


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch):
    """Three rounds of vectors in a chunk, three chunks in the largest parameter."""
    monkeypatch.setattr(chunks, "CHUNK", 2560)


def made(shapes=SHAPES, dtype="float32"):
    rng = np.random.default_rng(len(shapes))
    return [gg.tensor(rng.normal(size=s), dtype=dtype, requires_grad=True) for s in shapes]


def set_gradients(params, seed, dtype=None):
    """Draw gradients of a dtype that may differ from the parameters'."""
    rng = np.random.default_rng(seed)
    for p in params:
        p._grad = gg.tensor(rng.normal(size=p.shape), dtype=dtype or p.dtype)


def arrays_of(params, optimizer):
    states = optimizer.state_dict()["state"].values()
    return [p.numpy().copy() for p in params], [
        [a for name, a in state.items() if name != "step"] for state in states
    ]


def trained(make, dtype="float32", g_dtype=None, steps=STEPS, wide=False, shapes=SHAPES):
    """Return parameters and moments after some steps; ``wide``: in float64 from the same values."""
    params = made(shapes, dtype)
    if wide:
        params = [gg.tensor(p.numpy().astype(np.float64), requires_grad=True) for p in params]
    optimizer = make(params)
    for step in range(steps):
        set_gradients(params, step, g_dtype or dtype)
        if wide:
            for p in params:
                p._grad = p._grad.astype("float64")
        optimizer.step()
    return arrays_of(params, optimizer)


def assert_same(a, b):
    """The emulator rounds every operation as NumPy does: the values are equal."""
    for one, two in zip((a[0], *a[1]), (b[0], *b[1]), strict=True):
        for x, y in zip(one, two, strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x.astype(np.float64), y.astype(np.float64))


types = pytest.mark.parametrize(
    ("dtype", "g_dtype"),
    [
        ("float32", "float32"),
        ("float32", "bfloat16"),
        ("float32", "float16"),
        ("bfloat16", "bfloat16"),
        ("bfloat16", "float32"),
        ("float16", "float16"),
    ],
)


@pytest.mark.parametrize("kind", [Adam, AdamW])
@types
def test_agrees_with_numpy(kind, dtype, g_dtype):
    def run():
        return trained(lambda params: kind(params, **SETTINGS), dtype, g_dtype)

    before = cuda.launches["adamw"]
    found = emulator.sweep(run)
    assert cuda.launches["adamw"] == before + STEPS * len(emulator.SWEEP)
    plain = run()
    assert_same(found, plain)
    exact = trained(lambda params: kind(params, **SETTINGS), dtype, g_dtype, wide=True)
    for x, e, p in zip(found[0], exact[0], plain[0], strict=True):
        testing.assert_close(x, e, p, factor=2)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [Adam, AdamW])
@types
def test_agrees_with_numpy_on_a_gpu(monkeypatch, kind, dtype, g_dtype):
    def run(wide=False):
        return trained(lambda params: kind(params, **SETTINGS), dtype, g_dtype, wide=wide)

    before = cuda.launches["adamw"]
    found = run()
    assert cuda.launches["adamw"] == before + STEPS
    monkeypatch.setenv("GPUGRAD_DEVICE", "cpu")
    for x, e, p in zip(found[0], run(wide=True)[0], run()[0], strict=True):
        testing.assert_close(x, e, p, factor=2)


def moved(array, offset):
    """Return a copy of an array that begins so many elements after a multiple of 16 bytes."""
    memory = np.full(array.size + 16, -1, array.dtype)
    start = -(memory.ctypes.data // array.itemsize) % 8 + offset
    view = memory[start : start + array.size].reshape(array.shape)
    view[...] = array
    return view


@pytest.mark.parametrize("odd", ["none", "x", "g", "exp_avg", "exp_avg_sq", "narrow"])
@pytest.mark.parametrize("offset", [1, 2])
def test_any_alignment_gives_the_same(odd, offset):
    dtype = "bfloat16" if odd == "narrow" else "float32"

    def run():
        params = made([(3,), (1030,), (17,), (2565,)], dtype)
        optimizer = AdamW(params, **SETTINGS)
        optimizer._lay_out(optimizer.param_groups[0])
        set_gradients(params, 0)
        for p in params:
            p.data = moved(p.data, offset if odd in ("x", "narrow") else 0)
            p.grad = gg.Tensor(moved(p.grad.data, offset if odd == "g" else 0))
            arrays = optimizer._states[p].arrays
            for name, array in arrays.items():
                arrays[name] = moved(array, offset if odd == name else 0)
        optimizer.step()
        return arrays_of(params, optimizer)

    assert_same(emulator.sweep(run, emulator.SWEEP[1:3]), run())


def test_moments_are_aligned_where_kernels_want_it(monkeypatch):
    monkeypatch.setattr(state, "CPU_ALIGNMENT", state.GPU_ALIGNMENT)
    params = made([(3,), (33,), (5,)])
    optimizer = AdamW(params, **SETTINGS)
    set_gradients(params, 0)
    optimizer.step()
    places = [cuda.address(optimizer._states[p].arrays["exp_avg_sq"]) for p in params]
    assert [place - places[0] for place in places] == [0, 128, 384]


def test_all_groups_and_steps_in_one_launch():
    """A parameter that joins late has the bias corrections of its own steps."""

    def run():
        params = made()
        optimizer = AdamW(
            [{"params": params[:3], "lr": 0.5}, {"params": params[3:], "weight_decay": 0.0}]
        )
        for step in range(4):
            set_gradients(params, step)
            for p in params[:: step % 2 + 2]:
                p.grad = None
            optimizer.step()
        return arrays_of(params, optimizer)

    before = cuda.launches["adamw"]
    with emulator.enabled("checked"):
        found = run()
    assert cuda.launches["adamw"] == before + 4
    assert_same(found, run())


def test_mixed_precision_in_one_launch():
    def run():
        params = [made([(9, 5)], dtype)[0] for dtype in ("float32", "bfloat16", "float16")]
        optimizer = AdamW(params, **SETTINGS)
        for step in range(3):
            set_gradients(params, step)
            optimizer.step()
        return arrays_of(params, optimizer)

    before = cuda.launches["adamw"]
    with emulator.enabled("checked"):
        found = run()
    assert cuda.launches["adamw"] == before + 3
    assert_same(found, run())


def test_what_the_kernel_does_not_take_goes_through_numpy():
    """float64, and a parameter in another order; a gradient in another order is copied."""

    def run():
        wide, other, plain = made([(5,)], "float64")[0], made([(4, 3)])[0], made([(3, 4)])[0]
        other.data = np.asfortranarray(other.data)
        params = [wide, other, plain]
        optimizer = AdamW(params, **SETTINGS)
        for step in range(2):
            set_gradients(params, step)
            plain.grad = gg.Tensor(np.asfortranarray(plain.grad.data))
            optimizer.step()
        return arrays_of(params, optimizer)

    before = cuda.launches["adamw"]
    with emulator.enabled("checked"):
        found = run()
    assert cuda.launches["adamw"] == before + 2
    assert_same(found, run())


def test_state_is_updated_in_place_and_resumes_on_either_path():
    params = made()
    optimizer = AdamW(params, **SETTINGS)
    arrays = [p.data for p in params]
    with emulator.enabled():
        set_gradients(params, 0)
        optimizer.step()
        moments = {p: dict(optimizer._states[p].arrays) for p in params}
        set_gradients(params, 1)
        optimizer.step()
    for p, array in zip(params, arrays, strict=True):
        assert p.data is array
        for name, moment in moments[p].items():
            assert optimizer._states[p].arrays[name] is moment
    twins = [gg.tensor(p.numpy().copy(), requires_grad=True) for p in params]
    resumed = AdamW(twins, **SETTINGS)
    resumed.load_state_dict(optimizer.state_dict())
    set_gradients(params, 2)
    set_gradients(twins, 2)
    optimizer.step()
    with emulator.enabled("checked"):
        resumed.step()
    assert_same(arrays_of(params, optimizer), arrays_of(twins, resumed))


def test_master_follows_a_parameter_that_was_overwritten():
    def run():
        (p,) = made([(70,)], "bfloat16")
        optimizer = AdamW([p], **SETTINGS)
        set_gradients([p], 0)
        optimizer.step()
        p.data[3:50] = 5.0
        p.data[60] = np.nan
        optimizer.step()
        return arrays_of([p], optimizer)

    with emulator.enabled("checked"):
        found = run()
    assert np.isnan(found[0][0]).sum() == 1
    assert_same(found, run())


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_values_that_are_not_finite(kind, weight_decay):
    """NaN and infinity spread as in NumPy, also where the decay is 0 and the parameter infinite."""

    def run():
        p = gg.tensor(np.array([1, np.inf, -np.inf, 0, 1, 2, 1e38], "float32"), requires_grad=True)
        optimizer = kind([p], lr=0.1, weight_decay=weight_decay)
        for values in (
            [np.nan, 1, 1, np.inf, 1e25, 1e-40, 3e38],
            [1, 1, 0, 1, 1, -np.inf, -3e38],
        ):
            p.grad = gg.tensor(np.array(values, "float32"))
            optimizer.step()
        return arrays_of([p], optimizer)

    with emulator.enabled("checked"):
        found = run()
    with np.errstate(all="ignore"):
        assert_same(found, run())


def test_eps_zero_divides_by_zero():
    def run():
        p = gg.zeros(4).requires_grad_()
        p.grad = gg.tensor([1.0, 0.0, 1e-30, -2.0])
        optimizer = Adam([p], lr=0.25, eps=0.0)
        optimizer.step()
        return arrays_of([p], optimizer)

    with emulator.enabled("checked"):
        found = run()
    with np.errstate(all="ignore"):
        assert_same(found, run())


def test_a10_in_the_emulator():
    def run():
        theta = gg.tensor(1.0, requires_grad=True)
        optimizer = AdamW([theta], lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
        reached = []
        for g in (0.5, -0.25, 1.0):
            optimizer.zero_grad()
            (theta * g).backward()
            optimizer.step()
            reached.append(theta.item())
        return reached

    expected = [0.899000002, 0.8714672987058463, 0.804784672376384]
    np.testing.assert_allclose(emulator.sweep(run), expected, rtol=0, atol=2e-7)


# What a captured step relies on


def test_tables_stay_while_the_arrays_do():
    params = made([(5,), (300,)])
    optimizer = AdamW(params, **SETTINGS)
    set_gradients(params, 0)
    with emulator.enabled():
        optimizer.step()
        settings = optimizer._settings["cpu"]
        members = [(p, optimizer.param_groups[0]) for p in params]
        one = optimizer._table(members)
        two = optimizer._table(members)
        assert one.tensors is two.tensors
        assert one.chunks is two.chunks
        assert optimizer._settings["cpu"] is settings
        params[0].data = params[0].data.copy()
        assert optimizer._table(members).tensors is not one.tensors


def test_a_prepared_launch_follows_the_schedule():
    """Launched again as they were, kernels take settings and steps from device memory."""
    params, twins = made([(5,), (300,)]), made([(5,), (300,)])
    optimizer, other = AdamW(params, lr=0.1), AdamW(twins, lr=0.1)
    (group,) = other.param_groups
    other._lay_out(group)
    set_gradients(params, 0)
    set_gradients(twins, 0)
    with emulator.enabled("checked"):
        table = other._table([(p, group) for p in twins])
        settings = other._settings["cpu"]
        for lr in (0.1, 0.01, 0.02):
            optimizer.param_groups[0]["lr"] = group["lr"] = lr
            optimizer.step()
            other._write(settings, [group])
            clip.count_steps(table, None)
            arrays = ("x", "first", "second")
            table.launch(
                other.source, other.kernel, settings.array, None, reads=("g", "step"), writes=arrays
            )
    assert_same(arrays_of(params, optimizer), arrays_of(twins, other))
    assert [other._states[p].step for p in twins] == [3, 3]


def test_another_update_does_not_inherit_the_kernel():
    class Frozen(AdamW):
        def update(self, *args):
            pass

    assert Frozen.source is None
    assert AdamW.source is Adam.source is not SGD.source
    (p,) = made([(3,)])
    before = p.numpy().copy()
    set_gradients([p], 0)
    with emulator.enabled():
        Frozen([p]).step()
    np.testing.assert_array_equal(p.numpy(), before)
