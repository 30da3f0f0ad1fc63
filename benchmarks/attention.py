"""Attention: GPT-2 124M in training, wider heads, one token over a cache; packed projections.

On an H100 or H200, beside the kernels it takes by itself (wgmma, tiles by cp.async): those whose
tiles the copy engine fetches (TMA), unless gpu_session.py found that they are wrong, and those for
other GPUs (mma.sync).
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

import bench
from bench import Case

from gpugrad.fused import _attention_sm90
from gpugrad.ops.random import Draw
from gpugrad.registry import Sample

NAME = "scaled_dot_product_attention"
WRONG = "GPU_SESSION_WRONG"  # in the environment: sections of gpu_session.py that have failed
OTHERS = tuple(
    (label, functools.partial(_attention_sm90.kernels, name))
    for name, label in {"mma": "mma.sync", "tma": "TMA"}.items()
    if f"attention-{name}" not in os.environ.get(WRONG, "").split()
)


def _torch(
    torch: Any, q: Any, k: Any, v: Any, mask: Any, scale: float, is_causal: bool, **statics: Any
) -> Any:
    causal = is_causal and q.shape[-2] > 1  # the last token sees all keys
    f = torch.nn.functional.scaled_dot_product_attention
    return f(q, k, v, is_causal=causal, scale=scale)


def _torch_packed(torch: Any, qkv: Any, scale: float, is_causal: bool, **statics: Any) -> Any:
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    f = torch.nn.functional.scaled_dot_product_attention
    return f(q, k, v, is_causal=is_causal, scale=scale).transpose(1, 2).flatten(2)


def _statics(width: int, is_causal: bool, offset: int = 0) -> dict[str, Any]:
    numbers: dict[str, Any] = {"dropout_p": 0.0, "draw": Draw(0, 0)}
    return {"scale": width**-0.5, "is_causal": is_causal, "offset": offset, **numbers}


def _sample(
    batches: int, heads: int, rows: int, keys: int, width: int, causal: bool = True
) -> Sample:
    key = (batches, heads, keys, width)
    statics = _statics(width, causal, offset=keys - rows)
    return Sample((batches, heads, rows, width), key, key, None, **statics)


def _packed(batches: int, rows: int, heads: int, width: int) -> Sample:
    return Sample((batches, rows, 3, heads, width), **_statics(width, True))


CASES = [
    Case(
        NAME,
        _sample(64, 12, 1024, 1024, 64),
        _sample(2, 12, 256, 256, 64),
        _torch,
        "causal",
        OTHERS,
    ),
    Case(
        NAME,
        _sample(64, 12, 1024, 1024, 64, causal=False),
        _sample(2, 12, 256, 256, 64, causal=False),
        _torch,
        "full",
        OTHERS,
    ),
    Case(
        NAME,
        _sample(32, 16, 1024, 1024, 128),
        _sample(1, 8, 256, 256, 128),
        _torch,
        "causal",
        OTHERS,
    ),
    Case(NAME, _sample(64, 12, 1, 1024, 64), _sample(8, 12, 1, 1024, 64), _torch, "one token"),
    Case(
        "packed_attention",
        _packed(64, 1024, 12, 64),
        _packed(2, 256, 12, 64),
        _torch_packed,
        "causal",
        OTHERS,
    ),
]

if __name__ == "__main__":
    sys.exit(bench.main(["attention", *sys.argv[1:]]))
