"""gpugrad plan: what a step needs, from shapes, against counts by hand."""

from __future__ import annotations

import dataclasses
import itertools
import time

import pytest

import gpugrad as gg
from gpugrad import cli, emulator
from gpugrad.models.flops import arithmetic
from gpugrad.text import CharTokenizer
from gpugrad.train.config import TrainConfig, resolve
from gpugrad.train.devices import device
from gpugrad.train.loop import Trainer
from gpugrad.train.outline import deepened
from gpugrad.train.plan import MARGIN, RESERVED, plan, remedies, verdict
from gpugrad.train.recorded import (
    _layers,
    _recorded_evaluation,
    _recorded_step,
    _recorded_update,
    _shallow,
    step_outline,
)

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
    slow = plan(gpt2.config, half)
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


SHAPES = {
    "gpt2": {"bias": True, "positions": "learned"},
    "default": {},
    "tied": {"tied_head": True, "dropout": 0.1, "activation": "gelu"},
    "untied": {"tied_head": False, "precision": "float32", "grad_clip": 0.0},
    "scaled": {"precision": "float16", "bias": True, "weight_decay": 0.0},
    "first": {"norm_first": False, "dropout": 0.1, "bias": True, "positions": "sinusoidal"},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("recompute", ["none", "attention", "block"])
@pytest.mark.parametrize(("accumulate", "head_chunk"), [(1, 0), (2, 37)])
def test_layers_repeat_each_other(shape, recompute, accumulate, head_chunk):
    """Three recorded layers tell exactly what a recording of all of them does."""
    small = {"n_embd": 96, "n_head": 3, "block_size": 61, "batch_size": 3, "n_layer": 6}
    config = resolve(
        {
            "precision": "bfloat16",
            **small,
            **SHAPES[shape],
            "recompute": recompute,
            "accumulate": accumulate,
            "head_chunk": head_chunk,
        },
        {},
    )
    model = config.model(256)
    whole, _ = _recorded_step(config, model, 90)
    found = step_outline(config, model, 90)
    few, three = _recorded_step(config, _shallow(model, 3), 90)
    update = _recorded_update(_shallow(model, 2), config.weight_decay, config.grad_clip, 90)
    assert found == deepened(few, _layers(three), 6, update)  # Irregular was not raised
    assert found.lives == whole.outline.lives
    assert found.kept == whole.outline.kept
    assert found.launches == whole.outline.launches
    assert (found.backward, found.update) == (whole.outline.backward, whole.outline.update)
    assert totals(found) == totals(whole.outline)
    evaluated, _ = _recorded_evaluation(model, 3, head_chunk, 90)
    few, three = _recorded_evaluation(_shallow(model, 3), 3, head_chunk, 90)
    found = deepened(few, _layers(three), 6)
    assert found.launches == evaluated.outline.launches
    assert (found.lives, found.kept) == (evaluated.outline.lives, evaluated.outline.kept)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_kv_head": 1, "norm": "rms", "activation": "swiglu", "positions": "rotary"},
        {"positions": "alibi"},
        {"positions": "relative"},
    ],
)
@pytest.mark.parametrize("recompute", ["none", "block"])
def test_layers_of_other_kinds_too(changes, recompute):
    """If what they launch is irregular, all layers are recorded."""
    config = resolve({"n_embd": 96, "n_head": 3, "n_layer": 6, "recompute": recompute}, {})
    shape = dataclasses.replace(config.model(256), **changes)
    whole, _ = _recorded_step(config, shape, 90)
    found = step_outline(config, shape, 90)
    assert (found.lives, found.kept) == (whole.outline.lives, whole.outline.kept)
    assert totals(found) == totals(whole.outline)


def totals(outline):
    """Return how often each launch is there, and the bytes all of them move."""
    counts, moved = {}, 0
    for entry in outline.entries:
        kind = entry.operation, entry.name, entry.flops
        counts[kind] = counts.get(kind, 0) + entry.times
        moved += entry.times * entry.nbytes
    return counts, moved


def test_passes_repeat_each_other():
    """Of two recorded passes the second counts for all that follow."""
    config = settings(accumulate=5, n_layer=2, batch_size=1)
    shape = config.model(50304)
    whole, _ = _recorded_step(config, shape, 90, 5)
    found = step_outline(config, shape, 90)
    assert found.kept == whole.outline.kept
    assert found.launches == whole.outline.launches
    assert found.lower_bound() == pytest.approx(whole.outline.lower_bound(), rel=1e-4)
    (few, moved), (all_of_them, really) = totals(found), totals(whole.outline)
    assert few == all_of_them
    assert moved == pytest.approx(really, rel=1e-6)


