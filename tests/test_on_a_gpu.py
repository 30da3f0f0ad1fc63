"""Whole things on a GPU: what is trained, generated, saved and resumed there is what NumPy makes.

Where there is no GPU these run on the stand-in of CuPy: see test_on_cupy_stand_in.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cli, cuda, nn, optim
from gpugrad.generate import beam_search, generate_batch, log_probability
from gpugrad.models import GPT, RNNLM, GPTConfig, RNNLMConfig

pytestmark = pytest.mark.gpu

SHAPE = {"vocab_size": 33, "block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}
LLAMA = {"norm": "rms", "activation": "swiglu", "bias": False, "tied_head": False}
VARIANTS = {
    "learned": {},
    "rotary, shared keys": {"positions": "rotary", "n_kv_head": 1, **LLAMA},
    "alibi": {"positions": "alibi"},
    "relative, norms last": {"positions": "relative", "norm_first": False, "activation": "gelu"},
    "sinusoidal, dropout": {"positions": "sinusoidal", "dropout": 0.1},
    "float64": {"dtype": "float64"},
    "bfloat16": {"dtype": "bfloat16", "positions": "rotary", **LLAMA},
}
IDS = np.random.default_rng(3).integers(0, 33, (3, 2, 12))


def trained(model: Any, compiled: bool = False) -> list[list[float]]:
    """Return the loss and the norm of the gradients of each of three steps."""
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)

    def step(ids: Any) -> tuple:
        loss = model.loss(ids, ids)
        loss.backward()
        norm = optimizer.step(max_norm=1.0)
        optimizer.zero_grad()
        return loss, norm

    run = gg.compile(step) if compiled else step
    found = [[float(x) for x in run(ids)] for ids in IDS]
    if compiled:  # which older GPUs do without
        capability = cuda.capability(next(iter(model.parameters())).data)
        assert run.recordings == (capability >= 80)
    return found


def on_both(make: Any) -> list[Any]:
    """Return what is made on the CPU and on a GPU, which is the default, from one seed."""
    found = []
    for device in ("cpu", None):
        gg.manual_seed(5)
        found.append(make(device))
    return found


@pytest.mark.parametrize("name", VARIANTS)
def test_a_gpt_is_trained_alike(name: str) -> None:
    config = GPTConfig(**SHAPE, **VARIANTS[name])
    expected, found = on_both(lambda device: trained(GPT(config, device=device)))
    rtol = {"bfloat16": 0.02, "float32": 1e-4, "float64": 1e-10}[config.dtype]
    np.testing.assert_allclose(found, expected, rtol=rtol)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "float64"])
def test_compiled_steps_are_the_same_steps(name: str) -> None:
    """The first call makes the launches, the second captures them, the third replays them."""
    found = []
    for compiled in (False, True):
        gg.manual_seed(5)
        model = GPT(GPTConfig(**SHAPE, **VARIANTS[name]))
        found.append((trained(model, compiled), [p.numpy() for p in model.parameters()]))
    assert found[0][0] == found[1][0]
    for eager, replayed in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_array_equal(replayed, eager)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_recurrent_model_is_trained_alike(cell: str) -> None:
    config = RNNLMConfig(vocab_size=33, n_embd=8, n_hidden=8, cell=cell)
    expected, found = on_both(lambda device: trained(RNNLM(config, device=device)))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["learned", "rotary, shared keys", "alibi"])
def test_the_same_is_generated(name: str) -> None:
    config = GPTConfig(**SHAPE, **VARIANTS[name])
    prompts = [[1, 2, 3], [4]]

    def generated(device: str | None) -> list[Any]:
        model = GPT(config, device=device)
        model.eval()
        prompt = np.array(prompts[:1])
        greedy = model.generate(prompt, 6, greedy=True)
        again = model.generate(prompt, 6, greedy=True, use_cache=False)
        np.testing.assert_array_equal(again.numpy(), greedy.numpy())
        drawn = model.generate(gg.tensor(prompt), 6, temperature=0.8, top_k=9, top_p=0.9)
        batch = generate_batch(model, prompts, 4, greedy=True)
        beams = beam_search(model, prompts[0], 4)
        found = [greedy, drawn, *batch, *(beam.ids for beam in beams)]
        score = log_probability(model, [1, 2, 3, 4]).total
        return [*(ids.tolist() for ids in found), float(score)]

    expected, found = on_both(generated)
    assert found[:-1] == expected[:-1]
    np.testing.assert_allclose(found[-1], expected[-1], rtol=1e-5)


OPTIMIZERS = {
    "AdamW": {"weight_decay": 0.1},
    "Adam": {},
    "SGD": {"momentum": 0.9, "nesterov": True},
}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_step_alike(name: str, dtype: str) -> None:
    """With gradients that are clipped, scaled, and once not finite; and from a saved state."""
    assert {c for c in dir(optim) if _is_optimizer(getattr(optim, c))} == {*OPTIMIZERS}

    def stepped(device: str | None) -> list[np.ndarray]:
        start = np.linspace(-1, 1, 15).reshape(5, 3)
        p = gg.tensor(start, dtype=dtype, device=device, requires_grad=True)
        make = getattr(optim, name)
        optimizer = make([p], lr=0.1, **OPTIMIZERS[name])
        scaler = optim.LossScaler(64.0)
        for factor in (1.0, 3.0, float("inf"), 2.0):
            loss = (p * p).sum().astype("float32") * factor
            scaler.scale(loss).backward()
            optimizer.step(max_norm=2.0, scaler=scaler)
            optimizer.zero_grad()
        again = make([p], lr=0.1, **OPTIMIZERS[name])
        again.load_state_dict(optimizer.state_dict())
        (p * p).sum().backward()
        again.step()
        norm = optim.clip_grad_norm_([p], 0.5)
        return [p.detach().numpy().astype(np.float64), np.asarray(float(norm))]

    rtol = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
    for expected, found in zip(*on_both(stepped), strict=True):
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol / 10)


def _is_optimizer(thing: Any) -> bool:
    return (
        isinstance(thing, type)
        and issubclass(thing, optim.Optimizer)
        and thing is not optim.Optimizer
    )


def test_a_classifier_learns() -> None:
    """Layers one after the other, the model and its data where the default puts them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 4)).astype(np.float32)
    y = (x[:, 0] > x[:, 1]).astype(np.int64)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 2))
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(gg.tensor(x)), gg.tensor(y))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 2
    assert {p.device for p in model.parameters()} == {"cuda:0"}


