"""What arguments may be: sound ones, by the names of parameters, and hostile ones for any.

A value is drawn as a description that prints well and is built anew for each call, which may change
it. `of` returns the strategy for a parameter; LookupError for one it has never heard of.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

import gpugrad as gg
from gpugrad import models, text

FLOATS = ("float32", "float32", "float64", "float16", "bfloat16")
DTYPES = (*FLOATS, "int64", "int32", "uint8", "bool")
SHAPES = ((), (0,), (1,), (4,), (3, 4), (4, 4), (1, 4), (2, 3, 4), (2, 0, 4), (2, 2, 3, 4))
LAYOUTS = ("C", "C", "F", "reversed", "strided", "broadcast", "read-only")
LARGE = (2**31, 2**62, 2**63, -(2**63) - 1, 10**30)


class Array(NamedTuple):
    """An array as described; `kind` is what holds it, `fill` what is in it."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = "C"
    kind: str = "tensor"
    fill: str = "normal"

    def values(self) -> np.ndarray:
        """Return the elements, the same for the same description."""
        rng = np.random.default_rng([*self.shape, 7])
        x = rng.normal(0, 2, self.shape)
        if self.fill == "special" and x.size:
            x.reshape(-1)[::2] = np.resize(
                [np.nan, np.inf, -np.inf, 0, 1e30, 1e-40], -(-x.size // 2)
            )
        elif self.fill in ("ids", "bad ids"):
            x = rng.integers(0, 3, self.shape).astype(float)
            if self.fill == "bad ids" and x.size:
                x.reshape(-1)[-1] = rng.choice([-1, 99, -(2**31), 2**31])
        with np.errstate(all="ignore"):
            array = x.astype(gg.backend.as_dtype(self.dtype))
        if self.layout == "broadcast":
            return np.broadcast_to(array[(slice(1),) * array.ndim], array.shape)
        if self.layout == "F":
            return np.asfortranarray(array)
        if self.layout == "reversed":
            return array[(slice(None, None, -1),) * array.ndim]
        if self.layout == "strided" and array.ndim:
            wide = np.repeat(array, 2, axis=-1)
            return wide[..., ::2]
        if self.layout == "read-only":
            array.flags.writeable = False
        return array

    def build(self) -> Any:
        """Return a new argument."""
        array = self.values()
        if self.kind == "meta":
            return gg.zeros(self.shape, dtype=self.dtype, device="meta")
        if self.kind == "array":
            return array
        if self.kind == "list":
            return array.astype(float if self.dtype in FLOATS else array.dtype).tolist()
        is_leaf = self.kind in ("leaf", "computed") and self.dtype in FLOATS
        tensor = gg.Tensor(array, requires_grad=is_leaf)
        return tensor * 1 if self.kind == "computed" and is_leaf else tensor


class Made(NamedTuple):
    """A value that is made by a function for each call."""

    name: str
    make: Any

    def build(self) -> Any:
        """Return a new argument."""
        return self.make()

    def __repr__(self) -> str:
        return self.name


def build(value: Any) -> Any:
    """Return the argument a description stands for."""
    if isinstance(value, (Array, Made)):
        return value.build()
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(build(v) for v in value)
    if isinstance(value, dict):
        return {key: build(v) for key, v in value.items()}
    return value


def precise(value: Any) -> Any:
    """Return the argument with the same floating numbers as float64, in C order."""
    if isinstance(value, Array) and value.dtype in FLOATS:
        plain = np.array(value.values(), np.float64, order="C")
        if value.kind == "list":
            return plain.tolist()
        return gg.Tensor(plain) if value.kind in ("tensor", "leaf", "computed") else plain
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(precise(v) for v in value)
    return build(value)


def described(value: Any) -> Any:
    """Return only what holds no array: what arguments are compared by."""
    if isinstance(value, gg.Tensor):
        value = value._data
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, (list, tuple)):
        return [described(v) for v in value]
    return described(list(value.items())) if isinstance(value, dict) else None


