"""Fused operations, one file each: NumPy implementation, definition (spec), public function.

The launcher of a CUDA kernel (kernels/<same name>.cu) belongs below the NumPy implementation, and
its pair of functions beside that one in the decorator of the spec: ``cuda=Implementation(...)``.
"""

from __future__ import annotations

from .affine import affine
from .attention import scaled_dot_product_attention
from .base import FUSED, Cost, Fused, Implementation, fused
from .cross_entropy import cross_entropy
from .dropout import dropout, dropout_add
from .embed import embed
from .embedding import embedding
from .gelu import bias_gelu, gelu
from .gru import gru
from .kernel import Kernel, kernel
from .layer_norm import layer_norm
from .layer_norm_affine import layer_norm_affine
from .layer_norm_mlp import layer_norm_mlp
from .linear_cross_entropy import linear_cross_entropy
from .lstm import lstm
from .mlp import mlp
from .packed_attention import packed_attention
from .rms_norm import rms_norm
from .rnn import rnn
from .rotary import rotary
from .softmax import log_softmax, softmax

__all__ = [
    "FUSED",
    "Cost",
    "Fused",
    "Implementation",
    "Kernel",
    "affine",
    "bias_gelu",
    "cross_entropy",
    "dropout",
    "dropout_add",
    "embed",
    "embedding",
    "fused",
    "gelu",
    "gru",
    "kernel",
    "layer_norm",
    "layer_norm_affine",
    "layer_norm_mlp",
    "linear_cross_entropy",
    "log_softmax",
    "lstm",
    "mlp",
    "packed_attention",
    "rms_norm",
    "rnn",
    "rotary",
    "scaled_dot_product_attention",
    "softmax",
]
