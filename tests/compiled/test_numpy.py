"""gg.compile on NumPy: every operation, and random graphs, with the same bits as eager ones.

The arena is filled with NaN before each replay, so memory that is read before it is written shows.
"""

from __future__ import annotations

import numpy as np
import pytest
from plain_and_compiled import bits, leaf, poisoned, recorded

import gpugrad as gg
from gpugrad import memory, nn, optim, threads
from gpugrad.cuda import recording
from gpugrad.cuda.recording import NotRecordable
from gpugrad.cuda.recording.numpy_calls import Whole
from gpugrad.fused.base import FUSED
from gpugrad.nn import functional as F
from gpugrad.registry import OPS

OPERATIONS = {**OPS, **FUSED}
REFUSED = {"getitem"}  # by a mask: the shape of the result depends on values


def with_gradients(op, sample, tensors):
    """Return a step: the results of an operation, and the gradients of a sum of their squares."""
    function = op.function if hasattr(op, "function") else op

    def step(*given):
        rest = iter(given)
        found = function(*[t if t is None else next(rest) for t in tensors], **sample.statics)
        outs = found if isinstance(found, tuple) else (found,)
        squares = [(o.astype("float32") ** 2).sum() for o in outs if o.requires_grad]
        if squares:
            sum(squares).backward()
        leaves = [t for t in tensors if t is not None and t.requires_grad]
        gradients = [t.grad for t in leaves]
        for t in leaves:
            t.grad = None
        return [*outs, *gradients]

    return step


@pytest.mark.parametrize("name", [name for name, op in OPERATIONS.items() if op.samples])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_operation(name, dtype, rng):
    op = OPERATIONS[name]
    able = op.rules if hasattr(op, "rules") else op.differentiable
    for sample in op.samples:
        tensors = []
        for argument, drawn in zip(op.arguments, sample.draw(rng), strict=True):
            array = None if drawn is None else np.asarray(drawn)
            if array is not None and array.dtype.kind == "f":
                tensors.append(gg.tensor(array, dtype=dtype, requires_grad=argument in able))
            else:
                tensors.append(None if array is None else gg.tensor(array))
        step = with_gradients(op, sample, tensors)
        given = [t for t in tensors if t is not None]
        try:
            expected = step(*given)
        except TypeError:  # of integers only
            continue
        compiled = gg.compile(step)
        try:
            with poisoned():
                found = [compiled(*given) for _ in range(2)][1]
        except NotRecordable:
            assert name in REFUSED
            continue
        assert [x if x is None else bits(x) for x in found] == [
            x if x is None else bits(x.detach()) for x in expected
        ]


UNARY = [
    gg.tanh,
    gg.exp,
    lambda x: gg.sqrt(gg.abs(x) + 0.5),
    lambda x: x.T,
    lambda x: x[::-1],
    lambda x: x.reshape(-1).reshape(x.shape[::-1]).T,
    lambda x: F.softmax(x),
    lambda x: F.gelu(x),
    lambda x: F.layer_norm(x, (x.shape[-1],)),
    lambda x: x - gg.mean(x, axis=0),
    lambda x: gg.cumulative_sum(x, axis=1),
    lambda x: x.detach() * 0.5 + x,
    lambda x: gg.where(x > 0, x, x * 0.1),
    lambda x: F.dropout(x, 0.3),
    lambda x: gg.sort(x, axis=-1),
    lambda x: gg.checkpoint(gg.sin, x),
]
BINARY = [
    lambda x, y: x + y,
    lambda x, y: x * y,
    lambda x, y: gg.matmul(x, y),
    lambda x, y: gg.concat([x, y])[: x.shape[0]],
    lambda x, y: gg.maximum(x, y.T),
    lambda x, y: F.linear(x, y, y[0]),
    lambda x, y: x / (gg.abs(y) + 1),
]


def random_graph(seed, weights, hooked):
    """Return a step over 5x5 tensors, the same for a seed: operations on whatever there is."""

    def step(x):
        draw = np.random.default_rng(seed)
        pool = [x, *weights]
        for _ in range(12):
            one, two = (pool[i] for i in draw.integers(len(pool), size=2))
            if draw.random() < 0.6:
                made = UNARY[draw.integers(len(UNARY))](one)
            else:
                made = BINARY[draw.integers(len(BINARY))](one, two)
            made = gg.clip(made, -3, 3)
            if hooked and made.requires_grad and draw.random() < 0.3:
                made.register_hook(lambda g: g * 0.5)
            pool.append(made)
        loss = sum((p * p).mean() for p in [*weights, *pool[-4:]])
        loss.backward()
        with gg.no_grad():
            for w in weights[1:]:
                w -= 0.01 * w.grad
        kept = [w.grad * 1 for w in weights]
        weights[0].grad = None
        for w in weights[1:]:
            w.grad.zero_()
        return loss, kept, pool[-1], pool[-2].T

    return step


