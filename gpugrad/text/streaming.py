"""Show text while it is being generated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from gpugrad.text.protocol import Tokenizer


class StreamDecoder:
    """Decode ids as they come: the pieces joined equal the decoding of all ids at once.

    A character split between tokens is held back until it is complete. An incomplete UTF-8
    sequence decodes to exactly one U+FFFD, at the very end, so everything before that is final.

    ``after``: ids of a text that is shown already and that the pieces continue; where it ends
    within a character, they begin with that.
    """

    def __init__(self, tokenizer: Tokenizer, after: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        # shown already; some decoders space a token by its neighbour
        self._context = [int(i) for i in after]
        self._pending: list[int] = []
        # how many characters of the decoded context + pending were returned
        self._shown = len(tokenizer.decode(self._context).removesuffix("\ufffd"))

    def feed(self, ids: Iterable[int]) -> str:
        """Take the next ids and return the text that has become final, perhaps ""."""
        new = [int(i) for i in ids]
        self._pending += new
        text = self._tokenizer.decode(self._context + self._pending)
        final = text.removesuffix("\ufffd")
        piece = final[self._shown :]
        if final != text:
            self._shown += len(piece)
        elif not piece:  # padding, say, which is nothing to be a neighbour of
            del self._pending[len(self._pending) - len(new) :]
        else:
            self._context, self._pending = self._pending, []
            self._shown = len(self._tokenizer.decode(self._context))
        return piece

    def finish(self) -> str:
        """Return what was held back, with U+FFFD for a character that never became complete."""
        piece = self._tokenizer.decode(self._context + self._pending)[self._shown :]
        self._context, self._pending, self._shown = [], [], 0
        return piece


def until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Yield the text of ``pieces`` up to where one of ``stops`` is first complete, without it.

    What may be the beginning of a stop is held back until that is decided. No more pieces are
    taken than needed. Raises ValueError for an empty stop.
    """
    if not all(stops):
        raise ValueError("until: a stop must not be empty, which would end any text before it")
    if not all(isinstance(stop, str) for stop in stops):
        raise TypeError(f"until: stops must be strings, got {stops!r}")
    return _until(iter(pieces), stops)


def _until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    held = ""
    for piece in pieces:
        if not isinstance(piece, str):
            raise TypeError(f"until: pieces must be strings, got {piece!r}")
        held += piece
        ends = [(held.find(stop) + len(stop), held.find(stop)) for stop in stops if stop in held]
        if ends:
            yield held[: min(ends)[1]]
            return
        begun = max((_begun(held, stop) for stop in stops), default=0)
        yield held[: len(held) - begun]
        held = held[len(held) - begun :]
    yield held


def _begun(text: str, stop: str) -> int:
    """Return how many characters at the end of the text are the beginning of the stop."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
