"""What operations cannot do without: bytes and floating operations, as the kernels' headers say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gpugrad import backend
from gpugrad.cuda.source import shipped
from gpugrad.fused import FUSED, Cost

DTYPES = ["float32", "bfloat16"]


def empty(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.empty(shape, backend.as_dtype(dtype))


# (operation, shapes, keywords, (arrays of the first shape moved forward, operations per element
# forward, the same backward), the kernel's file and what its header says)
X, ROW = (6, 32), (32,)
NORM = (
    "forward 2 N C sizeof(T), with a residual 4 N C sizeof(T); backward 3 N C sizeof(T), with g_h"
)
NORM += " 4 N C sizeof(T)"
SOFTMAX = "forward 2 N C sizeof(T), backward 3 N C sizeof(T)", "forward 10 N C, backward 12 N C"
GELU = "forward 2 N C sizeof(T), backward 3 N C sizeof(T)", "about 25 N C forward, 40 N C backward"
LAYER = NORM, "forward 8 N C, backward 14 N C"
RMS = NORM, "forward 4 N C, backward 10 N C"
TURN = "4 B H length half sizeof(T)", "6 B H length half"
EACH: list[Any] = [
    ("layer_norm", (X, ROW, ROW, None), {"eps": 1e-5}, (2, 8, 3, 14), LAYER),
    ("layer_norm", (X, ROW, ROW, X), {"eps": 1e-5}, (4, 8, 4, 14), LAYER),
    ("rms_norm", (X, ROW, None), {"eps": 1e-5}, (2, 4, 3, 10), RMS),
    ("rms_norm", (X, None, X), {"eps": 1e-5}, (4, 4, 4, 10), RMS),
    ("softmax", (X,), {"axis": 1}, (2, 10, 3, 12), SOFTMAX),
    ("log_softmax", (X,), {"axis": 0}, (2, 10, 3, 12), SOFTMAX),
    ("gelu", (X,), {"approximate": "none"}, (2, 25, 3, 40), GELU),
    ("bias_gelu", (X, ROW), {"approximate": "tanh"}, (2, 25, 3, 40), GELU),
    ("rotary", ((2, 3, 5, 8), (7, 4), (7, 4)), {"start": 1}, (2, 3, 2, 3), TURN),
]


def header(name: str) -> str:
    """Return the comment at the head of a kernel's file as one line."""
    lines = (shipped("kernels") / f"{name}.cu").read_text().splitlines()
    comment = lines[: next(i for i, line in enumerate(lines) if not line.startswith("//"))]
    return " ".join(line.removeprefix("//").strip() for line in comment)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "shapes", "keywords", "per_element", "words"), EACH, ids=lambda v: str(v)[:30]
)
def test_cost_of_rows_and_elements(
    name: str, shapes: Any, keywords: Any, per_element: Any, words: Any, dtype: str
) -> None:
    arrays = [None if s is None else empty(s, dtype) for s in shapes]
    moved, operations, moved_back, operations_back = per_element
    n, size = arrays[0].size, arrays[0].nbytes
    found = FUSED[name].cost(*arrays, **keywords)
    assert found == Cost(moved * size, operations * n, moved_back * size, operations_back * n)
    file = {"log_softmax": "softmax", "bias_gelu": "gelu"}.get(name, name)
    for said in words:
        assert said in header(file)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cost_of_cross_entropy(dtype: str) -> None:
    statics = {"ignore_index": -100, "label_smoothing": 0.0, "reduction": "mean"}
    logits, cost = empty((4, 50), dtype), FUSED["cross_entropy"].cost
    by_id = cost(logits, np.zeros(4, np.int64), None, **statics)
    assert by_id == Cost(logits.nbytes, 1000, 2 * logits.nbytes, 1000)
    probabilities = empty((4, 50), "float32")
    by_probability = cost(logits, probabilities, None, **statics)
    assert by_probability.forward_bytes == logits.nbytes + probabilities.nbytes
    assert by_probability.backward_bytes == 2 * logits.nbytes + probabilities.nbytes
    text = header("cross_entropy")
    assert "Bytes: N V sizeof(T). FLOPs: 5 N V. backward" in " ".join(text.split())
    assert "Bytes: 2 N V sizeof(T). FLOPs: 5 N V. in place" in " ".join(text.split())


