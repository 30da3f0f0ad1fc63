"""Text generation: see ``models.decoding``, ``models.beam_search`` and ``models.scoring``."""

from __future__ import annotations

from .boundary import name_all
from .models.beam_search import Beam, beam_search, beam_search_batch
from .models.decoding import generate, generate_batch, stream
from .models.sampler import Sampler
from .models.scoring import LogProbability, log_probability
from .models.texts import LanguageModel

__all__ = [
    "Beam",
    "LanguageModel",
    "LogProbability",
    "Sampler",
    "beam_search",
    "beam_search_batch",
    "generate",
    "generate_batch",
    "log_probability",
    "stream",
]

name_all(globals(), "gpugrad.models.")