HOSTILE = st.sampled_from(
    [
        *(None, True, -1, 3.7, math.nan, math.inf, -0.0, 1j, 10**9, *LARGE, 1e308),
        *("", "text", "float128", b"bytes", "\udcff", (), [], {}, [[1], [2, 3]], ["a"], {"a": 1}),
        *((-1, -1), (1, 2, 3, 4, 5, 6, 7), [None], [math.nan], (2**40, 2**40), [[[]]]),
        Made("object()", object),
        Made("set()", set),
        Made("a generator", lambda: (i for i in range(3))),
        Made("a function", lambda: lambda *args: None),
        Made("array of objects", lambda: np.array([None, {}])),
        Made("array of dates", lambda: np.array(["2026-01-01"], "M8[D]")),
        Made("array of complex", lambda: np.array([1j])),
        Made("array of strings", lambda: np.array(["a"])),
        Made("a NumPy scalar", lambda: np.float64(1.5)),
        Array((2, 3), fill="special"),
        Array((3,), "int64", fill="bad ids"),
        Array((0, 3)),
        Array((), "float32", kind="meta"),
        Array((3, 4), "float32", kind="meta"),
    ]
)


def shapes(base: tuple[int, ...]) -> st.SearchStrategy[tuple[int, ...]]:
    """Return shapes that often fit beside one of shape `base`."""
    near = [base] * 6 + [base[1:], base[-1:], base[:-1], base[::-1], (1, *base), (5, *base[-1:])]
    near += [tuple(1 if i == 0 else n for i, n in enumerate(base)), ()]
    return st.one_of(st.sampled_from(near), st.sampled_from(near), st.sampled_from(SHAPES))


def arrays(base: tuple[int, ...], tensors: bool = False) -> st.SearchStrategy[Array]:
    """Return arrays of all layouts and dtypes, held by all that can hold one."""
    kinds = ["tensor"] * 5 + ["leaf", "computed"]
    return st.builds(
        Array,
        shapes(base),
        st.sampled_from(DTYPES),
        st.sampled_from(LAYOUTS),
        st.sampled_from(kinds if tensors else [*kinds, "array", "array", "list", "meta"]),
        st.sampled_from(["normal", "normal", "special", "ids"]),
    )


def ids(base: tuple[int, ...]) -> st.SearchStrategy[Array]:
    """Return integers, most of them small and not negative."""
    return st.builds(
        Array,
        shapes(base),
        st.sampled_from(["int64", "int64", "int32", "uint8"]),
        st.sampled_from(LAYOUTS),
        st.sampled_from(["tensor", "tensor", "array", "list"]),
        st.sampled_from(["ids", "ids", "ids", "bad ids"]),
    )


def _gpt() -> Any:
    config = models.GPTConfig(4, block_size=6, n_layer=1, n_head=2, n_embd=8)
    return models.GPT(config, device="cpu").eval()


def _squares(*xs: Any) -> Any:
    return sum((gg.asarray(x) * x).sum() for x in xs)


def _parameters() -> list[Any]:
    return [gg.tensor([1.0, 2.0], requires_grad=True), gg.tensor([[3.0]], requires_grad=True)]


_CORPUS = Made("ids", lambda: np.arange(60) % 4)
_MODEL = st.just(Made("GPT", _gpt))
_CALLABLE = st.sampled_from(
    [Made("squares", lambda: _squares), Made("sin", lambda: gg.sin), Made("gelu", gg.nn.GELU)]
)
_SMALL = st.sampled_from([0, 1, 1, 2, 2, 3, 4, -1])
_POSITIVE = st.sampled_from([1, 2, 2, 3, 4, 4, 8])
_NUMBER = st.sampled_from([0.0, 0.1, 0.5, 1.0, 1, 2, 3.0, -1.0])
_TRUTH = st.booleans()
_TOKENIZER = st.sampled_from(
    [Made("bytes", text.ByteTokenizer), Made("characters", lambda: text.CharTokenizer("abcQA:\n "))]
)
_MAPPING = st.just({"a": 0.5, "b": 0.5})
_AXES = st.one_of(_SMALL, st.lists(_SMALL, max_size=3), st.tuples(_SMALL, _SMALL))
_SHAPE = st.one_of(
    st.sampled_from([*SHAPES, (12,), (-1,), (3, -1), 4]), st.lists(_SMALL, max_size=3)
)
_INDEX = st.sampled_from(
    [
        *(0, -1, 5, slice(None), slice(None, None, -1), slice(1, 9), Ellipsis, None, True),
        *((0, 1), (Ellipsis, 0), (slice(0, 2), None), [0, 1], [], (Ellipsis, Ellipsis), ([0], [1])),
        Array((3,), "int64", fill="ids"),
        Array((3,), "int64", kind="array", fill="bad ids"),
        Array((3, 4), "bool"),
        Array((4,), "bool", kind="array"),
        Array((2,)),
    ]
)

