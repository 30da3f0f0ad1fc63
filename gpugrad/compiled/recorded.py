"""A recorded run of a function: whether it holds, and how it is replayed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import boundary
from ..cuda.recording import Buffer, Launch, Trace, Whole
from ..cuda.replay import Replay
from ..engine import mutations
from ..ops import random
from ..tensor import Tensor
from .arguments import replaced
from .ends import Ends
from .guards import Guards
from .settings import Settings


@dataclasses.dataclass(eq=False)
class Recorded:
    """One recorded run of a function: when it holds, what it launches, what it returns."""

    trace: Trace
    replay: Replay
    drawn: int  # how many blocks of random numbers a run takes
    random_state: Buffer
    result: Any  # the function's result, with Buffers in the place of arrays
    ends: Ends
    guards: Guards
    settings: Settings
    used: int = 0  # the number of the last call that it served

    def holds(self) -> bool:
        """Return whether everything from outside is as it was when the function was recorded."""
        trace = self.trace
        return (
            all(leaf.holds() for leaf in trace.leaves.values())
            and all(guard() for guard in trace.guards)
            and self.guards.hold()
            and self.settings.hold()
        )

    def run(self, arrays: Sequence[Any]) -> Any:
        """Replay it with these arrays as arguments; return what the function returns."""
        runner = self.replay
        runner.follow()
        runner.refuse_changing(arrays)
        arrays = self.ends.take(arrays)
        draw = random.reserve(self.drawn)
        runner.write(self.random_state, np.array([draw.seed, draw.offset], np.uint64))
        for buffer, value in zip(self.trace.inputs[1:], arrays, strict=True):
            runner.write(buffer, value)
        self.settings.apply()
        try:
            runner.run()
        except Exception as error:
            if runner.failed is not None:
                random.give_back(draw, self.drawn, runner.failed.drawn)
                _refuse(error, runner.failed, *runner.concrete(runner.failed))
            raise
        mutations.record_step(runner)
        self.ends.leave()
        return replaced(self.result, lambda b: Tensor._wrap(runner.read(b), None))


def _refuse(error: Exception, launch: Launch, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raise what a launch has raised with its name and arguments; return if that is said."""
    function = launch.function
    if isinstance(function, Whole):
        function, (_, _, args, kwargs) = function.function, args
    if isinstance(error, boundary.REFUSALS):
        title = launch.operation or launch.name
        boundary.refuse(error, title, boundary.given_to(function, args, kwargs), strict=False)
