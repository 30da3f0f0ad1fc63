"""PyTorch's spellings mean what they mean in PyTorch; NumPy's what they mean in NumPy."""

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import ops, pytorch


@pytest.fixture
def x():
    return gg.tensor(np.random.default_rng(7).normal(size=(3, 4, 5)), requires_grad=True)


def test_split_by_dim_takes_lengths_and_by_axis_sections(x):
    assert [part.shape[2] for part in x.split(2, dim=2)] == [2, 2, 1]
    assert [part.shape[2] for part in gg.split(x, [1, 4], dim=-1)] == [1, 4]
    assert [part.shape[2] for part in x.split(np.int64(2), dim=2)] == [2, 2, 1]
    assert [part.shape[1] for part in x.split(2, axis=1)] == [2, 2]
    with pytest.raises(ValueError, match=r"lengths \[1, 3\] do not add up to 5"):
        x.split([1, 3], dim=2)
    with pytest.raises(ValueError, match="parts of length 0 along dim 2"):
        x.split(0, dim=2)


@pytest.mark.parametrize("name", ["max", "min"])
@pytest.mark.parametrize("keepdim", [False, True])
def test_extremum_by_dim(x, name, keepdim):
    values, indices = getattr(x, name)(dim=1, keepdim=keepdim)
    data = x.detach().numpy()
    np.testing.assert_array_equal(values.detach(), getattr(np, name)(data, 1, keepdims=keepdim))
    np.testing.assert_array_equal(indices, getattr(np, f"arg{name}")(data, 1, keepdims=keepdim))
    values.sum().backward()
    assert (x.grad.numpy() != 0).sum() == 15
    assert getattr(x, name)(axis=1).shape == (3, 5)


def test_ties_give_the_gradient_to_one_element_by_dim_and_to_all_by_axis():
    x = gg.tensor([2.0, 2.0], requires_grad=True)
    x.max(dim=0).values.backward()
    assert x.grad.tolist() == [1.0, 0.0]
    x.grad = None
    x.max(axis=0).backward()
    assert x.grad.tolist() == [0.5, 0.5]


def test_spread_by_dim_is_unbiased(x):
    data = x.detach().numpy()
    for name in ("std", "var"):
        by_dim = getattr(x, name)(dim=1, keepdim=True).detach()
        np.testing.assert_allclose(by_dim, getattr(np, name)(data, 1, ddof=1, keepdims=True))
        biased = getattr(gg, name)(x, dim=1, unbiased=False).detach()
        np.testing.assert_allclose(biased, getattr(np, name)(data, 1))
        np.testing.assert_allclose(getattr(x, name)(axis=1).detach(), getattr(np, name)(data, 1))


def test_pytorchs_words_choose_its_meaning_wherever_the_axis_stands(x):
    data = x.detach().numpy()
    values, indices = x.max(-1, keepdim=True)
    np.testing.assert_array_equal(values.detach(), data.max(-1, keepdims=True))
    np.testing.assert_array_equal(indices, data.argmax(-1, keepdims=True))
    for name in ("std", "var"):
        spread, wanted = getattr(x, name), getattr(data, name)
        by_keepdim = spread(-1, keepdim=True).detach()
        np.testing.assert_allclose(by_keepdim, wanted(-1, ddof=1, keepdims=True))
        np.testing.assert_allclose(spread(keepdim=True).detach(), wanted(ddof=1, keepdims=True))
        np.testing.assert_allclose(spread(unbiased=False).detach(), wanted())
        np.testing.assert_allclose(spread(1, unbiased=True).detach(), wanted(1, ddof=1))
        np.testing.assert_allclose(spread(axis=1, keepdim=True).detach(), wanted(1, keepdims=True))
    assert x.max(axis=1, keepdim=True).shape == (3, 1, 5)
    assert x.max(keepdim=True).shape == (1, 1, 1)


def test_without_pytorchs_words_names_mean_what_the_docstring_says():
    x, y = gg.tensor([[3.0, 1.0], [2.0, 4.0]]), gg.tensor([[3.0, 0.0], [2.0, 4.0]])
    assert x.max(1).tolist() == [3.0, 4.0]
    assert x.sort(1).tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert x.var(1).tolist() == [1.0, 1.0]
    assert gg.arange(6).split(2)[1].tolist() == [3, 4, 5]
    assert x.repeat(2, 1).tolist() == [[3.0, 3.0, 1.0, 1.0], [2.0, 2.0, 4.0, 4.0]]
    assert gg.tile(x, (2, 1)).tolist() == [*x.tolist(), *x.tolist()]
    assert gg.equal(x, y).tolist() == [[True, False], [True, True]]
    assert [grid.shape for grid in gg.meshgrid(gg.ones(2), gg.ones(3))] == [(3, 2)] * 2
    assert gg.ones(2, 3, 4)[0, :, [0, 1]].shape == (2, 3)
    assert x.size == 4