def test_gradients_of_all_passes_are_in_memory_one_at_a_time():
    bounds = []
    for passes in (2, 8):
        config = settings(accumulate=passes, n_layer=2, batch_size=1)
        recorded, _ = _recorded_step(config, config.model(50304), 90, passes)
        bounds.append(recorded.outline.lower_bound())
    assert bounds[1] == pytest.approx(bounds[0], rel=1e-4)  # 256 bytes for each loss


def test_less_memory_costs_arithmetic(gpt2):
    found = [plan(settings(recompute=r), gpt2.device) for r in ("attention", "block")]
    arenas = [p.step.arena for p in (gpt2, *found)]
    products = [p.step.products for p in (gpt2, *found)]
    assert arenas == sorted(arenas, reverse=True)
    assert len(set(arenas)) == 3
    assert products == sorted(products)
    chunked = plan(settings(head_chunk=1024), gpt2.device)
    assert chunked.step.arena < gpt2.step.arena - 6e9


@pytest.mark.parametrize("memory", [30, 16, 6])
def test_what_does_not_fit_is_told_what_would(gpt2, memory):
    small = gpt2._replace(device=gpt2.device._replace(name="tiny", memory=memory * 10**9))
    assert not small.fits
    tried = dict(remedies(small))
    assert tried
    text = verdict(small)
    assert all(flags in text for flags in list(tried)[:2])
    for flags, other in tried.items():
        given = {flag[2:].replace("-", "_"): value for flag, value in pairs(flags)}
        again = plan(resolve({**dataclasses.asdict(gpt2.config), **given}), small.device)
        assert again.total == other.total <= memory * 10**9
        assert other.tokens == small.tokens
    times = [other.step.estimate for other in tried.values()]
    assert times[0] < 1.1 * min(times)


def pairs(flags):
    """Return names and values of "--name value --name value"."""
    words = flags.split()
    return [
        (name, int(value) if value.isdigit() else value)
        for name, value in zip(words[::2], words[1::2], strict=True)
    ]


def test_another_precision_is_the_last_resort(gpt2):
    config = settings(precision="float32", batch_size=2)
    card = gpt2.device._replace(name="tiny", memory=3_700_000_000)
    (flags, other), *_ = remedies(plan(config, card))
    assert "--precision bfloat16" in flags
    assert other.fits


def test_what_nothing_helps_is_said(gpt2):
    hopeless = gpt2._replace(device=gpt2.device._replace(memory=10**9))
    assert list(remedies(hopeless)) == []
    assert "neither --recompute nor --head-chunk" in verdict(hopeless)


def test_arenas_are_as_small_as_is_taken_for_granted(gpt2):
    """What surely fits is not laid out to see whether it does."""
    for recompute, accumulate in itertools.product(("none", "attention", "block"), (1, 2)):
        step = plan(settings(recompute=recompute, accumulate=accumulate), gpt2.device).step
        assert step.least <= step.total <= MARGIN * step.least


def test_the_plan_is_what_a_trainer_launches(make_config, make_data):
    """The arena of a recorded update on the CPU has the planned size, whatever it computes."""
    config = make_config(n_embd=64, n_head=2, accumulate=2, device="cpu")
    with emulator.enabled("plain"):
        trainer = Trainer(config, make_data(config))
        trainer.update()
    ((made,),) = trainer._take._found.values()
    found = plan(config, device("a100-80gb"), trainer.model.config.vocab_size)
    assert found.step.launches == len(made.trace.launches)


@pytest.mark.parametrize(
    ("changes", "gpu", "limit"),
    [
        ({"preset": "gpt2-124m", "accumulate": 1}, "h200", 0.25),
        ({"preset": "gpt2-xl", "accumulate": 60}, "h200", 1.5),
        ({"n_layer": 96, "n_head": 96, "n_embd": 12288, "block_size": 2048}, "h200", 1.5),
    ],
)
def test_it_is_quick(changes, gpu, limit):
    """Milliseconds, whatever the depth: 0.05 s on an idle core, a refusal some tenths."""
    before = gg.random.get_state()
    seconds = []
    for batch_size in (56, 64, 72):  # nothing is known from before
        started = time.process_time()
        found = plan(settings(**changes, batch_size=batch_size), device(gpu))
        assert found.to_text()
        assert found.fits or verdict(found)
        seconds.append(time.process_time() - started)
    assert min(seconds) < limit
    assert gg.random.get_state() == before


def test_the_vocabulary_is_that_of_the_tokenizer(tmp_path, capsys):
    path = tmp_path / "tokenizer.json"
    CharTokenizer("abcdefg").save(path)
    config = resolve({"preset": "tiny", "tokenizer": str(path)})
    assert plan(config, device("h200")).shape.vocab_size == 7
    assert cli.main(["plan", "--tokenizer", "word"]) == 1
    assert "neither byte, char or bpe nor a tokenizer.json" in capsys.readouterr().err


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
