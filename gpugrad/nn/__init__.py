"""Layers with PyTorch's names and arguments; ``nn.functional`` and ``nn.init`` beside them."""

from __future__ import annotations

from ..boundary import name_all
from . import functional, init, lora, utils
from .activation import GELU, LogSoftmax, ReLU, Sigmoid, SiLU, Softmax, Tanh
from .attention import MultiHeadAttention
from .containers import ModuleDict, ModuleList, Sequential
from .dropout import Dropout
from .embedding import Embedding
from .linear import Flatten, Identity, Linear
from .loss import BCEWithLogitsLoss, CrossEntropyLoss, MSELoss, NLLLoss
from .masks import document_mask, padding_mask
from .module import Module, keep_forward
from .normalization import LayerNorm, RMSNorm
from .parameter import Parameter
from .patterns import freeze, unfreeze
from .recurrent import GRU, LSTM, RNN
from .transformer import MLP, GatedMLP, TransformerBlock

__all__ = [
    "GELU",
    "GRU",
    "LSTM",
    "MLP",
    "RNN",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "Flatten",
    "GatedMLP",
    "Identity",
    "LayerNorm",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "Module",
    "ModuleDict",
    "ModuleList",
    "MultiHeadAttention",
    "NLLLoss",
    "Parameter",
    "RMSNorm",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "TransformerBlock",
    "document_mask",
    "freeze",
    "functional",
    "init",
    "lora",
    "padding_mask",
    "unfreeze",
    "utils",
]

name_all(globals(), "gpugrad.nn.")
keep_forward(LayerNorm, Linear, MLP, MultiHeadAttention)
