"""The house that Jack built, a nursery rhyme from before 1755: what the smallest examples read."""

from __future__ import annotations

_PARTS = [
    "the house that Jack built",
    "the malt that lay in",
    "the rat that ate",
    "the cat that killed",
    "the dog that worried",
    "the cow with the crumpled horn that tossed",
    "the maiden all forlorn that milked",
    "the man all tattered and torn that kissed",
    "the priest all shaven and shorn that married",
]
RHYME = "".join(f"this is {' '.join(_PARTS[n::-1])}.\n" for n in range(len(_PARTS)))
