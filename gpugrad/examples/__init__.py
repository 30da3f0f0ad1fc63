"""Worked examples, from the chain rule to a GPT.

    python -m gpugrad.examples                   # the list
    python -m gpugrad.examples.NAME              # one of them; --picture FILE where one is drawn
    python -m gpugrad.examples --pictures DIR    # all of them, with their pictures

Each module is one example: its docstring says what it shows and holds the output, its ``main`` runs
it, on the public names of gpugrad only. README.md beside this file is the gallery.
"""

from __future__ import annotations

import pkgutil

__all__ = ["names"]


def names() -> list[str]:
    """Return the names of all examples in alphabetical order."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if not name.startswith("_"))
