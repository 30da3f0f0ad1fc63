"""Runs struck at random moments, again and again: they end as if nothing had happened."""

from __future__ import annotations

import random
import shutil
import signal
from collections import Counter

import pytest

from .conftest import SMALL, ending, results

LONGER = {**SMALL, "max_steps": 12, "eval_interval": 3, "log_interval": 2, "accumulate": 2}
RUNS = {
    "float32, dropout, stops early": {**LONGER, "patience": 1, "min_delta": 0.004, "lr": 0.02},
    "float16 with a scaled loss, saved in line": {
        **LONGER,
        "precision": "float16",
        "async_save": False,
        "schedule": "linear",
        "min_change": 1e-9,
    },
    "bfloat16, eager, adapters": {
        **LONGER,
        "precision": "bfloat16",
        "compile": False,
        "lora_rank": 2,
        "keep": 3,
    },
}
EMULATED = {**SMALL, "n_embd": 64, "max_steps": 3, "sample_tokens": 1, "accumulate": 2}
SIGNALS = [  # what strikes, and how a run may end that it strikes
    ([signal.SIGKILL], {-signal.SIGKILL}),
    ([signal.SIGKILL], {-signal.SIGKILL}),
    ([signal.SIGTERM], {128 + signal.SIGTERM}),
    ([signal.SIGINT], {128 + signal.SIGINT}),
    ([signal.SIGINT, signal.SIGINT], {128 + signal.SIGINT}),
    ([signal.SIGTERM, signal.SIGKILL], {-signal.SIGKILL, 128 + signal.SIGTERM}),
]


@pytest.mark.parametrize("name", [*RUNS, "kernels in the emulator"])
def test_struck_at_random_moments(runs, name, request, record_property):
    emulated = name not in RUNS
    settings = {"_emulated": True, **EMULATED} if emulated else RUNS[name]
    wanted = request.config.getoption("--trials", 24)
    trials = max(2, wanted // 12) if emulated else -(-wanted // len(RUNS))
    rng = random.Random(f"{name} {request.config.getoption('--strike-seed', 1)}")
    if "lora_rank" in settings:
        settings = {**settings, "init_from": runs.new_folder()}
        first = {name: settings[name] for name in (*LONGER, "precision")}
        assert runs.train(settings["init_from"], **first).status == 0
    out = runs.new_folder()
    outcome = runs.train(out, **settings)
    assert outcome.status == 0, outcome
    straight, duration = results(out), outcome.seconds
    struck: Counter[str] = Counter()
    while struck.total() < trials:
        out = runs.new_folder()
        strikes = []
        while True:
            signals, statuses = rng.choice(SIGNALS)
            moment = rng.uniform(0, 0.9 * duration)
            strike = {"_strike": (moment, signals)} if len(strikes) < 3 else {}
            if (out / "config.json").exists():
                again = {"_emulated": True} if emulated else {}
                outcome = runs.resume(out, **again, **strike)
            else:
                outcome = runs.train(out, **settings, **strike)
            if outcome.status == 0:
                break
            if not outcome.within:  # before the command has handlers, or after it
                statuses = {*statuses, *(-number for number in signals)}
            assert outcome.status in statuses, f"{strikes} {outcome} {outcome.output}"
            after = not outcome.within and outcome.status == -signal.SIGINT
            # where Python lets nothing raise, in a weak reference's callback, it says so by itself
            told = outcome.output.count("Exception ignored in")
            assert after or outcome.output.count("Traceback") == told, (strikes, outcome)
            names = " and ".join(signal.Signals(number).name for number in signals)
            strikes.append((names, outcome.phase, moment))
            struck[outcome.phase] += 1
        assert ending(results(out)) == ending(straight), strikes
        if all(names == "SIGKILL" for names, *_ in strikes):
            assert results(out) == straight, strikes
        shutil.rmtree(out)
    where = ", ".join(f"{phase} {count}" for phase, count in struck.most_common())
    outcome = "resumed: weights, metrics, sample bit for bit the same"
    record_property("fault", (struck.total(), f"struck at random: {name} ({where})", outcome))