_ARRAYS = """
    x y input other weight bias value key query residual target pos_weight gradient gradients
    grad_outputs source condition mask attn_mask min max mat2 tensor inputs outputs policy_chosen
    policy_rejected reference_chosen reference_rejected low high values actual reference array spec
    gate tensor1 tensor2 end
"""
_LISTS = "data operands vectors args primals tangents arguments arrays tensors"
_NUMBERS: dict[str, st.SearchStrategy[Any]] = {
    "axis dim axis1 axis2 start_dim end_dim": _AXES | _SMALL | _SMALL,
    "axes dims destination": _AXES | st.none(),
    "shape size sizes normalized_shape repetitions": _SHAPE,
    """k offset shift num_samples num_classes ignore_index padding_idx correction max_new_tokens
    order argnums count seed repeats warmup""": _SMALL,
    """num n n_rows n_cols chunks in_features out_features classes num_embeddings embedding_dim
    input_size hidden_size embed_dim num_heads num_layers hidden_dim num_kv_heads vocab_size
    n_classes n_features block batch capacity n_embd block_size n_layer n_head num_beams steps
    blocks forward_bytes forward_flops ndim length growth_interval""": _POSITIVE,
    """p dropout dropout_p label_smoothing eps scale ord start stop step fill_value nan posinf
    neginf loc mean std a b val gain lr beta momentum dampening weight_decay decay rtol atol
    temperature top_k top_p min_p repetition_penalty length_penalty max_norm init_scale
    growth_factor backoff_factor train_fraction flops factor smoothing log_probability score
    param""": _NUMBER,
}
_BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    **{name: strategy for names, strategy in _NUMBERS.items() for name in names.split()},
    "dtype": st.sampled_from([*DTYPES, None, np.float32, gg.bfloat16, float, int, "complex64"]),
    "device": st.sampled_from(["cpu", "cpu", None, "meta", "cuda", "tpu", "cpu:1"]),
    "indexing": st.sampled_from(["xy", "ij"]),
    "approximate": st.sampled_from(["none", "tanh"]),
    "reduction": st.sampled_from(["mean", "sum", "none"]),
    "nonlinearity": st.sampled_from(["tanh", "relu"]),
    "mode": st.sampled_from(["fan_in", "fan_out"]),
    "subscripts": st.sampled_from(
        ["ij,jk->ik", "ij->ji", "...i,...i", "ii", "i,,j", "->", "i->ii", "I1"]
    ),
    "pad_width": _AXES | st.just([(1, 0), (0, 2)]),
    "indices_or_sections": _AXES,
    "index": _INDEX,
    "state": st.sampled_from([{"seed": 1, "offset": 2}, {"seed": 1}, {"seed": -1, "offset": 0}]),
    "betas": st.sampled_from([(0.9, 0.99), (0.0, 0.0), (0.9,), (1.0, 2.0)]),
    "params": st.sampled_from(
        [
            Made("parameters", _parameters),
            Made("groups", lambda: [{"params": _parameters(), "lr": 0.1}]),
        ]
    ),
    "defaults": st.just({}),
    "out": st.none(),
    "optimizer": st.just(Made("SGD", lambda: gg.optim.SGD(_parameters()))),
    "schedule": st.just(Made("a schedule", lambda: lambda step: 0.5)),
    "parameters": st.just(Made("parameters", _parameters)),
    "groups": st.just(Made("groups", lambda: [{"params": _parameters()}])),
    "scales": _MAPPING,
    "weights": _MAPPING,
    "corpora": st.just({"a": _CORPUS, "b": _CORPUS}),
    "model": _MODEL,
    "body": _MODEL,
    "f": _CALLABLE,
    "function": _CALLABLE,
    "build": _CALLABLE,
    "tokens": st.just(_CORPUS),
    "train": st.just(_CORPUS),
    "documents": st.sampled_from([[[1, 2, 3], [2]], [], [[]], [[1], "a"], _CORPUS]),
    "rows": st.sampled_from([[[1, 2, 3], [2]], [], [[]], [[1], "a"]]),
    "prompts": st.sampled_from([[[1, 2], [3]], [], [[]], [[1], [99]], [["a"]]]),
    "prompt": st.sampled_from([[1], [], [99], None]),
    "tokenizer": _TOKENIZER,
    "text": st.sampled_from(["abc abc", "", "naïve\u2028\x00", "\udcff"]),
    "tokenizer_json": st.sampled_from(["{}", "", "[1]", '{"model": {}}']),
    "path": st.sampled_from(["missing/file", ".", "file", "", "\x00", "/dev/null", "new.bin"]),
    "name": st.sampled_from(["gpt2", "gpt2-124m", "cpu", "uniform", "xavier_uniform", "none"]),
    "modules": st.just([Made("Linear", lambda: gg.nn.Linear(4, 4)), Made("Tanh", gg.nn.Tanh)]),
    "patterns": st.sampled_from(["tokens", "*", "none", "blocks.0"]),
    "pieces": st.sampled_from([["ab", "c"], [], [1]]),
    "stops": st.sampled_from([["b"], [], [""], "ab", [1]]),
    "stop_ids": st.sampled_from([None, 0, [1, 2], [[1, 2]], "a"]),
    "samples": st.sampled_from([[gg.Sample((2, 3))], [], [1]]),
    "dtypes": st.sampled_from([["float32"], [], "float32"]),
    "units": st.just({"h": (gg.tanh, 1)}),
    "edges": st.just([("x", "h", "w")]),
    "domain": st.sampled_from([(-1.0, 1.0), (1, 0)]),
    "positions": st.just(_CORPUS),
    "tokenizer_fingerprint": st.sampled_from(["0" * 64, "", "x"]),
    "text_fingerprint": st.sampled_from(["0" * 64, "", "x"]),
    "checksum": st.sampled_from(["0" * 64, "", "x"]),
    "op": _CALLABLE,
    "hook": _CALLABLE,
    "method": st.just("step"),
    "what": st.just("the result"),
}  # fmt: skip

