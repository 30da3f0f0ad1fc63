"""gpugrad plan: what a step needs, from shapes, against counts by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cli, emulator
from gpugrad.models import GPT
from gpugrad.models.flops import arithmetic
from gpugrad.train.config import TrainConfig, resolve
from gpugrad.train.devices import device
from gpugrad.train.loop import Trainer
from gpugrad.train.plan import RESERVED, plan, remedies, verdict

GPT2 = {"preset": "gpt2-124m", "precision": "bfloat16", "vocab_size": 50304, "accumulate": 1}


def settings(**changes: object) -> TrainConfig:
    return resolve({**GPT2, "batch_size": 64, **changes}, {})


@pytest.fixture(scope="module")
def gpt2():
    return plan(settings(), device("h200"))


def test_gpt2_agrees_with_the_count_by_hand(gpt2):
    """Per token 741 MFLOP in products and 66 in attention, logits of 6.6 GB: KERNELS of a step."""
    assert gpt2.tokens == 65536
    assert gpt2.step.products / gpt2.tokens == pytest.approx(741e6, rel=0.02)
    assert gpt2.arithmetic.attention == pytest.approx(66e6, rel=0.02)
    assert gpt2.parameters == 124_475_904
    assert gpt2.parameter_bytes == 2 * gpt2.parameters
    logits = 65536 * 50304 * 2
    # a token keeps, in each layer: the residual stream and its norm twice, queries, keys and
    # values, the attention's result, and the hidden layer before and after GELU
    kept = 65536 * 12 * 768 * (2 + 2 + 3 + 1 + 4 + 4) * 2
    assert gpt2.step.activations == pytest.approx(logits + kept, rel=0.02)
    state = 3 * 4 * gpt2.parameters  # master copy and both moments
    assert gpt2.step.kept == pytest.approx(state + gpt2.parameter_bytes, rel=0.02)
    assert gpt2.total == gpt2.step.kept + gpt2.step.arena + gpt2.step.evaluation + RESERVED
    assert logits < gpt2.step.evaluation < 1.1 * logits
    assert gpt2.mfu(gpt2.step.floor) < 1
    assert gpt2.step.arena <= 1.05 * gpt2.step.lower_bound
    assert gpt2.fits
    assert verdict(gpt2) == ""


def test_times_follow_from_the_data_sheet(gpt2):
    peak = device("h200").flops("bfloat16")
    arithmetic_alone = (gpt2.step.products + gpt2.arithmetic.attention * gpt2.tokens) / peak
    assert arithmetic_alone < gpt2.step.floor < 1.3 * arithmetic_alone
    assert 1.2 * gpt2.step.floor < gpt2.step.estimate < 2 * gpt2.step.floor
    assert sum(gpt2.step.by_operation.values()) == pytest.approx(gpt2.step.estimate)
    half = gpt2.device._replace(rates={"bfloat16": peak / 2}, bandwidth=2.4e12)
    slow = plan(gpt2.config, half, gpt2.model)
    assert slow.step.floor == pytest.approx(2 * gpt2.step.floor, rel=0.01)
    assert slow.mfu(slow.step.floor) == pytest.approx(gpt2.mfu(gpt2.step.floor), rel=0.01)


@pytest.mark.parametrize("recompute", ["none", "attention", "block"])
@pytest.mark.parametrize(
    "changes", [{}, {"activation": "gelu"}, {"tied_head": False, "bias": True}]
)
def test_products_are_those_of_the_formula(recompute, changes):
    config = resolve(
        {"n_embd": 64, "n_head": 2, "block_size": 32, "recompute": recompute, **changes}, {}
    )
    found = plan(config, device("a100-80gb"))
    each = arithmetic(found.shape, 32, recompute)
    assert found.step.products == each.products * found.tokens


def test_passes_repeat_each_other(gpt2):
    three = plan(settings(accumulate=3, n_layer=2), device("h200"))
    two, one = (plan(settings(accumulate=n, n_layer=2), device("h200")).step for n in (2, 1))
    assert three.step.launches - two.launches == two.launches - one.launches > 0
    assert three.step.products == 3 * one.products
    assert three.step.estimate > 2.5 * one.estimate
    assert three.step.arena == two.arena >= one.arena


def test_less_memory_costs_arithmetic(gpt2):
    found = [plan(settings(recompute=r), gpt2.device, gpt2.model) for r in ("attention", "block")]
    arenas = [p.step.arena for p in (gpt2, *found)]
    products = [p.step.products for p in (gpt2, *found)]
    assert arenas == sorted(arenas, reverse=True)
    assert len(set(arenas)) == 3
    assert products == sorted(products)
    chunked = plan(settings(head_chunk=1024), gpt2.device, gpt2.model)
    assert chunked.step.arena < gpt2.step.arena - 6e9


def test_what_does_not_fit_is_told_what_would(gpt2):
    small = gpt2._replace(device=gpt2.device._replace(name="tiny", memory=16 * 10**9))
    assert not small.fits
    tried = dict(remedies(small))
    fitting = [flags for flags, other in tried.items() if other.total <= 16e9]
    text = verdict(small)
    assert fitting[0] == "--recompute block --head-chunk 1024"
    assert any(flags.startswith("--batch-size") for flags in fitting)
    assert all(flags in text for flags in fitting[:2])
    assert all(other.tokens == small.tokens for other in tried.values())
    hopeless = gpt2._replace(device=gpt2.device._replace(memory=10**9))
    assert "neither --recompute nor --head-chunk" in verdict(hopeless)


def test_the_plan_is_what_a_trainer_launches(make_config, make_data):
    """The arena of a recorded update on the CPU has the planned size, whatever it computes."""
    config = make_config(n_embd=64, n_head=2, accumulate=2, device="cpu")
    with emulator.enabled("plain"):
        trainer = Trainer(config, make_data(config))
        trainer.update()
    ((made,),) = trainer._take._found.values()
    vocabulary = trainer.model.config.vocab_size
    model = GPT(config.model(vocabulary), "meta")
    assert plan(config, device("a100-80gb"), model).step.launches == len(made.trace.launches)


def test_it_is_quick():
    plan(settings(), device("h200"))
    started = time.process_time()
    plan(settings(), device("h200"))
    assert time.process_time() - started < 1.5  # 0.2 s on an idle core
    np.testing.assert_equal(gg.random.get_state(), gg.random.get_state())


def test_the_command(capsys):
    flags = ["--preset", "gpt2-124m", "--batch", "64", "--accumulate", "1", "--precision"]
    assert cli.main(["plan", *flags, "bfloat16", "--vocab-size", "50304", "--gpu", "H200"]) == 0
    out = capsys.readouterr().out
    assert "741 MFLOP per token in matrix products, 66 in attention" in out
    assert "predicted, not measured" in out
    assert cli.main(["plan", *flags, "bfloat16", "--gpu", "l4"]) == 1
    assert "do not fit l4" in capsys.readouterr().err
    assert cli.main(["plan", "--gpu", "h20"]) == 1
    assert "known are b200" in capsys.readouterr().err
    assert cli.main(["plan", "--gpu", "a10", "--precision", "float64"]) == 1
    assert "no rate for float64" in capsys.readouterr().err
    assert cli.main(["plan", "--gpu", "t4", "--precision", "float16"]) == 1
    assert "compute capability 7.5" in capsys.readouterr().err
