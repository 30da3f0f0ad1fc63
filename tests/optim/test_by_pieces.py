"""Updates in pieces: how parameters are cut is found out once, and again when anything changes."""

from __future__ import annotations

import copy
import weakref

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.optim import SGD, AdamW, blocks, by_pieces

SHAPES = [(300, 70), (5,), (), (40, 30), (7,), (2, 0)]

KINDS = {
    "sgd": lambda params: SGD(params, lr=0.1),
    "momentum": lambda params: SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda params: AdamW(params, lr=0.1),
}


def parameters(dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return [gg.tensor(rng.normal(size=s), dtype=dtype, requires_grad=True) for s in SHAPES]


def with_gradients(params, seed, missing=()):
    rng = np.random.default_rng(seed)
    for i, p in enumerate(params):
        drawn = gg.tensor(rng.normal(size=p.shape), dtype=p.dtype)
        p.grad = None if i in missing else drawn


def replaced(params, optimizer):
    for p in params[:2]:
        p.data = p.data.copy()


def transposed(params, optimizer):
    params[0].data = np.asfortranarray(params[0].data)


def loaded(params, optimizer):
    state = optimizer.state_dict()
    for one in ("1", "3"):
        state["state"][one]["step"] = 7
    optimizer.load_state_dict(state)


def momentum_on(params, optimizer):
    if isinstance(optimizer, SGD):
        optimizer.param_groups[0]["momentum"] = 0.5


def group_added(params, optimizer):
    params.extend(parameters(params[0].dtype, seed=1)[:2])
    optimizer.add_param_group({"params": params[-2:], "lr": 0.3})


def regrouped(params, optimizer):
    first = optimizer.param_groups[0]["params"]
    first.append(first.pop(0))


CHANGES = [replaced, transposed, loaded, momentum_on, group_added, regrouped]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_kept_plan_is_one_made_for_each_step(monkeypatch, change, make, dtype) -> None:
    monkeypatch.setattr(blocks, "CPU_BLOCK", 1000)
    monkeypatch.setattr(blocks, "SMALL", 10)

    def trained(keep):
        params = parameters(dtype)
        optimizer = make(params)
        for step in range(8):
            if step == 3:
                change(params, optimizer)
            with_gradients(params, step, missing={5: (0, 4), 6: (3,)}.get(step, ()))
            if not keep:
                optimizer._plan = None
            optimizer.step(max_norm=1.0)
        return [p.numpy().tobytes() for p in params]

    assert trained(True) == trained(False)


def test_a_plan_is_kept_while_only_gradients_and_settings_change() -> None:
    params = parameters()
    optimizer = AdamW(params)
    plans = []
    for step in range(3):
        with_gradients(params, step)
        params[0].grad.data[...] = np.asfortranarray(params[0].grad.data)
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        optimizer.step()
        plans.append(optimizer._plan)
    assert plans[0] is plans[1] is plans[2]


@pytest.mark.parametrize("seed", range(3))
def test_small_parameters_together_are_those_apart(monkeypatch, seed) -> None:
    def stepped(small):
        monkeypatch.setattr(blocks, "SMALL", small)
        params = parameters(seed=seed)
        optimizer = AdamW(params, lr=0.1)
        for step in range(3):
            with_gradients(params, step, missing=() if step else (1,))
            optimizer.step()
        return [p.numpy().tobytes() for p in params]

    assert stepped(1 << 12) == stepped(-1)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_state_that_lies_end_to_end_is_changed_where_it_lies(monkeypatch, make) -> None:
    found = []
    for is_joined in (True, False):
        if not is_joined:
            monkeypatch.setattr(by_pieces, "_joined", lambda arrays: None)
        params = parameters()
        optimizer = make(params)
        for step in range(4):  # what has no gradient leaves a gap, and counts steps of its own
            with_gradients(params, step, missing=(3,) if step == 1 else ())
            optimizer.step()
            (pack, *_) = [p for p in optimizer._plan.pieces if isinstance(p, by_pieces._Pack)]
            if step < 2:
                joined = is_joined and step == 0
                assert all((array is not None) == joined for array in pack.joined)
        arrays = [a for p in params for a in optimizer._states[p].arrays.values()]
        found.append([a.tobytes() for a in (*(p.numpy() for p in params), *arrays)])
    assert found[0] == found[1]


def test_a_frozen_parameter_stays() -> None:
    params = parameters()
    optimizer = AdamW(params)
    with_gradients(params, 0)
    optimizer.step()
    params[3].requires_grad_(False)
    with_gradients(params, 1, missing=(3,))
    before = params[3].numpy().copy(), params[0].numpy().copy()
    optimizer.step()
    np.testing.assert_array_equal(params[3].numpy(), before[0])
    assert (params[0].numpy() != before[1]).any()


def test_a_copy_changes_its_own_parameters() -> None:
    params = parameters()
    optimizer = AdamW(params)
    with_gradients(params, 0)
    optimizer.step()
    twins, twin = copy.deepcopy((params, optimizer))
    before = [p.numpy().copy() for p in params]
    with_gradients(twins, 1)
    twin.step()
    for p, other, old in zip(params, twins, before, strict=True):
        np.testing.assert_array_equal(p.numpy(), old)
        assert p.size == 0 or (other.numpy() != old).any()


def test_a_plan_holds_no_gradient() -> None:
    params = parameters()
    optimizer = AdamW(params)
    with_gradients(params, 0)
    gradients = [weakref.ref(p.grad.data) for p in params]
    optimizer.step()
    optimizer.zero_grad()
    assert [g() for g in gradients] == [None] * len(params)
