"""explain: paths and their products sum to the gradient, however many paths there are."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.engine import reachable


def leaves(root: gg.Tensor) -> list[gg.Tensor]:
    parents = [p for node in reachable([root._node]) for p in node.parents]
    return [p for p in dict.fromkeys(parents) if isinstance(p, gg.Tensor)]


def total(explanation: gg.graph.Explanation) -> np.ndarray:
    return sum(path.product.numpy() for path in explanation.paths)


def test_the_textbook_figure(figure) -> None:
    found = gg.graph.explain(figure.L, figure.b, vars(figure))
    (path,) = found.paths
    assert path.names == ("L", "e", "d", "b")
    assert path.factors == (-2.0, 1.0, 2.0)
    assert (path.product.item(), found.gradient.item(), found.count) == (-4.0, -4.0, 1)
    assert str(found) == "dL/db = -4: 1 path\n  L → e → d → b:  (-2) · 1 · 2 = -4"
    assert figure.b.grad is None
    figure.L.backward()


def test_two_paths(figure) -> None:
    loss = figure.L + 0.1 * figure.c**2
    found = gg.graph.explain(loss, figure.c, {"loss": loss, **vars(figure)})
    assert [p.product.item() for p in found.paths] == pytest.approx([5.0, -0.4])
    assert [p.names for p in found.paths] == [
        ("loss", "L", "c"),
        ("loss", "multiply", "square", "c"),
    ]


def test_parallel_edges_are_two_paths() -> None:
    x = gg.tensor(3.0, requires_grad=True)
    found = gg.graph.explain(x * x, x, {"x": x})
    assert [(p.names, p.factors) for p in found.paths] == [(("multiply", "x"), (3.0,))] * 2


def test_an_intermediate_result(figure) -> None:
    found = gg.graph.explain(figure.L, figure.d, vars(figure))
    assert found.gradient.item() == -2.0
    assert found.paths[0].names == ("L", "e", "d")


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_paths_sum_to_the_gradient(root, limit: int) -> None:
    found = [gg.graph.explain(root, x, limit=limit) for x in leaves(root)]
    xs = leaves(root)
    root.backward()
    for x, explanation in zip(xs, found, strict=True):
        assert sum(p.count for p in explanation.paths) == explanation.count
        np.testing.assert_array_equal(explanation.gradient.numpy(), x.grad.numpy())
        exact = x.dtype == gg.float64
        scale = max(np.abs(p.product.numpy()).max() for p in explanation.paths)
        tolerance = (1e-14 if exact else 2e-6) * scale * len(explanation.paths)
        np.testing.assert_allclose(total(explanation), x.grad.numpy(), rtol=0, atol=tolerance)


def test_an_exponential_number_of_paths_is_grouped() -> None:
    x = y = gg.tensor(1.5, "float64", requires_grad=True)
    for _ in range(60):
        y = y + y * 0.01
    found = gg.graph.explain(y, x, {"x": x, "y": y}, limit=10)
    assert found.count == 2**60
    assert len(found.paths) == 10
    assert sum(path.count for path in found.paths) == 2**60
    assert total(found) == pytest.approx(1.01**60, rel=1e-13)
    assert str(found).startswith(f"dy/dx = 1.817: {2**60:,} paths in 10 groups\n")
    assert f"{found.paths[0].count:,} paths to " in str(found)
    first = found.paths[0]
    assert first.start.item() * np.prod(first.factors) == pytest.approx(first.product.item())


def test_the_largest_contribution_is_split_first() -> None:
    x = gg.tensor(1.0, "float64", requires_grad=True)
    small, large = x * 0.001, x * 3.0
    y = (small * small + small) + (large * large + large)
    found = gg.graph.explain(y, x, limit=4)
    assert [path.count for path in found.paths] == [1, 1, 1, 3]
    assert found.paths[-1].product.item() == pytest.approx(0.001 * (1 + 2 * 0.001))


def test_a_gradient_to_start_with() -> None:
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    y = x * 3.0
    found = gg.graph.explain(y, x, gradient=gg.tensor([1.0, 10.0]))
    assert total(found).tolist() == [3.0, 30.0]
    assert found.paths[0].factors == (None,)
    scaled = gg.graph.explain(y.sum(), x, gradient=gg.tensor(2.0))
    assert total(scaled).tolist() == [6.0, 6.0]


def test_a_scalar_gradient_that_is_not_one_is_a_factor() -> None:
    x = gg.tensor(2.0, requires_grad=True)
    found = gg.graph.explain(x * 3.0, x, {"x": x}, gradient=gg.tensor(5.0))
    assert str(found.paths[0]) == "multiply → x:  5 · 3 = 15"


def test_an_output_that_an_argument_does_not_lead_to() -> None:
    """layer_norm(paired=True) hands its input on beside the result: no weight is in that."""
    x, weight = (gg.tensor([0.5, 2.0, 1.0], requires_grad=True) for _ in range(2))
    normalised, passed = gg.fused.layer_norm(x, weight, None, paired=True)
    loss = normalised.sum() * 3.0 + passed.sum()
    found = gg.graph.explain(loss, weight, {"weight": weight})
    assert [path.names for path in found.paths] == [
        ("add", "multiply", "sum", "layer_norm[0]", "weight")
    ]
    assert gg.graph.explain(loss, x).count == 2


def test_a_local_derivative_of_zero_and_nan() -> None:
    x = gg.tensor(0.0, "float64", requires_grad=True)
    (path,) = gg.graph.explain(gg.sqrt(x) * 0.0, x).paths
    assert path.factors == (0.0, np.inf)
    assert np.isnan(path.product.item())


def test_refusals(figure) -> None:
    other = gg.tensor(1.0, requires_grad=True)
    with pytest.raises(ValueError, match=r"does not depend on the leaf \(\)"):
        gg.graph.explain(figure.L, other)
    with pytest.raises(TypeError, match="the leaf must be a tensor, got str"):
        gg.graph.explain(figure.L, "b")
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        gg.graph.explain(figure.L, figure.b, limit=0)
    with pytest.raises(ValueError, match="root and leaf are the same"):
        gg.graph.explain(figure.L, figure.L)
    figure.L.backward()
    with pytest.raises(RuntimeError, match=r"explain: what multiply saved was freed"):
        gg.graph.explain(figure.L, figure.b)
