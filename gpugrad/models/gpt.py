"""GPT: a decoder-only transformer language model.

    model = GPT(preset("nanogpt-cpu"))
    logits, loss = model(ids, targets)      # (B, T, V), a number
    loss.backward()
    model.generate([1, 2, 3], 100, temperature=0.8)

Radford et al., "Language models are unsupervised multitask learners" (2019). The model reads in
the order data flows: tokens and positions, blocks, norm, head.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import backend, ops
from ..fused import embed, linear_cross_entropy
from ..fused._ids import refuse_out_of_range
from ..nn import Dropout, Embedding, Linear, Module, ModuleList, TransformerBlock, init
from ..nn import functional as F
from ..nn.transformer import Recompute, Stream, added, norm_of
from ..nn.utils import skip_init
from ..ops import random
from ..registry import describe
from ..tensor import Tensor
from . import decoding, huggingface
from .cache import KVCache
from .config import GPTConfig, flops_per_token, nearest_heads, parameter_count
from .positions import Alibi, DistanceBias, RelativeBias, Rotary, Sinusoidal

__all__ = ["GPT", "GPTConfig", "flops_per_token", "nearest_heads", "parameter_count"]


class GPT(Module):
    """A language model of the shape a GPTConfig gives, with GPT-2's initial values.

    Weights start normal with std 0.02, those that add to the residual stream with
    0.02 / sqrt(2 n_layer); biases at zero, norms at one. Drawn from ``gg.random``.
    """

    generate = decoding.generate

    def __init__(self, config: GPTConfig, device: str | None = None) -> None:
        super().__init__()
        self.config = config
        skip_init(self._build, config, device)  # what parts would draw for themselves
        self.reset_parameters()

    def _build(self, config: GPTConfig, device: str | None) -> None:
        c, length = config.n_embd, config.block_size
        made: dict[str, Any] = {"device": device, "dtype": config.dtype}
        self.tokens = Embedding(config.vocab_size, c, **made)
        self.positions: Embedding | Sinusoidal | None = None
        self.rotary: Rotary | None = None
        self.distances: DistanceBias | None = None
        if config.positions == "learned":
            self.positions = Embedding(length, c, **made)
        elif config.positions == "sinusoidal":
            self.positions = Sinusoidal(length, c, **made)
        elif config.positions == "rotary":
            self.rotary = Rotary(length, config.head_size, **made)
        else:
            kind = Alibi if config.positions == "alibi" else RelativeBias
            self.distances = kind(config.n_head, **made)
        self.dropout = Dropout(config.dropout)
        self.blocks = ModuleList(
            TransformerBlock(
                c,
                config.n_head,
                config.hidden_size,
                bias=config.bias,
                dropout=config.dropout,
                causal=True,
                norm_first=config.norm_first,
                approximate="tanh" if config.activation == "gelu_tanh" else "none",
                eps=config.norm_eps,
                norm=config.norm,
                gated=config.activation == "swiglu",
                num_kv_heads=config.n_kv_head,
                **made,
            )
            for _ in range(config.n_layer)
        )
        self.norm = (
            norm_of(config.norm, c, config.norm_eps, config.bias, **made)
            if config.has_final_norm
            else None
        )
        self.head = None if config.tied_head else Linear(c, config.vocab_size, False, **made)

    def reset_parameters(self) -> None:
        """Draw new initial values."""
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.out_proj.weight", "mlp.down.weight")):
                init.scaled_residual_(parameter, self.config.n_layer)
            elif parameter.ndim >= 2:
                init.normal_(parameter, 0.0, 0.02)
            elif name.endswith("bias"):
                init.zeros_(parameter)
            else:
                init.ones_(parameter)

    @property
    def block_size(self) -> int:
        """The longest sequence, in tokens."""
        return self.config.block_size

    def forward(
        self,
        ids: Any,
        targets: Any = None,
        cache: KVCache | None = None,
        *,
        attn_mask: Any = None,
        positions: Any = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return (logits, loss): (B, T, V), and the mean cross-entropy, None without targets.

        ids: integers (B, T), T at most block_size. targets: the ids that follow, (B, T); those
        that are -100 do not count. With a cache (see new_cache) the ids continue what it has seen.
        attn_mask and positions as in features.
        """
        logits = self.logits(self.features(ids, cache, attn_mask=attn_mask, positions=positions))
        if targets is None:
            return logits, None
        targets = self._targets(targets, logits)
        flat = ops.reshape(logits, (-1, logits.shape[-1]))
        return logits, F.cross_entropy(flat, ops.reshape(targets, (-1,)))

    def loss(
        self,
        ids: Any,
        targets: Any,
        reduction: str = "mean",
        *,
        head_chunk: int | None = None,
        recompute: Recompute = "none",
        attn_mask: Any = None,
        positions: Any = None,
    ) -> Tensor:
        """Return the cross-entropy of targets as forward does, but no logits: what training uses.

        ids and targets as in forward. reduction: "mean", "sum", or "none" for (B, T). head_chunk:
        how many positions have their logits in memory at the same time, None for all. recompute,
        attn_mask and positions as in features. See ``fused.linear_cross_entropy`` for what the
        backward pass keeps.
        """
        features = self.features(ids, recompute=recompute, attn_mask=attn_mask, positions=positions)
        targets = self._targets(targets, features)
        head = self.tokens if self.head is None else self.head
        if head is self.head and (not isinstance(head, Linear) or head.bias is not None):
            # another head was put here, with a bias or more: only it knows its logits
            logits = ops.swapaxes(self.logits(features), 1, 2)  # (B, V, T)
            return F.cross_entropy(logits, targets, reduction=reduction)
        return linear_cross_entropy(
            features, head.weight, targets, reduction=reduction, chunk=head_chunk
        )

    def features(
        self,
        ids: Any,
        cache: KVCache | None = None,
        *,
        recompute: Recompute = "none",
        attn_mask: Any = None,
        positions: Any = None,
    ) -> Tensor:
        """Return what the head sees of each position, (B, T, C).

        ``attn_mask`` broadcasts to (B, n_head, T, S) and hides more than the future: true where
        attention is allowed, or numbers that are added (``nn.padding_mask``,
        ``nn.document_mask``); S counts the positions in the cache too. ``positions``, integers
        (B, T) below block_size, replace 0, 1, 2, ...: documents packed into one row begin anew.

        ``recompute`` trades time for memory; results and gradients are the same. Per token and
        pre-LN block of width C, hidden width H and A heads, the kernels' backward pass reads

        =============  ==================================================  ========================
        recompute      kept numbers of the model's dtype; of float32       computed a second time
        =============  ==================================================  ========================
        "none"         8 C + 2 H; A + 4                                    nothing
        "attention"    3 C + 2 H; 2                                        norm1 to out_proj
        "block"        C; 0                                                the block
        =============  ==================================================  ========================

        for 8 C: the stream before both norms and what these make of it, queries, keys, values and
        what attention makes of them; 2 H: the hidden layer before and after gelu.
        """
        ids = self._ids("ids", ids)
        start = 0 if cache is None else cache.length
        if cache is not None and cache.lengths is not None:
            if attn_mask is not None or positions is not None:
                raise ValueError(
                    "GPT: attn_mask and positions follow from a cache whose rows differ in length: "
                    "pass neither"
                )
            positions, attn_mask = cache.places(ids.shape[1])
        places = self._places(ids, start, positions)
        if attn_mask is not None:
            attn_mask = ops.asarray(attn_mask).to(ids.device)
        if self.distances is not None:
            attn_mask = self._by_distance(places, ids.shape[1], cache, attn_mask)
        x = self.dropout(self._embedded(ids, places))
        stream: Stream = (x,)
        blocks: Iterable[Any] = self.blocks
        for layer, block in enumerate(blocks):
            heads = self._heads(layer, places, cache)
            stream = block.step(stream, attn_mask, heads, recompute)
        return added(stream) if self.norm is None else self.norm(*stream, paired=True)[0]

    def logits(self, features: Tensor) -> Tensor:
        """Return the unnormalised log-probabilities of the next token, (..., V)."""
        if self.head is None:
            return F.linear(features, self.tokens.weight)
        return self.head(features)

    def next_logits(
        self, ids: Any, cache: KVCache | None = None, lengths: npt.ArrayLike | None = None
    ) -> Tensor:
        """Return the logits of what follows the last of ids (B, T): (B, V).

        ``lengths``, (B,) integers from 1 to T, say how many ids of each row count, where the rows
        differ: what comes after them is padding, which no earlier position sees.
        """
        if lengths is None:
            return self.logits(self.features(ids, cache)[:, -1])
        ids = self._ids("ids", ids)
        counts = np.asarray(lengths)
        if counts.shape != ids.shape[:1] or counts.dtype.kind not in "iu":
            raise ValueError(
                f"GPT: lengths must be integers ({ids.shape[0]},), one for each row of ids, got "
                f"{counts.dtype} {counts.shape}"
            )
        if (counts < 1).any() or (counts > ids.shape[1]).any():
            raise ValueError(
                f"GPT: lengths must lie in [1, {ids.shape[1]}], got {counts.min()} to "
                f"{counts.max()}"
            )
        if cache is not None:
            cache.expect(counts)
        features = self.features(ids, cache)
        rows, last = (
            backend.to_device(n, ids.device) for n in (np.arange(len(counts)), counts - 1)
        )
        return self.logits(features[rows, last])

    def sequence_logits(self, ids: Any) -> Tensor:
        """Return the logits of what follows each of ids (B, T): (B, T, V)."""
        return self.logits(self.features(ids))

    def new_cache(self) -> KVCache:
        """Return an empty cache of keys and values, for one run of decoding."""
        return KVCache(self.config.n_layer, self.block_size)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors, in Hugging Face's GPT-2 form where they fit it.

        Each file is complete or absent: see ``models.huggingface``.
        """
        huggingface.save(folder, self.config, self.state_dict())

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        dropout: float | None = None,
        dtype: str | None = None,
        device: str | None = None,
    ) -> GPT:
        """Read a model that save_pretrained or Hugging Face's GPT-2 classes wrote to a folder.

        ``dropout`` and ``dtype`` replace those in config.json. Raises FileNotFoundError for a file
        that is missing, ValueError for one that is damaged or does not describe such a model.
        """
        config = huggingface.read_config(folder, dropout=dropout, dtype=dtype)
        arrays = huggingface.read_tensors(folder, config)
        state = random.get_state()  # the initial values are overwritten: leave no trace
        model = skip_init(cls, config, device)
        random.set_state(state)
        model.load_state_dict(arrays)
        return model

    def _ids(self, name: str, ids: Any) -> Tensor:
        ids = ops.asarray(ids)
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.shape[1]:
            raise ValueError(
                f"GPT: {name} must be integers of shape (B, T) with T >= 1, got {describe(ids)}"
            )
        return Tensor(backend.to_device(ids._data, self.tokens.weight.device))

    def _places(self, ids: Tensor, start: int, positions: Any) -> int | Tensor:
        """Return the position of the first ids, or those of all, (B, T)."""
        if positions is not None:
            places = self._ids("positions", positions)
            if places.shape != ids.shape:
                raise ValueError(f"GPT: positions {places.shape} must have ids' shape {ids.shape}")
            refuse_out_of_range("GPT", "positions", places, self.block_size, "block_size is")
            return places
        if start + ids.shape[1] > self.block_size:
            seen = f" after {start} in the cache" if start else ""
            raise ValueError(
                f"GPT: {ids.shape[1]} positions{seen} are more than block_size {self.block_size}"
            )
        return start

    def _embedded(self, ids: Tensor, places: int | Tensor) -> Tensor:
        """Return the vectors of tokens and, unless they are rotary, of positions: (B, T, C)."""
        if isinstance(self.positions, Embedding):
            if isinstance(places, int):
                return embed(ids, self.tokens.weight, self.positions.weight, places)
            return self.tokens(ids) + self.positions(places)
        x = self.tokens(ids)
        if isinstance(self.positions, Sinusoidal):
            at = slice(places, places + ids.shape[1]) if isinstance(places, int) else places
            x = x * math.sqrt(self.config.n_embd) + self.positions.table[at]
        return x

    def _by_distance(
        self, places: int | Tensor, t: int, cache: KVCache | None, attn_mask: Tensor | None
    ) -> Tensor:
        """Return what is added to the scores: the distances' share and what a mask says."""
        assert self.distances is not None
        seen = 0 if cache is None else cache.length
        given = isinstance(places, Tensor)
        if given and seen and cache is not None and cache.lengths is None:
            raise ValueError(
                f"GPT: positions={self.config.positions!r} needs those of the keys too, which a "
                "cache does not hold: leave positions out, or do without a cache"
            )
        ragged = cache is not None and cache.lengths is not None  # rows begin at position 0
        bias = self.distances(places, t, places if given and not ragged else seen + t)
        if attn_mask is None:
            return bias
        if attn_mask.dtype == backend.bool_:
            return ops.where(attn_mask, bias, -math.inf)
        return attn_mask + bias

    def _targets(self, targets: Any, like: Tensor) -> Tensor:
        targets = self._ids("targets", targets)
        if targets.shape != like.shape[:2]:
            raise ValueError(
                f"GPT: targets {targets.shape} must have ids' shape {tuple(like.shape[:2])}"
            )
        return targets

    def _heads(self, layer: int, places: int | Tensor, cache: KVCache | None) -> Callable | None:
        """Return what is done to a layer's queries, keys and values before they meet."""
        if self.rotary is None and cache is None:
            return None

        def heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            if self.rotary is not None:
                q, k = self.rotary(q, places), self.rotary(k, places)
            if cache is not None:
                k, v = cache.extend(layer, k, v)
            return q, k, v

        return heads

    def extra_repr(self) -> str:
        """Return the size."""
        return f"{parameter_count(self.config):,} parameters, block_size={self.block_size}"
