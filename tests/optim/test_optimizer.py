from __future__ import annotations

import copy
import json
import math
import re

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.optim import SGD, Adam, AdamW, clip_grad_norm_

KINDS = {
    "sgd": lambda params: SGD(params, lr=0.1),
    "nesterov": lambda params: SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda params: Adam(params, lr=0.01, weight_decay=0.1),
    "adamw": lambda params: AdamW(params, lr=0.01),
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def parameters(dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return [
        gg.tensor(rng.normal(size=shape), dtype=dtype, requires_grad=True)
        for shape in [(4, 3), (3,), (), (2, 0)]
    ]


def train(params, optimizer, steps, seed=1):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        for p in params:
            p.grad = gg.tensor(rng.normal(size=p.shape), dtype=p.dtype)
        optimizer.step()


def groups_of(params):
    return [{"params": params[:2], "lr": 0.05}, {"params": params[2:]}]


# State


@every_kind
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_resume_is_exact(make, dtype) -> None:
    straight = parameters(dtype)
    optimizer = make(groups_of(straight))
    train(straight, optimizer, 3)
    saved = optimizer.state_dict()
    weights = [p.numpy().copy() for p in straight]
    train(straight, optimizer, 3, seed=2)

    resumed = [gg.tensor(w, requires_grad=True) for w in weights]
    other = make([{"params": resumed[:2]}, {"params": resumed[2:], "lr": 7.0}])
    other.load_state_dict(saved)
    train(resumed, other, 3, seed=2)
    for a, b in zip(straight, resumed, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    one, two = optimizer.state_dict(), other.state_dict()
    assert one["param_groups"] == two["param_groups"]
    assert one["state"].keys() == two["state"].keys() == {"0", "1", "2", "3"}
    for key in one["state"]:
        assert one["state"][key]["step"] == 6
        for name, value in one["state"][key].items():
            np.testing.assert_array_equal(value, two["state"][key][name])


def test_state_is_a_copy_that_json_and_arrays_can_hold() -> None:
    params = parameters()
    optimizer = AdamW(params)
    train(params, optimizer, 1)
    saved = optimizer.state_dict()
    before = saved["state"]["0"]["exp_avg"].copy()
    train(params, optimizer, 1)
    np.testing.assert_array_equal(saved["state"]["0"]["exp_avg"], before)
    for state in saved["state"].values():
        assert state.keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert [saved["state"][str(i)]["exp_avg"].shape for i in range(4)] == [(4, 3), (3,), (), (2, 0)]
    text = json.dumps({"groups": saved["param_groups"]})
    optimizer.load_state_dict({**saved, "param_groups": json.loads(text)["groups"]})
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    assert optimizer.param_groups[0]["params"] == params


def test_loads_integer_keys_and_tensors() -> None:
    params = parameters()
    optimizer = AdamW(params)
    train(params, optimizer, 2)
    saved = optimizer.state_dict()
    saved["state"] = {
        int(key): {k: v if k == "step" else gg.tensor(v) for k, v in state.items()}
        for key, state in saved["state"].items()
    }
    saved["state"][1]["step"] = 0  # the same as {"step": 0}
    other = AdamW(params)
    other.load_state_dict(saved)
    loaded = other.state_dict()["state"]
    steps = {key: state["step"] for key, state in loaded.items()}
    assert steps == {"0": 2, "1": 0, "2": 2, "3": 2}
    np.testing.assert_array_equal(loaded["0"]["exp_avg"], saved["state"][0]["exp_avg"].numpy())


def spoil_shape(saved):
    saved["state"]["0"]["exp_avg"] = np.zeros((3, 4), np.float32)


def spoil_names(saved):
    del saved["state"]["1"]["exp_avg_sq"]


def spoil_count(saved):
    saved["param_groups"][0]["params"].append(4)


def spoil_index(saved):
    saved["state"]["9"] = saved["state"]["0"]


def spoil_step(saved):
    saved["state"]["0"]["step"] = -1


def spoil_lr(saved):
    saved["param_groups"][0]["lr"] = float("nan")


def spoil_state(saved):
    saved["state"] = {}


def spoil_parameter(saved):
    del saved["state"]["2"]


def spoil_settings(saved):
    del saved["param_groups"][0]["betas"], saved["param_groups"][0]["lr"]


def spoil_setting(saved):
    saved["param_groups"][0]["momentum"] = 0.9


def spoil_kind(saved):
    other = SGD(parameters(), lr=1.0, momentum=0.9)
    saved.update(other.state_dict())


def spoil_parts(saved):
    del saved["state"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_state, "parameter 0 of group 0: the saved state lacks '0'"),
        (spoil_parameter, "parameter 2 of group 0: the saved state lacks '2'"),
        (spoil_settings, "saved group 0 is not that of this optimiser: it lacks betas, lr"),
        (spoil_setting, "saved group 0 is not that of this optimiser: foreign are momentum"),
        (spoil_kind, "it lacks betas, eps; foreign are dampening, momentum, nesterov"),
        (spoil_parts, "AdamW.load_state_dict: the state is not that of this optimiser: it lacks"),
        (spoil_shape, "parameter 0 of group 0: exp_avg has shape (3, 4), expected (4, 3)"),
        (spoil_names, "parameter 1 of group 0: the state has ['exp_avg', 'step'], expected"),
        (spoil_count, "the saved groups have [5] parameters, this optimiser's have [4]"),
        (spoil_index, "state for parameter 9, but there are only 4"),
        (spoil_step, "step must be an integer >= 0, got -1"),
        (spoil_lr, "lr must be a number >= 0, got nan"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_state_that_does_not_fit_changes_nothing(spoil, message) -> None:
    params = parameters()
    optimizer = AdamW(params)
    train(params, optimizer, 2)
    saved, before = optimizer.state_dict(), optimizer.state_dict()
    saved["param_groups"][0]["eps"] = 1.0
    spoil(saved)
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.load_state_dict(saved)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, state in before["state"].items():
        for name, value in state.items():
            np.testing.assert_array_equal(after["state"][key][name], value)


@every_kind
def test_a_state_taken_before_the_first_step_starts_again(make) -> None:
    params = parameters("bfloat16")
    optimizer = make(params)
    fresh = optimizer.state_dict()
    train(params, optimizer, 2)
    optimizer.load_state_dict(fresh)
    assert optimizer.state_dict() == fresh
    weights = [gg.tensor(p.numpy(), requires_grad=True) for p in params]
    train(params, optimizer, 2)
    train(weights, make(weights), 2)
    for a, b in zip(params, weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@every_kind
def test_a_group_has_no_unknown_settings(make) -> None:
    (p, *rest) = parameters()
    with pytest.raises(ValueError, match="unknown setting 'weight_decy'; its settings are lr"):
        make([{"params": [p], "weight_decy": 0.0}])
    optimizer = make([{"params": [p], "lr_scale": 0.5, "name": "first"}])
    with pytest.raises(ValueError, match="unknown setting 'rl'"):
        optimizer.add_param_group({"params": rest, "rl": 0.1})
    assert len(optimizer.param_groups) == 1


# Gradients that are missing, replaced, or do not fit


@every_kind
def test_a_parameter_without_gradient_stays(make) -> None:
    params = parameters("float64")
    optimizer = make(params)
    train(params, optimizer, 1)
    before = params[1].numpy().copy()
    train([params[0]], optimizer, 0)
    params[1].grad = None
    optimizer.step()
    np.testing.assert_array_equal(params[1].numpy(), before)
    state = optimizer.state_dict()["state"]
    assert (state["0"]["step"], state["1"]["step"]) == (2, 1)


@every_kind
def test_a_step_without_any_gradient_does_nothing(make) -> None:
    params = parameters()
    before = [p.numpy().copy() for p in params]
    optimizer = make(params)
    optimizer.step()
    assert optimizer.state_dict()["state"] == {str(i): {"step": 0} for i in range(4)}
    for p, old in zip(params, before, strict=True):
        np.testing.assert_array_equal(p.numpy(), old)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none) -> None:
    params = parameters()
    optimizer = SGD(params)
    params[0].grad = held = gg.ones((4, 3))
    optimizer.zero_grad(set_to_none=set_to_none)
    if set_to_none:
        assert params[0].grad is None
    else:
        np.testing.assert_array_equal(params[0].grad.numpy(), np.zeros((4, 3)))
    assert params[1].grad is None
    np.testing.assert_array_equal(held.numpy(), np.ones((4, 3)))


@every_kind
def test_data_stays_the_same_array(make) -> None:
    params = parameters()
    arrays = [p.data for p in params]
    train(params, make(params), 2)
    for p, array in zip(params, arrays, strict=True):
        assert p.data is array
        assert p.is_leaf
        assert p.requires_grad


@every_kind
def test_data_may_be_replaced_between_steps(make) -> None:
    params = parameters("float64")
    twins = parameters("float64")
    one, two = make(params), make(twins)
    train(params, one, 2)
    train(twins, two, 2)
    for p in params:
        p.data = p.data.copy()
    train(params, one, 1, seed=5)
    train(twins, two, 1, seed=5)
    for p, twin in zip(params, twins, strict=True):
        np.testing.assert_array_equal(p.numpy(), twin.numpy())


def test_backward_through_a_graph_older_than_the_step_is_refused() -> None:
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    optimizer = AdamW([x])
    stale = (x * x).sum()
    (x * 3).sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"AdamW.step changed that array in place"):
        stale.backward()


def misfits():
    def other_dtype(p):
        p.data = p.data.astype(np.float64)
        p.grad = None

    def other_shape(p):
        p.data = p.data.reshape(3, 4)
        p.grad = None

    def old_gradient(p):
        g = p.grad
        p.data = p.data.reshape(2, 6)
        p.data = p.data.reshape(4, 3)
        g._data = g._data.reshape(3, 4)

    def read_only(p):
        p.data.flags.writeable = False

    return {
        "dtype": (other_dtype, "parameter 0 of group 0 is float64[4, 3] but was float32[4, 3]"),
        "shape": (other_shape, "parameter 0 of group 0 is float32[3, 4] but was float32[4, 3]"),
        "gradient": (old_gradient, "float32[4, 3] but its gradient is float32[3, 4]"),
        "read-only": (read_only, "parameter 0 of group 0 is read-only"),
    }


@pytest.mark.parametrize(("spoil", "message"), misfits().values(), ids=misfits())
def test_a_misfit_stops_the_step_before_it_changes_anything(spoil, message) -> None:
    params = parameters()[::-1]
    optimizer = SGD(list(reversed(params)))
    train(params, optimizer, 1)
    before = [p.numpy().copy() for p in params]
    spoil(params[-1])
    with pytest.raises(RuntimeError, match=re.escape(message)):
        optimizer.step()
    for p, old in zip(params[:-1], before[:-1], strict=True):
        np.testing.assert_array_equal(p.numpy(), old)


def test_closure_is_recorded_and_its_loss_returned() -> None:
    x = gg.tensor([2.0], requires_grad=True)
    optimizer = SGD([x], lr=0.25)

    def closure():
        optimizer.zero_grad()
        loss = (x * x).sum()
        loss.backward()
        return loss

    with gg.no_grad():
        assert optimizer.step(closure).item() == 4.0
    assert x.item() == 1.0


def test_gradients_that_were_recorded_are_used() -> None:
    x = gg.tensor([3.0], requires_grad=True)
    (x**3).sum().backward(create_graph=True)
    SGD([x], lr=1.0).step()
    assert x.item() == 3.0 - 27.0
    assert x.is_leaf


# Groups


def test_groups_have_their_own_settings() -> None:
    a, b, c = (gg.zeros(1, dtype="float64").requires_grad_() for _ in range(3))
    optimizer = SGD([{"params": [a]}, {"params": b, "lr": 0.5}, {"params": []}], lr=0.1)
    optimizer.add_param_group({"params": [c], "lr": 2.0})
    optimizer.param_groups[0]["lr"] = np.float64(0.25)
    for p in (a, b, c):
        p.grad = gg.ones(1, dtype="float64")
    optimizer.step()
    assert [p.item() for p in (a, b, c)] == [-0.25, -0.5, -2.0]


def test_numpy_scalars_do_not_widen_the_state() -> None:
    x = gg.ones(3).requires_grad_()
    x.grad = gg.ones(3)
    optimizer = AdamW([x], lr=np.float64(0.1))
    optimizer.step()
    assert x.dtype == np.float32
    assert optimizer.state_dict()["state"]["0"]["exp_avg"].dtype == np.float32


def test_a_group_may_be_empty() -> None:
    x = gg.ones(3).requires_grad_()
    optimizer = AdamW([{"params": []}, {"params": [x]}])
    x.grad = gg.ones(3)
    optimizer.step()
    other = AdamW([{"params": []}, {"params": [x]}])
    other.load_state_dict(optimizer.state_dict())
    assert other.state_dict()["state"]["0"]["step"] == 1


def test_a_changed_setting_is_checked_at_the_next_step() -> None:
    x = gg.ones(3).requires_grad_()
    optimizer = AdamW([x])
    optimizer.param_groups[0]["lr"] = float("nan")
    with pytest.raises(ValueError, match="AdamW: lr must be a number >= 0, got nan"):
        optimizer.step()


def test_named_parameters_are_named_in_errors() -> None:
    x = gg.ones(3).requires_grad_()
    optimizer = AdamW([("wte.weight", x)])
    assert optimizer.param_groups[0]["param_names"] == ["wte.weight"]
    x.grad = gg.ones(3)
    optimizer.step()
    x.grad = None
    x.data = np.ones(4, np.float32)
    with pytest.raises(RuntimeError, match=r"parameter 'wte\.weight' is float32"):
        optimizer.step()


def test_repr_names_the_settings() -> None:
    x = gg.ones(3).requires_grad_()
    assert repr(SGD([x], lr=0.5)) == (
        "SGD(\n  group 0: 1 parameters, lr=0.5, momentum=0.0, dampening=0.0, "
        "weight_decay=0.0, nesterov=False\n)"
    )


leaf = gg.ones(2).requires_grad_()


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([], ValueError, "params is empty"),
        (leaf, TypeError, "params must be a list of tensors or of groups"),
        (3, TypeError, "got int"),
        ({"params": [leaf]}, TypeError, "got dict"),
        ([np.ones(3)], TypeError, "parameter 0 must be a tensor, got ndarray"),
        ([leaf, leaf], ValueError, "parameter 1 of group 0 is given twice"),
        ([{"params": [leaf]}, {"params": [leaf]}], ValueError, "0 of group 1 is given twice"),
        ([{"lr": 1.0}], ValueError, r"a group needs 'params', got \['lr'\]"),
        ([leaf * 2], ValueError, "parameter 0 was computed; only leaves"),
        ([gg.ones(2, dtype="int64")], TypeError, "parameter 0 must be floating, got int64"),
        ([("a", leaf), gg.ones(3)], TypeError, "either all parameters of a group have a name"),
        ([("a", 1.0)], TypeError, "parameter 'a' must be a tensor, got float"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses_parameters(params, error, message) -> None:
    with pytest.raises(error, match=f"AdamW: .*{message}"):
        AdamW(params)


# Clipping within the step


@every_kind
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("max_norm", [0.7, 1e-30, 1e9, math.inf], ids="{:g}".format)
def test_a_clipped_step_is_that_of_clipped_gradients(make, dtype, max_norm) -> None:
    fused, separate = parameters(dtype), parameters(dtype)
    one, two = make(groups_of(fused)), make(groups_of(separate))
    rng = np.random.default_rng(2)
    for _ in range(3):
        for p, q in zip(fused[:-1], separate[:-1], strict=True):
            g = rng.normal(size=p.shape)
            p.grad, q.grad = gg.tensor(g, dtype=dtype), gg.tensor(g, dtype=dtype)
        before = [p.grad.numpy().copy() for p in fused[:-1]]
        norm = one.step(max_norm=max_norm)
        assert (norm.shape, norm.dtype, norm.requires_grad) == ((), np.float64, False)
        assert norm.item() == clip_grad_norm_(separate, max_norm)
        two.step()
        for p, q, g in zip(fused, separate, before, strict=False):
            np.testing.assert_array_equal(p.grad.numpy(), g)
            np.testing.assert_array_equal(p.numpy(), q.numpy())


def test_the_norm_of_no_gradient_is_zero() -> None:
    assert SGD(parameters(), lr=0.1).step(max_norm=1.0).item() == 0.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_norm_that_is_not_finite_moves_nothing(bad, dtype) -> None:
    params = parameters(dtype)
    optimizer = AdamW(params, lr=0.1)
    train(params, optimizer, 1)
    params[1].grad.data[1] = bad
    before = [p.numpy().copy() for p in params]
    state = optimizer.state_dict()["state"]
    np.testing.assert_equal(optimizer.step(max_norm=1.0).item(), abs(bad))
    for p, x in zip(params, before, strict=True):
        np.testing.assert_array_equal(p.numpy(), x)
    for key, now in optimizer.state_dict()["state"].items():
        assert now["step"] == state[key]["step"] == 1
        np.testing.assert_array_equal(now["exp_avg"], state[key]["exp_avg"])


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan, "1"])
def test_refuses_a_max_norm(max_norm) -> None:
    params = parameters()
    optimizer = SGD(params, lr=0.1)
    params[1].grad = gg.ones(3)
    before = params[1].numpy().copy()
    with pytest.raises(ValueError, match=r"SGD\.step: max_norm must be a number > 0, got"):
        optimizer.step(max_norm=max_norm)
    np.testing.assert_array_equal(params[1].numpy(), before)


def test_refuses_a_closure_beside_a_max_norm() -> None:
    with pytest.raises(TypeError, match="closure or max_norm, not both"):
        SGD(parameters(), lr=0.1).step(lambda: 1.0, max_norm=1.0)


@every_kind
def test_a_copy_of_parameters_and_optimizer_goes_on_alike(make):
    weight = gg.tensor([1.0, -2.0, 0.5], requires_grad=True)
    optimizer = make([weight])

    def step(weight, optimizer):
        optimizer.zero_grad()
        (weight * weight * weight).sum().backward()
        optimizer.step(max_norm=1.0)
        return weight.tolist()

    step(weight, optimizer)
    twin, its_optimizer = copy.deepcopy((weight, optimizer))
    assert twin is not weight
    assert its_optimizer.param_groups[0]["params"][0] is twin
    for _ in range(3):
        assert step(weight, optimizer) == step(twin, its_optimizer)