_CONFIGS = {
    "GPT": lambda: models.GPTConfig(4, block_size=6, n_layer=1, n_head=2, n_embd=8),
    "RNNLM": lambda: models.RNNLMConfig(4, n_embd=4),
    "Autoencoder": lambda: models.AutoencoderConfig((4, 3)),
    "BagOfWords": lambda: models.BagOfWordsConfig(4, 2, 4, (3,)),
    "LogisticRegression": lambda: models.LogisticRegressionConfig(4),
    "NGram": lambda: models.NGramConfig(4, 2),
    "SkipGram": lambda: models.SkipGramConfig(4, 4),
    "WindowLM": lambda: models.WindowLMConfig(4, 2, 4, 8),
    "SkipGramBatches": lambda: models.SkipGramConfig(4, 4),
}


def of(owner: str, parameter: inspect.Parameter, base: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Return sound values of a parameter; LookupError when its name says nothing."""
    name = parameter.name
    if name == "config":
        return st.just(Made("a configuration", _CONFIGS.get(owner, _CONFIGS["GPT"])))
    if name in _ARRAYS.split():
        return arrays(base)
    if name in ("indices", "ids", "targets"):
        return ids(base)
    if name in _LISTS.split():
        is_one = parameter.kind is parameter.VAR_POSITIONAL or name == "data"
        return arrays(base) if is_one else st.lists(arrays(base), max_size=3)
    if name in _BY_NAME:
        return _BY_NAME[name]
    default = parameter.default
    if isinstance(default, bool):
        return _TRUTH
    if default is parameter.empty:
        raise LookupError(f"{owner}: no strategy for the parameter {name!r}; see values.py")
    if isinstance(default, int):
        return st.sampled_from([default, 1, 2, 4])
    return st.just(default)
