"""crosscheck: sound models pass, and a planted error is found, named and located."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.fused import FUSED
from gpugrad.models import GPT, RNNLM, GPTConfig, RNNLMConfig
from gpugrad.registry import OPS
from gpugrad.tensor import Tensor
from gpugrad.testing import crosscheck, reruns

VARIANTS = {
    "gpt-2": {"dropout": 0.1},
    "llama": {
        "positions": "rotary",
        "norm": "rms",
        "activation": "swiglu",
        "bias": False,
        "tied_head": False,
    },
    "alibi, shared keys": {"positions": "alibi", "n_kv_head": 1},
    "t5": {"positions": "relative", "norm_first": False, "activation": "gelu", "dropout": 0.2},
    "sinusoidal": {"positions": "sinusoidal"},
    "bfloat16": {"dtype": "bfloat16", "dropout": 0.1},
    "float16": {"dtype": "float16"},
    "float64": {"dtype": "float64", "dropout": 0.1},
}


def make_gpt(**changes):
    shape = {"vocab_size": 33, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}
    return GPT(GPTConfig(**{**shape, **changes}))


def ids():
    return gg.random.integers(33, size=(2, 8))


@pytest.mark.parametrize("name", VARIANTS)
def test_gpts_pass(name):
    report = crosscheck(make_gpt(**VARIANTS[name]), (ids(), ids()))
    assert report.first is None
    assert len(report.differences) > 80
    assert {d.implementation for d in report.differences} == {"numpy", "differences"}


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_recurrent_models_pass(cell):
    model = RNNLM(RNNLMConfig(vocab_size=33, cell=cell))
    report = crosscheck(model.loss, {"ids": ids(), "targets": ids()})
    assert report.calls[cell] == 1


def test_an_mlp_passes():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 3), nn.Tanh())
    report = crosscheck(model, gg.random.normal(size=(5, 4)))
    assert report.calls == {"linear": 2, "relu": 1, "layer_norm": 1, "tanh": 1}
    assert all(p.grad is None for p in model.parameters())


def everything(table, able):
    for op in table.values():
        for i, sample in enumerate(op.samples[:2]):
            if able(op):
                yield pytest.param(op, sample, id=f"{op.name}-{i}")


SAMPLES = [
    *everything({k: v for k, v in OPS.items() if k not in FUSED}, lambda op: op.rules),
    *everything(FUSED, lambda op: op.differentiable),
]


def test_no_operation_is_beyond_its_budget():
    """On its own samples; one test for all, as each takes a millisecond."""
    beyond = []
    for op, sample in (p.values for p in SAMPLES):
        able = op.rules if op.name in OPS else op.differentiable
        given = []
        for name, x in zip(op.arguments, sample.draw(np.random.default_rng(0)), strict=True):
            is_float = x is not None and np.asarray(x).dtype.kind == "f"
            dtype = np.float32 if is_float else None
            wanted = is_float and name in able
            given.append(x if x is None else Tensor(np.asarray(x, dtype), requires_grad=wanted))
        if not any(x is not None and x.requires_grad for x in given):
            continue

        def call(*args, op=op, statics=sample.statics):
            return op(*args, **statics) if op.name in FUSED else op(args, {**op.statics, **statics})

        with np.errstate(all="ignore"):
            first = crosscheck(call, tuple(given), raises=False).first
        beyond += [] if first is None else [str(first)]
    assert not beyond, "\n".join(beyond)


def off(function, element=None):
    """Return a function whose result, or first result, is 0.1 % too large, or one element is."""

    def planted(*args, **kwargs):
        out, *rest = result = function(*args, **kwargs)
        wrong = out * out.dtype.type(1.001)
        if element is not None:
            wrong, changed = out.copy(), wrong
            wrong[element] = changed[element]
        return type(result)([wrong, *rest])

    return planted


def planted(monkeypatch, name, kind, what, element=None):
    """Make an implementation of a fused operation wrong."""
    found = FUSED[name].implementations
    wrong = found[kind]._replace(**{what: off(getattr(found[kind], what), element)})
    monkeypatch.setitem(found, kind, wrong)


def crosschecked_names(model):
    return set(crosscheck(model, (ids(), ids()), raises=False).calls)


def test_an_error_forward_is_found_where_it_is_first_made(monkeypatch):
    planted(monkeypatch, "packed_attention", "numpy", "forward", (1, 3, 5))
    model = make_gpt()
    with pytest.raises(AssertionError) as caught:
        crosscheck(model, (ids(), ids()))
    message = str(caught.value)
    assert message.startswith("crosscheck: packed_attention: the result by numpy is ")
    assert "module  GPT.blocks.0.attention\n" in message
    assert f"line    {__file__}:" in message
    assert "crosscheck(model, (ids(), ids()))\n" in message
    assert "given   qkv float32[2, 8, 3, 2, 8]\n" in message
    assert " at [1, 3, 5], should be " in message
    assert "; 1 values are beyond the budget\n" in message
    table = message.partition("\n\n")[2].splitlines()
    assert table[0].split() == [
        "operation",
        "calls",
        "result",
        "budget",
        "gradient",
        "budget",
        "slope",
        "by",
    ]
    assert [line.split()[0] for line in table[1:]] == sorted(crosschecked_names(model))


def test_an_error_backward_is_found_where_it_is_first_made(monkeypatch):
    planted(monkeypatch, "layer_norm", "numpy", "backward")
    first = crosscheck(make_gpt(), (ids(), ids()), raises=False).first
    assert (first.op, first.what, first.implementation) == (
        "layer_norm",
        "the gradient of x",
        "numpy",
    )
    assert first.place.path == "GPT.norm"  # the last one, whose gradient comes first
    assert 100 * first.budget < first.error < 20000
    assert first.value == pytest.approx(1.001 * first.exact, rel=1e-5)


def test_a_wrong_rule_of_a_primitive_is_found(monkeypatch):
    """Which every precision and implementation shares: only differences can tell."""
    pullback = OPS["tanh"].pullback((0,))
    ((rule, *rest),) = pullback.steps

    def wrong(g, out):
        return 1.001 * rule(g, out)

    monkeypatch.setattr(pullback, "steps", [(wrong, *rest)])
    monkeypatch.setitem(OPS["tanh"].rules, "x", wrong)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    with pytest.raises(AssertionError, match="tanh: the gradient of the definition is wrong") as e:
        crosscheck(model, gg.random.normal(size=(5, 4)))
    assert "module  Sequential.1\n" in str(e.value)
    assert "off     by 0.000999, allowed 0.0001 (relative)\n" in str(e.value)


def test_what_changed_behind_the_engines_back_is_found():
    class Careless(nn.Module):
        def forward(self, x):
            out = x * 2.0
            out.data[0] += 1.0
            return out

    first = crosscheck(nn.Sequential(Careless()), gg.ones(3).requires_grad_(), raises=False).first
    assert (first.op, first.what, first.index) == ("multiply", "the result", "[0]")
    assert (first.value, first.exact) == (3.0, 2.0)
    assert first.place.path == "Sequential.0"


def test_a_nan_that_should_not_be_is_infinitely_far(monkeypatch):
    found = FUSED["softmax"].implementations["numpy"]

    def broken(*args, **statics):
        out, kept = found.forward(*args, **statics)
        return np.where(out == out.max(), np.nan, out).astype(out.dtype), kept

    wrong = found._replace(forward=broken)
    monkeypatch.setitem(FUSED["softmax"].implementations, "numpy", wrong)
    x = gg.random.normal(size=(2, 5)).requires_grad_()
    first = crosscheck(lambda x: nn.functional.softmax(x, axis=-1), x, raises=False).first
    assert first.error == np.inf
    assert first.count == 1


def test_kernels_take_part_in_the_emulator(monkeypatch):
    model = make_gpt(n_layer=1, dropout=0.1)
    with gg.emulator.enabled("plain"):
        report = crosscheck(model.loss, (ids(), ids()))
        by = {(d.op, d.implementation) for d in report.differences}
        assert {("layer_norm", "emulated"), ("layer_norm", "numpy"), ("mlp", "emulated")} <= by
        planted(monkeypatch, "layer_norm", "cuda", "backward")
        first = crosscheck(model.loss, (ids(), ids()), raises=False).first
        assert (first.op, first.implementation) == ("layer_norm", "emulated")
        monkeypatch.undo()
        planted(monkeypatch, "packed_attention", "numpy", "forward")  # what did not run, too
        first = crosscheck(model.loss, (ids(), ids()), raises=False).first
        assert (first.op, first.implementation) == ("packed_attention", "numpy")


def test_fused_functions(monkeypatch):
    @gg.fuse
    def swish(x, slope):
        return x * gg.sigmoid(slope * x)

    x = gg.random.normal(size=(3, 5)).requires_grad_()
    with gg.emulator.enabled("plain"):
        report = crosscheck(swish, (x, 1.5))
    assert report.calls == {"swish": 1}
    assert {d.implementation for d in report.differences} == {"emulated", "differences"}


def test_what_has_one_implementation_only_is_listed():
    class Double(gg.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2

    x = gg.random.normal(size=(3,)).requires_grad_()
    report = crosscheck(lambda x: gg.checkpoint(gg.exp, Double.apply(x)), x)
    assert [(d.op, d.implementation) for d in report.differences] == [("Double", "differences")]
    assert report.calls == {"Double": 1, "checkpoint": 1}
    assert report.unchecked == {"checkpoint": 1}
    assert str(report).startswith("unchecked: checkpoint (1)\n")
    assert str(report).count("nothing to compare with") == 1


def scaled(forward, slope):
    """Return a Function, x times a number, whose backward has a factor of its own."""

    class Scaled(gg.Function):
        @staticmethod
        def forward(ctx, x, *, factor=2):
            return forward(x, factor)

        @staticmethod
        def backward(ctx, g):
            return g * slope

    return Scaled


def only_float32(x, factor):
    if x.dtype != gg.float32:
        raise TypeError("float32 only")
    return x * factor


@pytest.mark.parametrize("forward", [lambda x, factor: x * factor, only_float32])
@pytest.mark.parametrize("slope", [0, 2, 3])
def test_the_backward_of_a_function_is_checked(forward, slope):
    x = gg.random.normal(size=(3, 7)).requires_grad_()
    report = crosscheck(lambda x: gg.exp(scaled(forward, slope).apply(x)), x, raises=False)
    assert not report.unchecked
    if slope == 2:
        assert report.first is None
        return
    assert report.first.op == "Scaled"
    with pytest.raises(AssertionError, match=r"Scaled: the gradient of argument 0 by backward is"):
        crosscheck(scaled(forward, slope).apply, x)


def test_a_function_that_cannot_be_checked_is_named():
    rng = np.random.default_rng(0)
    noisy = scaled(lambda x, factor: x * float(rng.uniform()), 3)
    x = gg.ones(3).requires_grad_()
    report = crosscheck(noisy.apply, x)
    assert report.unchecked == {"Scaled": 1}
    assert str(report).startswith("unchecked: Scaled (1)\n")


def test_several_results_and_arguments():
    w = gg.tensor([1.0, 2.0], requires_grad=True)
    report = crosscheck(lambda *, x: {"a": w * x, "b": [gg.exp(w), 3]}, {"x": gg.ones(2)})
    assert report.calls == {"multiply": 1, "exp": 1}


def test_nothing_recorded():
    with pytest.raises(ValueError, match=r"crosscheck: exp returned no tensor that was recorded"):
        crosscheck(gg.exp, gg.ones(3))


@pytest.mark.gpu
def test_a_gpu_takes_part():
    model = make_gpt(dropout=0.1).cuda()
    report = crosscheck(model, (ids().cuda(), ids().cuda()))
    by = {(d.op, d.implementation) for d in report.differences}
    assert {("layer_norm", "cupy"), ("layer_norm", "numpy"), ("linear", "numpy")} <= by
    on_cpu = crosscheck(make_gpt().cpu(), (ids().cpu(), ids().cpu()))
    assert "cupy" in {d.implementation for d in on_cpu.differences}


@pytest.mark.gpu
def test_indices_go_where_the_arrays_go():
    index = gg.tensor([2, 0, 2]), slice(None), gg.tensor([0, 1, 1])
    x = gg.tensor(np.arange(12.0).reshape(3, 2, 2), requires_grad=True)
    report = crosscheck(lambda x: x[index], x)
    assert report.first is None
    assert ("getitem", "numpy") in {(d.op, d.implementation) for d in report.differences}


def test_indices_are_asked_to_go_where_the_arrays_go(monkeypatch):
    """NumPy, which computes the definition, takes no index of CuPy's arrays."""
    places = np.array([2, 0]), np.array([0, 1])
    went = []
    monkeypatch.setattr(
        reruns.backend, "to_device", lambda a, device: went.append((id(a), device)) or a
    )
    x = gg.tensor(np.arange(12.0).reshape(3, 2, 2), requires_grad=True)
    crosscheck(lambda x: x[places[0], :, places[1]], x)
    assert {(id(place), "cpu") for place in places} <= {*went}
