"""Windows of a token sequence: inputs x and, one position on, targets y."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Windows = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


class RandomWindows(Iterator[Windows]):
    """Endless batches (x, y), int64 of shape (B, T), of windows at random places.

    tokens: 1-D integers, an array or a memory map.
    block, batch: T and B.
    seed: 0 ... 2**64 - 1. Batch number n depends on the seed and n alone (Philox: the seed is
        the key, n the counter), so `state_dict` is a few numbers and a resumed run goes on with
        exactly the batches it would have seen.

    Raises ValueError when `tokens` is shorter than one window, which takes block + 1 tokens.
    """

    def __init__(
        self, tokens: npt.NDArray[np.integer], block: int, batch: int, seed: int = 0
    ) -> None:
        if batch < 1:
            raise ValueError(f"RandomWindows: batch must be at least 1, got {batch}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"RandomWindows: seed must be in 0..2**64-1, got {seed}")
        self._tokens = _check_tokens(tokens, block, "RandomWindows")
        self.block, self.batch, self.seed = block, batch, seed
        self.step = 0

    def __next__(self) -> Windows:
        # Raw bits: NumPy keeps these streams across versions, those of Generator it may change.
        # The remainder favours no start by more than len(tokens) / 2**64.
        bits = np.random.Philox(key=self.seed, counter=self.step << 64).random_raw(self.batch)
        starts = (bits % np.uint64(len(self._tokens) - self.block)).astype(np.int64)
        self.step += 1
        return _windows(self._tokens, starts, self.block)

    def state_dict(self) -> dict[str, int]:
        """Return the state as plain integers, fit for JSON."""
        return {"seed": self.seed, "step": self.step, **self._shape()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; it must come from equal block, batch and token count."""
        expected = {"seed", "step", *self._shape()}
        if set(state) != expected:
            raise ValueError(
                f"RandomWindows.load_state_dict: expected the keys {sorted(expected)}, "
                f"got {sorted(state)}"
            )
        for name, value in self._shape().items():
            if state[name] != value:
                raise ValueError(
                    f"RandomWindows.load_state_dict: the state was taken with {name} = "
                    f"{state[name]}, here it is {value}; the batches would not be the same"
                )
        self.seed, self.step = int(state["seed"]), int(state["step"])

    def _shape(self) -> dict[str, int]:
        return {"block": self.block, "batch": self.batch, "tokens": len(self._tokens)}


class ConsecutiveWindows(Iterator[Windows]):
    """Endless batches (x, y), int64 (B, T), each row going on where it ended in the last batch.

    For recurrent models whose state flows on (truncated backpropagation through time). The tokens
    are cut into B streams of equal length, of which each is cut into windows; what is left over is
    not used. ``at_start`` tells that the next batch begins the streams: at first and after the last
    window, where the state has to begin anew.

    Raises ValueError when `tokens` is too short for one window of every stream.
    """

    def __init__(self, tokens: npt.NDArray[np.integer], block: int, batch: int) -> None:
        if batch < 1:
            raise ValueError(f"ConsecutiveWindows: batch must be at least 1, got {batch}")
        tokens = _check_tokens(tokens, block, "ConsecutiveWindows")
        length = (len(tokens) - 1) // batch
        if length < block:
            raise ValueError(
                f"ConsecutiveWindows: {len(tokens)} tokens are too few for {batch} streams of at "
                f"least one window, which take {batch * block + 1}"
            )
        self._tokens, self.block = tokens, block
        self._starts = np.arange(batch) * length
        self.count = length // block  # windows of a stream
        self.step = 0

    @property
    def at_start(self) -> bool:
        """Whether the next batch begins the streams."""
        return self.step % self.count == 0

    def __next__(self) -> Windows:
        starts = self._starts + self.step % self.count * self.block
        self.step += 1
        return _windows(self._tokens, starts, self.block)


def fixed_windows(tokens: npt.NDArray[np.integer], block: int, count: int) -> Windows:
    """Return `count` evenly spaced windows (x, y), from the first tokens to the last.

    Fewer when there are fewer different ones. Raises ValueError for tokens shorter than one
    window.
    """
    if count < 1:
        raise ValueError(f"fixed_windows: count must be at least 1, got {count}")
    tokens = _check_tokens(tokens, block, "fixed_windows")
    last = len(tokens) - block - 1
    count = min(count, last + 1)
    starts = np.arange(count) * last // max(count - 1, 1)
    return _windows(tokens, starts, block)


def _windows(tokens: npt.NDArray[np.integer], starts: npt.NDArray[np.int64], block: int) -> Windows:
    index = starts[:, None] + np.arange(block)  # (B, T)
    return tokens[index].astype(np.int64), tokens[index + 1].astype(np.int64)


def _check_tokens(
    tokens: npt.NDArray[np.integer], block: int, where: str
) -> npt.NDArray[np.integer]:
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ValueError(
            f"{where}: tokens must be 1-D integers, got shape {tokens.shape} "
            f"and dtype {tokens.dtype}"
        )
    if not isinstance(block, (int, np.integer)):
        raise TypeError(f"{where}: block must be an integer, got {block!r}")
    if block < 1:
        raise ValueError(f"{where}: block must be at least 1, got {block}")
    if len(tokens) < block + 1:
        raise ValueError(
            f"{where}: {len(tokens)} tokens are too few for block {block}: one window takes "
            f"{block + 1}; use a longer text or a shorter block"
        )
    return tokens
