"""The flags of each command of `gpugrad`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from typing import Any

from . import __version__
from .compiled import OLDEST
from .train import evaluation
from .train.config import FIELDS
from .train.devices import DEVICES


def make_parser(runs: Mapping[str, Callable[[argparse.Namespace], int]]) -> argparse.ArgumentParser:
    """Return the parser; what it returns has the function of its command under ``run``."""
    parser = argparse.ArgumentParser("gpugrad", description="Train small language models.")
    parser.add_argument("--version", action="version", version=f"gpugrad {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, add in _COMMANDS.items():
        command = add(commands)
        command.set_defaults(parser=command, run=runs[name])
    return parser


def _add_train(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "train",
        help="train a model on text",
        description="Train a GPT on text. Defaults are those of --preset default.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="settings from a .toml, .json or .yaml")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="always",
        choices=("always", "auto"),
        metavar="auto",
        help="go on with the run in --out; auto: if there is one, or start it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    _add_settings(parser)
    return parser


def _add_search(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "search",
        help="train with several settings, choose the best by dev loss",
        description="Train a run for each combination of some settings and sort them by dev loss. "
        "The other settings are those of train. The same command goes on where a search was "
        "stopped. Half of what is not trained on is left for a test, unless --test-fraction says "
        "otherwise.",
        allow_abbrev=False,
    )
    parser.set_defaults(out=os.path.join("runs", "search"))
    parser.add_argument("--config", metavar="FILE", help="settings from a .toml, .json or .yaml")
    parser.add_argument(
        "--grid",
        action="append",
        metavar="NAME=VALUE,...",
        help="try each value with each of the other --grid flags, the last varying fastest",
    )
    parser.add_argument(
        "--random",
        action="append",
        metavar="NAME=SPACE",
        help="draw from log:LOW:HIGH, uniform:LOW:HIGH or VALUE,VALUE,...",
    )
    parser.add_argument("--trials", type=int, metavar="N", help="how many, with --random (10)")
    parser.add_argument("--search-seed", type=int, metavar="S", help="of what is drawn (0)")
    _add_settings(
        parser,
        out="folder of the search (default: runs/search)",
        test_fraction="part at the end that only `gpugrad evaluate --split test` looks at "
        "(default: half of what is not trained on)",
    )
    return parser


def _add_evaluate(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "evaluate",
        help="the loss of a trained model on held-out text",
        description="Say the loss of a trained model on all of its dev part, or once on its test "
        "part.",
    )
    parser.add_argument("folder", metavar="DIR", help="folder of a run, such as runs/default")
    parser.add_argument("--split", choices=evaluation.SPLITS, default="dev", help="(dev)")
    parser.add_argument("--best", action="store_true", help="the best checkpoint, not the newest")
    parser.add_argument("--again", action="store_true", help="look at the test part a second time")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def _add_plan(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "plan",
        help="what a training step needs, without a GPU",
        description="Say how much memory, arithmetic and time a training step takes on a GPU, from "
        "shapes alone. The settings are those of train.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="settings from a .toml, .json or .yaml")
    names = ", ".join(gpu.name for gpu in DEVICES if gpu.capability >= OLDEST)
    parser.add_argument(
        "--gpu", metavar="NAME", help=f"{names} (default: the one that is here, or h200)"
    )
    parser.add_argument(
        "--batch",
        dest="batch_size",
        type=int,
        default=argparse.SUPPRESS,
        metavar="INT",
        help="the same as --batch-size",
    )
    _add_settings(parser)
    return parser


def _add_settings(parser: argparse.ArgumentParser, **helps: str) -> None:
    """Add a flag for each setting of a training run; some may mean something else here."""
    for name, field in FIELDS.items():
        options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
        shown = "" if field.default == "" else f" ({field.default})"
        options["help"] = helps.get(name, field.metadata["help"] + shown).replace("%", "%%")
        if field.type == "bool":
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = {"int": int, "float": float, "str": str}[str(field.type)]
            options["choices"] = field.metadata.get("choices")
            options["metavar"] = None if options["choices"] else str(field.type).upper()
        parser.add_argument(f"--{name.replace('_', '-')}", **options)


def _add_sample(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "sample", help="let a trained model write", description="Let a trained model write."
    )
    parser.add_argument("folder", metavar="DIR", help="folder of a run, such as runs/default")
    parser.add_argument("--prompt", help="text to go on from (default: a new line)")
    parser.add_argument(
        "--max-new-tokens", type=_count, default=500, metavar="N", help="length of the text (500)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="X",
        help="below 1: safer; 0: always the most likely token (1.0)",
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K most likely")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest P")
    parser.add_argument("--min-p", type=float, metavar="P", help="at least P times the likeliest")
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1: fewer (1.0)"
    )
    parser.add_argument("--greedy", action="store_true", help="always the most likely token")
    parser.add_argument("--beams", type=int, metavar="N", help="beam search with N beams instead")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; repeatable"
    )
    parser.add_argument("--score", metavar="TEXT", help="write nothing; say how likely TEXT is")
    parser.add_argument("--seed", type=int, help="same seed, same text (default: a new one)")
    parser.add_argument("--best", action="store_true", help="the best checkpoint, not the newest")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep keys and values instead of computing every window anew (on)",
    )
    return parser


def _add_bench(commands: Any) -> argparse.ArgumentParser:
    return commands.add_parser("bench", help="time the kernels; see gpugrad bench --help")


def _add_doctor(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "doctor",
        help="what works here, what is missing",
        description="Check Python, NumPy and the way to a GPU. Exit status 0: the CPU works.",
    )
    parser.add_argument(
        "--determinism",
        action="store_true",
        help="instead train a small GPT in many ways, to see whether one seed gives the same bits; "
        "exit status 1 if not",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


_count.__name__ = "number of tokens"  # argparse: "invalid number of tokens value: '-1'"

_COMMANDS = {
    "train": _add_train,
    "search": _add_search,
    "evaluate": _add_evaluate,
    "sample": _add_sample,
    "plan": _add_plan,
    "bench": _add_bench,
    "doctor": _add_doctor,
}
