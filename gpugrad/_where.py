"""Where a program is: the line of the user's code, and the modules that are being called.

Both are read from the stack when somebody asks, so that calls of modules and operations, which
happen all the time, need not keep account of themselves.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
from typing import Any, NamedTuple

import numpy as np

_PACKAGE = os.path.dirname(__file__) + os.sep
# what may stand between a user's call and gpugrad: decorators and protocols
_BETWEEN = (os.path.dirname(np.__file__) + os.sep, contextlib.__file__)
_EXAMPLES = os.path.join(_PACKAGE, "examples", "")  # written as users write


class Place(NamedTuple):
    """A line outside of the package, and the modules whose methods run, outermost first."""

    file: str
    number: int
    modules: tuple[Any, ...] = ()

    @property
    def line(self) -> str:
        """The line with its file and number, as in ``train.py:12: loss = model(x)``."""
        text = linecache.getline(self.file, self.number).strip()
        return f"{self.file}:{self.number}: {text}" if self.file else "?"

    @property
    def path(self) -> str:
        """The modules by their names, as in ``GPT.blocks.0.attention``; "" outside of any.

        One that the module around it does not hold is called by its class.
        """
        path = ""
        for outer, inner in zip((None, *self.modules), self.modules, strict=False):
            names = () if outer is None else outer.named_modules()
            name = next((name for name, module in names if module is inner), "")
            path = f"{path}.{name}" if path and name else _joined(path, type(inner).__name__)
        return path


def _joined(path: str, kind: str) -> str:
    return f"{path} > {kind}" if path else kind


def here() -> Place:
    """Return where the thread is."""
    frame: Any = sys._getframe(1)
    file, number = "", 0
    modules: list[Any] = []
    while frame is not None:
        name = frame.f_code.co_filename
        inside = name.startswith((_PACKAGE, *_BETWEEN)) and not name.startswith(_EXAMPLES)
        if not inside and not file:
            file, number = name, frame.f_lineno
        if frame.f_code.co_varnames[:1] == ("self",):
            owner = frame.f_locals.get("self")
            is_module = hasattr(type(owner), "named_modules")
            if is_module and not (modules and modules[-1] is owner):
                modules.append(owner)
        frame = frame.f_back
    return Place(file, number, tuple(reversed(modules)))


def user_line() -> str:
    """Return the line outside of gpugrad that is being run, with its file and number."""
    return here().line