@pytest.mark.parametrize("seed", range(30))
def test_random_graphs(seed):
    """Views, hooks, gradients that stay, tensors that change in place, and what users hold."""
    rng = np.random.default_rng(seed)
    data = [rng.standard_normal((5, 5)).astype("f") for _ in range(7)]
    runs = []
    for wrap in (lambda step: step, gg.compile):
        gg.manual_seed(seed)
        weights = [gg.tensor(array, requires_grad=True) for array in data[:3]]
        for w in weights:
            w.grad = gg.tensor(np.ones((5, 5), np.float32))
        step = wrap(random_graph(seed, weights, hooked=seed % 2))
        with poisoned():
            held = [step(x) for x in data[3:]]
        seen = [bits(t.detach()) for loss, kept, *rest in held for t in (loss, *kept, *rest)]
        runs.append((seen, [bits(w.detach()) for w in weights], gg.random.get_state()))
    assert runs[0] == runs[1]


@gg.no_grad()
def test_ids_out_of_range_are_refused_in_replays():
    table = gg.tensor(np.ones((4, 2), np.float32), requires_grad=True)

    @gg.compile
    def step(ids, targets):
        return F.cross_entropy(F.embedding(ids, table), targets)

    step(np.array([1, 3]), np.array([0, 1]))
    for wrong in ((np.array([1, 4]), np.array([0, 1])), (np.array([1, 2]), np.array([0, -1]))):
        with pytest.raises(IndexError, match=r"is (4|-1), but the number of"):
            step(*wrong)
    assert step(np.array([1, 3]), np.array([0, 1])).item() == pytest.approx(np.log(2))
    assert step.recordings == 1


def test_an_error_in_a_replay_leaves_the_optimiser_as_it_was():
    table = gg.tensor(np.ones((4, 2), np.float32), requires_grad=True)
    optimizer = optim.AdamW([table], lr=0.1)

    @gg.compile
    def step(ids):
        F.embedding(ids, table).sum().backward()
        optimizer.step(max_norm=1.0)
        optimizer.zero_grad()

    step(np.array([1, 3]))
    before = bits(table), bits(optimizer.state_dict()["state"]["0"]["exp_avg"])
    with pytest.raises(IndexError):
        step(np.array([1, 4]))
    assert before == (bits(table), bits(optimizer.state_dict()["state"]["0"]["exp_avg"]))
    assert table.grad is None
    step(np.array([1, 3]))
    assert optimizer.state_dict()["state"]["0"]["step"] == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("other", ["bfloat16", "float16", "float32"])
def test_changes_in_place_of_any_precision(dtype, other, rng):
    data = [rng.standard_normal(5).astype("f") for _ in range(4)]
    runs = []
    for wrap in (lambda step: step, gg.compile):
        mean, w = gg.tensor(data[0], dtype=dtype), gg.tensor(data[1], dtype=other)
        mask = gg.tensor(data[1] > 0)

        @wrap
        @gg.no_grad()
        def step(x, mean=mean, w=w, mask=mask):
            mean *= 0.9
            mean += w * 0.1
            mean -= x
            mean.add_(x)
            mean.mul_(w)
            mean.masked_fill_(mask, 0.5)
            mean[1:3] = x[:2]
            return mean + 1

        runs.append([bits(step(gg.tensor(x, dtype=other))) for x in data])
    assert runs[0] == runs[1]


