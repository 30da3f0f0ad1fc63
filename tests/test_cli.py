"""The command line: as processes where it matters, else in this one."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpugrad
from gpugrad.cli import main
from gpugrad.text import WordPieceTokenizer, WordTokenizer
from gpugrad.train import checkpoint
from gpugrad.train.config import FIELDS

ROOT = Path(gpugrad.__file__).parents[1]
TEXT = "".join(f"{i} times {i % 7} is {i * (i % 7)}\n" for i in range(400))
SMALL = [
    *("--device", "cpu", "--tokenizer", "char", "--schedule", "constant", "--warmup-steps", "2"),
    *("--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--block-size", "16"),
    *("--batch-size", "4", "--eval-interval", "4", "--eval-windows", "8", "--log-interval", "3"),
    *("--sample-tokens", "20"),
]
# Started in the background, a process inherits that SIGINT is ignored; this undoes it.
LISTENING = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('gpugrad', run_name='__main__')"
)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder to be in, with a text."""
    (tmp_path / "input.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def environment(warnings: str = "error") -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    changes = {"PYTHONPATH": path, "PYTHONWARNINGS": warnings, "OPENBLAS_NUM_THREADS": "1"}
    return {**os.environ, **changes}


def process(*arguments: str, warnings: str = "error") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "gpugrad", *arguments],
        env=environment(warnings),
        capture_output=True,
        text=True,
        timeout=60,
    )


def train(*arguments: str) -> int:
    return main(["train", "--data", "input.txt", "--out", "run", *SMALL, *arguments])


def tensors(folder: str, step: int) -> bytes:
    return Path(folder, "checkpoints", f"step-{step:08d}", checkpoint.TENSORS).read_bytes()