def test_sort_and_topk_by_dim(x):
    data = x.detach().numpy()
    values, indices = x.sort(dim=1, descending=True)
    np.testing.assert_array_equal(values.detach(), -np.sort(-data, 1))
    np.testing.assert_array_equal(gg.gather(x, 1, indices).detach(), values.detach())
    np.testing.assert_array_equal(x.sort(axis=1).detach(), np.sort(data, 1))
    np.testing.assert_array_equal(x.topk(2, dim=0).indices, np.argsort(-data, 0)[:2])


def test_renamed_arguments(x):
    data = x.detach().numpy()
    np.testing.assert_allclose(
        x.sum(dim=(0, 2), keepdim=True).detach(), data.sum((0, 2))[None, :, None]
    )
    np.testing.assert_allclose(gg.mean(input=x, dim=-1).detach(), data.mean(-1))
    np.testing.assert_allclose(gg.logsumexp(x, dim=0).detach(), np.log(np.exp(data).sum(0)))
    np.testing.assert_array_equal(gg.stack([x, x], dim=-1).detach(), np.stack([data, data], -1))
    np.testing.assert_array_equal(gg.cat((x, x), dim=1).detach(), np.concatenate([data, data], 1))
    np.testing.assert_array_equal(gg.triu(x, diagonal=1).detach(), np.triu(data, 1))
    np.testing.assert_array_equal(gg.roll(x, shifts=2, dims=1).detach(), np.roll(data, 2, 1))
    np.testing.assert_array_equal(gg.flip(x, dims=(0, 2)).detach(), np.flip(data, (0, 2)))
    assert x.unsqueeze(dim=1).shape == (3, 1, 4, 5)
    assert x.squeeze(dim=1).shape == (3, 4, 5)  # nothing to squeeze is no error, as in PyTorch
    with pytest.raises(ValueError, match="does not have length 1"):
        x.squeeze(axis=1)
    with pytest.raises(TypeError, match="unknown argument 'dimension'"):
        x.mean(dimension=1)
    for reduction in (x.mean, x.sum):
        with pytest.raises(TypeError, match="argument 'axis' is given twice"):
            reduction(axis=0, dim=1)
        with pytest.raises(TypeError, match="argument 'keepdims' is given twice"):
            reduction(keepdims=True, keepdim=True)
    with pytest.raises(TypeError, match="multiple values for keyword argument 'keepdims'"):
        x.norm(dim=0, keepdims=True, keepdim=False)


def test_shapes(x):
    assert [part.shape for part in x.chunk(2, dim=2)] == [(3, 4, 3), (3, 4, 2)]
    assert [part.shape[0] for part in gg.chunk(x, 5)] == [1, 1, 1]
    assert [part.shape for part in x.unbind(dim=1)] == [(3, 5)] * 4
    assert x[:, :1].expand(2, -1, 4, 5).shape == (2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"sizes \(-1, 3, 4, 5\) do not fit"):
        x.expand(-1, 3, 4, 5)
    with pytest.raises(ValueError, match="two dimensions at most"):
        x.t()
    with pytest.raises(ValueError, match=r"bmm: .* got shapes \(3, 4, 5\) and \(2, 5, 6\)"):
        x.bmm(gg.zeros((2, 5, 6)))
    index = gg.tensor([[[0], [3]]])
    np.testing.assert_array_equal(
        x.gather(2, index).detach().ravel(), x.detach().numpy()[0, [0, 1], [0, 3]]
    )
    with pytest.raises(ValueError, match=r"index of shape \(4, 1, 1\) does not fit"):
        x.gather(2, gg.zeros((4, 1, 1), dtype=gg.long))


def test_methods(x):
    assert (x.dim(), x.numel()) == (3, 60)
    assert x.long().dtype == gg.int64
    assert x.float().dtype == gg.float32
    assert x.bool().dtype == gg.bool
    assert x.type_as(gg.zeros(1)).dtype == gg.float32
    y = gg.ones(2, 3)
    assert y.add_(1).mul_(3).sub_(2).div_(2) is y
    assert y.tolist() == [[2.0] * 3] * 2
    y.masked_fill_(gg.tensor([True, False, True]).expand(2, 3), -1.0)
    assert y[1].tolist() == [-1.0, 2.0, -1.0]
    gg.manual_seed(3)
    assert 0.9 < float(gg.zeros(10_000).normal_(std=1.0).std()) < 1.1
    assert -1 <= float(gg.zeros(100).uniform_(-1, 1).min()) < 0
    assert gg.allclose(x, x.detach() + 1e-12)
    assert not gg.allclose(x, x.detach() + 1e-3)


