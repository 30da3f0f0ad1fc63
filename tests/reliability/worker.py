"""Run `gpugrad` again and again in forks of one process, under the faults of faults.c.

Started with that library preloaded, so that a trial costs a fork and not an interpreter. Reads one
trial per line of standard input and answers each with a line: the exit status as `waitpid` has it,
what the run was at when it ended or was struck, the CPU seconds until then, and whether the process
ended within the command, not ahead of it or after.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from gpugrad import cli, emulator
from gpugrad.text import load_tokenizer
from gpugrad.train import checkpoint
from gpugrad.train.loop import Trainer
from gpugrad.train.session import Session

PHASES = {
    "training": (Session, "train"),
    "a step": (Trainer, "update"),
    "an evaluation": (Trainer, "evaluate"),
    "sampling": (Session, "_sample"),
    "saving": (checkpoint, "save"),
}
COMMAND = len(PHASES)


def main() -> None:
    """Answer trials until standard input ends."""
    inside = mmap.mmap(-1, len(PHASES) + 1)  # shared with forks: how deep they are in each phase
    for number, (owner, name) in enumerate([*PHASES.values(), (cli, "_run")]):
        note_when_inside(inside, number, owner, name)
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    library.faults_arm.argtypes = [ctypes.c_char_p] * 2 + [ctypes.c_long, ctypes.c_char_p]
    assert load_tokenizer  # so that forks need not import anything
    for line in sys.stdin:
        trial = json.loads(line)
        seconds, signals = trial.pop("strike", (float("inf"), []))
        inside[:] = bytes(len(inside))
        child = os.fork()
        if not child:
            run(library, **trial)
        spent = wait(child, seconds)
        phases = [phase for phase, depth in zip(PHASES, bytes(inside), strict=False) if depth]
        for number in signals:
            os.kill(child, number)
            time.sleep(0.001)  # or two of a kind are one
        status = os.waitpid(child, 0)[1]
        print(json.dumps([status, phases, spent, bool(inside[COMMAND])]), flush=True)


def wait(child: int, seconds: float) -> float:
    """Wait until a child has ended, or has computed for so long; return for how long it has."""
    clock, ended = (~child << 3) | 2, os.pidfd_open(child)  # Linux's clock of a process
    spent = 0.0
    while spent < seconds and not select.select([ended], [], [], 0.001)[0]:
        spent = time.clock_gettime(clock)
    os.close(ended)
    return spent


def note_when_inside(inside: Any, number: int, owner: Any, name: str) -> None:
    """Count in ``inside[number]`` the calls of a function that have not ended."""
    original = getattr(owner, name)

    def noted(*arguments: Any, **named: Any) -> Any:
        inside[number] += 1
        try:
            return original(*arguments, **named)
        finally:
            inside[number] -= 1

    setattr(owner, name, noted)


def run(
    library: Any,
    arguments: list[str],
    output: str,
    folder: str = "",
    fault: str = "",
    n: int = 0,
    log: str = "",
    within: list[Any] | None = None,
    backwards: bool = False,
    emulated: bool = False,
    room: int = 0,
) -> NoReturn:
    """Run a command in this process, which is a fork, and leave it.

    output: the file that takes what it prints. fault, n: see faults.c; `log` lists the calls.
    within: [method of Trainer, step, signals]: send these signals in the midst of that method.
    backwards: let the clock of the wall run that way.
    room: how many bytes of memory there are for what is not in memory yet.
    """
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = 70  # of a bug that shows its trace
    try:
        if within:
            strike_within(*within)
        if room:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + room
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        if backwards:
            hours = iter(range(10**9, 0, -3600))
            time.time = lambda: float(next(hours))
        if log:
            library.faults_arm(folder.encode(), fault.encode(), n, log.encode())
        if emulated:
            with emulator.enabled("plain"):
                status = cli.main(arguments)
        else:
            status = cli.main(arguments)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        library.faults_arm(b"", b"", 0, b"/dev/null")
        sys.stdout.flush()
        os._exit(status)


def strike_within(method: str, step: int, signals: list[int]) -> None:
    """Send signals to this process when a step has changed the parameters and counted nothing yet,
    or an evaluation has looked at one of its batches.
    """
    original = getattr(Trainer, method)

    def changed(self: Trainer, *arguments: Any, **named: Any) -> Any:
        if self.step != step:
            return original(self, *arguments, **named)
        inner = {"update": "_take", "evaluate": "_measure"}[method]
        work = getattr(self, inner)

        def struck(*given: Any) -> Any:
            found = work(*given)
            setattr(self, inner, work)
            for number in signals:
                os.kill(os.getpid(), number)
            return found

        setattr(self, inner, struck)
        return original(self, *arguments, **named)

    setattr(Trainer, method, changed)


if __name__ == "__main__":
    main()
