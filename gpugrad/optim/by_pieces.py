"""Updating parameters in pieces that stay in the cache: what an optimiser does without a kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from ..backend import Array
from ..engine import mutations
from . import blocks
from .by_kernel import ByKernel, Member
from .state import MASTER, follow


class _Parameter(NamedTuple):
    """The arrays of one parameter: itself, gradient, float32 master or None, and what is kept."""

    x: Array
    g: Array
    master: Array | None
    kept: list[Array]


class ByPieces(ByKernel):
    """The part of an optimiser that updates what no kernel takes, a piece at a time.

    Large parameters are cut into pieces, small ones gathered into one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._scratch = blocks.Scratch()

    def numbers(self, group: Any, step: int) -> tuple[float, ...]:
        """Return what ``update`` needs to know of a group, at a parameter's step 1, 2, ..."""
        raise NotImplementedError

    def update(
        self, xp: Any, x: Array, g: Array, state: list[Array], work: tuple, numbers: tuple
    ) -> None:
        """Change x and state in place; all arrays are 1-D and of one dtype, g is read only."""
        raise NotImplementedError

    def _by_pieces(self, members: list[Member], factor: float) -> None:
        """Update parameters by their gradients times the factor."""
        pieces: list[Array] = []
        updates: list[Callable[[], None]] = []
        known: dict[tuple[int, int], tuple] = {}  # the numbers of a group and step
        small: dict[tuple, list[_Parameter]] = {}
        for p, group in members:
            assert p._grad is not None
            state = self._states[p]
            state.steps += 1
            at = id(group), state.step
            if at not in known:
                known[at] = self.numbers(group, at[1])
            kept = [state.arrays[name] for name in self.slots(group)]
            found = _Parameter(p._data, p._grad._data, state.arrays.get(MASTER), kept)
            if p.size <= blocks.SMALL and found.master is None and isinstance(found.x, np.ndarray):
                small.setdefault((at, found.x.dtype), []).append(found)
                continue
            (x, g), places = blocks.blocks(found.x, found.g)
            found = found._replace(x=x, g=g)
            for place in places:
                pieces.append(x[place.rows])
                updates.append(functools.partial(self._update, found, place, factor, known[at]))
        for (at, _), alike in small.items():
            for some in _packs(alike):
                room = np.empty(sum(found.x.size for found in some), some[0].x.dtype)
                pieces.append(room)
                updates.append(
                    functools.partial(self._update_together, some, room, factor, known[at])
                )
        blocks.for_pieces(pieces, lambda i: updates[i]())
        for p, _ in members:
            mutations.record(p._data, f"{self._name}.step")

    def _update(
        self, found: _Parameter, place: blocks.Block, factor: float, numbers: tuple
    ) -> None:
        """Update a piece of one parameter."""
        target, flat = found.x[place.rows], place.flat
        if found.master is None:
            piece = target.reshape(-1)
        else:
            piece = found.master[flat]
            follow(piece, target.reshape(-1))
        *work, scaled = self._scratch.arrays(piece, 3)
        gradient = _scaled(found.g[place.rows].reshape(-1), factor, scaled)
        xp = backend.xp_of(found.x)
        self.update(xp, piece, gradient, [a[flat] for a in found.kept], tuple(work), numbers)
        if found.master is not None or not target.flags.c_contiguous:
            target[...] = piece.reshape(target.shape)

    def _update_together(
        self, parameters: list[_Parameter], piece: Array, factor: float, numbers: tuple
    ) -> None:
        """Update several small parameters; ``piece`` has room for all of them."""
        count = len(parameters[0].kept)
        gradient, scaled, *arrays = self._scratch.arrays(piece, 4 + count)
        kept, work = arrays[:count], tuple(arrays[count:])
        _gather([p.x for p in parameters], piece)
        _gather([p.g for p in parameters], gradient)
        for i, array in enumerate(kept):
            _gather([p.kept[i] for p in parameters], array)
        self.update(np, piece, _scaled(gradient, factor, scaled), kept, work, numbers)
        stop = 0
        for p in parameters:
            start, stop = stop, stop + p.x.size
            p.x[...] = piece[start:stop].reshape(p.x.shape)
            for mine, array in zip(p.kept, kept, strict=True):
                mine[...] = array[start:stop]


def _packs(parameters: Sequence[_Parameter]) -> list[list[_Parameter]]:
    """Return parameters in lists of about CPU_BLOCK elements at most."""
    packs: list[list[_Parameter]] = []
    room = 0
    for p in parameters:
        if not packs or p.x.size > room:
            packs.append([])
            room = blocks.CPU_BLOCK
        packs[-1].append(p)
        room -= p.x.size
    return packs


def _gather(arrays: list[Array], out: Array) -> None:
    np.concatenate([a.reshape(-1) for a in arrays], out=out, casting="unsafe")


def _scaled(gradient: Array, factor: float, room: Array) -> Array:
    """Return the gradient times a factor in the dtype of room, which may hold it."""
    if factor == 1:
        return gradient.astype(room.dtype, copy=False)
    blocks.scale(gradient, factor, room)
    return room