LAYOUTS = {
    "fortran": np.asfortranarray,
    "reversed": lambda a: a[:, ::-1],
    "transposed and reversed": lambda a: a[::-1].copy().T.copy().T[::-1],
    "every other": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "one column": lambda a: np.broadcast_to(a[:, :1], a.shape),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_sums_take_the_order_of_the_axes_of_arguments_and_results(name, rng):
    def step(x):
        return x.sum(), x.mean(axis=0), (x * x).sum(axis=1), x @ x.T, x.T + 1, x * 2

    compiled = gg.compile(step)
    for _ in range(2):
        plain = rng.standard_normal((137, 211)).astype("f")
        for array in (plain, LAYOUTS[name](plain)):
            expected, found = step(gg.asarray(array)), compiled(gg.asarray(array))
            assert [*map(bits, found)] == [*map(bits, expected)]
            assert [bits(a.sum()) for a in found] == [bits(a.sum()) for a in expected]
    assert compiled.recordings == 1 + (name != "every other")  # gaps are no order


@gg.no_grad()
def test_gaps_and_axes_of_one_element_make_no_other_recordings():
    base = np.arange(60, dtype=np.float32).reshape(5, 3, 4)
    step = gg.compile(lambda x: (x * 2).sum(axis=-1))
    in_c_order = base[:, :1], base[:, :1].copy(), base[:, None, 1]
    turned = [x.T for x in in_c_order]
    for recordings, arrays in enumerate((in_c_order, turned), 1):
        for x in arrays:
            np.testing.assert_array_equal(step(x).numpy(), (x * 2).sum(axis=-1))
        assert step.recordings == recordings


@pytest.mark.parametrize("given", [None, np.asarray, np.asfortranarray], ids=str)
@pytest.mark.parametrize("of", [np.asarray, np.asfortranarray], ids=["c", "fortran"])
def test_sums_take_the_order_of_the_axes_of_gradients(given, of):
    runs = []
    for wrap in (lambda step: step, gg.compile):
        rng = np.random.default_rng(7)
        w = gg.asarray(of(rng.standard_normal((137, 211)).astype("f"))).requires_grad_()
        if given is not None:
            w.grad = gg.asarray(given(rng.standard_normal((137, 211)).astype("f")))

        @wrap
        def step(x, w=w):
            gg.tanh(x @ w.T).sum().backward()
            (w * w).sum().backward()
            return w.grad.sum(), w.grad.sum(axis=0)

        seen = []
        for _ in range(3):
            seen += map(bits, step(gg.asarray(rng.standard_normal((53, 211)).astype("f"))))
            seen += [bits(w.grad), bits(w.grad.sum()), w.grad.numpy().strides]
        runs.append(seen)
    assert runs[0] == runs[1]


def test_gaps_and_axes_of_one_element_of_gradients_make_no_other_recordings():
    w = gg.ones(5, 1, requires_grad=True)
    step = gg.compile(lambda x: (w.T * x).sum().backward())
    gaps = np.ones((5, 2), np.float32)[:, :1]
    for given in (gaps, gaps.copy(), gaps.T.copy().T, np.ones((3, 5), np.float32)[:1].T):
        w.grad = gg.asarray(given)
        for number in (2, 3):
            step(np.ones((1, 5), np.float32))
            assert w.grad.tolist() == [[number]] * 5
    assert step.recordings == 1


def test_results_are_the_callers_and_gradients_the_steps():
    w = gg.tensor(np.ones(3, np.float32), requires_grad=True)

    @gg.compile
    def step(x):
        w.grad = None
        out = w * x
        out.sum().backward()
        return out, out[1:]

    first, part = step(np.full(3, 2, np.float32))
    gradient = w.grad
    step(np.full(3, 5, np.float32))
    assert first.tolist() == [2] * 3
    assert part.tolist() == [2] * 2
    assert gradient is w.grad
    assert gradient.tolist() == [5] * 3


def test_raw_numpy_in_a_step_is_recorded():
    """NumPy asks the recorded array what its functions mean, in the user's code too."""

    class Cube(gg.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return np.power(x, 3)

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * 3 * np.square(x)

    w = gg.tensor(np.arange(3, dtype=np.float32), requires_grad=True)

    @gg.compile
    def step(x):
        w.grad = None
        Cube.apply(w * x).sum().backward()

    for scale in (1.0, 2.0):
        step(np.full(3, scale, np.float32))
        assert w.grad.tolist() == [scale**3 * 3 * v * v for v in range(3)]


def test_the_mode_of_a_part_is_that_of_the_recording(rng):
    """What GELU keeps depends on whether there may be a gradient: in a replay as when recorded."""
    x = rng.standard_normal((3, 4)).astype("f")
    w = gg.tensor(rng.standard_normal((4, 4)).astype("f"), requires_grad=True)

    def step(x):
        with gg.no_grad():
            ahead = F.gelu(F.linear(x, w))
        with gg.enable_grad():
            out = F.gelu(F.linear(ahead, w))
            out.sum().backward()
        gradient, w.grad = w.grad, None
        return out, gradient

    expected = [bits(t.detach()) for t in step(gg.tensor(x))]
    compiled = gg.compile(step)
    for _ in range(2):
        assert [bits(t) for t in compiled(x)] == expected
    with gg.no_grad():
        assert [bits(t) for t in compiled(x)] == expected
    assert compiled.recordings == 2


def test_fused_operations_write_where_the_step_has_their_results(rng):
    """No result of a block of a transformer is copied: implementations ask gpugrad.memory."""
    model = nn.TransformerBlock(16, 2)

    @gg.compile
    def step(x):
        model(x).sum().backward()
        gradients = [p.grad for p in model.parameters()]
        model.zero_grad()
        return gradients

    step(rng.standard_normal((2, 4, 16)).astype("f"))
    wholes = [
        launch for launch in recorded(step).trace.launches if isinstance(launch.function, Whole)
    ]
    large = [b.nbytes for launch in wholes for b in launch.args[1] if b.nbytes > 256]
    assert len(wholes) > 10
    assert large == []


def test_what_a_backward_does_not_read_is_not_kept_for_it():
    x, weight = leaf(40, 8), leaf(8, seed=1)

    @gg.compile
    def step():
        (F.softmax(x * 2.0) * weight).sum().backward()

    step()
    launches = recorded(step).trace.launches
    names = [launch.name for launch in launches]
    (made,) = launches[names.index("multiply")].writes
    readers = [k.name for k in launches if made.storage in {b.storage for b in k.reads}]
    assert readers == ["softmax"]
    assert "softmax_backward" in names


@gg.no_grad()
def test_recording_does_not_compute_the_rows(monkeypatch):
    counted = []
    for_several = threads._for_rows

    def counting(count, *others):
        counted.append(count)
        for_several(count, *others)

    monkeypatch.setattr(threads, "_for_rows", counting)
    x = leaf(700, 300)
    step = gg.compile(lambda: F.softmax(x).sum())
    counts = []
    for _ in range(2):
        counted.clear()
        step()
        counts.append(len(counted))
    assert counts[0] == counts[1] > 0


def test_memory_is_asked_for_as_it_was():
    asked = []

    def odd(x):
        asked.append(len(asked) + 2)
        return memory.empty((asked[-1],), np.float32)

    trace = recording.NumpyTrace()
    with recording.recording(trace):
        recording.as_one(odd, trace.input((2,), np.float32))
    (launch,) = trace.launches
    with pytest.raises(RuntimeError, match="odd asks for other memory"):
        launch.function([np.empty(2, np.float32)], [], (np.ones(2),), {})


def test_elementwise_results_overwrite_what_nothing_reads_any_more(rng):
    def step(x):
        y = gg.tanh(x * 2) + 1
        z = gg.exp(y)  # beside y, which is read again
        return gg.sqrt(z - y) * 3

    run = gg.compile(step)
    x = rng.standard_normal((8, 64)).astype("f")
    with poisoned():
        assert bits(run(x)) == bits(step(gg.tensor(x)))
    assert recorded(run).replay.layout.plan.size == 2 * x.nbytes


def test_a_result_does_not_overwrite_what_is_read_in_another_order(rng):
    def step(x):
        y = x * 2
        return y + y.T

    x = rng.standard_normal((64, 64)).astype("f")
    run = gg.compile(step)
    assert bits(run(x)) == bits(step(gg.tensor(x)))
    assert recorded(run).replay.layout.plan.size == 2 * x.nbytes


@pytest.mark.parametrize("exponent", [3.0, -0.5, 1.0, 0.0])
def test_slopes_of_powers_have_the_bits_of_a_plain_run(rng, exponent):
    def step(x):
        return gg.grad((abs(x) ** exponent).sum(), [x])[0]

    x = gg.tensor(rng.standard_normal((50, 70)).astype("f"), requires_grad=True)
    assert bits(gg.compile(step)(x)) == bits(step(x))


def test_each_run_adds_at_its_own_indices():
    def step(x, ids):
        (g,) = gg.grad((x[ids] ** 2).sum(), [x], create_graph=True)
        (second,) = gg.grad((g * g).sum(), [x])
        return gg.index_add(second, ids, 1.0).detach()

    x, run = leaf(5, 3), gg.compile(step)
    for ids in ([1, 1, 4], [0, -1, 2], [3, 3, 3]):
        assert bits(run(x, np.array(ids))) == bits(step(x, np.array(ids)))
    add, x = gg.compile(lambda x, ids: gg.index_add(x, ids, 1.0)), gg.zeros(5, 3)
    add(x, (np.array([0]), np.array([2])))
    with pytest.raises(IndexError, match="index 3 is out of range for axis 1 of length 3"):
        add(x, (np.array([0]), np.array([3])))
