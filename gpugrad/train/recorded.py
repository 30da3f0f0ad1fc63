"""The steps of a training run, recorded on arrays without elements as a GPU would run them.

A model has few layers while it is recorded, and an update at most two passes: what repeats counts
as often as it is there (see outline.py).
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from .. import backend
from ..cuda import recording
from ..engine import no_grad
from ..models import GPT, GPTConfig
from ..ops import random
from ..optim import AdamW, LossScaler, SpikeGuard, decay_groups
from ..tensor import Tensor
from .config import TrainConfig
from .loop import backward
from .outline import RECORDED, Irregular, Outline, Recorded, deepened


def step_outline(config: TrainConfig, shape: GPTConfig, capability: int) -> Outline:
    """Return the outline of an update of a model of this shape.

    Raises NotRecordable and ValueError for what cannot be recorded.
    """
    if shape.n_layer > RECORDED:
        try:
            recorded, model = _recorded_step(config, _shallow(shape, RECORDED), capability)
            update = _recorded_update(
                _shallow(shape, RECORDED - 1), config.weight_decay, config.grad_clip, capability
            )
            return deepened(recorded, _layers(model), shape.n_layer, update)
        except Irregular:
            pass
    return _recorded_step(config, shape, capability)[0].outline


@functools.lru_cache(maxsize=8)
def evaluation_outline(
    shape: GPTConfig, batch_size: int, head_chunk: int, capability: int
) -> Outline:
    """Return the outline of the loss of a batch of held-out text; raises what step_outline does."""
    if shape.n_layer > RECORDED:
        try:
            few = _shallow(shape, RECORDED)
            recorded, model = _recorded_evaluation(few, batch_size, head_chunk, capability)
            return deepened(recorded, _layers(model), shape.n_layer)
        except Irregular:
            pass
    return _recorded_evaluation(shape, batch_size, head_chunk, capability)[0].outline


def _shallow(shape: GPTConfig, layers: int) -> GPTConfig:
    return dataclasses.replace(shape, n_layer=layers)


@functools.lru_cache(maxsize=4)
def _model(shape: GPTConfig) -> GPT:
    """Return a model without elements; random numbers stay as they are."""
    state = random.get_state()
    model = GPT(shape, "meta")
    random.set_state(state)
    return model


def _layers(model: GPT) -> dict[recording.Storage, int]:
    """Return which layer each parameter of a block belongs to."""
    blocks = enumerate(model.blocks)
    return {p._data.storage: layer for layer, block in blocks for p in block.parameters()}


def _batch(trace: recording.Trace, batch_size: int, length: int) -> tuple[Tensor, Tensor]:
    """Return ids and targets."""
    x, y = (Tensor(trace.input((batch_size, length), backend.int64)) for _ in range(2))
    return x, y


def _recorded_step(
    config: TrainConfig, shape: GPTConfig, capability: int, most: int = 2
) -> tuple[Recorded, GPT]:
    """Record an update of at most so many passes; the last one counts for those that follow."""
    model = _model(shape)
    model.zero_grad()
    trace = recording.Trace(capability)
    passes = min(most, config.accumulate)
    shares = np.full(passes, 1 / passes, np.float32)
    scaler = LossScaler(device="meta") if config.precision == "float16" else None
    optimizer = AdamW(decay_groups(model, config.weight_decay))
    chunk = config.head_chunk or None
    state = trace.input((2,), backend.uint64)
    with recording.recording(trace), random.recording(state):
        batches = [_batch(trace, config.batch_size, config.block_size) for _ in range(passes)]
        total = backward(
            model, batches, shares, scaler, recompute=config.recompute, head_chunk=chunk
        )
        swept = {id(launch) for launch in trace.launches}
        loss = total._data.settle()
        ahead = len(trace.launches)
        norm = _step(optimizer, config.grad_clip, scaler)
    results = [loss, norm._data.settle()]
    update = trace.launches[ahead]
    trace.drop_unread(results)
    model.zero_grad()
    recorded = Recorded(trace, results, update)
    if config.accumulate > passes:
        ids = batches[-1][0]._data.storage
        reads = ({b.storage for b in launch.reads} for launch in trace.launches)
        begin = next(i for i, storages in enumerate(reads) if ids in storages)
        end = sum(id(launch) in swept for launch in trace.launches)
        inputs = sum(t._data.nbytes for t in batches[-1]) + shares.itemsize
        recorded.outline = recorded.outline.repeated(
            begin, end, config.accumulate - passes + 1, (config.accumulate - passes) * inputs
        )
    return recorded, model


def _step(optimizer: AdamW, grad_clip: float, scaler: LossScaler | None) -> Tensor:
    """Take a step as Trainer does, and return the norm."""
    guard = SpikeGuard(device="meta")
    found: Tensor = optimizer.step(max_norm=grad_clip or math.inf, scaler=scaler, guard=guard)
    return found


@functools.lru_cache(maxsize=4)
def _recorded_update(
    shape: GPTConfig, weight_decay: float, grad_clip: float, capability: int
) -> Recorded:
    """Record what the optimiser does with gradients that are there."""
    model = _model(shape)
    trace = recording.Trace(capability)
    scaler = LossScaler(device="meta") if shape.dtype == "float16" else None
    optimizer = AdamW(decay_groups(model, weight_decay))
    with recording.recording(trace):
        for p in model.parameters():
            p.grad = Tensor(trace.input(p.shape, p.dtype))
        norm = _step(optimizer, grad_clip, scaler)
    results = [norm._data.settle()]
    model.zero_grad()
    return Recorded(trace, results, trace.launches[0])


def _recorded_evaluation(
    shape: GPTConfig, batch_size: int, head_chunk: int, capability: int
) -> tuple[Recorded, GPT]:
    model = _model(shape)
    trace = recording.Trace(capability)
    with recording.recording(trace), no_grad():
        x, y = _batch(trace, batch_size, shape.block_size)
        loss = model.loss(x, y, head_chunk=head_chunk or None)._data.settle()
    return Recorded(trace, [loss]), model
