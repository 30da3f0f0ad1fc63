"""The loss around a point: along a line, over a plane, for pictures of what an optimiser sees.

    directions = landscape.random_direction(model), landscape.random_direction(model)
    steps = np.linspace(-1, 1, 21)
    heights = landscape.plane(lambda: model.loss(ids, targets), model, directions, steps, steps)

The loss is a function without arguments that reads the parameters; these are moved, the loss is
computed without recording, and they have their very bits back afterwards, also after an exception.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import backend
from .engine import no_grad
from .nn import Module
from .ops import random
from .tensor import Tensor

Parameters = Module | Sequence[Tensor]
Direction = Sequence[Any]
Heights = npt.NDArray[np.float64]


def random_direction(parameters: Parameters) -> list[Tensor]:
    """Return a filter-normalised random direction: one tensor for each parameter.

    Each row of a matrix (the weights into one unit), a normal draw from ``gg.random``, gets the
    norm of that row of the parameter; vectors (biases, norms) stay where they are. Without that,
    a network whose weights are scaled up, and which computes the same, would look flatter. Li et
    al., "Visualizing the loss landscape of neural nets" (2018).
    """
    directions = []
    for parameter in _tensors(parameters):
        if parameter.ndim < 2:
            directions.append(Tensor(backend.xp_of(parameter._data).zeros_like(parameter._data)))
            continue
        xp, data = backend.xp_of(parameter._data), parameter._data.astype("float64")
        drawn = random.normal(size=parameter.shape, dtype="float64", device=parameter.device)._data
        axes = tuple(range(1, parameter.ndim))
        norms = xp.sqrt((data**2).sum(axis=axes, keepdims=True))
        drawn = drawn * (norms / xp.sqrt((drawn**2).sum(axis=axes, keepdims=True)))
        directions.append(Tensor(drawn.astype(parameter.dtype)))
    return directions


def line(
    loss: Callable[[], Any], parameters: Parameters, direction: Direction, steps: npt.ArrayLike
) -> Heights:
    """Return the loss at parameters + s * direction for each step s, (S,) float64.

    ``direction`` has an array of the shape of each parameter. Raises ValueError where it has not.
    """
    steps = _numbers("line", "steps", steps)
    return plane(loss, parameters, (direction, direction), steps, [0.0])[0]


def plane(
    loss: Callable[[], Any],
    parameters: Parameters,
    directions: Sequence[Direction],
    xs: npt.ArrayLike,
    ys: npt.ArrayLike,
) -> Heights:
    """Return the loss at parameters + x * directions[0] + y * directions[1]: (Y, X) float64.

    Raises ValueError for directions that are not two, or whose shapes are not the parameters'.
    """
    tensors = _tensors(parameters)
    if len(directions) != 2:
        raise ValueError(f"landscape.plane: it takes two directions, got {len(directions)}")
    first, second = (_moves(tensors, direction) for direction in directions)
    xs, ys = _numbers("plane", "xs", xs), _numbers("plane", "ys", ys)
    heights = np.empty((len(ys), len(xs)))
    with _moving(tensors) as start:
        for row, y in enumerate(ys):
            for column, x in enumerate(xs):
                for tensor, origin, a, b in zip(tensors, start, first, second, strict=True):
                    tensor._data[...] = origin + float(x) * a + float(y) * b
                heights[row, column] = float(loss())
    return heights


@contextlib.contextmanager
def _moving(tensors: Sequence[Tensor]) -> Iterator[list[Any]]:
    """Give the arrays that the parameters hold, and put them back at the end."""
    start = [tensor._data.copy() for tensor in tensors]
    try:
        with no_grad():
            yield start
    finally:
        for tensor, origin in zip(tensors, start, strict=True):
            tensor._data[...] = origin


def _tensors(parameters: Parameters) -> list[Tensor]:
    found = parameters.parameters() if isinstance(parameters, Module) else parameters
    tensors = list(found)
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise ValueError(
            "landscape: parameters must be a module or a sequence of tensors, not none"
        )
    return tensors


def _moves(tensors: Sequence[Tensor], direction: Direction) -> list[Any]:
    direction = list(direction)
    if len(direction) != len(tensors):
        raise ValueError(
            f"landscape: the direction has {len(direction)} arrays for {len(tensors)} parameters"
        )
    moves = []
    for i, (tensor, move) in enumerate(zip(tensors, direction, strict=True)):
        data = backend.as_array(move._data if isinstance(move, Tensor) else move)
        if data.shape != tensor.shape:
            raise ValueError(
                f"landscape: array {i} of the direction has shape {data.shape}, its parameter "
                f"{tensor.shape}"
            )
        moves.append(backend.to_device(data, tensor.device).astype(tensor.dtype))
    return moves


def _numbers(function: str, name: str, values: npt.ArrayLike) -> Heights:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise ValueError(
            f"landscape.{function}: {name} must be numbers in one dimension, got {numbers.shape}"
        )
    return numbers
