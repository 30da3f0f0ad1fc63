from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad import nn, ops
from gpugrad.fused import FUSED


def reference(block: nn.TransformerBlock, x: gg.Tensor) -> gg.Tensor:
    """The block's definition with every part on its own."""

    def mlp(h: gg.Tensor) -> gg.Tensor:
        return block.mlp.down(F.gelu(block.mlp.up(h), block.mlp.approximate))

    if block.norm_first:
        x = x + block.attention(block.norm1(x))
        return x + mlp(block.norm2(x))
    x = block.norm1(x + block.attention(x))
    return block.norm2(x + mlp(x))


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-LN", "post-LN"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_definition(norm_first, bias, approximate) -> None:
    block = nn.TransformerBlock(
        8, 2, bias=bias, causal=True, norm_first=norm_first, approximate=approximate,
        dtype="float64",
    )  # fmt: skip
    with gg.no_grad():
        for p in block.parameters():
            p += gg.random.normal(scale=0.2, size=p.shape, dtype=p.dtype)
    x = gg.random.normal(size=(2, 5, 8), dtype="float64")
    np.testing.assert_allclose(
        block(x).detach().numpy(), reference(block, x).detach().numpy(), atol=1e-13
    )


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-LN", "post-LN"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_gradients(norm_first, bias, check_gradients) -> None:
    block = nn.TransformerBlock(
        4, 2, hidden_dim=6, bias=bias, causal=True, norm_first=norm_first, dtype="float64"
    )
    check_gradients(block, gg.random.normal(size=(2, 3, 4), dtype="float64"))


def test_parameters() -> None:
    block = nn.TransformerBlock(8, 2)
    shapes = {name: p.shape for name, p in block.named_parameters()}
    assert shapes == {
        "norm1.weight": (8,),
        "norm1.bias": (8,),
        "attention.in_proj.weight": (24, 8),
        "attention.in_proj.bias": (24,),
        "attention.out_proj.weight": (8, 8),
        "attention.out_proj.bias": (8,),
        "norm2.weight": (8,),
        "norm2.bias": (8,),
        "mlp.up.weight": (32, 8),
        "mlp.up.bias": (32,),
        "mlp.down.weight": (8, 32),
        "mlp.down.bias": (8,),
    }
    names = [name for name, _ in nn.TransformerBlock(8, 2, bias=False).named_parameters()]
    assert not any("bias" in name for name in names)


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-LN", "post-LN"])
def test_dropping_everything_leaves_the_residual_stream(norm_first) -> None:
    block = nn.TransformerBlock(4, 2, dropout=1.0, norm_first=norm_first, dtype="float64")
    x = gg.random.normal(size=(1, 3, 4), dtype="float64")
    expected = x if norm_first else block.norm2(block.norm1(x))
    np.testing.assert_allclose(block(x).detach().numpy(), expected.detach().numpy(), atol=1e-14)
    block.eval()
    assert np.abs(block(x).detach().numpy() - expected.detach().numpy()).max() > 0.01


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-LN", "post-LN"])
@pytest.mark.parametrize("recompute", ["none", "attention", "block"])
def test_a_stream_of_one_tensor_is_the_sum_of_the_two(norm_first, recompute) -> None:
    block = nn.TransformerBlock(8, 2, dropout=0.3, norm_first=norm_first)
    x = gg.random.normal(size=(2, 5, 8))

    def bits(paired: bool) -> list[bytes]:
        gg.manual_seed(4)
        given = gg.Tensor(x.data, requires_grad=True)
        stream = block.step((given,), recompute=recompute, paired=paired)
        assert len(stream) == (2 if paired and norm_first else 1)
        out = stream[0] + stream[1] if len(stream) == 2 else stream[0]
        grads = gg.grad((out * out).sum(), [given, *block.parameters()])
        return [t.data.tobytes() for t in (out, *grads)]

    assert bits(paired=False) == bits(paired=True)


