"""Language models, from counting to the transformer, and the small models on the way."""

from __future__ import annotations

from ..boundary import name_all
from .adapter import load_adapter, save_adapter
from .autoencoder import Autoencoder, AutoencoderConfig
from .bag_of_words import BagOfWords, BagOfWordsConfig
from .cache import KVCache
from .config import GPTConfig, flops_per_token, nearest_heads, parameter_count
from .feed_forward_network import FeedForwardNetwork
from .flops import petaflop_days, training_flops
from .gpt import GPT
from .logistic import LogisticRegression, LogisticRegressionConfig
from .ngram import NGram, NGramConfig
from .presets import PRESETS, Preset, preset
from .rnn_lm import RNNLM, RNNLMConfig
from .sequence_classifier import SequenceClassifier
from .window_lm import WindowLM, WindowLMConfig
from .word2vec import SkipGram, SkipGramBatches, SkipGramConfig

__all__ = [
    "GPT",
    "PRESETS",
    "RNNLM",
    "Autoencoder",
    "AutoencoderConfig",
    "BagOfWords",
    "BagOfWordsConfig",
    "FeedForwardNetwork",
    "GPTConfig",
    "KVCache",
    "LogisticRegression",
    "LogisticRegressionConfig",
    "NGram",
    "NGramConfig",
    "Preset",
    "RNNLMConfig",
    "SequenceClassifier",
    "SkipGram",
    "SkipGramBatches",
    "SkipGramConfig",
    "WindowLM",
    "WindowLMConfig",
    "flops_per_token",
    "load_adapter",
    "nearest_heads",
    "parameter_count",
    "petaflop_days",
    "preset",
    "save_adapter",
    "training_flops",
]

name_all(globals(), "gpugrad.models.")