def losses(folder: str) -> list[tuple]:
    lines = Path(folder, "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(r["kind"], r["step"], r.get("loss")) for r in records]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_run_stopped_by_a_signal_goes_on_bit_for_bit(here, number):
    steps = ["--max-steps", "600", "--eval-interval", "200"]
    command = ["train", "--data", "input.txt", *SMALL, *steps]
    running = subprocess.Popen(
        [sys.executable, "-c", LISTENING, *command, "--out", "stopped"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in running.stdout:
        if line.startswith("step"):  # the first evaluation is over, training begins
            break
    running.send_signal(number)
    out, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (128 + number, "")
    step = int(re.search(r"Stopped by SIG\w+ after step (\d+); saved", out)[1])
    assert 0 <= step < 600
    assert checkpoint.steps("stopped/checkpoints")[-1] == step
    shown = re.search(r"gpugrad (train --resume --out \S+)", out)[1].split()
    again, straight = process(*shown), process(*command, "--out", "straight")
    assert (again.returncode, again.stderr) == (0, "")
    assert (straight.returncode, straight.stderr) == (0, "")
    assert tensors("stopped", 600) == tensors("straight", 600)
    assert losses("stopped") == losses("straight")
    assert Path("stopped/sample.txt").read_text() == Path("straight/sample.txt").read_text()


def test_the_same_command_begins_a_run_and_goes_on_with_it(here, capsys):
    command = ("--resume", "auto", "--max-steps", "8")
    assert train(*command) == 0
    assert "from step" not in capsys.readouterr().out
    before = tensors("run", 8)
    assert train(*command) == 0
    assert "from step 8" in capsys.readouterr().out
    assert tensors("run", 8) == before
    assert train("--resume", "--max-steps", "12") == 0
    assert checkpoint.steps("run/checkpoints")[-1] == 12
    assert main(["train", "--resume", "--out", "none"]) == 1
    assert "holds no run" in capsys.readouterr().err


def test_sigterm_ahead_of_training_clears_away(here, capsys, monkeypatch):
    def terminated(*arguments):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("gpugrad.train.session.store", terminated)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert train() == 143
    assert "terminated" in capsys.readouterr().err
    assert not Path("run").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_default_command_in_a_process(here):
    result = process("train", "--preset", "tiny", "--max-steps", "60")
    assert (result.returncode, result.stderr) == (0, "")
    assert "python-stdlib" in result.stdout
    assert re.search(r"baseline +unigram \d\.\d+, bigram \d\.\d+", result.stdout)
    assert {"curve.svg", "metrics.jsonl", "sample.txt", "checkpoints"} <= {
        path.name for path in Path("runs/tiny").iterdir()
    }
    sample = process("sample", "runs/tiny", "--prompt", "def ", "--max-new-tokens", "40")
    assert (sample.returncode, sample.stderr) == (0, "")
    assert sample.stdout.startswith("def ")


def test_cached_and_uncached_greedy_samples_are_equal(here, capsys):
    assert train("--max-steps", "40") == 0
    capsys.readouterr()
    texts = []
    for flags in ([], ["--no-cache"], ["--seed", "3"]):
        command = ["sample", "run", "--greedy", "--prompt", "12 times", "--max-new-tokens", "60"]
        assert main([*command, *flags]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2]
    assert texts[0].startswith("12 times")
    assert len(texts[0]) == len("12 times") + 60 + 1


def test_samples_depend_on_the_seed_and_only_on_it(here, capsys):
    assert train("--max-steps", "8") == 0
    capsys.readouterr()
    texts = []
    for seed in (["--seed", "1"], ["--seed", "1"], ["--seed", "2"], [], []):
        command = ["sample", "run", "--temperature", "0.9", "--top-k", "9", "--top-p", "0.95"]
        assert main([*command, "--max-new-tokens", "50", *seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert len({texts[0], *texts[2:]}) == 4


def test_beams_stops_and_scores(here, capsys):
    assert train("--max-steps", "40") == 0
    capsys.readouterr()

    def sample(*flags):
        assert main(["sample", "run", "--prompt", "12 times", *flags]) == 0
        return capsys.readouterr().out

    def score(text):
        words = sample("--score", text).split()
        assert words[0] == "log-probability"
        np.testing.assert_allclose(
            float(words[3]), -float(words[1]) / math.log(2) / len(text), atol=1e-4
        )
        return float(words[1])

    greedy = sample("--greedy", "--max-new-tokens", "12")
    assert sample("--beams", "1", "--max-new-tokens", "12") == greedy
    beams = sample("--beams", "4", "--max-new-tokens", "12", "--no-cache")
    best, likely = (text.removeprefix("12 times")[:-1] for text in (beams, greedy))
    assert len(best) == len(likely) == 12
    assert score(best) >= score(likely) - 1e-3 > score("ssssssssssss")
    cut = greedy.index(likely[4:6], len("12 times"))
    assert sample("--greedy", "--stop", likely[4:6], "--stop", "\0") == greedy[:cut] + "\n"
    penalized = ["--min-p", "0.2", "--repetition-penalty", "1.5", "--seed", "1"]
    assert sample(*penalized, "--max-new-tokens", "9") == sample(
        *penalized, "--max-new-tokens", "9", "--no-cache"
    )


@pytest.mark.parametrize("kind", ["word", "wordpiece"])
def test_words_are_trained_on_and_written_with_spaces(here, capsys, kind):
    """A newline, with which a text begins, is no token of theirs."""
    if kind == "word":
        WordTokenizer(TEXT).save("tokenizer.json")
    else:
        WordPieceTokenizer.train(TEXT, 800).save("tokenizer.json")
    assert train("--max-steps", "30", "--tokenizer", "tokenizer.json") == 0
    assert Path("run/sample.txt").read_text()
    capsys.readouterr()

    def sample(*flags):
        assert main(["sample", "run", *flags]) == 0
        return capsys.readouterr().out

    for flags in (["--greedy"], ["--beams", "2"]):
        written = sample("--prompt", "12 times", "--max-new-tokens", "3", *flags)
        assert re.fullmatch(r"12 times( \w+){3}\n", written)
    assert sample("--seed", "1") == sample("--seed", "1", "--prompt", "")
    assert sample("--seed", "1", "--prompt", " ") == " " + sample("--seed", "1")
    assert sample("--score", "12 times 5").endswith(" per token (3)\n")


def test_output_that_nobody_reads_any_more(here):
    assert train("--max-steps", "4") == 0
    command = f"{sys.executable} -m gpugrad sample run --max-new-tokens 3000 | head -c 5"
    result = subprocess.run(
        ["/bin/sh", "-c", command], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert (len(result.stdout), result.stderr) == (5, "")


@pytest.mark.parametrize("path", [None, "kernels"])
def test_only_errors_without_a_file_are_of_what_is_printed(path, monkeypatch, capsys):
    def examine():
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr("gpugrad.doctor.examine", examine)
    if path is None:
        assert main(["doctor"]) == 1
        print("still here")
        out, err = capsys.readouterr()
        assert out == "still here\n"
        assert err.startswith("gpugrad: what is printed cannot be written: [Errno 28] No space")
    else:
        with pytest.raises(OSError, match="'kernels'"):
            main(["doctor"])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["evaluate run", "sample run --max-new-tokens 3", "plan"])
def test_output_that_there_is_no_room_for(here, command, unbuffered):
    assert train("--max-steps", "4") == 0
    result = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m gpugrad {command} > /dev/full"],
        env={**environment(), "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        timeout=60,
    )
    told = "gpugrad: what is printed cannot be written: [Errno 28] No space left on device\n"
    assert (result.returncode, result.stderr) == (1, told)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_run_needs_neither_output_nor_errors_to_be_open(here, closed):
    """As where a daemon starts it."""
    assert train("--max-steps", "4") == 0
    command = f"{sys.executable} -m gpugrad train --resume --out run --max-steps 9 {closed}"
    subprocess.run(["/bin/sh", "-c", command], env=environment(), check=True, timeout=60)
    assert checkpoint.steps("run/checkpoints")[-1] == 9


def test_a_run_is_neither_overwritten_nor_resumed_by_accident(here, capsys):
    assert train("--max-steps", "4") == 0
    before = tensors("run", 4)
    assert train("--max-steps", "4", "--seed", "2") == 1
    assert "run holds a run already: --resume goes on" in capsys.readouterr().err
    assert tensors("run", 4) == before
    assert train("--max-steps", "4", "--seed", "2", "--overwrite") == 0
    assert tensors("run", 4) != before
    assert main(["train", "--resume", "--out", "elsewhere"]) == 1
    assert "elsewhere holds no run" in capsys.readouterr().err
    assert not Path("elsewhere").exists()


def test_resuming_with_other_settings(here, capsys):
    assert train("--max-steps", "4") == 0
    capsys.readouterr()
    assert main(["train", "--resume", "--out", "run", "--max-steps", "8"]) == 0
    assert "from step 4" in capsys.readouterr().out
    assert main(["train", "--resume", "--out", "run", "--n-embd", "32"]) == 1
    assert "n_embd is 16 in this run and cannot become 32" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_a_warning(here, capsys):
    assert train("--max-steps", "8") == 0
    Path("run/checkpoints/step-00000008/state.json").write_text("{")
    resumed = process("train", "--resume", "--out", "run", warnings="default")
    assert resumed.returncode == 0
    assert re.fullmatch(
        r"gpugrad: warning: checkpoint run/checkpoints/step-00000008 is damaged: state.json .*; "
        r"using step 4 instead\n",
        resumed.stderr,
    )
    assert main(["sample", "run", "--max-new-tokens", "1"]) == 0  # it was written again
    for path in Path("run/checkpoints").glob("*/state.json"):
        path.write_text("{")
    capsys.readouterr()
    assert main(["sample", "run", "--max-new-tokens", "1"]) == 1
    assert "no sound checkpoint in run/checkpoints" in capsys.readouterr().err


def test_a_run_that_diverged_says_where_it_goes_back_to(here, capsys):
    assert train("--lr", "1e6", "--grad-clip", "0", "--max-steps", "400") == 1
    newest = checkpoint.steps("run/checkpoints")[-1]
    message = rf"not finite in 10 steps in a row, .*; --resume goes back to step {newest}\. A lower"
    assert re.search(message, capsys.readouterr().err)


def test_a_configuration_file(here, capsys):
    Path("settings.toml").write_text('max_steps = 4\nout = "from-file"\nn-embd = 32\n')
    small = SMALL[: SMALL.index("--n-embd")] + SMALL[SMALL.index("--n-embd") + 2 :]
    command = ["train", "--data", "input.txt", "--config", "settings.toml", *small]
    assert main([*command, "--max-steps", "5"]) == 0
    config = json.loads(Path("from-file/config.json").read_text())["config"]
    assert (config["max_steps"], config["n_embd"], config["bias"]) == (5, 32, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "--n-layers", "3"], "argument --n-layers; did you mean '--n-layer'?"),
        (["train", "--n-lay", "3"], "argument --n-lay; did you mean '--n-layer'?"),
        (["train", "--dtype", "float64"], "argument --dtype; it is called '--precision' now"),
        (["train", "--overwite"], "did you mean '--overwrite'?"),
        (["train", "--steps", "9"], "argument --steps; did you mean '--max-steps'?"),
        (["train", "--epochs=2"], "argument --epochs=2; did you mean '--max-steps'?"),
        (["train", "--learning_rate", "1"], "did you mean '--lr'?"),
        (["train", "--batch", "9"], "did you mean '--batch-size'?"),
        (["train", "input.txt"], "unrecognized argument input.txt"),
        (["train", "--n-layer", "two"], "--n-layer: invalid int value: 'two'"),
        (["train", "--preset", "huge"], "--preset: invalid choice: 'huge'"),
        (["train", "--resume", "--overwrite"], "exclude each other"),
        (["sample"], "DIR"),
        (["sample", "run", "--max-new-tokens", "-1"], "invalid number of tokens value: '-1'"),
        (["sample", "run", "--topk", "3"], "did you mean '--top-k'?"),
        (["sample", "run", "--beams", "2", "--top-k", "3"], "--beams draws nothing"),
        (
            ["sample", "run", "--score", "a", "--greedy"],
            "--score writes nothing: leave out --greedy",
        ),
        (["sample", "run", "--score", "a", "--beams", "2"], "leave out --beams"),
        (["sample", "run", "--score", "a", "--stop", "b"], "leave out --stop"),
        (["doctor", "--jsn"], "did you mean '--json'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line(here, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert os.listdir() == ["input.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "nowhere.txt"], "no file, folder or glob match for 'nowhere.txt'"),
        (["train", "--data", "input.txt", "--max-chars", "100"], "too few for a window"),
        (["train", "--data", "latin.txt"], "latin.txt is not UTF-8 text: byte 0xe9 at offset 1"),
        (["train", "--data", "empty.txt"], "the corpus 'empty.txt' is empty"),
        (["train", "--n-head", "3"], "n_embd 128 does not divide into n_head 3"),
        (["train", "--dropout", "1.5"], "dropout must be below 1, got 1.5"),
        (["train", "--device", "tpu"], "device 'tpu' is not a device"),
        (["train", "--config", "nowhere.toml"], "nowhere.toml"),
        (["train", "--config", "bad.json"], "unknown setting 'n_layers'; did you mean 'n_layer'?"),
        (["train", "--tokenizer", "empty.txt", "--data", "input.txt"], "truncated or not JSON"),
        (["train", "--out", "input.txt", "--data", "input.txt"], "input.txt"),
        (["sample", "nowhere"], "nowhere holds no run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_in_one_line_and_leaves_nothing(
    here, capsys, arguments, message
):
    Path("latin.txt").write_bytes(b"caf\xe9".replace(b"caf", b"c") + b"\n")
    Path("empty.txt").write_text("")
    Path("bad.json").write_text('{"n_layers": 3}')
    before = sorted(os.listdir())
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"gpugrad {arguments[0]}: ")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("GPUGRAD_ATTENTION", "kernels of attention are auto, tma, wgmma, mma, not 'foo'"),
        ("GPUGRAD_DEVICE", "'foo' is not a device; use cpu, cuda, cuda:N or auto"),
        ("GPUGRAD_EMULATE", "'foo' is not a mode; use plain, checked or off"),
        ("GPUGRAD_FORK", "must be 0 or 1, got 'foo'"),
        ("GPUGRAD_MALLOC", "must be keep or system, got 'foo'"),
        ("GPUGRAD_NUM_THREADS", "must be a whole number above 0, got 'foo'"),
    ],
)
def test_a_wrong_variable_of_the_environment_is_said_first(
    here, capsys, monkeypatch, variable, message
):
    monkeypatch.setenv(variable, "foo")
    assert train("--max-steps", "2") == 1
    assert re.fullmatch(rf"gpugrad: {variable}.*{re.escape(message)}\n", capsys.readouterr().err)
    assert os.listdir() == ["input.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "Ω"], "character 'Ω' (U+03A9) at position 0"),
        (["--temperature", "-1"], "temperature must be > 0"),
        (["--top-k", "0"], "top_k must be an integer >= 1"),
        (["--top-p", "1.5"], "top_p must lie in (0, 1]"),
        (["--min-p", "0"], "min_p must lie in (0, 1]"),
        (["--repetition-penalty", "0"], "repetition_penalty must be > 0"),
        (["--repetition-penalty", "1e-320"], "repetition_penalty must be > 0"),
        (["--beams", "0"], "num_beams must be an integer >= 1"),
        (["--stop", ""], "a stop must not be empty"),
        (["--beams", "2", "--stop", "Ω"], "character 'Ω'"),
        (["--score", ""], "log_probability: ids must be integers"),
        (["--seed", "-1"], "seed must be an integer in [0, 2**64)"),
        (["--device", "tpu"], "'tpu' is not a device"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_sampled_is_said(here, capsys, arguments, message):
    assert train("--max-steps", "2") == 0
    capsys.readouterr()
    assert main(["sample", "run", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_what_a_terminal_cannot_show_is_replaced(here, monkeypatch):
    Path("umlauts.txt").write_text("äöü" * 2000, encoding="utf-8")
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    assert train("--max-steps", "2", "--data", "umlauts.txt") == 0
    terminal.flush()
    assert b"???" in terminal.buffer.getvalue()
    assert "ä" in Path("run", "sample.txt").read_text(encoding="utf-8")


def test_a_name_that_is_not_utf_8_can_be_drawn(here):
    os.rename("input.txt", b"in\xff.txt")
    name = os.fsdecode(b"in\xff.txt")
    assert train("--max-steps", "2", "--data", name) == 0
    assert train("--max-steps", "4", "--resume", "--data", name) == 0
    assert "in\ufffd.txt" in Path("run", "curve.svg").read_text(encoding="utf-8")


def test_fine_tuning_has_a_folder_of_its_own(here, capsys):
    assert main(["train", "--data", "input.txt", *SMALL, "--max-steps", "2"]) == 0
    tune = ["train", "--data", "input.txt", "--init-from", "runs/default", "--max-steps", "2"]
    assert main([*tune, "--lora-rank", "2", "--warmup-steps", "0"]) == 0
    assert Path("runs/default-tuned/config.json").exists()
    assert main([*tune, "--resume", "auto", "--max-steps", "3", "--lora-rank", "2"]) == 0
    assert "from step 2" in capsys.readouterr().out


def test_no_temperature_is_greedy(here, capsys):
    assert train("--max-steps", "2") == 0
    texts = []
    for flags in (["--greedy"], ["--temperature", "0"]):
        capsys.readouterr()
        assert main(["sample", "run", *flags]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_every_setting_is_a_flag_with_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for name in FIELDS:
        assert f"--{name.replace('_', '-')}" in out
    assert "--no-bias" in out


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"gpugrad {gpugrad.__version__}\n"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_divergence_is_said(here, capsys):
    given = [
        "--max-steps",
        "40",
        "--eval-interval",
        "40",
        "--lr",
        "1e30",
        "--lr-scales",
        "tokens*=0",
    ]
    assert train(*given) == 1
    error = capsys.readouterr().err
    assert re.search(r"the norm of the gradient was not finite in 1\d steps in a row", error)
    assert "--detect-anomaly names the operation" in error
    assert checkpoint.steps("run/checkpoints") == [0]
    assert train(*given, "--overwrite", "--detect-anomaly") == 1
    out, error = capsys.readouterr()
    assert "every operation is looked at" in out
    assert re.search(r"an anomaly at step \d+: (for|back)ward of \w+: ", error)
    assert re.search(r"in module GPT\.\w+", error)


def test_updates_left_out_are_counted(here, capsys, monkeypatch):
    update = gpugrad.train.Trainer.update

    def spoiled(self):
        weight = self.model.blocks[0].mlp.up.weight.data
        good = weight.copy()
        if self.step == 4:
            weight[...] = math.nan
        update(self)
        if self.step == 5:
            weight[...] = good

    monkeypatch.setattr(gpugrad.train.Trainer, "update", spoiled)
    assert train("--max-steps", "12", "--skip-spikes", "6") == 0
    out = capsys.readouterr().out
    assert "skipped   1 updates: 1 with a gradient that was not finite, 0 with a spike" in out
    lines = Path("run/metrics.jsonl").read_text().splitlines()
    counts = [r["skipped"] for r in map(json.loads, lines) if r["kind"] == "train"]
    assert counts == [0, 1, 1, 1]


def test_ctrl_c_while_sampling(here, capsys, monkeypatch):
    assert train("--max-steps", "2") == 0

    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("gpugrad.cli.sample_text", interrupted)
    assert main(["sample", "run"]) == 130
    assert "interrupted" in capsys.readouterr().err