@pytest.mark.parametrize("mask", [[True, False, True], [[1, 0, 2]], [[True], [False]]])
def test_masked_fill_in_place_takes_the_masks_of_masked_fill(mask):
    x = gg.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], requires_grad=True)
    y = x * 1
    assert y.masked_fill_(gg.tensor(mask), -1.0) is y
    expected = x.masked_fill(gg.tensor(mask), -1.0)
    np.testing.assert_array_equal(y.detach(), expected.detach())
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, expected.detach() == x.detach())
    assert x.detach().copy().masked_fill_(mask, -1.0).tolist() == expected.tolist()
    with pytest.raises(ValueError, match=r"^masked_fill_: .*\(2,\)"):
        x.detach().masked_fill_(gg.tensor([True, False]), 0.0)


def test_adam_written_by_hand():
    """The listing of PyTorch's users, beside the optimiser."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal(5)
    p, leaf = gg.tensor(start), gg.tensor(start, requires_grad=True)
    mean, square = gg.zeros(5, dtype=gg.double), gg.zeros(5, dtype=gg.double)
    optimizer = gg.optim.Adam([leaf], lr=0.1, betas=(0.9, 0.99), eps=1e-8)
    for step in range(1, 6):
        g = gg.tensor(rng.standard_normal(5))
        mean.mul_(0.9).add_(g, alpha=0.1)
        square.mul_(0.99).addcmul_(g, g, value=0.01)
        denominator = (square / (1 - 0.99**step)).sqrt().add_(1e-8)
        p.addcdiv_(mean, denominator, value=-0.1 / (1 - 0.9**step))
        leaf.grad = g
        optimizer.step()
        np.testing.assert_allclose(p, leaf.detach(), rtol=1e-12)


def test_sums_with_a_factor():
    x, y = (gg.tensor([1.0, -2.0]) * n for n in (1, 3))
    assert x.add(y, alpha=2).tolist() == [7.0, -14.0]
    assert x.sub(y, alpha=0.5).tolist() == [-0.5, 1.0]
    assert x.copy().sub_(y, alpha=2).tolist() == [-5.0, 10.0]
    assert x.lerp(y, 0.5).tolist() == gg.lerp(x, y, weight=0.5).tolist() == [2.0, -4.0]
    assert x.copy().lerp_(y, 0.5).tolist() == [2.0, -4.0]
    assert gg.addcmul(x, y, y, value=2).tolist() == x.addcmul(y, y, value=2).tolist() == [19, 70]
    assert gg.addcdiv(x, y, x, value=-1).tolist() == x.addcdiv(y, x, value=-1).tolist() == [-2, -5]
    z = x.copy()
    assert z.clamp_(-1, max=0.5) is z
    assert z.tolist() == [0.5, -1.0]
    leaf = gg.tensor([1.0, -2.0], requires_grad=True)
    out = leaf * 2
    out.add_(leaf, alpha=3).clamp_(min=-4).sum().backward()
    assert (out.tolist(), leaf.grad.tolist()) == ([5.0, -4.0], [5.0, 0.0])
    with pytest.raises(TypeError, match=r"^add_\(\) takes 2 positional arguments"):
        x.add_(1, 2)
    with pytest.raises(ValueError, match=r"^addcmul_.*\(2,\) \(3,\)"):
        x.addcmul_(x, gg.zeros(3))


def test_every_method_has_a_docstring():
    for kind in (gg.Tensor, gg.nn.Module):
        members = {name: getattr(kind, name) for name in dir(kind) if name[0] != "_"}
        for name, member in members.items():
            assert not callable(member) or (member.__doc__ or "").rstrip()[-1:] == ".", name
    assert gg.Tensor.add_.__name__ == "add_"


@pytest.mark.parametrize(
    ("x", "y", "options", "expected"),
    [
        ([1.0], [np.inf], {}, False),
        ([np.inf], [1.0], {"atol": np.inf}, False),
        ([np.inf], [-np.inf], {}, False),
        ([np.inf, -np.inf], [np.inf, -np.inf], {"rtol": 0.0}, True),
        ([np.nan], [np.nan], {}, False),
        ([np.nan, 1.0], [np.nan, 1.0], {"equal_nan": True}, True),
        ([np.nan], [1.0], {"equal_nan": True}, False),
        ([True, False], [True, False], {}, True),
        ([True], [False], {}, False),
        (np.uint8([1, 2]), np.uint8([2, 1]), {"atol": 1}, True),
        (np.uint8([1]), np.uint8([3]), {"atol": 1}, False),
        ([1, 2], [1.0, 2.0], {}, True),
        (1.0, [1.0, 1.0], {}, True),
        (np.float16([1.0]), np.float16([1.001]), {"rtol": 0.0, "atol": 1e-3}, True),
        ([], [], {}, True),
    ],
)
def test_allclose(x, y, options, expected):
    x, y = gg.tensor(x), gg.tensor(y)
    assert gg.allclose(x, y, **options) is expected
    assert x.allclose(y, **options) is expected


@pytest.mark.parametrize("options", [{"rtol": -1.0}, {"atol": -1.0}, {"atol": np.nan}])
def test_allclose_refuses_tolerances_below_zero(options):
    with pytest.raises(ValueError, match=r"allclose: .* must not be negative"):
        gg.allclose(gg.ones(1), gg.ones(1), **options)


def test_dtypes_and_devices():
    assert gg.zeros(2, dtype=gg.long).dtype == gg.int64
    assert gg.zeros(2, dtype=gg.float, device=gg.device("cpu")).device == "cpu"
    assert isinstance(gg.cuda.is_available(), bool)
    with pytest.raises(ValueError, match="'gpu' is none"):
        gg.device("gpu")
    with pytest.raises(AttributeError, match="no attribute 'not_there'"):
        gg.not_there  # noqa: B018


def test_random_numbers():
    gg.manual_seed(1)
    assert gg.randn(2, 3).shape == gg.rand((2, 3)).shape == (2, 3)
    drawn = gg.randint(2, 5, (1000,)).numpy()
    assert (drawn.min(), drawn.max(), drawn.dtype) == (2, 4, np.int64)
    assert gg.randint(5, size=(3,)).shape == (3,)
    assert sorted(gg.randperm(9).tolist()) == list(range(9))
    means = gg.bernoulli(gg.full((20_000,), 0.3)).mean()
    assert abs(float(means) - 0.3) < 0.02


@pytest.mark.parametrize("replacement", [False, True])
def test_multinomial(replacement):
    gg.manual_seed(2)
    weights = gg.tensor([[1.0, 0.0, 3.0, 6.0], [0.0, 2.0, 2.0, 0.0]])
    drawn = gg.stack([gg.multinomial(weights, 2, replacement) for _ in range(4000)]).numpy()
    first = np.stack([np.bincount(drawn[:, i, 0], minlength=4) for i in range(2)]) / 4000
    np.testing.assert_allclose(first, [[0.1, 0, 0.3, 0.6], [0, 0.5, 0.5, 0]], atol=0.03)
    repeated = (drawn[..., 0] == drawn[..., 1]).mean(0)
    if replacement:  # sum of squared probabilities
        np.testing.assert_allclose(repeated, [0.46, 0.5], atol=0.03)
        chosen = np.bincount(drawn[:, 0, 1], minlength=4) / 4000
        np.testing.assert_allclose(chosen, [0.1, 0, 0.3, 0.6], atol=0.03)
    else:
        assert not repeated.any()
        second = np.bincount(drawn[:, 0, 1], minlength=4) / 4000  # sum of p_i p_j / (1 - p_i)
        np.testing.assert_allclose(
            second,
            [
                0.3 * 0.1 / 0.7 + 0.6 * 0.1 / 0.4,
                0,
                0.1 * 0.3 / 0.9 + 0.6 * 0.3 / 0.4,
                0.1 * 0.6 / 0.9 + 0.3 * 0.6 / 0.7,
            ],
            atol=0.03,
        )


@pytest.mark.parametrize(
    ("weights", "count", "replacement", "message"),
    [
        ([0.5, -0.1], 1, False, "negative or not finite"),
        ([0.5, np.nan], 1, True, "negative or not finite"),
        ([0.5, np.inf], 1, True, "negative or not finite"),
        ([0.0, 0.0], 1, True, "0 weights above zero"),
        ([0.5, 0.5, 0.0], 3, False, "2 weights above zero"),
        ([0.5], 0, True, "num_samples=0"),
        ([[[0.5]]], 1, True, r"shape \(1, 1, 1\)"),
        ([], 1, True, r"shape \(0,\)"),
    ],
)
def test_multinomial_refuses(weights, count, replacement, message):
    with pytest.raises(ValueError, match=message):
        gg.multinomial(gg.tensor(weights), count, replacement)


def test_names_hide_nothing():
    assert not set(pytorch.NAMES) & set(gg.__all__)
    assert gg.float is gg.float32
    assert set(pytorch.SHARED) <= set(gg.__all__)
    hidden = set(pytorch._METHODS) & set(ops._METHODS)
    assert hidden <= set(pytorch.SHARED)  # which call what they hide
