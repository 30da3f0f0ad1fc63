"""A recorded step of an optimiser does what the eager one does, in the emulator bit for bit."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backend, cuda, emulator
from gpugrad.cuda import recording
from gpugrad.cuda.replay import Replay
from gpugrad.models import GPT, GPTConfig
from gpugrad.optim import SGD, AdamW, LossScaler, chunks, decay_groups

SHAPES = [(40, 3), (), (301,), (1,)]
KINDS = {
    "sgd": lambda params: SGD(params, lr=0.1),
    "momentum": lambda params: SGD(params, lr=0.1, momentum=0.9, dampening=0.5),
    "adamw": lambda params: AdamW(params, lr=0.1),
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


@pytest.fixture(autouse=True)
def _in_the_emulator(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 96)
    with emulator.enabled("checked"):
        yield


def parameters(dtype):
    rng = np.random.default_rng(0)
    return [
        gg.tensor(rng.normal(size=shape), dtype=dtype, requires_grad=True, device="cpu")
        for shape in SHAPES
    ]


def groups_of(params):
    return [{"params": params[:2], "lr": 0.05}, {"params": params[2:]}]


def gradients(dtype, seed, bad=None):
    rng = np.random.default_rng(seed)
    drawn = [np.asarray(rng.normal(size=s) * 8).astype(backend.as_dtype(dtype)) for s in SHAPES]
    if bad is not None:
        drawn[0][3, 1] = bad
    return drawn


def recorded(optimizer, params, **how):
    """Return a function that takes gradients and replays a step, and the trace."""
    trace = recording.Trace(cuda.EMULATED)
    with recording.recording(trace):
        for p in params:
            p._grad = gg.Tensor._wrap(trace.input(p.shape, p.dtype), None)
        norm = optimizer.step(**how)
    for p in params:
        p._grad = None
    outputs = [] if norm is None else [norm._data]
    replay = Replay(trace, "cpu", outputs, [])

    def step(given):
        for buffer, g in zip(trace.inputs, given, strict=True):
            replay.write(buffer, g)
        replay.run()
        return None if norm is None else float(replay.read(norm._data))

    return step, trace


def stepped(optimizer, params, given, **how):
    for p, g in zip(params, given, strict=True):
        p._grad = gg.Tensor._wrap(g, None)
    norm = optimizer.step(**how)
    return None if norm is None else norm.item()


def kept(params, optimizer):
    arrays = [p.numpy().copy() for p in params]
    for state in optimizer.state_dict()["state"].values():
        arrays += [np.asarray(state[name]) for name in sorted(state)]
    return arrays


def assert_same(one, two):
    assert len(one) == len(two)
    for x, y in zip(one, two, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x.astype(np.float64), y.astype(np.float64))


@every_kind
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_replays_follow_settings_and_steps(make, dtype, max_norm):
    params, twins = parameters(dtype), parameters(dtype)
    one, two = make(groups_of(params)), make(groups_of(twins))
    before = kept(params, one)
    step, trace = recorded(one, params, max_norm=max_norm)
    assert_same(kept(params, one), before)  # recording changes nothing
    assert [s.step for s in one._states.values()] == [0] * 4
    assert len(trace.launches) == (2 if max_norm is None else 3)
    for seed, lr in enumerate((0.1, 0.03, 0.2, 0.01)):
        one.param_groups[1]["lr"] = two.param_groups[1]["lr"] = lr
        given = gradients(dtype, seed)
        assert step(given) == stepped(two, twins, given, max_norm=max_norm)
        assert_same(kept(params, one), kept(twins, two))


@every_kind
def test_a_scaler_lives_on_the_device(make):
    params, twins = parameters("float16"), parameters("float16")
    one, two = make(params), make(twins)
    scalers = [LossScaler(64.0, growth_interval=2, device="cpu") for _ in range(2)]
    step, _ = recorded(one, params, max_norm=1.0, scaler=scalers[0])
    assert scalers[0].state_dict() == scalers[1].state_dict()
    for seed, bad in enumerate([math.inf, None, None, math.nan, None]):
        given = gradients("float16", seed, bad)
        expected = stepped(two, twins, given, max_norm=1.0, scaler=scalers[1])
        np.testing.assert_equal(step(given), expected)
        assert_same(kept(params, one), kept(twins, two))
        assert scalers[0].state_dict() == scalers[1].state_dict()
    assert (scalers[0].skipped, scalers[0].get_scale()) == (2, 32.0)


def test_a_scaled_loss_reads_the_scale_of_its_time():
    """The scale is no constant of the recording."""
    x = gg.tensor([3.0, 1.0], requires_grad=True, device="cpu")
    scaler = LossScaler(8.0, device="cpu")
    trace = recording.Trace()
    with recording.recording(trace):
        loss = scaler.scale((x * x).sum())
        buffer = loss._data.settle()
    replay = Replay(trace, "cpu", [buffer], [])
    found = []
    for scale in (8.0, 4.0):
        scaler.load_state_dict({**scaler.state_dict(), "scale": scale})
        replay.run()
        found.append(float(replay.read(buffer)))
    assert found == [80.0, 40.0]


@every_kind
def test_loaded_state_is_where_the_recording_finds_it(make):
    params, twins = parameters("bfloat16"), parameters("bfloat16")
    one, two = make(params), make(twins)
    step, _ = recorded(one, params, max_norm=1.0)
    for seed in range(3):
        stepped(two, twins, gradients("bfloat16", seed), max_norm=1.0)
    for p, twin in zip(params, twins, strict=True):
        p.data[...] = twin.data
    one.load_state_dict(two.state_dict())
    given = gradients("bfloat16", 9)
    assert step(given) == stepped(two, twins, given, max_norm=1.0)
    assert_same(kept(params, one), kept(twins, two))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_compiled_step_of_a_gpt_is_the_eager_one(dtype):
    """Loss, norm, parameters, moments, scale: bit for bit, where updates are left out as well."""
    runs = []
    for compiled in (False, True):
        gg.manual_seed(3)
        config = GPTConfig(31, block_size=8, n_layer=1, n_head=2, n_embd=16, dtype=dtype)
        with emulator.enabled("plain"):
            model = GPT(config, "cpu")
            optimizer = AdamW(decay_groups(model, 0.1), lr=0.01)
            scaler = LossScaler(2.0**18, growth_interval=2, device="cpu")

            def step(x, y, model=model, optimizer=optimizer, scaler=scaler):
                optimizer.zero_grad()
                loss = model.loss(x, y)
                scaler.scale(loss).backward()
                return loss, optimizer.step(max_norm=1.0, scaler=scaler)

            call = gg.compile(step) if compiled else step
            rng = np.random.default_rng(0)
            found = []
            for number in range(6):
                for group in optimizer.param_groups:
                    group["lr"] = 0.01 / (number + 1)
                loss, norm = call(*rng.integers(0, 31, (2, 3, 8)))
                found += [loss.numpy().copy(), norm.numpy().copy()]
        runs.append([*found, *kept([*model.parameters()], optimizer)])
        states = scaler.state_dict()
        assert (states["skipped"] > 0) == (dtype == "float16")
        runs[-1] += [np.array(states["scale"]), np.array(states["growth_tracker"])]
    assert call.recordings == 1
    assert_same(*runs)


def test_settings_that_a_recording_cannot_follow_are_refused():
    params = parameters("float32")
    optimizer = SGD(params, lr=0.1)
    step, trace = recorded(optimizer, params)
    assert all(holds() for holds in trace.guards)
    optimizer.param_groups[0]["momentum"] = 0.9  # which needs state
    assert not all(holds() for holds in trace.guards)
    optimizer.param_groups[0].update(momentum=0.0, lr=-1.0)
    with pytest.raises(ValueError, match="SGD: lr must be a number >= 0, got -1"):
        step(gradients("float32", 0))


@pytest.mark.parametrize(
    "change",
    [
        lambda group: group.update(lr=0.5),
        lambda group: group.update({"lr": 0.5}),
        lambda group: group.__setitem__("lr", group.get("lr") + 0.4),
        lambda group: group.setdefault("lr", 0.5),
    ],
    ids=["update", "update of a dict", "get", "setdefault"],
)
def test_a_compiled_step_may_change_its_settings(change):
    runs = []
    for compiled in (False, True):
        params = parameters("float32")
        optimizer = SGD(params, lr=0.1)

        def step(params=params, optimizer=optimizer):
            change(optimizer.param_groups[0])
            optimizer.zero_grad()
            sum((p * p).sum() for p in params).backward()
            optimizer.step()

        (gg.compile(step) if compiled else step)()
        runs.append([*(p.data for p in params), optimizer.param_groups[0]["lr"]])
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_no_kernel_takes_is_named():
    params = parameters("float64")
    with pytest.raises(recording.NotRecordable, match=r"SGD\.step of parameters .*float64"):
        recorded(SGD(params, lr=0.1), params)


def test_a_model_without_elements_has_a_plan():
    """From shapes alone: state without memory, and the same launches."""
    trace = recording.Trace()
    params = [
        gg.Tensor._wrap(recording.new(recording.META, shape, gg.bfloat16), None) for shape in SHAPES
    ]
    for p in params:
        p.requires_grad = True
    optimizer = AdamW(params)
    with recording.recording(trace):
        for p in params:
            p._grad = gg.Tensor._wrap(trace.input(p.shape, p.dtype), None)
        optimizer.step(max_norm=1.0)
    names = ["grad_norm_partial", "grad_norm_finish", "adamw"]
    assert [launch.name for launch in trace.launches] == names
    written = {b.storage for b in trace.launches[-1].writes if b.storage.kind == recording.META}
    moments = sum(s.nbytes for s in written) - sum(p.nbytes for p in params)
    elements = sum(-(-math.prod(shape) // 32) * 32 for shape in SHAPES)
    assert moments == 3 * 4 * elements  # two moments and the master copy, in float32
    assert not trace.callbacks