def test_mask_and_heads_reach_attention() -> None:
    block = nn.TransformerBlock(4, 2)
    x, seen = gg.random.normal(size=(1, 3, 4)), []

    def watch(q, k, v):
        seen.append(q.shape)
        return q, k, v

    only_self = block(x, np.eye(3, dtype=bool), watch)
    assert seen == [(1, 2, 3, 2)]
    alone = gg.concat([block(x[:, t : t + 1]) for t in range(3)], axis=1)
    np.testing.assert_allclose(only_self.detach().numpy(), alone.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_dtypes(dtype) -> None:
    block = nn.TransformerBlock(8, 2, causal=True, dtype=dtype)
    out = block(gg.random.normal(size=(2, 5, 8), dtype=dtype))
    out.sum().backward()
    assert out.dtype == dtype
    assert {p.grad.dtype for p in block.parameters()} == {out.dtype}


def test_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(\.\.\., 4\), got float32\[2, 3, 5\]"):
        nn.TransformerBlock(4, 2)(gg.zeros(2, 3, 5))


def large() -> tuple[nn.TransformerBlock, gg.Tensor]:
    """Return a block, and an input of as many rows as make a norm and a layer one operation."""
    gg.manual_seed(3)
    block = nn.TransformerBlock(64, 4, causal=True)
    return block, gg.random.normal(size=(8, 128, 64), dtype="float32")


def test_norms_and_layers_are_one_operation_by_numpy() -> None:
    block, x = large()
    names = "layer_norm_affine", "layer_norm_mlp", "layer_norm", "mlp"
    before = {name: FUSED[name].launches["numpy"] for name in names}
    block(x)
    assert [FUSED[name].launches["numpy"] - before[name] for name in names] == [1, 1, 0, 0]


def doubled(module: nn.Module) -> None:
    """Have a module return twice what it does."""
    kind = type(module)

    class Doubled(kind):  # type: ignore[misc, valid-type]
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            return (out[0] * 2, out[1]) if isinstance(out, tuple) else out * 2

    module.__class__ = Doubled


def doubled_forward(module: nn.Module) -> None:
    """Do the same by a forward of its own."""
    forward = module.forward

    def run(*args, **kwargs):
        out = forward(*args, **kwargs)
        return (out[0] * 2, out[1]) if isinstance(out, tuple) else out * 2

    module.forward = run


def doubled_call(module: nn.Module) -> None:
    """Do the same by a __call__ of its kind."""
    kind = type(module)

    class Doubled(kind):  # type: ignore[misc, valid-type]
        def __call__(self, *args, **kwargs):
            out = super().__call__(*args, **kwargs)
            return (out[0] * 2, out[1]) if isinstance(out, tuple) else out * 2

    module.__class__ = Doubled


PARTS = ["norm1", "norm2", "attention", "mlp", "attention.in_proj", "mlp.up", "mlp.down"]


@pytest.mark.parametrize("change", [doubled, doubled_forward, doubled_call])
@pytest.mark.parametrize("part", PARTS)
def test_what_a_part_returns_is_asked_of_it(part, change) -> None:
    block, x = large()
    plain = block(x).data
    change(dict(block.named_modules())[part])
    found = block(x).data
    block, x = large()
    module = dict(block.named_modules())[part]
    if part in ("attention", "mlp"):  # the last of their layers
        module = module.out_proj if part == "attention" else module.down
    with gg.no_grad():
        for parameter in module.parameters():
            parameter *= 2
    np.testing.assert_allclose(found, block(x).data, rtol=1e-4, atol=1e-5)
    assert abs(found - plain).max() > 1e-3


def test_compiled_and_not_the_bits_are_the_same() -> None:
    block, x = large()

    def run(x):
        out = block(x)
        return out, *gg.grad(ops.sum(out * out), list(block.parameters()))

    plain, compiled = run(x), gg.compile(run)
    for _ in range(2):
        for a, b in zip(plain, compiled(x), strict=True):
            assert a.data.tobytes() == b.data.tobytes()


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.MultiHeadAttention, nn.Linear])
def test_a_forward_of_a_class_that_was_replaced_is_asked(kind, monkeypatch) -> None:
    block, x = large()
    calls, forward = [], kind.forward
    monkeypatch.setattr(kind, "forward", lambda *a, **k: (calls.append(a), forward(*a, **k))[1])
    block(x)
    assert len(calls) == {nn.LayerNorm: 2, nn.MultiHeadAttention: 1, nn.Linear: 4}[kind]


def test_a_call_of_modules_that_was_replaced_is_asked(monkeypatch) -> None:
    block, x = large()
    kinds, call = set(), nn.Module.__call__

    def noted(self, *args, **kwargs):
        kinds.add(type(self))
        return call(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__call__", noted)
    block(x)
    assert {nn.LayerNorm, nn.MultiHeadAttention, nn.Linear} <= kinds


@pytest.mark.parametrize("rows", [4, 128])
@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("norm1", {"normalized_shape": (32,)}, r"shape \(\.\.\., 32\)"),
        ("norm2", {"normalized_shape": (32,)}, r"shape \(\.\.\., 32\)"),
        ("attention.in_proj", {"in_features": 32}, r"shape \(\.\.\., 32\)"),
    ],
)
def test_a_part_of_another_size_refuses_many_rows_too(part, change, message, rows) -> None:
    block, x = large()
    vars(dict(block.named_modules())[part]).update(change)
    with pytest.raises(ValueError, match=message):
        block(x[:, :rows])


def test_norms_of_ones_own_are_called_as_ever() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            self.norm = nn.LayerNorm(64)

        def forward(self, x, residual=None, paired=False):
            h = x if residual is None else x + residual
            return (self.norm(h), h) if paired else self.norm(h)

    class Second(First):
        def forward(self, x, *, residual):
            h = x + residual
            return self.norm(h), h

    block, x = large()
    expected = block.step((x, x))
    block.norm1, block.norm2 = First(), Second()
    for a, b in zip(block.step((x, x)), expected, strict=True):
        np.testing.assert_allclose(a.data, b.data, rtol=1e-4, atol=1e-5)
