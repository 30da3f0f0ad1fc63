"""The launchers of kernels/attention_*_sm90.cu, and which kernels attention takes.

Those for sm_90a (H100, H200: wgmma) are taken on GPUs of compute capability 9.0 for what they can
compute, those of attention_forward.cu and attention_backward.cu (mma.sync) everywhere else. They
get their tiles by cp.async, "wgmma", or by the copy engine, "tma"; nothing else differs, and the
results are equal bit for bit. "auto" is the former: it assumes less of what only hardware can show
(the driver's tensor maps, how the engine swizzles and fills). The emulator runs all; it takes
mma.sync unless it is told. ``kernels``, or GPUGRAD_ATTENTION in the environment, chooses by name.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

from .. import backend, cuda
from ..cuda import recording, tensor_map
from ._attention_layout import heads_at_once, last_key, steps

CHOICES = ("auto", "tma", "wgmma", "mma")
CAPABILITY = 90  # sm_90a alone: no other GPU has wgmma
OWN = 128  # rows of a block
UNIT = 64  # of a warpgroup: fewer leave half of every block idle
THREADS = 384
STAGES = 4  # of the ring of tiles
EMULATED_BLOCKS = 3  # in the emulator, so that every block works on several blocks of rows
H100 = 132  # multiprocessors; also those of an H200


def _source(name: str) -> cuda.Source:
    chosen = cuda.variants(GPUGRAD_DTYPE=(1, 2), HEAD_DIM=(64, 128), TMA=(0, 1))
    return cuda.Source(name, variants=chosen, large=True, since=CAPABILITY, until=CAPABILITY)


FORWARD = _source("attention_forward_sm90.cu")
BACKWARD = _source("attention_backward_sm90.cu")

_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("attention", default=None)


@contextlib.contextmanager
def kernels(name: str) -> Iterator[None]:
    """Choose the kernels of attention inside the ``with`` block, to compare their times.

    "auto"; "mma": never those for sm_90a; "wgmma" and "tma": those, in the emulator too. Raises
    ValueError for another name.
    """
    token = _chosen.set(_checked(name))
    try:
        yield
    finally:
        _chosen.reset(token)


def _checked(name: str, where: str = "") -> str:
    if name not in CHOICES:
        raise ValueError(f"{where}kernels of attention are {', '.join(CHOICES)}, not {name!r}")
    return name


def choice() -> str:
    """Return which kernels are chosen now: one of CHOICES."""
    return _chosen.get() or asked()


def asked() -> str:
    """Return what GPUGRAD_ATTENTION asks for; ValueError for what is none of CHOICES."""
    return _checked(os.environ.get("GPUGRAD_ATTENTION") or "auto", "GPUGRAD_ATTENTION: ")


def takes(arrays: Sequence[Any], dropout_p: float) -> bool:
    """Return whether the kernels for sm_90a are to compute with (B, H, rows, D) arrays.

    They need 16 bits, D of 64 or 128, rows at multiples of 16 bytes, no dropout. ``arrays[0]`` are
    the queries; a few are left to the other kernels, whose blocks are smaller.
    """
    chosen, capability = choice(), cuda.capability(arrays[0])
    if chosen == "mma":
        return False
    if chosen == "auto" and (capability == cuda.EMULATED or arrays[0].shape[2] <= UNIT):
        return False
    return (
        capability in (CAPABILITY, cuda.EMULATED)
        and dropout_p == 0
        and all(_is_in_lines(x) for x in arrays)
    )


def _is_in_lines(x: Any) -> bool:
    """Return whether the rows of an array are whole lines of 128 bytes, read 16 at a time."""
    return (
        x.itemsize == 2
        and x.shape[3] in (64, 128)
        and cuda.address(x) % 16 == 0
        and all(stride % 16 == 0 for stride in x.strides[:3])
    )


def _multiprocessors(x: Any) -> int:
    """Return how many blocks run at a time: results do not depend on it."""
    if cuda.capability(x) == cuda.EMULATED:
        return EMULATED_BLOCKS
    if not isinstance(x, backend.Symbolic):
        return _of_device(int(x.device.id))
    if not recording.active().on_gpu:
        return H100
    return _of_device(int(backend.cupy_module().cuda.runtime.getDevice()))


@functools.cache
def _of_device(number: int) -> int:
    attributes = backend.cupy_module().cuda.Device(number).attributes
    return int(attributes["MultiProcessorCount"])


def shared(width: int, own: int, tile: int) -> int:
    """Return the bytes of shared memory of a block that owns rows of ``own`` arrays.

    ``tile`` is the bytes of one place of the ring; 1024 more are for alignment.
    """
    return 2 * own * OWN * width + STAGES * tile + 1024


def _inputs(arrays: Sequence[Any], rows: Sequence[int]) -> tuple[bool, list[cuda.Strided]]:
    """Return whether the copy engine takes tiles of the arrays, and the arrays as arguments.

    ``rows`` are those of a tile, for each array. It takes none of an array whose elements repeat.
    """
    boxes = [(1, 1, n, 64) for n in rows]
    by_map = choice() == "tma" and not any(
        tensor_map.refusal(x, box) for x, box in zip(arrays, boxes, strict=True)
    )
    return by_map, [
        cuda.strided(x, box if by_map else None) for x, box in zip(arrays, boxes, strict=True)
    ]


def write_forward(
    inputs: Sequence[Any], out: Any, lse: Any, scale: float, is_causal: bool, offset: int
) -> None:
    """Write the result and lse (B, H, T); ``inputs`` are query, key and value (B, H, rows, D)."""
    q, k = inputs[:2]
    batches, heads, queries, width = q.shape
    keys, all_heads = k.shape[2], batches * heads
    tile_keys = 128 if width == 64 else 64
    by_map, given = _inputs(inputs, (OWN, tile_keys, tile_keys))
    FORWARD.launch(
        "attention_forward_sm90",
        (min(-(-queries // OWN) * all_heads, _multiprocessors(q)),),
        (THREADS,),
        [
            *(*given, cuda.strided(out), lse, *steps(out)),
            *(all_heads, heads, queries, keys),
            last_key(is_causal, offset, queries, keys),
            heads_at_once(all_heads, keys * width * q.itemsize),
            scale,
        ],
        shared(width, 1, 2 * 2 * width * tile_keys),
        GPUGRAD_DTYPE=cuda.dtype_code(q.dtype),
        HEAD_DIM=width,
        TMA=int(by_map),
    )


def write_backward(
    gradients: Sequence[Any],
    inputs: Sequence[Any],
    stats: Any,
    scale: float,
    is_causal: bool,
    offset: int,
) -> None:
    """Write the gradients of query, key and value, None aside; all arrays are (B, H, rows, D).

    ``inputs`` are query, key, value and the gradient of the result; ``stats`` (B * H, 2, padded)
    what attention_backward_rows writes.
    """
    q, k = inputs[:2]
    dq, dk, dv = gradients
    batches, heads, queries, width = q.shape
    keys, all_heads = k.shape[2], batches * heads

    def launch(
        kernel: str, made: Sequence[Any], tiles: Sequence[int], rows: int, others: int, tile: int
    ) -> None:
        by_map, given = _inputs(inputs, tiles)
        BACKWARD.launch(
            f"attention_backward_sm90_{kernel}",
            (min(-(-rows // OWN) * all_heads, _multiprocessors(q)),),
            (THREADS,),
            [
                *(*given, stats),
                *(None if x is None else cuda.strided(x) for x in made),
                *(step for x in made for step in ((0, 0, 0) if x is None else steps(x))),
                *(all_heads, heads, queries, keys, stats.shape[2]),
                last_key(is_causal, offset, queries, keys),
                heads_at_once(all_heads, others * width * q.itemsize),
                scale,
            ],
            shared(width, 2, tile),
            GPUGRAD_DTYPE=cuda.dtype_code(q.dtype),
            HEAD_DIM=width,
            TMA=int(by_map),
        )

    if dk is not None or dv is not None:
        n = 64 if width == 64 else 32
        launch("keys", (dk, dv), (n, OWN, OWN, n), keys, queries, (2 * 2 * width + 2 * 4) * n)
    if dq is not None:
        launch("queries", (dq,), (OWN, 64, 64, OWN), queries, keys, 2 * 2 * width * 64)
