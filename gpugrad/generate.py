"""Text generation: see ``models.decoding``, where a model's own ``generate`` method lives too."""

from __future__ import annotations

from .models.decoding import LanguageModel, Sampler, generate, stream

__all__ = ["LanguageModel", "Sampler", "generate", "stream"]
