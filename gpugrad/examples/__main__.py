"""`python -m gpugrad.examples`: the list of examples, or all of them with their pictures."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path

from . import __doc__ as documentation
from . import names
from ._command import command


def main() -> None:
    """List the examples, or run all and draw their pictures (``--pictures DIR``)."""
    parser = command(documentation)
    parser.add_argument("--pictures", type=Path, metavar="DIR")
    folder: Path | None = parser.parse_args().pictures
    width = max(map(len, names()))
    for name in names():
        module = importlib.import_module(f"gpugrad.examples.{name}")
        print(f"{name:{width}}  {(module.__doc__ or '').splitlines()[0]}")
        if folder is not None:
            module.main(["--picture", str(folder / f"{name}.svg")])
            print()


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # `python -m gpugrad.examples | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
