"""Loss scaling: PyTorch's rule, on NumPy and by the kernels, and steps that are left out."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, emulator
from gpugrad.cuda import emulation
from gpugrad.optim import SGD, Adam, AdamW, LossScaler

KINDS = {
    "sgd": lambda params: SGD(params, lr=0.1, momentum=0.9, dampening=0.5),
    "adam": lambda params: Adam(params, lr=0.01, weight_decay=0.1),
    "adamw": lambda params: AdamW(params, lr=0.01),
}
PLACES = {"numpy": emulation.disabled, "kernels": lambda: emulator.enabled("checked")}
every_place = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def parameters(dtype="float16"):
    rng = np.random.default_rng(0)
    return [
        gg.tensor(rng.normal(size=shape), dtype=dtype, requires_grad=True, device="cpu")
        for shape in [(40, 3), (), (2, 0), (1,)]
    ]


def set_gradients(params, scale, seed, bad=None):
    rng = np.random.default_rng(seed)
    for p in params:
        g = np.round(rng.normal(size=p.shape) * 16) / 64  # exact in float16 at any scale here
        p._grad = gg.tensor(g * scale, dtype=p.dtype, device="cpu")
    if bad is not None:
        params[0].grad.data[7, 1] = bad


def kept(params, optimizer):
    """Return copies of parameters, moments and steps."""
    arrays = [p.numpy().copy() for p in params]
    for key, state in sorted(optimizer.state_dict()["state"].items()):
        arrays += [np.asarray(value) for _, value in sorted(state.items())] + [np.array(int(key))]
    return arrays


def assert_same(one, two):
    assert len(one) == len(two)
    for x, y in zip(one, two, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x.astype(np.float64), y.astype(np.float64))


@every_kind
@every_place
@pytest.mark.parametrize("max_norm", [None, 0.5, math.inf])
@pytest.mark.parametrize("scale", [1024.0, 1.0, 0.25])
def test_the_step_is_that_of_gradients_without_the_scale(make, place, max_norm, scale):
    scaled, plain = parameters(), parameters()
    one, two = make(scaled), make(plain)
    scaler = LossScaler(scale, device="cpu")
    with place():
        for seed in range(3):
            set_gradients(scaled, scale, seed)
            set_gradients(plain, 1.0, seed)
            before = [p.grad.numpy().copy() for p in scaled]
            norm = one.step(max_norm=max_norm, scaler=scaler)
            expected = two.step(max_norm=max_norm)
            assert_same([p.grad.numpy() for p in scaled], before)
            if max_norm is None:
                assert norm is expected is None
            else:
                np.testing.assert_allclose(norm.item(), expected.item(), rtol=1e-15)
    tolerance = 0 if max_norm != 0.5 else 1e-6  # a factor of the norm rounds, a power of two not
    for x, y in zip(kept(scaled, one), kept(plain, two), strict=True):
        np.testing.assert_allclose(x.astype(float), y.astype(float), rtol=tolerance, atol=0)
    assert scaler.get_scale() == scale
    assert scaler.skipped == 0


@every_kind
@every_place
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_an_overflow_changes_nothing_but_the_scale(make, place, bad):
    params = parameters()
    optimizer = make(params)
    scaler = LossScaler(64.0, growth_interval=3, device="cpu")
    with place():
        for seed, wrong in enumerate([bad, None, bad, None, None]):
            before, values = kept(params, optimizer), [p.numpy().copy() for p in params]
            steps = [s.step for s in optimizer._states.values()]
            set_gradients(params, scaler.get_scale(), seed, wrong)
            norm = optimizer.step(max_norm=1.0, scaler=scaler).item()
            assert math.isfinite(norm) == (wrong is None)
            assert all(np.isfinite(p.numpy()).all() for p in params)
            if wrong is not None:
                assert_same([p.numpy() for p in params], values)
            if wrong is not None and steps:
                assert_same(kept(params, optimizer), before)
                assert [s.step for s in optimizer._states.values()] == steps
    assert (scaler.get_scale(), scaler.skipped) == (16.0, 2)
    assert [s.step for s in optimizer._states.values()] == [3] * 4


@every_place
def test_steps_left_out_do_not_count_for_the_bias_corrections(place):
    params, twins = parameters("float32"), parameters("float32")
    one, two = AdamW(params, lr=0.1), AdamW(twins, lr=0.1)
    scaler = LossScaler(4.0, device="cpu")
    with place():
        for seed, wrong in enumerate([math.inf, math.nan, None, math.inf, None]):
            set_gradients(params, scaler.get_scale(), seed, wrong)
            one.step(scaler=scaler)
            if wrong is None:
                set_gradients(twins, 1.0, seed)
                two.step()
    assert_same(kept(params, one), kept(twins, two))


def pytorch_scales(scale, overflows, growth, backoff, interval):
    """Return the scale after each step by the rule of torch.amp.GradScaler.update."""
    tracker, found = 0, []
    for overflow in overflows:
        if overflow:
            scale, tracker = scale * backoff, 0
        else:
            tracker += 1
            if tracker == interval:
                scale, tracker = scale * growth, 0
        found.append(scale)
    return found


@every_place
def test_the_scale_follows_pytorchs_rule(place):
    overflows = [False] * 3 + [True] + [False] * 7 + [True, True] + [False] * 3
    params = parameters("float32")[3:]
    optimizer = SGD(params, lr=0.1)
    scaler = LossScaler(8.0, 4.0, 0.25, 3, device="cpu")
    found = []
    with place():
        for overflow in overflows:
            params[0].grad = gg.tensor([math.inf if overflow else 1.0], device="cpu")
            optimizer.step(scaler=scaler)
            found.append(scaler.get_scale())
    assert found == pytorch_scales(8.0, overflows, 4.0, 0.25, 3)
    assert scaler.skipped == 3


@every_place
def test_the_scale_grows_when_the_interval_is_lowered(place):
    params = parameters("float32")[3:]
    optimizer = SGD(params, lr=0.1)
    scaler = LossScaler(8.0, growth_interval=100, device="cpu")
    found = []
    with place():
        for interval in (100, 100, 100, 2, 2, 2):
            params[0].grad = gg.tensor([1.0], device="cpu")
            scaler.growth_interval = interval
            optimizer.step(scaler=scaler)
            found.append(scaler.get_scale())
    assert found == [8, 8, 8, 16, 16, 32]


@every_place
@pytest.mark.parametrize(("start", "bad"), [(2.0**127, 1.0), (2.0**-126, math.nan)])
def test_the_scale_stays_a_normal_number(place, start, bad):
    params = parameters("float32")[3:]
    scaler = LossScaler(start, growth_interval=1, device="cpu")
    params[0].grad = gg.tensor([bad], device="cpu")
    with place():
        SGD(params, lr=0.1).step(scaler=scaler)
    assert scaler.get_scale() == start


@every_place
def test_resuming_is_exact(place):
    def run(params, optimizer, scaler, seeds):
        for seed in seeds:
            set_gradients(params, scaler.get_scale(), seed, math.inf if seed % 3 == 0 else None)
            optimizer.step(max_norm=1.0, scaler=scaler)

    made = [(parameters(), LossScaler(2.0**6, growth_interval=2, device="cpu")) for _ in range(2)]
    (params, scaler), (twins, other) = made
    one, two = AdamW(params), AdamW(twins)
    with place():
        run(params, one, scaler, range(4))
        saved = json.loads(json.dumps(scaler.state_dict()))
        for p, twin in zip(params, twins, strict=True):
            twin.data[...] = p.data
        two.load_state_dict(one.state_dict())
        other.load_state_dict(saved)
        run(params, one, scaler, range(4, 9))
        run(twins, two, other, range(4, 9))
    assert other.state_dict() == scaler.state_dict()
    assert scaler.skipped == 3
    assert_same(kept(params, one), kept(twins, two))


def test_the_scale_stays_where_kernels_read_it():
    scaler = LossScaler(device="cpu")
    scale, counts, *settings = scaler.arguments()
    assert (scale.shape, scale.dtype, counts.dtype) == ((), np.float32, np.int32)
    assert settings == [2.0, 0.5, 2000]
    scaler.load_state_dict({**scaler.state_dict(), "scale": 3.0})
    assert scaler.arguments()[0] is scale
    assert scale == 3.0


def test_it_is_three_launches_and_nothing_is_read_in_between(monkeypatch):
    params = parameters()
    optimizer = AdamW(params)
    scaler = LossScaler(device="cpu")
    set_gradients(params, 64.0, 0)

    def read(self):
        raise AssertionError("this would wait for a GPU")

    monkeypatch.setattr(LossScaler, "get_scale", read)
    monkeypatch.setattr(LossScaler, "update", read)
    with emulator.enabled():
        before = cuda.launches.copy()
        optimizer.step(scaler=scaler)
        norm = optimizer.step(max_norm=1.0, scaler=scaler)
        launched = cuda.launches - before
    assert launched == {"grad_norm_partial": 2, "grad_norm_finish": 2, "adamw": 2}
    assert norm.item() > 0


@every_place
def test_what_kernels_do_not_take_is_scaled_too(place):
    """A float64 parameter beside one that they take."""
    params = [gg.ones(3, dtype=d, device="cpu").requires_grad_() for d in ("float64", "float32")]
    optimizer = SGD(params, lr=1.0)
    scaler = LossScaler(8.0, growth_interval=1, device="cpu")
    with place():
        for value in (8.0, math.nan):
            for p in params:
                p.grad = gg.full((3,), value, dtype=p.dtype, device="cpu")
            norm = optimizer.step(max_norm=10.0, scaler=scaler)
            np.testing.assert_allclose(norm.item(), math.sqrt(6) * value / 8)
    for p in params:
        np.testing.assert_array_equal(p.numpy(), 0)
        assert optimizer._states[p].step == 1
    assert scaler.state_dict()["scale"] == 8.0  # 8, 16, 8
    assert scaler.skipped == 1


def test_small_gradients_survive_in_float16():
    """Without a scale they are 0: that is what it is for."""
    x = gg.tensor([2.0**-14], dtype="float16", requires_grad=True, device="cpu")
    grads = []
    for scaler in (LossScaler(1.0, device="cpu"), LossScaler(2.0**16, device="cpu")):
        x.grad = None
        loss = (x * x).astype("float32").sum() * 2.0**-14
        scaler.scale(loss).backward()
        before = x.numpy().astype(np.float64)
        optimizer = SGD([x], lr=1.0)
        optimizer.step(scaler=scaler)
        master = optimizer._states[x].arrays["master"].astype(np.float64)
        grads.append(float((before - master)[0]))
        x.data[...] = 2.0**-14
    assert grads == [0.0, 2.0**-27]


def test_a_scaled_loss_is_float32_and_carries_the_gradient():
    x = gg.tensor([3.0], dtype="float16", requires_grad=True, device="cpu")
    scaled = LossScaler(2.0**16, device="cpu").scale((x * x).sum())
    assert scaled.dtype == gg.float32
    assert scaled.item() == 9 * 2.0**16


def test_a_graph_older_than_the_step_is_refused():
    x = gg.tensor([1.0], requires_grad=True, device="cpu")
    y = gg.tensor([1.0], requires_grad=True, device="cpu")
    scaler = LossScaler(2.0, device="cpu")
    stale = scaler.scale((y * 2.0).sum())
    scaler.scale((x * 2.0).sum()).backward()
    SGD([x]).step(scaler=scaler)
    with pytest.raises(RuntimeError, match=r"SGD.step changed that array in place"):
        stale.backward()


def test_a_step_without_gradients_changes_nothing():
    scaler = LossScaler(growth_interval=1, device="cpu")
    assert SGD(parameters(), lr=0.1).step(max_norm=1.0, scaler=scaler).item() == 0.0
    assert scaler.get_scale() == 2.0**16


def test_a_closure_computes_the_scaled_loss():
    x = gg.tensor([2.0], requires_grad=True, device="cpu")
    scaler = LossScaler(8.0, device="cpu")
    optimizer = SGD([x], lr=0.25)

    def closure():
        loss = (x * x).sum()
        scaler.scale(loss).backward()
        return loss

    assert optimizer.step(closure, scaler=scaler).item() == 4.0
    assert x.item() == 1.0


def test_defaults_are_pytorchs():
    assert repr(LossScaler(device="cpu")) == (
        "LossScaler(scale=65536, growth_factor=2, backoff_factor=0.5, growth_interval=2000)"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_scale": 0.0}, "init_scale must be a number in"),
        ({"init_scale": 1e39}, "init_scale must be a number in"),
        ({"init_scale": math.nan}, "init_scale must be a number in"),
        ({"growth_factor": 0.5}, "growth_factor must be a number >= 1"),
        ({"backoff_factor": 0.0}, "backoff_factor must be a number >="),
        ({"backoff_factor": 1.5}, "backoff_factor must be at most 1"),
        ({"growth_interval": 0}, "growth_interval must be an integer >= 1, got 0"),
        ({"growth_interval": 2.5}, "growth_interval must be an integer >= 1, got 2.5"),
    ],
    ids=str,
)
def test_refuses_settings(settings, message):
    with pytest.raises(ValueError, match=f"LossScaler: {message}"):
        LossScaler(**settings, device="cpu")


@pytest.mark.parametrize("key", ["growth_tracker", "skipped"])
@pytest.mark.parametrize("bad", [-1, 1.5, "x", None, 2**31])
def test_a_state_that_is_refused_changes_nothing(key, bad):
    scaler = LossScaler(device="cpu")
    before = scaler.state_dict()
    new = {**LossScaler(4.0, 3.0, 0.25, 7, device="cpu").state_dict(), key: bad}
    with pytest.raises(ValueError, match=f"LossScaler: {key} must be an integer >= 0, got "):
        scaler.load_state_dict(new)
    assert scaler.state_dict() == before


def test_refuses_what_is_no_scaler():
    with pytest.raises(TypeError, match=r"SGD\.step: scaler must be a gg\.optim\.LossScaler"):
        SGD(parameters()).step(scaler=2.0)


def test_an_overflow_in_backward_is_no_warning():
    """Warnings are errors here."""
    x = gg.tensor([200.0], dtype="float16", requires_grad=True, device="cpu")
    scaler = LossScaler(2.0**9, device="cpu")
    scaler.scale((x * x).sum()).backward()
    SGD([x], lr=1.0).step(max_norm=1.0, scaler=scaler)
    assert x.item() == 200.0
    assert scaler.get_scale() == 2.0**8
