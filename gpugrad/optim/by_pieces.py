"""Updating parameters in pieces that stay in the cache: what an optimiser does without a kernel."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from ..backend import Array
from ..engine import mutations
from . import blocks
from .by_kernel import ByKernel, Member
from .group import Group
from .state import MASTER, State, follow


class _Part(NamedTuple):
    """A piece of one parameter."""

    member: int  # which parameter, of those that move
    kind: int  # of the numbers of its update, among the plan's
    shape: tuple[int, ...]  # of the array that is cut
    rows: slice  # of it
    target: Array  # these rows
    piece: Array | None  # the same in the dtype of the state, 1-D; None: to be copied from there
    kept: list[Array]

    @property
    def elements(self) -> Array:
        """An array of as many elements where the parameter is."""
        return self.target


class _Pack(NamedTuple):
    """Several small parameters, C-contiguous, which are updated as one."""

    members: list[int]
    kind: int
    targets: list[Array]  # 1-D
    bounds: list[slice]  # of the targets within the room for all of them
    room: Array
    parts: list[Array]  # the room's, for each target
    kept: list[list[Array]]  # for each kept array, those of the parameters
    joined: list[Array | None]  # for each kept array that of all, if they lie end to end

    @property
    def elements(self) -> Array:
        """An array of as many elements where the parameters are."""
        return self.room


class _Plan:
    """How parameters are updated in pieces, for as long as the arrays stay that it was made for."""

    def __init__(self, members: list[Member], made_for: list[Any], slots: list, steps: list[int]):
        self.made_for = made_for
        self.slots = slots
        self.steps = steps  # that the parameters should have taken ahead of the next
        states: list[State] = made_for[2 * len(members) :]
        self.counts = [state.steps for state in states]
        kinds: dict[tuple[int, int], int] = {}
        self.kinds: list[tuple[Group, int]] = []  # and a parameter, whose steps count
        self.pieces: list[_Part | _Pack] = []
        small: dict[tuple, list[int]] = {}
        names = dict(slots)
        for i, (p, group) in enumerate(members):
            kind = kinds.setdefault((id(group), steps[i]), len(kinds))
            if kind == len(self.kinds):
                self.kinds.append((group, i))
            x, arrays = p._data, states[i].arrays
            kept = [arrays[name] for name in names[id(group)]]
            packed = p.size <= blocks.SMALL and isinstance(x, np.ndarray) and x.flags.c_contiguous
            if packed and MASTER not in arrays:
                small.setdefault((kind, x.dtype), []).append(i)
            else:
                self.pieces += _parts(i, kind, x, arrays.get(MASTER), kept)
        for (kind, _), indices in small.items():
            for some in _packs(indices, [p.size for p, _ in members]):
                kept = [[states[i].arrays[n] for i in some] for n in names[id(self.kinds[kind][0])]]
                self.pieces.append(_pack(some, kind, [members[i][0]._data for i in some], kept))
        self.elements = [piece.elements for piece in self.pieces]

    def __deepcopy__(self, memo: dict[int, object]) -> None:
        """Return None: copies of views would be no views."""

    def fits(self, made_for: list[Any], slots: list, steps: list[int]) -> bool:
        """Return whether it would be made the same again."""
        return (
            len(made_for) == len(self.made_for)
            and all(map(operator.is_, made_for, self.made_for))
            and slots == self.slots
            and steps == self.steps
        )

    def count(self) -> None:
        """Count a step of every parameter."""
        self.steps = [step + 1 for step in self.steps]
        for count, step in zip(self.counts, self.steps, strict=True):
            count[0] = step


class ByPieces(ByKernel):
    """The part of an optimiser that updates what no kernel takes, a piece at a time.

    Large parameters are cut into pieces, small ones gathered into one. Where the pieces are is
    found out once, and again when a parameter has another array, another one has a gradient, or
    anything else has changed that the plan of them was made for.
    """

    def __init__(self) -> None:
        super().__init__()
        self._scratch = blocks.Scratch()
        self._plan: _Plan | None = None

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
        plan = self._planned(members)
        plan.count()
        numbers = [self.numbers(group, plan.steps[i]) for group, i in plan.kinds]
        gradients = [p._grad._data for p, _ in members if p._grad is not None]

        def work(i: int) -> None:
            piece = plan.pieces[i]
            if isinstance(piece, _Part):
                self._update(piece, gradients[piece.member], factor, numbers[piece.kind])
            else:
                chosen = [gradients[member] for member in piece.members]
                self._update_together(piece, chosen, factor, numbers[piece.kind])

        blocks.for_pieces(plan.elements, work)
        for p, _ in members:
            mutations.record(p._data, f"{self._name}.step")

    def _planned(self, members: list[Member]) -> _Plan:
        """Return the plan for the parameters: the last one, if nothing has changed since."""
        states = [self._states[p] for p, _ in members]
        steps = [state.steps.item() for state in states]
        groups = [group for _, group in members]
        slots = [(id(g), self.slots(g)) for g in {id(g): g for g in groups}.values()]
        made_for = [*(p._data for p, _ in members), *groups, *states]
        plan = self._plan
        if plan is None or not plan.fits(made_for, slots, steps):
            plan = self._plan = _Plan(members, made_for, slots, steps)
        return plan

    def _update(self, part: _Part, g: Array, factor: float, numbers: tuple) -> None:
        """Update a piece of one parameter, whose whole gradient is g."""
        target, piece = part.target, part.piece
        if piece is None:
            piece = target.flatten()
        elif piece.dtype != target.dtype:
            follow(piece, target.reshape(-1))
        *work, scaled = self._scratch.arrays(piece, 3)
        g = _scaled(g.reshape(part.shape)[part.rows].reshape(-1), factor, scaled)
        self.update(backend.xp_of(piece), piece, g, part.kept, tuple(work), numbers)
        if part.piece is None or piece.dtype != target.dtype:
            target[...] = piece.reshape(target.shape)

    def _update_together(
        self, pack: _Pack, gradients: list[Array], factor: float, numbers: tuple
    ) -> None:
        """Update several small parameters."""
        x = pack.room
        g, scaled, *arrays = self._scratch.arrays(x, 4 + len(pack.kept))
        work = tuple(arrays[len(pack.kept) :])
        np.concatenate(pack.targets, out=x)
        np.concatenate([a.reshape(-1) for a in gradients], out=g, casting="unsafe")
        apart = [i for i, array in enumerate(pack.joined) if array is None]
        for i in apart:
            np.concatenate(pack.kept[i], out=arrays[i])
        kept = [arrays[i] if a is None else a for i, a in enumerate(pack.joined)]
        self.update(np, x, _scaled(g, factor, scaled), kept, work, numbers)
        for target, part in zip(pack.targets, pack.parts, strict=True):
            target[...] = part
        for i in apart:
            for target, bounds in zip(pack.kept[i], pack.bounds, strict=True):
                target[...] = arrays[i][bounds]


def _parts(
    member: int, kind: int, x: Array, master: Array | None, kept: list[Array]
) -> list[_Part]:
    """Return the pieces of a parameter."""
    x, places = blocks.blocks(x)
    parts = []
    for flat, rows in places:
        target = x[rows]
        piece = target.reshape(-1) if target.flags.c_contiguous else None
        piece = piece if master is None else master[flat]
        parts.append(_Part(member, kind, x.shape, rows, target, piece, [a[flat] for a in kept]))
    return parts


def _pack(indices: list[int], kind: int, xs: list[Array], kept: list[list[Array]]) -> _Pack:
    """Return some parameters as one piece."""
    bounds, stop = [], 0
    for x in xs:
        start, stop = stop, stop + x.size
        bounds.append(slice(start, stop))
    room = blocks.aligned(np, stop, xs[0].dtype)
    parts, joined = [room[b] for b in bounds], [_joined(arrays) for arrays in kept]
    return _Pack(indices, kind, [x.reshape(-1) for x in xs], bounds, room, parts, kept, joined)


def _joined(arrays: list[Array]) -> Array | None:
    """Return the part of a flat buffer that 1-D arrays fill end to end, None if they do not."""
    filled = [a for a in arrays if a.size]  # others lie nowhere in particular
    whole = filled[0].base if filled else None
    if not isinstance(whole, np.ndarray) or whole.ndim != 1 or not whole.flags.c_contiguous:
        return None
    start = stop = filled[0].ctypes.data
    for array in filled:
        if array.base is not whole or array.dtype != whole.dtype or array.ctypes.data != stop:
            return None
        stop += array.nbytes
    first = (start - whole.ctypes.data) // whole.itemsize
    return whole[first : first + (stop - start) // whole.itemsize]


def _packs(indices: Sequence[int], sizes: list[int]) -> list[list[int]]:
    """Return parameters in lists of about CPU_BLOCK elements at most."""
    packs: list[list[int]] = []
    room = 0
    for i in indices:
        if not packs or sizes[i] > room:
            packs.append([])
            room = blocks.CPU_BLOCK
        packs[-1].append(i)
        room -= sizes[i]
    return packs


def _scaled(gradient: Array, factor: float, room: Array) -> Array:
    """Return the gradient times a factor in the dtype of room, which may hold it."""
    if factor != 1:
        blocks.scale(gradient, factor, room)
    elif gradient.dtype == room.dtype and gradient.flags.c_contiguous:
        return gradient
    else:
        room[...] = gradient
    return room
