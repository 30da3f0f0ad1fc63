"""Attention: masks, causal alignment, hidden rows, dropout, shapes, tiles, layouts, errors."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import testing
from gpugrad.fused import FUSED, _attention_numpy, _tiles
from gpugrad.fused import scaled_dot_product_attention as attention
from gpugrad.fused._tiles import dropout_mask
from gpugrad.ops.random import Draw
from gpugrad.threads import num_threads

NAME = "scaled_dot_product_attention"
DTYPES = ["float16", "bfloat16", "float32", "float64"]
# (batch and heads, T, S, D, E)
SHAPES = [
    ((), 1, 1, 1, 1),
    ((), 5, 7, 3, 2),
    ((3,), 7, 7, 5, 5),
    ((2, 3), 17, 13, 8, 8),
    ((2, 1), 67, 67, 8, 8),
    ((1,), 13, 1023, 8, 8),
    ((1,), 131, 257, 7, 5),
    ((2, 2, 2), 3, 4, 2, 3),
]
EMPTY = [((0,), 3, 4, 2, 2), ((2, 0), 3, 4, 2, 2), ((2,), 0, 4, 2, 2), ((2,), 3, 0, 2, 2)]
EMPTY += [((2,), 3, 4, 0, 2), ((2,), 3, 4, 2, 0)]


def drawn(shape, seed=0, spread=1.0):
    lead, t, s, d, e = shape
    rng = np.random.default_rng(seed)
    shapes = [(*lead, t, d), (*lead, s, d), (*lead, s, e)]
    return [gg.Tensor(rng.normal(0, spread, x), requires_grad=True) for x in shapes]


def masks(shape, seed=5):
    """Return one mask of each kind, those of the (..., T, S) scores that leave no row hidden."""
    lead, t, s = shape[:3]
    rng = np.random.default_rng(seed)
    seen = rng.random((*lead, t, s)) < 0.6
    seen[..., :1] = True
    return {"boolean": seen, "additive": rng.normal(0, 2, (t, s)), "keys": rng.normal(0, 2, s)}


def by_hand(q, k, v, mask=None, is_causal=False, scale=None, offset=0):
    """Return attention in float64, one query after the other."""
    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    for *lead, t in np.ndindex(q.shape[:-1]):
        lead = tuple(lead)
        scores = k[lead] @ q[(*lead, t)] * scale
        if mask is not None:
            row = np.broadcast_to(mask, (*q.shape[:-1], k.shape[-2]))[(*lead, t)]
            scores = np.where(row, scores, -np.inf) if mask.dtype == bool else scores + row
        if is_causal:
            scores = np.where(np.arange(len(scores)) <= t + offset, scores, -np.inf)
        if (scores > -np.inf).any():
            e = np.exp(scores - scores.max())
            out[(*lead, t)] = e / e.sum() @ v[lead]
    return out


def obeys_the_tolerance_rule(inputs, dtype, mask=None, scale=0.0, **given):
    """Check value and gradients against the spec, and that nothing warns."""
    statics = {"is_causal": False, "offset": 0, "dropout_p": 0.0, "draw": Draw(0, 0), **given}
    statics["scale"] = 1 / math.sqrt(max(inputs[0].shape[-1], 1))

    def spec(q, k, v):
        wide = "float64" if q.dtype == gg.float64 else "float32"
        kind = None if mask is None else "bool" if mask.dtype == bool else wide
        m = None if mask is None else gg.Tensor(mask.astype(kind))
        return FUSED[NAME].spec(q, k, v, m, **statics)

    def fast(q, k, v):
        return attention(q, k, v, mask, is_causal=statics["is_causal"], offset=statics["offset"])

    with np.errstate(all="raise", under="ignore"):
        fast(*(x.astype(dtype) for x in inputs))
    # the float64 spec is its own reference; the p of ds = e * (p - rowsum) is a few units large
    scale = max(scale, {"float64": 1e3, "float32": 4.0}.get(dtype, 0.0))
    testing.assert_implements(fast, spec, inputs, dtype, scale=scale)


@pytest.mark.parametrize("mask", [None, "boolean", "additive", "keys", "causal"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, *EMPTY], ids=str)
def test_obeys_the_tolerance_rule(shape, dtype, mask):
    given = (
        {"mask": masks(shape)[mask]} if mask in masks(shape) else {"is_causal": mask == "causal"}
    )
    obeys_the_tolerance_rule(drawn(shape), dtype, **given)


@pytest.mark.parametrize("offset", [-2, 0, 3, 100])
@pytest.mark.parametrize("mask", [None, "boolean", "additive"])
@pytest.mark.parametrize("lengths", [(5, 5), (3, 6), (6, 3), (1, 4)], ids=str)
def test_value_by_hand_with_a_causal_offset(lengths, mask, offset):
    shape = ((2,), *lengths, 3, 2)
    q, k, v = drawn(shape)
    given = {"mask": masks(shape).get(mask), "is_causal": True, "offset": offset, "scale": 0.3}
    expected = by_hand(q.data, k.data, v.data, **given)
    given["attn_mask"] = given.pop("mask")
    np.testing.assert_allclose(attention(q, k, v, **given).data, expected, rtol=0, atol=1e-14)


def test_causal_is_aligned_top_left_as_in_pytorch():
    q, k, v = (x.detach() for x in drawn(((), 2, 4, 3, 3)))
    out = attention(q, k, v, is_causal=True)
    np.testing.assert_allclose(out.data[0], v.data[0], rtol=1e-15)


def test_an_offset_continues_a_cache():
    q, k, v = (x.detach() for x in drawn(((2,), 9, 9, 4, 4)))
    whole = attention(q, k, v, is_causal=True).data
    for start in (8, 5):
        part = attention(q[:, start:], k, v, is_causal=True, offset=start).data
        np.testing.assert_allclose(part, whole[:, start:], rtol=0, atol=1e-14)


@pytest.mark.parametrize("spread", [1e-6, 30.0, 1e4, 1e15])
def test_small_and_huge_scores(spread):
    inputs = drawn(((2,), 19, 23, 8, 8), spread=spread)
    obeys_the_tolerance_rule(inputs, "float32", scale=spread**2)  # of ds k, which cancels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_the_same_bits_every_time(is_causal, dtype):
    inputs = [gg.Tensor(x.data.astype(dtype), requires_grad=True) for x in drawn(SHAPES[4])]
    found = []
    for _ in range(2):
        gg.manual_seed(3)
        out = attention(*inputs, dropout_p=0.2, is_causal=is_causal)
        found.append([t.data.tobytes() for t in (out, *gg.grad(out.sum(), inputs))])
    assert found[0] == found[1]


def test_the_implementation_is_launched_once(launching):
    inputs = drawn(SHAPES[3])
    with launching(NAME):
        attention(*inputs, is_causal=True).sum().backward()
    with launching(NAME, times=0):  # a gradient of the mask is for the spec
        attention(*inputs, attn_mask=gg.zeros((17, 13), requires_grad=True))


def test_the_same_tensor_as_query_key_and_value():
    x = gg.Tensor(np.random.default_rng(0).standard_normal((2, 5, 3)), requires_grad=True)
    q, k, v = (gg.Tensor(x.data, requires_grad=True) for _ in range(3))
    together, apart = (attention(*a, is_causal=True) for a in ((x, x, x), (q, k, v)))
    np.testing.assert_array_equal(together.data, apart.data)
    (g,) = gg.grad(together.sum(), x)
    parts = gg.grad(apart.sum(), [q, k, v])
    np.testing.assert_allclose(g.data, sum(p.data for p in parts), rtol=1e-13)
    testing.gradcheck(lambda x: attention(x, x, x, is_causal=True), [x])
    testing.gradgradcheck(lambda x: attention(x, x, x, is_causal=True), [x])


@pytest.mark.parametrize("mask", ["boolean", "additive"])
def test_derivatives_with_masks_scale_and_dropout(mask):
    shape = ((2,), 3, 4, 2, 2)

    def same(q, k, v):
        gg.manual_seed(11)
        return attention(
            q, k, v, masks(shape)[mask], dropout_p=0.3, is_causal=True, scale=1.5, offset=1
        )

    testing.gradcheck(same, drawn(shape))
    testing.gradgradcheck(same, drawn(shape))


def test_an_additive_mask_has_a_gradient():
    shape = ((2, 2), 3, 4, 2, 2)
    bias = gg.Tensor(masks(shape)["additive"], requires_grad=True)
    testing.gradcheck(lambda q, k, v, m: attention(q, k, v, m), [*drawn(shape), bias])


# Masks


@pytest.mark.parametrize("kind", ["boolean", "additive"])
@pytest.mark.parametrize("create_graph", [False, True], ids=["plain", "recorded"])
def test_a_query_that_sees_no_key_gives_zero_and_has_gradient_zero(create_graph, kind):
    seen = np.array([[True, False, True, True], [False] * 4, [False, True, False, False]])
    mask = seen if kind == "boolean" else np.where(seen, 0.0, -math.inf)
    inputs = drawn(((2,), 3, 4, 2, 2))
    out = attention(*inputs, attn_mask=mask)
    assert (out.data[:, 1] == 0).all()
    q, k, v = (g.data for g in gg.grad(out.sum(), inputs, create_graph=create_graph))
    assert (q[:, 1] == 0).all()
    assert np.isfinite(q).all()
    assert np.isfinite(k).all()
    assert (v.sum((0, 2)) > 0).tolist() == [True] * 4


@pytest.mark.parametrize("offset", [-2, 0, 3])
@pytest.mark.parametrize("lengths", [(5, 5), (3, 6), (20, 23), (23, 20)], ids=str)
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_every_result_is_written_whatever_the_memory_held(is_causal, lengths, offset, monkeypatch):
    inputs = drawn(((2,), *lengths, 3, 3))

    def results():
        out = attention(*inputs, is_causal=is_causal, offset=offset)
        grads = gg.grad(out.sum(), inputs)
        return [t.data.tobytes() for t in (out, *grads)]

    expected = results()
    for module in (_tiles, _attention_numpy):
        monkeypatch.setattr(module, "empty", lambda shape, dtype: np.full(shape, np.nan, dtype))
    assert results() == expected


def test_nothing_is_seen_at_all():
    inputs = drawn(((2,), 3, 4, 2, 2))
    for given in ({"attn_mask": np.zeros((3, 4), bool)}, {"is_causal": True, "offset": -9}):
        out = attention(*inputs, **given)
        assert (out.data == 0).all()
        assert all((g.data == 0).all() for g in gg.grad(out.sum(), inputs))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_what_is_hidden_has_no_influence(bad):
    q, k, v = (x.data for x in drawn(((2,), 5, 5, 3, 3)))
    before = attention(q, k, v, is_causal=True).data
    for x in (q, k):
        x[:, 3:] = bad
    v[:, 3:] = 1e30
    after = attention(q, k, v, is_causal=True).data
    np.testing.assert_array_equal(after[:, :3], before[:, :3])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_spoil_their_query_only(bad):
    inputs = drawn(((2,), 5, 4, 3, 3))
    inputs[0].data[0, 2] = bad
    out = attention(*inputs).data
    assert np.isnan(out[0, 2]).all()
    out[0, 2] = 0
    assert np.isfinite(out).all()


@pytest.mark.parametrize("shape", [(4,), (3, 1), (1, 4), (1, 3, 4), (2, 1, 3, 4), (5, 2, 3, 4)])
def test_masks_broadcast(shape):
    q, k, v = (x.detach() for x in drawn(((2,), 3, 4, 2, 2)))
    mask = np.random.default_rng(1).random(shape) < 0.7
    lead = np.broadcast_shapes((2, 3, 4), shape)[:-2]
    q, k, v = (np.broadcast_to(x.data, (*lead, *x.shape[-2:])) for x in (q, k, v))
    out = attention(q, k, v, attn_mask=mask)
    np.testing.assert_allclose(out.data, by_hand(q, k, v, mask), rtol=0, atol=1e-14)


def test_leading_axes_broadcast_and_gradients_are_summed():
    q, k, v = drawn(((2, 3), 4, 5, 2, 2))
    k, v = (gg.Tensor(x.data[:1, 0], requires_grad=True) for x in (k, v))  # (1, S, D)
    out = attention(q, k, v)
    assert out.shape == (2, 3, 4, 2)
    testing.gradcheck(attention, [q, k, v])


# Dropout


def test_dropout_is_the_mask_of_the_generator():
    q, k, v = (x.detach() for x in drawn(((2, 3), 5, 7, 4, 4)))
    gg.manual_seed(9)
    out = attention(q, k, v, dropout_p=0.4)
    assert gg.random.get_state() == {"seed": 9, "offset": 2 * 3 * 5 * 2}  # two blocks per row
    keep = dropout_mask(np, Draw(9, 0), 0, 30, 7, 0.4).reshape(2, 3, 5, 7)
    weights = gg.fused.softmax(q @ k.mT / 2.0).data * keep / 0.6
    np.testing.assert_allclose(out.data, weights @ v.data, rtol=0, atol=1e-14)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_dropout_agrees_with_the_spec(shape, is_causal):
    inputs = drawn(shape)
    gg.manual_seed(2)
    out = attention(*inputs, dropout_p=0.3, is_causal=is_causal)
    statics = {"scale": 1 / math.sqrt(shape[3]), "offset": 0, "draw": Draw(2, 0)}
    spec = FUSED[NAME].spec(*inputs, None, is_causal=is_causal, dropout_p=0.3, **statics)
    np.testing.assert_allclose(out.data, spec.data, rtol=1e-12, atol=1e-13)
    upstream = gg.Tensor(np.random.default_rng(0).standard_normal(out.shape))
    pairs = zip(*(gg.grad(o, inputs, upstream) for o in (out, spec)), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a.data, b.data, rtol=1e-11, atol=1e-12)


def test_dropping_everything_gives_zero():
    inputs = drawn(((2,), 3, 4, 2, 2))
    out = attention(*inputs, dropout_p=1.0)
    assert (out.data == 0).all()
    assert all((g.data == 0).all() for g in gg.grad(out.sum(), inputs))


# Memory


@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided"])
def test_memory_layout_changes_no_more_than_rounding(layout):
    upstream = np.random.default_rng(3).standard_normal((2, 3, 17, 8))
    results = []
    for name in ("contiguous", layout):
        inputs = [
            gg.Tensor(dict(testing.layouts(x.data))[name], requires_grad=True)
            for x in drawn(((2, 3), 17, 13, 8, 8))
        ]
        out = attention(*inputs, is_causal=True)
        g = gg.Tensor(dict(testing.layouts(upstream))[name])
        results.append([out.data, *(g.data for g in gg.grad(out, inputs, g))])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


def test_merging_heads_that_were_split_is_no_copy():
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 4)).astype(np.float32)
    q = gg.Tensor(x.transpose(0, 2, 1, 3), requires_grad=True)  # (B, H, T, D)
    out = attention(q, q, q)
    (g,) = gg.grad(out.sum(), q)
    for found in (out.data, g.data):
        assert found.transpose(0, 2, 1, 3).flags.c_contiguous


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("keys", [48, 75])  # 48: where tiles of 16 rows end, too
def test_tiles_change_no_more_than_rounding(keys, p, is_causal, monkeypatch):
    inputs = drawn(((3, 2), 70, keys, 4, 4))
    mask = masks(((3, 2), 70, keys))["boolean"]
    results = []
    for tile, kept in (
        (1 << 17, 1 << 22),
        (1 << 17, 0),
        (1, 0),
        (1, 1 << 22),
        (20000, 0),
        (9000, 0),
    ):
        monkeypatch.setattr(_tiles, "TILE", tile)
        monkeypatch.setattr(_tiles, "KEPT", kept)
        gg.manual_seed(1)
        out = attention(*inputs, mask, dropout_p=p, is_causal=is_causal)
        results.append([out.data, *(g.data for g in gg.grad(out.sum(), inputs))])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("kept", [0, 1 << 22])
@pytest.mark.parametrize("lead", [(3, 5), (1, 7), (4, 1)], ids=str)
def test_the_number_of_threads_changes_no_bit(lead, kept, p, monkeypatch):
    monkeypatch.setattr(_tiles, "KEPT", kept)
    inputs = [x.astype("float32").detach() for x in drawn((lead, 131, 131, 8, 8))]
    bits = set()
    for number in (1, 2, 3):
        gg.manual_seed(1)
        leaves = [gg.Tensor(x.data, requires_grad=True) for x in inputs]
        with num_threads(number):
            out = attention(*leaves, is_causal=True, dropout_p=p)
            grads = gg.grad((out * out).sum(), leaves)
        bits.add(b"".join(t.data.tobytes() for t in (out, *grads)))
    assert len(bits) == 1


@pytest.mark.parametrize("lead", [(3, 5), (1, 7), (4, 1)], ids=str)
def test_two_threads_share_the_heads(lead, monkeypatch):
    seen = []
    monkeypatch.setattr(_tiles, "for_rows", lambda count, work, grain: seen.append(count))
    attention(*drawn((lead, 131, 131, 8, 8)))
    attention(*drawn((lead, 3, 4, 2, 2)))  # too small to share
    assert seen[0] > 1
    assert seen[1] == 1


def test_what_is_kept_for_backward_is_linear_in_the_length(monkeypatch):
    monkeypatch.setattr(_tiles, "KEPT", 0)
    out = attention(*drawn(((1,), 200, 200, 2, 2)))
    kept = [a for a in out._node.saved if isinstance(a, np.ndarray)]
    assert sum(a.size for a in kept) == (3 * 2 + 2) * 200


def test_backward_twice_gives_the_same():
    inputs = drawn(((2,), 9, 9, 4, 4))
    loss = attention(*inputs, is_causal=True).sum()
    first, again = (gg.grad(loss, inputs, retain_graph=True) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert a.data.tobytes() == b.data.tobytes()


# Errors


def test_dtypes_are_promoted_and_integers_become_float32():
    q, k, v = (x.detach() for x in drawn(((), 2, 3, 2, 2)))
    assert (
        attention(q.astype("float16"), k.astype("float32"), v.astype("float16")).dtype == "float32"
    )
    assert attention([[1, 2]], [[3, 4]], [[5, 6]]).dtype == "float32"


@pytest.mark.parametrize(
    ("shapes", "given", "error", "message"),
    [
        ([(3,), (3, 3), (3, 3)], {}, ValueError, r"expected \(..., T, D\).* query \(3,\)"),
        ([(3, 2), (3, 4), (3, 4)], {}, ValueError, r"agree in their last axis.* key \(3, 4\)"),
        ([(3, 2), (4, 2), (3, 2)], {}, ValueError, r"agree in their axis -2.* value \(3, 2\)"),
        ([(2, 3, 2), (3, 3, 2), (3, 3, 2)], {}, ValueError, "do not broadcast"),
        (
            [(3, 3, 2), (2, 3, 2), (2, 3, 2)],
            {"enable_gqa": True},
            ValueError,
            r"divisor of query's",
        ),
        ([(3, 2), (3, 2), (3, 2)], {"enable_gqa": True}, ValueError, r"for query \(3, 2\)"),
        ([(3, 2)] * 3, {"attn_mask": np.ones((2, 3), bool)}, ValueError, r"attn_mask \(2, 3\)"),
        ([(1, 2)] * 3, {"attn_mask": np.ones((3, 1), bool)}, ValueError, "larger than the scores"),
        ([(3, 2)] * 3, {"attn_mask": np.ones((3, 3), int)}, TypeError, "boolean .* or floating"),
        ([(3, 2)] * 3, {"dropout_p": 1.5}, ValueError, "dropout_p is a probability, .* got 1.5"),
        ([(3, 2)] * 3, {"scale": math.nan}, ValueError, "scale must be finite, got nan"),
        ([(3, 2)] * 3, {"scale": math.inf}, ValueError, "scale must be finite, got inf"),
        ([(3, 2)] * 3, {"offset": 0.5}, TypeError, "offset must be an integer, got 0.5"),
    ],
)
def test_bad_arguments(shapes, given, error, message):
    with pytest.raises(error, match=f"{NAME}: .*{message}"):
        attention(*(np.ones(shape) for shape in shapes), **given)


@pytest.mark.parametrize("kind", ["boolean", "added", "learned"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_masks_where_kernels_run(kind, dropout_p):
    rng = np.random.default_rng(11)
    q, k, v = (rng.normal(size=(2, 3, n, 4)).astype("float32") for n in (5, 7, 7))
    mask = rng.uniform(size=(3, 5, 7)) < 0.6
    mask[0, 2] = False  # a row that sees nothing
    mask[1, :, 0] = True
    if kind != "boolean":
        mask = np.where(mask, rng.normal(size=mask.shape), -np.inf).astype("float32")
    g = rng.normal(size=(2, 3, 5, 4)).astype("float32")

    def run(dtype, emulated):
        tensors = [gg.tensor(x.astype(dtype), requires_grad=True) for x in (q, k, v)]
        added = gg.tensor(mask if kind == "boolean" else mask.astype(dtype))
        added.requires_grad_(kind == "learned")
        gg.manual_seed(5)
        with gg.emulator.enabled("plain") if emulated else contextlib.nullcontext():
            out = attention(*tensors, added, dropout_p, is_causal=True, offset=2)
            out.backward(gg.tensor(g.astype(dtype)))
        given = [*tensors, *([added] if kind == "learned" else [])]
        return [out.detach().numpy(), *(x.grad.numpy() for x in given)]

    for exact, found in zip(run("float64", False), run("float32", True), strict=True):
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, exact, atol=5e-6)
    assert not run("float32", True)[0][:, 0, 2].any()


@pytest.mark.parametrize("heads", [1, 2, 6])
@pytest.mark.parametrize("is_causal", [False, True])
def test_grouped_queries_share_keys_and_values(heads, is_causal):
    """As if the heads of keys and values were repeated, with the same gradients."""
    rng = np.random.default_rng(heads)
    arrays = [rng.standard_normal(s) for s in ((2, 6, 5, 4), (2, heads, 7, 4), (2, heads, 7, 3))]
    q, k, v = (gg.tensor(a, requires_grad=True) for a in arrays)
    out = attention(q, k, v, is_causal=is_causal, enable_gqa=True)
    wide = (q, gg.repeat(k, 6 // heads, axis=1), gg.repeat(v, 6 // heads, axis=1))
    expected = attention(*wide, is_causal=is_causal)
    np.testing.assert_array_equal(out.detach().numpy(), expected.detach().numpy())
    g = gg.tensor(rng.standard_normal(out.shape))
    for a, b in zip(gg.grad(out, [q, k, v], g), gg.grad(expected, [q, k, v], g), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lead", [(1, 1), (1, 4), (3, 2)])
@pytest.mark.parametrize("keys", [1, 2, 17, 100, 1023])
@pytest.mark.parametrize("spread", [1, 30])  # of the latter some rows need their maximum
def test_one_query_has_the_bits_it_has_in_tiles(spread, keys, lead, dtype, monkeypatch):
    rng = np.random.default_rng(keys)
    room = rng.normal(size=(2, *lead, keys + 3, 32)).astype(dtype)[..., :keys, :]
    given = [spread * rng.normal(size=(*lead, 1, 32)).astype(dtype), *room]

    def results():
        q, k, v = (gg.Tensor(a, requires_grad=True) for a in given)
        out = attention(q, k, v, is_causal=True, offset=keys - 1)
        return [t.numpy() for t in (out, *gg.grad(gg.sum(out * out), [q, k, v]))]

    taken, of_one_query = [], _attention_numpy._of_one_query
    monkeypatch.setattr(
        _attention_numpy,
        "_of_one_query",
        lambda *a, **s: taken.append(of_one_query(*a, **s)) or taken[-1],
    )
    one = results()
    assert spread > 1 or (taken[0] is not None) == (keys > 1)
    monkeypatch.setattr(_attention_numpy, "_of_one_query", lambda *a, **s: None)
    for found, expected in zip(one, results(), strict=True):
        assert found.dtype == expected.dtype == dtype
        assert found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()
