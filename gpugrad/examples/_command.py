"""The command line that the examples share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def parse_picture(
    documentation: str | None, arguments: Sequence[str] | None, *, suffix: str = "svg"
) -> Path | None:
    """Return where to draw the picture, or None, from the command line ``[--picture FILE]``.

    ``documentation`` is the docstring of the example, shown by ``--help``; ``arguments`` None means
    those of the process. ``suffix`` is the format, or more of them separated by spaces.
    """
    parser = command(documentation)
    parser.add_argument("--picture", type=Path, metavar=f"FILE.{suffix.split()[0]}")
    path: Path | None = parser.parse_args(arguments).picture
    if path is not None and path.suffix.lstrip(".") not in suffix.split():
        parser.error(f"--picture {path}: the name has to end in .{' or .'.join(suffix.split())}")
    return path


def command(documentation: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the docstring of the example."""
    return argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def new_figure(width: float = 8.0, height: float = 5.0) -> Figure:
    """Return an empty matplotlib figure, in inches, that no window shows.

    Raises ImportError with the line to install where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "--picture needs matplotlib, which is not installed: pip install 'gpugrad[plot]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write the figure; folders above it are made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(f"picture: {path}")