@pytest.mark.parametrize(
    ("precision", "compiled"), [("float32", "--no-compile"), ("bfloat16", "--compile")]
)
def test_a_run_that_is_resumed_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, precision: str, compiled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 100)

    def train(out: str, *more: str) -> list[tuple[int, float]]:
        settings = "--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --batch-size 4 --lr 0.01"
        settings += " --warmup-steps 1 --eval-interval 2 --log-interval 1 --sample-tokens 3"
        settings += " --schedule constant --eval-windows 4"
        given = ["--data", str(text), "--out", str(tmp_path / out), "--device", "cuda"]
        given += [compiled, "--precision", precision, *settings.split(), *more]
        assert cli.main(["train", *given]) == 0, capsys.readouterr().err
        lines = (tmp_path / out / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return [(row["step"], row["loss"]) for row in rows if "loss" in row]

    whole = train("whole", "--max-steps", "4")
    train("parts", "--max-steps", "2")
    parts = train("parts", "--max-steps", "4", "--resume")
    assert parts == whole
    assert len(whole) >= 4
    run = str(tmp_path / "parts")
    assert cli.main(["sample", run, "--prompt", "the ", "--max-new-tokens", "5"]) == 0
    assert cli.main(["evaluate", run]) == 0
    assert "the " in capsys.readouterr().out