@pytest.mark.parametrize(("count", "rows", "read"), [(6, 100, 6), (100, 6, 6)])
def test_cost_of_embedding(count: int, rows: int, read: int) -> None:
    found = FUSED["embedding"].cost(
        np.zeros((count // 2, 2), np.int64), empty((rows, 8), "float16"), padding_idx=None
    )
    row = 8 * 2  # bytes
    assert found == Cost((count + read) * row, 0, (count + rows) * row, count * 8)


@pytest.mark.parametrize("offset", [-4, -2, 0, 1, 3, 9])
@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (3, 5), (5, 3)])
def test_cost_of_attention_counts_the_keys_that_are_seen(rows: int, keys: int, offset: int) -> None:
    batch, heads, width, out = 2, 3, 4, 5
    arrays = [
        empty((batch, heads, *shape), "bfloat16")
        for shape in ((rows, width), (keys, width), (keys, out))
    ]
    statics = {"scale": 1.0, "is_causal": True, "offset": offset}
    statics |= {"dropout_p": 0.0, "seed": 0, "counter": 0}
    found = FUSED["scaled_dot_product_attention"].cost(*arrays, None, **statics)
    pairs = sum(k <= t + offset for t in range(rows) for k in range(keys)) * batch * heads
    moved = sum(a.nbytes for a in arrays) + batch * heads * rows * out * 2
    # forward q k^T and p v; backward q k^T, g v^T, p^T g, ds^T q and ds k
    assert found.forward_flops == 2 * pairs * (width + out)
    assert found.backward_flops == 2 * pairs * (width + out + out + width + width)
    assert found.forward_bytes == moved
    assert found.backward_bytes == 2 * moved


def test_without_a_mask_all_keys_are_seen() -> None:
    q, k = empty((2, 3, 6, 4), "float32"), empty((2, 3, 7, 4), "float32")
    statics = {"scale": 1.0, "offset": -5, "dropout_p": 0.0, "seed": 0, "counter": 0}
    found = FUSED["scaled_dot_product_attention"].cost(q, k, k, None, is_causal=False, **statics)
    assert found.forward_flops == 4 * math.prod(q.shape) * 7
    assert "FLOPs: 4 B H Q K D, half of it with a causal mask" in header("attention_forward")


def test_packed_attention_costs_what_attention_costs() -> None:
    statics = {"scale": 1.0, "is_causal": True, "offset": 0}
    statics |= {"dropout_p": 0.0, "seed": 0, "counter": 0}
    packed = FUSED["packed_attention"].cost(empty((2, 5, 3, 4, 8), "float16"), **statics)
    part = empty((2, 4, 5, 8), "float16")
    apart = FUSED["scaled_dot_product_attention"].cost(part, part, part, None, **statics)
    assert packed == apart


def test_cost_of_embed() -> None:
    ids, tokens, positions = (
        np.zeros((2, 3), int),
        empty((9, 8), "float16"),
        empty((3, 8), "float16"),
    )
    found = FUSED["embed"].cost(ids, tokens, positions, start=0)
    assert found == Cost((6 + 6 + 3) * 16, 48, (6 + 9 + 3) * 16, 96)
    assert "Bytes: (N + min(N, V) + length) C sizeof(T)" in header("embed")


@pytest.mark.parametrize("dtype", DTYPES)
def test_cost_of_linear_layers_and_the_head(dtype: str) -> None:
    n, c, h, d = 6, 4, 16, 8
    x, up, down = empty((2, 3, c), dtype), empty((h, c), dtype), empty((d, h), dtype)
    size = x.itemsize
    one = FUSED["affine"].cost(x, up, empty((h,), dtype))
    assert one == Cost(
        (n * c + h * c + n * h) * size,
        2 * n * c * h,
        (n * h + n * c + h * c + n * c + h * c) * size,  # g, x, weight; dx, dweight
        4 * n * c * h,
    )
    both = FUSED["mlp"].cost(x, up, None, down, None, approximate="tanh")
    weights = h * c + d * h
    assert both == Cost(
        (n * c + weights + 2 * n * h + n * d) * size,
        2 * n * weights,
        (n * d + n * c + 2 * n * h + weights + n * c + weights) * size,
        4 * n * weights,
    )
    head = FUSED["linear_cross_entropy"].cost(x, up, np.zeros((2, 3), np.int64), reduction="mean")
    assert head == Cost(
        (n * c + h * c + 3 * n * h) * size,
        2 * n * c * h + 10 * n * h,
        2 * (n * c + h * c + n * h) * size,
        4 * n * c * h,
    )


def test_every_operation_with_kernels_has_a_cost() -> None:
    for op in FUSED.values():
        assert op.cost is not None or "cuda" not in op.implementations, op.name
