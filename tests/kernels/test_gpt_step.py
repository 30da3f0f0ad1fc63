"""What a training step of GPT launches on a GPU, launch by launch, and that it stays the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import emulator
from gpugrad.cuda import recording
from gpugrad.models import GPT, GPTConfig

BATCH, LENGTH, WIDTH, VOCABULARY = 2, 16, 32, 64
N = BATCH * LENGTH
# of products: rows, columns, and what is summed over
IN, OUT = f"gemm {N}x{3 * WIDTH}x{WIDTH}", f"gemm {N}x{WIDTH}x{WIDTH}"
UP, DOWN = f"gemm {N}x{4 * WIDTH}x{WIDTH}", f"gemm {N}x{WIDTH}x{4 * WIDTH}"

ATTEND = ["layer_norm_forward", f"{IN} bias", "attention_forward", f"{OUT} bias"]
PERCEIVE = ["layer_norm_forward", f"{UP} gelu", f"{DOWN} bias"]
PERCEIVE_BACK = [
    f"gemm {WIDTH}x{4 * WIDTH}x{N} bgrad",
    f"gemm {N}x{4 * WIDTH}x{WIDTH} dgelu_bgrad",
    f"gemm {4 * WIDTH}x{WIDTH}x{N}",
    f"gemm {N}x{WIDTH}x{4 * WIDTH}",
    "layer_norm_backward",
    "column_sums_total",
]
ATTEND_BACK = [
    f"gemm {N}x{WIDTH}x{WIDTH}",
    f"gemm {WIDTH}x{WIDTH}x{N} bgrad",
    "attention_backward_rows",
    "attention_backward_keys",
    "attention_backward_queries",
    f"gemm {N}x{WIDTH}x{3 * WIDTH}",
    f"gemm {3 * WIDTH}x{WIDTH}x{N} bgrad",
    "layer_norm_backward",
    "column_sums_total",
]
HEAD = [
    "layer_norm_forward",
    "cross_entropy_count",
    f"gemm {N}x{VOCABULARY}x{WIDTH}",
    "cross_entropy_in_place",
    "cross_entropy_sum",
    "fill",  # the gradient 1 of the loss
    f"gemm {N}x{WIDTH}x{VOCABULARY}",
    f"gemm {VOCABULARY}x{WIDTH}x{N}",
    "layer_norm_backward",
    "column_sums_total",
]
EMBED_BACK = ["sort_ids_block", "embedding_backward", "column_sums"]


def model_of(layers: int, **settings) -> GPT:
    gg.manual_seed(3)
    shape = {"vocab_size": VOCABULARY, "block_size": LENGTH, "n_head": 2, "n_embd": WIDTH}
    return GPT(GPTConfig(n_layer=layers, **{**shape, "dtype": "bfloat16", **settings}))


def traced(layers: int = 1, settings=None, **how) -> recording.Trace:
    """Return what a step of forward and backward launches on an A100."""
    model = model_of(layers, **(settings or {}))
    trace = recording.Trace(80)
    state = trace.input((2,), gg.uint64)
    with recording.recording(trace), gg.random.recording(state):
        x, y = (gg.Tensor(trace.input((BATCH, LENGTH), gg.int64)) for _ in range(2))
        model.loss(x, y, **how).backward()
        for p in model.parameters():
            p.grad.data.settle()  # sums wait for a reader
    return trace


def launched(layers: int = 1, settings=None, **how) -> list[str]:
    """Return the names of all launches in order."""
    return [launch.name for launch in traced(layers, settings, **how).launches]


def kept(layers: int, **how) -> int:
    """Return the bytes that are written in the forward pass and read in the backward pass."""
    launches = traced(layers, **how).launches
    middle = next(i for i, launch in enumerate(launches) if launch.name == "fill")
    written = {b.storage for launch in launches[:middle] for b in launch.writes}
    read = {b.storage for launch in launches[middle:] for b in launch.reads}
    return sum(storage.nbytes for storage in written & read)


def per_block(**how) -> Counter[str]:
    """Return what one block more launches."""
    return Counter(launched(3, **how)) - Counter(launched(2, **how))


def test_every_launch_of_a_step():
    expected = ["embed_forward", *ATTEND, *PERCEIVE, *HEAD]
    expected += [*PERCEIVE_BACK, *ATTEND_BACK, *EMBED_BACK]
    assert launched() == [*expected, "elementwise_add"]  # both gradients of the tied table
    assert launched(settings={"tied_head": False}) == expected


def test_a_block_is_22_launches_and_adds_nothing_by_itself():
    assert per_block() == Counter(ATTEND + PERCEIVE + PERCEIVE_BACK + ATTEND_BACK)
    assert per_block().total() == 22


def test_dropout_is_four_launches_more():
    again = per_block(settings={"dropout": 0.1}) - per_block()
    assert again == {"dropout": 4}


@pytest.mark.parametrize(
    ("recompute", "again"),
    [("attention", ATTEND), ("block", ATTEND + PERCEIVE)],
)
def test_recomputing_launches_the_forward_pass_again_and_a_sum(recompute, again):
    more = per_block(recompute=recompute) - per_block()
    assert more == Counter([*again, "elementwise_add"])


@pytest.mark.parametrize(
    ("recompute", "narrow", "wide"),
    [
        ("none", 8 * WIDTH + 2 * 4 * WIDTH, 2 + 4),  # two heads
        ("attention", 3 * WIDTH + 2 * 4 * WIDTH, 2),
        ("block", WIDTH, 0),
    ],
)
def test_what_a_block_keeps_is_what_the_documentation_says(recompute, narrow, wide):
    of_one = kept(3, recompute=recompute) - kept(2, recompute=recompute)
    assert of_one == N * (2 * narrow + 4 * wide)
    words = {"none": "8 C + 2 H; A + 4", "attention": "3 C + 2 H; 2 ", "block": "C; 0"}
    assert f'"{recompute}"' in GPT.features.__doc__
    assert words[recompute] in GPT.features.__doc__


def test_chunks_of_the_head():
    chunked, whole = Counter(launched(head_chunk=N // 4)), Counter(launched())
    size = N // 4
    assert chunked - whole == {
        f"gemm {size}x{VOCABULARY}x{WIDTH}": 4,
        "cross_entropy_in_place": 3,
        f"gemm {size}x{WIDTH}x{VOCABULARY}": 4,
        f"gemm {VOCABULARY}x{WIDTH}x{size}": 4,
        "elementwise_multiply": 1,  # by the upstream gradient
        "elementwise_astype": 1,
    }
    assert (whole - chunked).total() == 3  # the products of the whole


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("norm_first", [True, False], ids=["pre", "post"])
def test_recomputing_changes_no_bit(norm_first, dtype):
    model = model_of(2, dropout=0.2, dtype=dtype, norm_first=norm_first)
    x, y = np.random.default_rng(0).integers(0, VOCABULARY, (2, BATCH, LENGTH))

    def step(**how) -> list[bytes]:
        gg.manual_seed(5)
        model.zero_grad()
        loss = model.loss(x, y, **how)
        loss.backward()
        return [loss.data.tobytes(), *(p.grad.data.tobytes() for p in model.parameters())]

    with emulator.enabled():
        expected = step()
        for recompute in ("attention", "block"):
            assert step(recompute=recompute) == expected


@pytest.mark.parametrize(
    "how",
    [
        {"dtype": "bfloat16", "recompute": "attention"},
        {"dtype": "float16", "recompute": "block", "head_chunk": 10},
        {"dtype": "float16", "reduction": "sum"},
    ],
    ids=str,
)
def test_a_recorded_step_has_the_bits_of_an_eager_one(how):
    how = dict(how)
    dtype = how.pop("dtype")
    x, y = np.random.default_rng(0).integers(0, VOCABULARY, (2, BATCH, LENGTH))

    def run(compiled: bool) -> list[bytes]:
        model = model_of(2, dropout=0.1, dtype=dtype)

        def step(x, y):
            model.zero_grad()
            loss = model.loss(x, y, **how)
            loss.backward()
            return loss

        chosen = gg.compile(step) if compiled else step
        losses = [chosen(x, y).data.tobytes() for _ in range(2)]
        return [*losses, *(p.grad.data.tobytes() for p in model.parameters())]

    with emulator.enabled():
        assert run(True) == run(False)
