"""Anomaly mode: the first NaN or infinity, by name, at once on the CPU and later where kernels run.

``where`` runs a test twice: by NumPy, and through the emulator, whose arrays are looked at as those
of a GPU are.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import anomaly, cuda, emulator, nn
from gpugrad.cuda import extremes
from gpugrad.fused import FUSED
from gpugrad.nn import functional as F
from gpugrad.registry import OPS, state

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of what is planted


@pytest.fixture(params=["numpy", "emulated"])
def where(request):
    context = contextlib.nullcontext() if request.param == "numpy" else emulator.enabled("plain")
    with context:
        yield request.param


def leaf(data: Any, dtype: Any = gg.float32) -> gg.Tensor:
    return gg.tensor(data, dtype, requires_grad=True)


@contextlib.contextmanager
def anomalous(*parts: str):
    """Assert that the block of anomaly mode raises, and that the message holds the parts."""
    with pytest.raises(FloatingPointError) as raised, gg.detect_anomaly():
        yield raised
    message = str(raised.value)
    for part in parts:
        assert part in message, message


def test_the_forward_is_named_with_its_line(where):
    x = leaf([1.0, 0.0])
    with anomalous(
        "forward of log: 1 of 2 values are NaN or infinite, the first at index (1,) of out",
        "test_anomaly.py",
        "# the culprit",
        "x    float32[2]  0 to 2.71828\n",
        "out  float32[2]  1 to 1, 1 -inf",
    ):
        gg.log(x * gg.exp(x))  # the culprit


def test_the_backward_names_the_line_of_the_forward(where):
    x = leaf([4.0, 0.0])
    with anomalous(
        "backward of sqrt: 1 of 2 values are NaN or infinite, the first at index (1,)",
        "# the root of the evil",
        "g              float32[2]  1 to 1",
        "gradient of x  float32[2]  0.25 to 0.25, 1 +inf",
    ):
        y = gg.sqrt(x)  # the root of the evil
        z = y.sum()
        z.backward()
    assert x.grad is None


@pytest.mark.parametrize("dtype", [gg.float32, gg.float64, gg.float16, gg.bfloat16], ids=str)
def test_counts_and_range_of_every_dtype(where, dtype):
    x = leaf(np.array([[3.0, 0.0, 1.0], [0.0, -0.5, 2.0]]), dtype)
    with anomalous(
        f"x    {np.dtype(dtype)}[2, 3]  -0.5 to 3\n",
        "1 NaN, 2 -inf",
        "3 of 6 values",
        "index (0, 1)",
    ):
        gg.log(x)


def test_the_path_of_modules(where):
    gg.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 3)))
    model[1][1].weight.data[2, 1] = 3e38
    model[1][1].weight.data[2, 2] = 3e38
    with anomalous(
        "in module Sequential.1.1\n", "of linear:" if where == "numpy" else "of affine:"
    ):
        model(gg.full((2, 4), 100.0))


def test_a_model_from_its_loss(where):
    config = gg.models.GPTConfig(vocab_size=17, block_size=8, n_layer=2, n_head=2, n_embd=16)
    model = gg.models.GPT(config)
    ids = gg.random.integers(17, size=(2, 8))
    with gg.detect_anomaly():
        model.loss(ids, ids).backward()
    model.blocks[1].attention.out_proj.weight.data[0, 0] = np.inf
    for recompute in ("none", "block"):
        with anomalous(
            "in module GPT.blocks.1.attention.out_proj\n", "weight held such values before: a param"
        ):
            model.loss(ids, ids, recompute=recompute).backward()


def test_a_recorded_gradient(where):
    x = leaf([4.0, 0.0])
    with anomalous("forward of divide", "in the backward pass of sqrt, which was", "# evil"):
        y = gg.sqrt(x)  # evil
        gg.grad(y.sum(), x, create_graph=True)


class Both(gg.Function):
    """Return x * x and 1 / x, whose gradients are checked and computed in operations."""

    @staticmethod
    def forward(ctx: Any, x: gg.Tensor) -> tuple[gg.Tensor, gg.Tensor]:
        ctx.save_for_backward(x)
        return x * x, 1.0 / x

    @staticmethod
    def backward(ctx: Any, g: gg.Tensor, h: gg.Tensor) -> gg.Tensor:
        (x,) = ctx.saved_tensors
        return g * 2.0 * x - h / (x * x)


def test_a_function_of_ones_own(where):
    with gg.detect_anomaly():
        x = leaf([1.0, 2.0])
        square, inverse = Both.apply(x)
        (square + inverse).sum().backward()
    assert x.grad.tolist() == [1.0, 3.75]
    with anomalous("forward of Both", "argument 0", "out 0", "out 1", "1 +inf"):
        Both.apply(leaf([1.0, 0.0]))
    with anomalous("backward of Both", "g[0]", "1 to 1, 1 +inf", "g[0] held such values before"):
        square, _ = Both.apply(x)
        square.register_hook(lambda g: g + gg.tensor([0.0, np.inf]))
        square.sum().backward()


def test_within_a_checkpoint(where):
    def block(x: gg.Tensor) -> gg.Tensor:
        return gg.sqrt(x) * 2.0

    with gg.detect_anomaly():
        x = leaf([4.0, 1.0])
        gg.checkpoint(block, x).sum().backward()
    assert x.grad.tolist() == [0.5, 1.0]
    with anomalous("backward of sqrt", "in the backward pass of checkpoint", "1 +inf"):
        gg.checkpoint(block, leaf([4.0, 0.0])).sum().backward()


def test_a_fused_operation_and_its_replay(where):
    def normalised(x: gg.Tensor, weight: Any) -> gg.Tensor:
        return F.layer_norm(x, (4,), leaf(weight), eps=0.0)

    x = leaf(np.arange(8.0).reshape(2, 4))
    constant = leaf(np.ones((2, 4)))
    with anomalous("forward of layer_norm", "1 to 1\n", "8 NaN"):
        normalised(constant, [1.0, 1.0, 1.0, 1.0])
    with anomalous("backward of layer_norm", "gradient of x", "1e+38"):
        normalised(x, [1e38, 1.0, 1.0, 1.0]).backward(gg.full((2, 4), 1e9))
    with anomalous("in the backward pass of layer_norm"):
        out = normalised(x, [1e38, 1.0, 1.0, 1.0])
        gg.grad(out, x, gg.full((2, 4), 1e9), create_graph=True)


def test_infinities_that_are_meant(where):
    """-inf as a number, in a mask and among the logits, rows of nothing else: no anomalies."""
    x = leaf(np.random.default_rng(0).normal(size=(2, 2, 3, 4)))
    hidden = np.zeros((3, 4), bool)
    hidden[0], hidden[1, 2] = True, True
    infinite = np.where(hidden, -np.inf, 0).astype("float32")
    with gg.detect_anomaly():
        for scores in (gg.where(~hidden, x, -np.inf), gg.masked_fill(x, hidden, float("-inf"))):
            part = gg.softmax(scores[:, :, 1:], axis=-1)
            loss = (part * part).sum() + F.log_softmax(scores[:, :, 1:], -1)[..., 0].sum()
            loss.backward()
        F.cross_entropy(x[0, 0] + infinite, gg.tensor([-100, 1, 2])).backward()
        for mask in (~hidden, infinite):
            for dtype in (gg.float32, gg.float64):
                q, k = x.astype(dtype), x.astype(dtype)
                mask_of = gg.tensor(mask) if mask.dtype == bool else gg.tensor(mask, dtype)
                k = gg.concat([k, k[:, :, :1]], axis=2)
                out = F.scaled_dot_product_attention(q, k, k, mask_of)
                (gradient,) = gg.grad((out * out).sum(), x, create_graph=True)
                assert np.isfinite(gradient.numpy()).all()
    assert np.isfinite(x.grad.numpy()).all()


def test_an_infinite_loss_is_not(where):
    logits = leaf([[0.0, -np.inf, 1.0]])
    with anomalous("forward of cross_entropy", "1 +inf"):
        F.cross_entropy(logits, gg.tensor([1])).backward()


def test_an_infinity_is_traced_back(where):
    with anomalous("forward of subtract", "the result of add, which was\n  made at", "# masked"):
        masked = leaf([1.0, 2.0]) + gg.tensor([0.0, -np.inf])  # masked
        masked - masked


def test_a_nan_from_outside_is_said_to_be(where):
    data = gg.tensor([1.0, np.nan])
    with anomalous("forward of multiply", "y held such values before"):
        leaf([1.0, 2.0]) * data


def test_no_anomaly_no_error(where):
    x = leaf([4.0, 1.0])
    with gg.detect_anomaly():
        gg.sqrt(x).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [0.25, 0.5])
    gg.sqrt(leaf([0.0])).sum().backward()  # outside: not an error, inf is the derivative


def test_the_operations_own_samples_are_no_anomalies():
    rng = np.random.default_rng(0)
    seen = 0
    with gg.detect_anomaly():
        for op, function, able in (
            *((op, op.function, op.rules) for op in OPS.values() if op.rules),
            *((op, op, op.differentiable) for op in FUSED.values()),
        ):
            for sample in op.samples:
                given = [
                    None
                    if a is None
                    else gg.tensor(a, requires_grad=n in able and a.dtype == float)
                    for n, a in zip(op.arguments, sample.draw(rng), strict=True)
                ]
                outs = function(*given, **sample.statics)
                outs = outs if isinstance(outs, tuple) else (outs,)
                wanted = [t for t in given if t is not None and t.requires_grad]
                outs = [out for out in outs if out.requires_grad]
                seen += len(outs)
                if outs:
                    gg.grad(outs, wanted, [gg.ones_like(out) for out in outs], create_graph=True)
    assert seen > 300


def test_nothing_waits_within_the_block(monkeypatch):
    """Where kernels run one launch looks at each array, and the host looks once."""
    looks = []
    read = extremes.read
    monkeypatch.setattr(anomaly.extremes, "read", lambda row: looks.append(1) or read(row))
    x = leaf([4.0, 0.0])
    with emulator.enabled("plain"), anomalous("forward of log"):
        before = cuda.launches["extremes"]
        y = gg.log(x)
        gg.exp(y * 2.0)
        assert cuda.launches["extremes"] == before + 6
        assert not looks
    assert len(looks) == 2  # those of log: the first one is told


def test_a_full_table_is_looked_at(monkeypatch):
    monkeypatch.setattr(anomaly, "ROWS", 7)
    x = leaf([4.0, 0.0])
    reached = 0
    with emulator.enabled("plain"), anomalous("forward of log"):
        gg.exp(x)
        y = gg.log(x)
        for _ in range(9):
            y = y + 1.0
            reached += 1
    assert 0 < reached < 4
    with emulator.enabled("plain"), gg.detect_anomaly():
        for _ in range(9):
            x = gg.sin(x * 0.5)  # rows are used again, from zeros


def test_an_error_gives_way_to_the_anomaly_behind_it():
    with emulator.enabled("plain"), anomalous("forward of log") as raised:
        y = gg.log(leaf([0.0]))
        raise IndexError(f"no bin for {y.item()}")
    assert isinstance(raised.value.__context__, IndexError)


def test_an_interrupt_is_no_error():
    def interrupted() -> None:
        gg.log(leaf([0.0]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), emulator.enabled("plain"):
        gg.detect_anomaly()(interrupted)()


def test_gradients_may_be_left_out(where):
    x = leaf([4.0, 0.0])
    with gg.detect_anomaly(gradients=False):
        gg.sqrt(x).sum().backward()
    assert x.grad.tolist() == [0.25, np.inf]
    with pytest.raises(FloatingPointError), gg.detect_anomaly(gradients=False):
        gg.log(x)


def test_modes_within_and_around():
    x = leaf([0.0])
    with gg.no_grad(), gg.detect_anomaly():
        assert not gg.log(x).requires_grad  # not recorded, so not looked at
        with gg.enable_grad(), pytest.raises(FloatingPointError):
            gg.log(x)
    with gg.detect_anomaly(), gg.no_grad(), gg.enable_grad(), pytest.raises(FloatingPointError):
        gg.log(x)
    assert state.watch is None
    gg.log(x)


def test_as_a_decorator_and_nested():
    @gg.detect_anomaly(gradients=False)
    def root(data: Any) -> Any:
        x = leaf(data)
        with gg.detect_anomaly(gradients=False):
            (g,) = gg.grad(gg.sqrt(x).sum(), x)
        return gg.log(g)

    assert root([4.0]).item() == pytest.approx(np.log(0.25))
    with pytest.raises(FloatingPointError, match="forward of log"):
        gg.detect_anomaly()(lambda: gg.log(leaf([-1.0])))()
    assert state.watch is None


def test_other_threads_are_not_watched():
    found = []
    with gg.detect_anomaly():
        thread = threading.Thread(target=lambda: found.append(gg.log(leaf([0.0])).item()))
        thread.start()
        thread.join(30)
    assert found == [-np.inf]


def test_a_gradient_of_what_was_recorded_before():
    y = gg.sqrt(leaf([0.0])).sum()
    with anomalous("backward of sqrt", "recorded outside of detect_anomaly"):
        y.backward()
