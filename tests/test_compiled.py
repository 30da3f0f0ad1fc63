"""gg.compile: what is replayed gives the bits of what is run, and nothing stale is ever used."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import compiled, cuda, emulator, nn, optim
from gpugrad.cuda import recording
from gpugrad.cuda.recording import NotRecordable
from gpugrad.cuda.replay import Layout, Replay
from gpugrad.models import GPT, GPTConfig
from gpugrad.nn import functional as F


@pytest.fixture
def rng():
    return np.random.default_rng()


@pytest.fixture(autouse=True)
def emulated():
    with emulator.enabled("plain"):
        yield


def bits(x):
    array = x.numpy() if isinstance(x, gg.Tensor) else np.asarray(x)
    return array.tobytes()


def recorded(function):
    """Return the only recording of a compiled function."""
    ((found,),) = function._found.values()
    return found


def gpt(**changes):
    gg.manual_seed(3)
    shape = {"vocab_size": 37, "block_size": 12, "n_layer": 2, "n_head": 2, "n_embd": 64}
    return GPT(GPTConfig(**{**shape, **changes}))


def batches(rng, count, shape=(2, 12), vocabulary=37):
    return [tuple(rng.integers(0, vocabulary, (2, *shape))) for _ in range(count)]


def trainer(model, replayed, max_norm=1.0):
    optimizer = optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)

    def step(x, y):
        loss = model.loss(x, y)
        loss.backward()
        norm = optimizer.step(max_norm=max_norm)
        optimizer.zero_grad()
        return loss, norm

    return (gg.compile(step) if replayed else step), optimizer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_training_step_of_gpt_gives_the_same_bits(dtype, dropout, rng):
    data = batches(rng, 4)
    runs = []
    for replayed in (False, True):
        model = gpt(dtype=dtype, dropout=dropout)
        step, optimizer = trainer(model, replayed)
        results = []
        for number, (x, y) in enumerate(data):
            optimizer.param_groups[0]["lr"] = 1e-2 / (number + 1)
            results += [bits(value) for value in step(x, y)]
        state = optimizer.state_dict()["state"]
        moments = [bits(s["exp_avg"]) + bits(s["exp_avg_sq"]) for s in state.values()]
        runs.append(
            (results, [bits(p) for p in model.parameters()], moments, gg.random.get_state())
        )
        assert {int(s["step"]) for s in state.values()} == {4}
    assert runs[0] == runs[1]


def test_one_recording_serves_many_steps_and_another_shape_makes_one_more(rng):
    model = gpt()
    step, _ = trainer(model, True)
    for x, y in batches(rng, 3):
        step(x, y)
    assert step.recordings == 1
    for x, y in batches(rng, 2, (3, 7)):
        step(x, y)
    assert step.recordings == 2
    step(*batches(rng, 1)[0])
    assert step.recordings == 2


def test_no_two_live_storages_overlap_and_the_arena_is_tight(rng):
    step, _ = trainer(gpt(n_layer=4), True)
    step(*batches(rng, 1)[0])
    layout = recorded(step).replay.layout
    assert layout.plan.size <= 1.05 * layout.plan.lower_bound
    rows = sorted(
        zip(layout.first, layout.last, layout.plan.offsets, layout.storages, strict=True),
        key=lambda row: row[0],
    )
    for i, (first, last, offset, storage) in enumerate(rows):
        for other_first, other_last, other, stored in rows[i + 1 :]:
            if other_first <= last and first <= other_last:
                assert offset + storage.nbytes <= other or other + stored.nbytes <= offset


def test_the_checked_build_finds_nothing_in_a_replay(rng):
    with emulator.enabled("checked", poison=0x7F):
        step, _ = trainer(gpt(n_layer=1), True)
        for x, y in batches(rng, 2):
            loss, norm = step(x, y)
            assert np.isfinite(loss.item())
            assert np.isfinite(norm.item())


def test_no_launch_is_left_out_of_the_count(rng):
    x, y = batches(rng, 1)[0]
    counts = []
    for replayed in (False, True):
        step, _ = trainer(gpt(), replayed)
        before = cuda.launches.copy()
        step(x, y)
        counts.append(cuda.launches - before)
    plain = {k: n for k, n in counts[0].items() if not k.startswith("elementwise")}
    again = {k: n for k, n in counts[1].items() if not k.startswith(("elementwise", "copy"))}
    assert plain == again


# Gradients


def affine(rng):
    w = gg.tensor(rng.standard_normal((5, 4)).astype("f"), requires_grad=True)

    def step(x):
        loss = (F.linear(x, w) ** 2).sum()
        loss.backward()
        return loss

    return w, step


def test_gradients_stay_in_grad(rng):
    w, step = affine(rng)
    compiled = gg.compile(step)
    for _ in range(3):
        x = rng.standard_normal((6, 4)).astype("f")
        w.grad = None
        step(x)
        expected = bits(w.grad)
        w.grad = None
        compiled(x)
        assert bits(w.grad) == expected
    assert compiled.recordings == 1


def test_gradients_add_up_over_calls(rng):
    w, step = affine(rng)
    compiled = gg.compile(step)
    xs = [rng.standard_normal((6, 4)).astype("f") for _ in range(4)]
    for x in xs:
        step(x)
    expected = bits(w.grad)
    for _ in range(2):
        w.grad = None
        for x in xs:
            compiled(x)
        assert bits(w.grad) == expected
    assert compiled.recordings == 2  # with and without a gradient to add to


def test_zero_grad_inside_forgets_what_was_there(rng):
    w, _step = affine(rng)
    module = nn.Module()
    module.w = nn.Parameter(w.data)

    @gg.compile
    def fresh(x):
        module.zero_grad()
        (F.linear(x, module.w) ** 2).sum().backward()

    x = rng.standard_normal((6, 4)).astype("f")
    fresh(x)
    first = bits(module.w.grad)
    fresh(x)
    assert bits(module.w.grad) == first
    assert fresh.recordings == 1


def test_an_error_leaves_parameters_and_gradients_alone(rng):
    w, _ = affine(rng)
    data, w.grad = w.data, gg.ones_like(w)
    gradient = w.grad

    @gg.compile
    def step(x):
        w.grad = None
        loss = F.linear(x, w).sum()
        loss.backward()
        return float(loss)

    with pytest.raises(NotRecordable, match=r"reading the values.*test_compiled\.py:\d+"):
        step(np.ones((2, 4), np.float32))
    assert w.data is data
    assert w.grad is gradient
    assert (F.linear(np.ones((1, 4), np.float32), w)).shape == (1, 5)


# What a recording depends on


def test_modes_of_modules(rng):
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    x = rng.standard_normal((4, 8)).astype("f")
    run = gg.compile(lambda x: model(x))
    model.train()
    kept = run(x).numpy()
    model.eval()
    np.testing.assert_array_equal(run(x).numpy(), model(x).numpy())
    assert (kept == 0).any()
    assert run.recordings == 2
    model.train()
    assert bits(run(x)) != bits(run(x))
    assert run.recordings == 2


def test_numbers_and_replaced_parameters(rng):
    w = gg.tensor(rng.standard_normal((3, 3)).astype("f"), requires_grad=True)
    run = gg.compile(lambda x, factor: F.linear(x, w) * factor)
    x = rng.standard_normal((2, 3)).astype("f")
    one, two = run(x, 1.0).numpy(), run(x, 2.0).numpy()
    np.testing.assert_array_equal(one * 2, two)
    w.data = w.data * 3
    np.testing.assert_allclose(run(x, 1.0).numpy(), one * 3, rtol=1e-5, atol=1e-6)
    assert run.recordings == 3


def test_too_many_recordings_say_so():
    run = gg.compile(lambda x, k: x * k)
    x = np.ones(3, np.float32)
    for k in range(16):
        run(x, k)
    with pytest.warns(UserWarning, match="was recorded 16 times"):
        run(x, 16)
    assert run(x, 17).tolist() == [17] * 3
    assert run(x, 3).tolist() == [3] * 3
    assert run.recordings == 16


def test_results_belong_to_the_caller():
    run = gg.compile(lambda x: {"twice": x * 2, "same": [x, 3, None]})
    first = run(np.full(4, 1, np.float32))
    second = run(np.full(4, 5, np.float32))
    assert first["twice"].tolist() == [2] * 4
    assert second["twice"].tolist() == [10] * 4
    assert first["same"][0].tolist() == [1] * 4
    assert first["same"][1:] == [3, None]


def test_without_kernels_the_function_runs_as_it_is():
    seen = []

    @gg.compile
    def run(x):
        seen.append(float(x.sum()))
        return x

    with cuda.emulation.disabled():
        run(gg.ones(3))
        run(gg.ones(4))
    assert seen == [3, 4]
    assert run.recordings == 0


def test_a_step_runs_where_its_tensors_are(monkeypatch):
    """A machine with a GPU, and a model that was left on the CPU."""
    w = gg.tensor(np.ones(3, np.float32), requires_grad=True, device="cpu")
    values = []

    @gg.compile
    def run(x):
        values.append(float((w * x).sum()))  # which no recording knows
        return w * x

    monkeypatch.setenv("GPUGRAD_DEVICE", "cuda")
    monkeypatch.setattr(compiled, "_capability", lambda device: 90)  # of whatever there is
    with cuda.emulation.disabled():
        for _ in range(2):
            assert run(np.full(3, 2, np.float32)).tolist() == [2] * 3
    assert values == [6, 6]


def test_a_compiled_function_inside_of_another():
    inner = gg.compile(lambda x: x * 2)
    outer = gg.compile(lambda x: inner(x) + 1)
    assert outer(np.ones(2, np.float32)).tolist() == [3, 3]
    assert (inner.recordings, outer.recordings) == (0, 1)


# What is changed in place


def test_an_expression_is_computed_before_what_it_reads_changes(rng):
    w = gg.tensor(rng.standard_normal(64).astype("f"), requires_grad=True)

    @gg.compile
    def step(x):
        before = w * x  # nobody has read it when w changes
        with gg.no_grad():
            w.__isub__(0.5 * x)
        return before, w * 1.0

    for _ in range(2):
        x, old = rng.standard_normal(64).astype("f"), w.numpy().copy()
        before, after = step(x)
        np.testing.assert_array_equal(before.numpy(), old * x)
        np.testing.assert_array_equal(after.numpy(), old - np.float32(0.5) * x)
        np.testing.assert_array_equal(w.numpy(), old - np.float32(0.5) * x)


def test_a_plain_tensor_that_a_step_changes():
    total = gg.zeros(3)

    @gg.compile
    def add(x):
        with gg.no_grad():
            total.__iadd__(x)
            total[:1] = x[:1] * 100

    for _ in range(3):
        add(np.ones(3, np.float32))
    assert total.tolist() == [100, 3, 3]


# What cannot be


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x if x.sum() > 0 else -x, "reading the values"),
        (lambda x: gg.sort(x), "sort"),
        (lambda x: x.numpy(), "reading the values"),
        (lambda x: x[x > 0], "indexing with Buffer"),
        (lambda x: x.astype(gg.float64) * 2, "float64"),
        (lambda x: gg.max(x), "max"),
    ],
    ids=["if", "sort", "numpy", "mask", "float64", "max"],
)
def test_what_is_refused_names_itself_and_the_line(function, words):
    with pytest.raises(NotRecordable, match=r"test_compiled\.py") as caught:
        gg.compile(function)(np.ones(4, np.float32))
    assert words in str(caught.value)


def test_values_of_tensors_from_outside_are_not_read():
    w = gg.tensor(np.ones((2, 2), np.float32), requires_grad=True)
    scale = gg.tensor(2.0)
    for look in (
        lambda x: x * float(w.detach()[0, 0]),
        lambda x: x * scale.item(),
        lambda x: x if scale.detach() > 0 else -x,
        lambda x: x * w.detach().numpy(),
        lambda x: x * scale.tolist(),
    ):
        with pytest.raises(NotRecordable, match="reading the values"):
            gg.compile(look)(np.ones(2, np.float32))


def test_settings_that_change_between_two_steps_are_refused():
    w = gg.tensor(np.ones(2, np.float32), requires_grad=True)
    optimizer = optim.SGD([w], lr=1.0)

    @gg.compile
    def step(x):
        for lr in (1.0, 0.1):
            optimizer.param_groups[0]["lr"] = lr
            (w * x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    with pytest.raises(NotRecordable, match="changing the settings of SGD"):
        step(np.ones(2, np.float32))


@pytest.mark.parametrize("result", [{1}, (i for i in "ab")], ids=["set", "generator"])
def test_other_results(result):
    with pytest.raises(TypeError, match="is returned"):
        gg.compile(lambda x: result)(np.ones(2, np.float32))


def test_an_argument_with_a_graph():
    w = gg.tensor([1.0], requires_grad=True)
    with pytest.raises(TypeError, match="detach"):
        gg.compile(lambda x: x)(w * 2)


def test_what_escaped_from_a_recording():
    kept = []
    gg.compile(lambda x: kept.append(x * 2))(np.ones(3, np.float32))
    with pytest.raises(NotRecordable, match="outside of"):
        (kept[0] + 1).sum()


def test_other_arguments():
    with pytest.raises(TypeError, match="an argument is a set"):
        gg.compile(lambda x: x)({1})


def test_other_threads_compute_meanwhile():
    w = gg.tensor(np.ones(3, np.float32), requires_grad=True)
    found = []

    @gg.compile
    def step(x):
        other = gg.tensor(np.full(3, 7, np.float32), requires_grad=True)
        thread = threading.Thread(target=lambda: found.append((other * 2).numpy()))
        thread.start()
        thread.join()
        return w * x

    step(np.ones(3, np.float32))
    assert found[0].tolist() == [14] * 3


# Views


def random_view(rng, x):
    """Return a function that makes a view or copy of an array, of random kind."""
    kind = rng.integers(6)
    if kind == 0 and x.ndim:
        axes = tuple(map(int, rng.permutation(x.ndim)))
        return lambda a: a.transpose(axes)
    if kind == 1 and x.ndim:
        axis = int(rng.integers(x.ndim))
        start = int(rng.integers(x.shape[axis]))
        stop = int(rng.integers(start, x.shape[axis])) + 1
        step = int(rng.integers(1, 3))
        index = (slice(None),) * axis + (slice(start, stop, step),)
        return lambda a: a[index]
    if kind == 2 and x.ndim > 1:
        index = int(rng.integers(x.shape[0]))
        return lambda a: a[index]
    if kind == 3:
        return lambda a: a.reshape(-1)
    if kind == 4:
        factors = [n for n in range(1, x.size + 1) if x.size % n == 0]
        first = int(rng.choice(factors))
        rest = x.size // first
        second = int(rng.choice([n for n in range(1, rest + 1) if rest % n == 0]))
        return lambda a: a.reshape(first, second, rest // second)
    return lambda a: a[None]


def test_views_are_those_of_numpy(rng):
    for _ in range(60):
        x = rng.standard_normal(tuple(rng.integers(1, 5, 3))).astype("f")
        steps, y = [], x
        for _ in range(rng.integers(1, 6)):
            view = random_view(rng, y)
            steps.append(view)
            y = view(y)

        def run(a, steps=tuple(steps)):
            data = a._data
            for view in steps:
                data = view(data)
            return data * 1.0 if data.flags.c_contiguous else data

        trace = recording.Trace(cuda.EMULATED)
        got = gg.compile(run)(x)
        np.testing.assert_array_equal(got.numpy(), y)
        assert got.shape == y.shape
        assert not trace.launches


def test_constants_made_inside():
    @gg.compile
    def lower(x):
        seen = np.arange(4) <= np.arange(4)[:, None]
        return gg.where(seen, x, -1.0) + np.ones(4, np.float32)

    x = np.full((4, 4), 7, np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(lower(x).numpy(), np.where(np.tri(4) > 0, x, -1) + 1)


def test_sums_and_joins(rng):
    x = rng.standard_normal((3, 4, 5)).astype("f")

    @gg.compile
    def run(x):
        joined = gg.concat([x, x * 2], axis=1)
        return [gg.sum(joined, axis=axis) for axis in (0, 1, 2, (0, 2))] + [
            gg.mean(joined, axis=1, keepdims=True),
            gg.stack([x, -x], axis=2),
            joined.sum(),
        ]

    both = np.concatenate([x, x * 2], axis=1)
    expected = [both.sum(axis=axis) for axis in (0, 1, 2, (0, 2))]
    expected += [both.mean(axis=1, keepdims=True), np.stack([x, -x], axis=2), both.sum()]
    for got, wanted in zip(run(x), expected, strict=True):
        np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-5, atol=1e-5)


# Without any memory


def test_a_model_on_the_device_meta_is_recorded_from_shapes():
    """GPT-2 124M at batch 64: nothing is allocated, and its products are those of a hand count."""
    config = GPTConfig(vocab_size=50304, dtype="bfloat16")
    model = GPT(config, device="meta")
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    trace = recording.Trace(90)
    state = trace.input((2,), gg.uint64)
    with recording.recording(trace), gg.random.recording(state):
        x, y = (gg.Tensor(trace.input((64, 1024), gg.int64)) for _ in range(2))
        loss = model.loss(x, y)
        loss.backward()
        optimizer.step(max_norm=1.0)
    flops = sum(launch.flops for launch in trace.launches) / (64 * 1024)
    assert flops == pytest.approx(741e6, rel=0.02)
    layout = Layout(trace, [loss.data])
    assert layout.plan.size <= 1.05 * layout.plan.lower_bound
    assert len(trace.launches) <= 300
    logits = max(storage.nbytes for storage in layout.storages)
    assert logits == 64 * 1024 * 50304 * 2  # 6.6 GB
    with pytest.raises(NotRecordable, match="'meta' has no memory"):
        Replay(trace, "cpu", [loss.data], [])


def test_what_nothing_reads_is_not_launched(rng):
    w = gg.tensor(rng.standard_normal((4, 4)).astype("f"), requires_grad=True)

    @gg.compile
    def step(x):
        F.softmax(x)  # for nobody
        hidden = gg.checkpoint(lambda a: F.linear(F.gelu(F.linear(a, w)), w), x)
        hidden.sum().backward()
        return hidden

    step(rng.standard_normal((3, 4)).astype("f"))
    names = [launch.name for launch in recorded(step).trace.launches]
    assert not any("softmax" in name for name in names)
    assert sum(name.startswith("gemm") for name in names) == 2 + 1 + 3  # forward, again, backward


def test_a_parameter_that_is_frozen_later(rng):
    w, v = (gg.tensor(rng.standard_normal(4).astype("f"), requires_grad=True) for _ in range(2))

    @gg.compile
    def step(x):
        w.grad = v.grad = None
        (w * v * x).sum().backward()

    x = np.ones(4, np.float32)
    step(x)
    assert v.grad is not None
    v.requires_grad = False
    step(x)
    assert v.grad is None
    assert step.recordings == 2


def test_a_view_from_outside_is_read_before_its_memory_changes(rng):
    w = gg.tensor(rng.standard_normal(8).astype("f"), requires_grad=True)
    part = gg.Tensor(w.data[2:6])

    @gg.compile
    def step(x):
        before = part * x  # nobody has read it when w changes
        with gg.no_grad():
            w.__isub__(1.0)
        return before, part * x

    for _ in range(2):
        old = w.numpy().copy()
        before, after = step(np.full(4, 3, np.float32))
        np.testing.assert_array_equal(before.numpy(), old[2:6] * 3)
        np.testing.assert_array_equal(after.numpy(), (old - np.float32(1))[2:6] * 3)


def test_threads_take_turns(rng):
    w = gg.tensor(rng.standard_normal((16, 16)).astype("f"))
    run = gg.compile(lambda x: F.softmax(F.linear(F.gelu(F.linear(x, w)), w)))
    xs = [rng.standard_normal((5, 16)).astype("f") for _ in range(8)]
    expected = [bits(run(x)) for x in xs]

    def call(x):
        with emulator.enabled("plain"):
            return bits(run(x))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, xs)) == expected


# What changes from call to call, in a step that is run and in one that is replayed


def both(make, calls):
    """Return what the calls return for a plain and for a compiled step of ``make()``."""
    found = []
    for wrap in (lambda f: f, gg.compile):
        gg.manual_seed(1)
        found.append(calls(*make(wrap)))
    return found


def one_weight(loss, clear_last=True, **given):
    """Return a maker of a step on a weight w (2,), by SGD."""

    def make(wrap):
        w = gg.tensor([1.0, 1.0], requires_grad=True)
        optimizer = optim.SGD([w], lr=0.1, **given)

        def step(x):
            loss(w, x).backward()
            optimizer.step()
            if clear_last:
                optimizer.zero_grad()

        return w, wrap(step), optimizer

    return make


ONE = np.ones(2, np.float32)


def test_tensors_made_inside_and_changed_there(rng):
    @gg.compile
    def total(x):
        out, count = gg.zeros(4), gg.tensor(0.0)
        for i in range(2):
            out += x[i]
            count += 1.0
        out[2] = -1.0
        return out, count

    x = rng.standard_normal((2, 4)).astype("f")
    for _ in range(3):
        out, count = total(x)
        expected = x.sum(axis=0)
        expected[2] = -1
        np.testing.assert_allclose(out.numpy(), expected, rtol=1e-6)
        assert count.item() == 2


def test_a_gradient_that_was_there_before_is_used():
    def calls(w, step, optimizer):
        step(ONE)
        (w * 5).sum().backward()
        step(ONE)
        w.grad = gg.tensor([2.0, 3.0])
        step(ONE)
        return w.tolist()

    plain, replayed = both(one_weight(lambda w, x: (w * x).sum()), calls)
    np.testing.assert_allclose(plain, replayed, rtol=1e-6)


def test_what_is_computed_from_constants_follows_them():
    scale, table = gg.tensor(2.0), np.array([1.0, 2.0], np.float32)

    def loss(w, x):
        return (w.detach() ** 2 * w * x * (1 / scale) * gg.exp(table)).sum()

    def calls(w, step, optimizer):
        for number in range(3):
            with gg.no_grad():
                scale[...] = number + 1.0
            table[...] = number
            step(ONE)
        return w.tolist()

    plain, replayed = both(one_weight(loss), calls)
    np.testing.assert_allclose(plain, replayed, rtol=1e-6)


def test_joined_and_split_parameters():
    def make(wrap):
        a, b = (gg.tensor([1.0, 2.0], requires_grad=True) for _ in "ab")
        optimizer = optim.SGD([a, b], lr=0.1)

        def step(x):
            first, second = gg.split(gg.concat([a, b]) * gg.concat([b, x]), 2)
            (first * second).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        return a, b, wrap(step)

    def calls(a, b, step):
        for _ in range(3):
            step(ONE)
        return a.tolist() + b.tolist()

    plain, replayed = both(make, calls)
    np.testing.assert_allclose(plain, replayed, rtol=1e-6)


def test_gradients_that_share_memory(rng):
    a, b = (gg.tensor(np.ones((2, 2), np.float32), requires_grad=True) for _ in "ab")
    step = gg.compile(lambda x: ((a + b.T) * x).sum().backward())
    x = np.array([[1, 2], [3, 4]], np.float32)
    step(x)
    step(x)
    np.testing.assert_array_equal(a.grad.numpy(), 2 * x)
    np.testing.assert_array_equal(b.grad.numpy(), 2 * x.T)


def test_data_that_is_assigned():
    def make(wrap):
        w = gg.tensor([1.0, 1.0], requires_grad=True)
        mean = gg.zeros(2)

        def step(x):
            (w * x).sum().backward()
            w.data = w.data - 0.1 * w.grad.data
            mean.data *= 0.9
            mean.data[0] = 5.0
            w.grad = None

        return w, mean, wrap(step)

    def calls(w, mean, step):
        mean.data[...] = 1.0
        for _ in range(3):
            step(ONE)
        return w.tolist() + mean.tolist()

    plain, replayed = both(make, calls)
    np.testing.assert_allclose(plain, replayed, rtol=1e-6)


def test_a_graph_from_before_a_step_is_stale():
    w, step, _ = one_weight(lambda w, x: (w * x).sum())(gg.compile)
    step(ONE)
    y = (w * w).sum()
    step(ONE)
    with pytest.raises(RuntimeError, match="a compiled step changed that array"):
        y.backward()


def test_replaced_parts_of_a_model(rng):
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Dropout(0.5))
    run = gg.compile(lambda x: model(x))
    model.eval()

    def agrees():
        np.testing.assert_allclose(run(ONE).numpy(), model(ONE).detach().numpy(), rtol=1e-5)

    agrees()
    model[0].weight = nn.Parameter(gg.zeros(2, 2))
    agrees()
    model[1] = nn.ReLU()
    agrees()
    model.train()
    model[2].p = 0.0
    agrees()


def test_a_model_that_looks_at_its_own_mode():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        @gg.compile
        def loss(self, x):
            return self.inner(x) * (2 if self.training else 1)

    model, other = Model(), Model()
    one = model.loss(ONE).numpy()
    model.eval()
    np.testing.assert_allclose(model.loss(ONE).numpy() * 2, one, rtol=1e-6)
    np.testing.assert_allclose(other.loss(ONE).numpy(), 2 * other.inner(ONE).detach().numpy())


def test_groups_hooks_and_parameters_as_arguments():
    w, v = (gg.tensor([1.0, 1.0], requires_grad=True) for _ in "wv")
    optimizer = optim.SGD([w], lr=0.1)

    @gg.compile
    def step(p, x):
        (p * v * x).sum().backward()
        optimizer.step()
        p.grad = v.grad = None

    step(w, ONE)
    np.testing.assert_allclose(w.tolist(), [0.9, 0.9])
    optimizer.add_param_group({"params": [v]})
    step(w, ONE)
    np.testing.assert_allclose(w.tolist(), [0.8, 0.8])
    np.testing.assert_allclose(v.tolist(), [0.91, 0.91])
    w.register_hook(lambda g: g * 0)
    step(w, ONE)
    np.testing.assert_allclose(w.tolist(), [0.8, 0.8])
    assert step.recordings == 3


def test_a_loss_whose_gradients_nobody_reads(rng):
    """Kernels that overwrite what they read: what wrote it before is needed."""
    model = gpt()
    run = gg.compile(lambda x, y: model.loss(x, y))
    for x, y in batches(rng, 2):
        assert bits(run(x, y)) == bits(model.loss(x, y).detach())


def test_tensors_made_inside_and_read_before_they_change():
    @gg.compile
    def step(x):
        z = gg.zeros(4)
        first = z + x
        z += 1.0
        table = gg.zeros((2, 4))
        row = table[0]
        row += x
        d = z.detach()
        d += x
        return first, z, table

    x = np.arange(4, dtype=np.float32)
    for _ in range(3):
        first, z, table = step(x)
        np.testing.assert_array_equal(first.numpy(), x)
        np.testing.assert_array_equal(z.numpy(), 1 + x)
        np.testing.assert_array_equal(table.numpy(), [x, 0 * x])


@pytest.mark.parametrize("clear", ["inside", "outside", "at the start"])
def test_a_gradient_of_a_parameter_that_the_step_does_not_use(clear):
    def make(wrap):
        w, p = (gg.tensor([1.0, 1.0], requires_grad=True) for _ in "wp")
        optimizer = optim.SGD([w, p], lr=0.1)

        def step(x):
            if clear == "at the start":
                optimizer.zero_grad()
            (w * x).sum().backward()
            norm = optimizer.step(max_norm=1.0)
            if clear == "inside":
                optimizer.zero_grad()
            return norm

        return w, p, wrap(step), optimizer

    def calls(w, p, step, optimizer):
        norms = []
        for number in range(4):
            if number % 2:
                (p * 3).sum().backward()
            norms.append(step(ONE).item())
            if clear == "outside":
                optimizer.zero_grad()
        return norms + w.tolist() + p.tolist() + [p.grad is None]

    plain, replayed = both(make, calls)
    np.testing.assert_allclose(plain, replayed, rtol=1e-5)


def test_settings_that_change_after_a_step_are_refused():
    w = gg.tensor(np.ones(2, np.float32), requires_grad=True)
    optimizer = optim.SGD([w], lr=1.0)

    @gg.compile
    def step(x):
        (w * x).sum().backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.5

    with pytest.raises(NotRecordable, match="after a step of it"):
        step(ONE)


def test_replaced_groups_and_attributes_that_a_step_sets():
    w = gg.tensor(np.ones(2, np.float32), requires_grad=True)
    optimizer = optim.SGD([w], lr=1.0)

    @gg.compile
    def step(x):
        (w * x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step(ONE)
    optimizer.param_groups[0] = {**optimizer.param_groups[0], "lr": 0.5}
    step(ONE)
    np.testing.assert_array_equal(w.tolist(), [-0.5, -0.5])

    class Counting(nn.Module):
        k = 0

        def forward(self, x):
            self.k += 1
            return x * self.k

    with pytest.raises(NotRecordable, match="an attribute of Counting"):
        gg.compile(Counting())(ONE)
