"""``compile``: a step function recorded once, then replayed without Python between the launches."""

from __future__ import annotations

import functools
import os
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, overload

from .. import backend, cuda, processes
from ..cuda import recording, replay
from ..cuda.recording import Buffer, Trace
from ..ops import random
from ..registry import state
from .arguments import flat, has_graph, objects, refuse_result, replaced, symbolic
from .ends import Ends, changes_at_end
from .guards import Guards, unchanged, watch_kinds
from .recorded import Recorded
from .settings import Settings
from .sight import Sight

OLDEST = 80  # compute capability for which all operations of a GPT have kernels
NAME = "gg.compile:"
MOST_RECORDINGS = 16  # of one function: shapes should repeat


_everyone: weakref.WeakSet[Compiled] = weakref.WeakSet()


def _after_fork() -> None:
    everyone = () if processes.is_helper() else list(_everyone)
    for compiled in everyone:
        compiled._lock = threading.RLock()  # a thread that is not in the child may have held it
    for compiled in everyone:
        compiled._part()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Compiled:
    """A function that is recorded when it is first called, and replayed afterwards.

    See ``compile``. ``recordings`` counts how often it was recorded.
    """

    def __init__(self, function: Callable[..., Any], device: str | None = None) -> None:
        if not callable(function):
            raise TypeError(f"{NAME} a function is needed, not {type(function).__name__}")
        functools.update_wrapper(self, function, updated=())
        self._function = function
        self._device = device
        self._found: dict[Any, list[Recorded]] = {}
        self._lock = threading.RLock()  # all calls share their memory
        _everyone.add(self)
        self._calls = 0
        self._warned = False

    @property
    def recordings(self) -> int:
        """How many recordings there are: one for each combination of shapes, modes and numbers."""
        return sum(map(len, self._found.values()))

    def __get__(self, instance: Any, owner: Any = None) -> Compiled:
        """Return the compiled method of an instance: each has recordings of its own."""
        if instance is None:
            return self
        key = f"<compiled {self._name} {id(self)}>"  # methods may have one name: lambdas do
        try:
            found = vars(instance).get(key)
        except TypeError:
            raise TypeError(
                f"{NAME} {self._name} is a method of a {type(instance).__name__}, "
                "which has __slots__ and no place for recordings; add '__dict__' to them, or "
                "compile a function that takes what the method uses from its closure"
            ) from None
        # none, that of which this is a copy, or that of another method which is gone
        if found is None or not found._is_method(instance, self._function):
            method = types.MethodType(self._function, instance)
            found = vars(instance)[key] = Compiled(method, self._device)
        return found

    def _is_method(self, instance: Any, function: Any) -> bool:
        own: Any = self._function  # of one from a pickle what unpickling found under its name
        is_method = isinstance(own, types.MethodType)
        return is_method and own.__self__ is instance and own.__func__ is function

    def _part(self) -> None:
        """Forget the recordings whose memory is the parent's as well."""
        for key, recordings in [*self._found.items()]:
            recordings[:] = [one for one in recordings if not one.replay.is_shared]
            if not recordings:
                del self._found[key]

    def __reduce__(self) -> tuple:
        """Copy it without its recordings."""
        return type(self), (self._function, self._device)

    @property
    def _name(self) -> str:
        return getattr(self._function, "__qualname__", type(self._function).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step: record it if nothing recorded fits, and replay it."""
        if recording.current() is not None or state.watch is not None:
            return self._function(*args, **kwargs)  # part of another step, or looked into
        arrays: list[Any] = []
        try:
            shapes = flat((args, kwargs), arrays)
        except TypeError as error:
            raise TypeError(f"{NAME} {self._name}: {error}") from None
        device = _device(arrays, self._device)
        if device != "cpu" and _capability(device) < OLDEST:
            return self._function(*args, **kwargs)
        with self._lock:
            return self._replayed(device, shapes, arrays, args, kwargs)

    def _replayed(
        self, device: str, shapes: Any, arrays: list[Any], args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        """Run the step from a recording, a new one if none holds."""
        by_numpy = device == "cpu" and not cuda.emulated()
        layouts = tuple(map(recording.dense, arrays)) if by_numpy else None
        key = (device, layouts, state.make_node is None, state.evaluating, shapes)
        chosen = next((r for r in self._found.get(key, ()) if r.holds()), None)
        if chosen is None:
            self._make_room()
            trace = (
                recording.NumpyTrace()
                if by_numpy
                else Trace(_capability(device), on_gpu=device != "cpu")
            )
            try:
                chosen = self._record(trace, device, args, kwargs)
            except recording.NotRecordable as error:
                place = trace.place
                on_gpu = any(backend.device_of(a) != "cpu" for a in arrays)
                if on_gpu or place in (None, device):
                    error.args = (str(error).replace(NAME, f"{NAME} {self._name}:", 1),)
                    raise
                self._device = place  # what it computes with is elsewhere
                return self(*args, **kwargs)
            self._found.setdefault(key, []).append(chosen)
        self._calls += 1
        chosen.used = self._calls
        return chosen.run(arrays)

    def _make_room(self) -> None:
        """Forget the recording that was not used for longest where there are too many; say so."""
        if self.recordings < MOST_RECORDINGS:
            return
        every = ((one, key) for key, found in self._found.items() for one in found)
        oldest, key = min(every, key=lambda pair: pair[0].used)
        self._found[key].remove(oldest)
        if not self._found[key]:
            del self._found[key]  # which may keep objects alive
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{NAME} {self._name} was recorded {MOST_RECORDINGS} times, for other shapes, "
                "numbers, parameters or gradients each time, which is slow; pass what changes as "
                "an array, pad to few shapes, call zero_grad() in the step",
                stacklevel=4,
            )

    def _record(self, trace: Trace, device: str, args: tuple, kwargs: dict[str, Any]) -> Recorded:
        random_state = trace.input((2,), backend.uint64)
        sight = Sight(self._function, objects((args, kwargs)))
        watches = sight.watches()
        trace.modules.update((module, module.held()) for module in sight.modules)
        settings = Settings(sight.optimizers)
        with recording.recording(trace), random.recording(random_state) as draws:
            trace.drawn = lambda: draws.blocks
            given, keywords = symbolic((args, kwargs), trace)
            with settings.recorded(trace):
                result = self._function(*given, **keywords)
            if trace.refused is not None:
                raise trace.refused
            for check in trace.checks:
                check()
            watches += [watch for array, watch in sight.arrays if not trace.uses_array(array)]
            watches = unchanged(watches, trace.modules, sight.line_of)
            unused = [tensor for tensor in sight.tensors if tensor not in trace.leaves]
            watches += [watch_kinds(unused)] if unused else []
            trains = trace.goes_back or trace.settings
            is_part = state.make_node is not None and not trains and has_graph(result)
            outputs: list[Buffer] = []
            try:
                refuse_result(result, trace)
                result = replaced(result, lambda a: _output(trace, a, outputs))
            except TypeError as error:
                raise TypeError(f"{NAME} {self._name}: {error}") from None
            ends = Ends(trace)
        if trace.place not in (None, device):
            raise recording.NotRecordable(f"gg.compile: its tensors are on {trace.place}")
        trace.drop_unread([*outputs, *ends.kept])
        made = replay.Replay(trace, device, outputs, ends.kept)
        ends.place(made)
        guards = Guards(watches, trace.modules)
        if is_part:
            warnings.warn(
                f"{NAME} {self._name} is recorded without a backward pass: its results have no "
                "graph, and gradients end there; compile the whole training step, backward and "
                "optimizer included, or call it under gg.no_grad()",
                stacklevel=4,
            )
        return Recorded(trace, made, draws.blocks, random_state, result, ends, guards, settings)


@overload
def compile(function: Callable[..., Any], *, device: str | None = None) -> Compiled: ...


@overload
def compile(
    function: None = None, *, device: str | None = None
) -> Callable[[Callable[..., Any]], Compiled]: ...


def compile(function: Callable[..., Any] | None = None, *, device: str | None = None) -> Any:
    """Return a function that does the same with no Python between its launches; also a decorator.

    ::

        @gg.compile
        def step(x, y):
            loss = model.loss(x, y)
            loss.backward()
            norm = optimizer.step(max_norm=1.0)
            optimizer.zero_grad()
            return loss, norm

    The first call with arguments of certain shapes and dtypes records what is launched, by running
    the function with arrays that have no elements; memory for all temporaries is planned as one
    arena. Later calls replay the list, on a GPU as one CUDA graph. What a step may change from call
    to call without being recorded again: the elements of arguments, parameters and optimiser
    state, learning rates and other settings in ``param_groups``, the state of ``gg.random``.
    Other shapes, dtypes or numbers among the arguments, other parts, numbers or modes of modules,
    other parameter arrays, groups of an optimiser or hooks record again, and so does whatever else
    the function's code names: variables around it, globals, attributes, containers, modules that it
    imports, raw arrays of up to 1 MiB, in the user's functions and hooks that it calls too, and
    settings of optimisers that it computes with. What it sets there itself is an error; settings in
    ``param_groups`` may be set, and a list may be appended to where the step does nothing else with
    it. Drawing from ``random`` or ``numpy.random`` is an error, as are making a generator of theirs
    without a seed and taking from an iterator. Python code in the function runs only while it is
    recorded: so does whatever works on raw arrays, or on nothing but integers and booleans that the
    step makes. Not seen are a clock, files and the environment, context variables, ``globals()``,
    names that are computed, ``vars(module)`` that is set, what objects of libraries hold inside
    (queues, ctypes), and what is patched in libraries: pass what they give as arguments. A
    recording has memory of its own.

    Arguments and results are tensors, arrays, numbers, None, or lists, tuples and dicts of them,
    attributes of subclasses of dict too; arguments may be modules and optimisers. A tensor that
    requires a gradient is an argument by what it is, like a parameter of a closure: another one
    records again. Any other tensor, and any array, is a new tensor to the function, which has its
    elements and no gradient: what the step sets of it (``x.requires_grad_()``, and so ``x.grad``)
    stays in the step, which may return it.
    Results are copies that belong to the caller, without a graph; reading them waits for a GPU.
    Gradients end there: a step that computes none, outside of ``no_grad``, and returns what would
    have led to some, as ``gg.compile(model)`` does, warns when it is recorded.
    Gradients that the step leaves in ``.grad`` are overwritten by its next call. Those it comes
    with may be any: they are copied to the recording, and what is added to them lies there.
    Data that the step assigns (``w.data = ...``) is written to the array that there was. A step
    that raises while it is recorded has changed no tensor, hooks aside; replays raise no
    floating-point errors and warnings of NumPy (``np.errstate``).

    ``device`` is where the step runs, by default where its tensors are; arguments on the CPU are
    copied there. On the CPU what is launched are calls of NumPy, kernels while the emulator is
    active. On GPUs before compute capability 8.0 and under ``detect_anomaly`` the function is
    called as it is.

    Threads may share a step, and take turns; a model may be used by other threads while a step with
    it is recorded. Large steps on the CPU have helpers (``gpugrad.processes``); a process that is
    forked has none of their recordings. At most 16 recordings are kept, those used last.

    Raises NotRecordable where the function looks at values (``float(loss)``, ``if x.any()``), sets
    variables of others, or uses an operation that has no kernel, naming it and the line; and for an
    argument on memory that the step changes and then reads. Raises TypeError for other arguments
    and results.
    """
    if function is None:
        return functools.partial(Compiled, device=device)
    return Compiled(function, device)


def _device(arrays: Sequence[Any], wanted: str | None) -> str:
    """Return where a step runs: on the GPU its arguments are on, or else as wanted."""
    places = {backend.device_of(a) for a in arrays} - {"cpu"}
    if len(places) > 1:
        where = " and ".join(sorted(places))
        raise ValueError(f"{NAME} the arguments are on {where}; move them to one with .to(device)")
    device = places.pop() if places else wanted or backend.default_device()
    return "cuda:0" if device == "cuda" else device


@functools.cache
def _capability(device: str) -> int:
    """Return the compute capability of a device, major and minor digit."""
    if device == "cpu":
        return cuda.EMULATED
    return cuda.capability(backend.namespace(device).empty(0))


def _output(trace: Trace, array: Any, outputs: list[Buffer]) -> Buffer:
    buffer = array if isinstance(array, Buffer) else trace.lift(array)
    if changes_at_end(trace, buffer):
        buffer = buffer.copy()  # as it is now
    outputs.append(buffer)
    return buffer
