"""The edge of the package: what goes wrong behind a public function is told in its name.

Wrong types, shapes and numbers show themselves deep inside, where NumPy or Python refuses them in
its own words. At the edge such an error becomes a TypeError, ValueError, IndexError or RuntimeError
that says which function was called and with what; the original is its ``__cause__``. Operations of
the registry do the same for themselves, see ``registry.explained``.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

from . import registry
from .registry import describe

F = TypeVar("F", bound=Callable[..., Any])

_KINDS: dict[type[Exception], type[Exception]] = {  # what an error becomes; the first that fits
    IndexError: IndexError,
    AttributeError: TypeError,
    TypeError: TypeError,
    LookupError: ValueError,
    OverflowError: ValueError,
    ZeroDivisionError: ValueError,
    ValueError: ValueError,
    RuntimeError: RuntimeError,
}
REFUSALS: tuple[type[Exception], ...] = (*_KINDS, MemoryError)
_LONGEST = 120  # characters of an argument in a message
# Where an error may come from that is told anew; what anybody else's code raises is theirs
_LIBRARIES = {"gpugrad", "numpy", "cupy", "ml_dtypes", "safetensors", "tokenizers"}
_RAISING = ("builtins", "numpy", "cupy")  # whose own kinds of errors are told anew
_PYTHON = os.path.dirname(os.__file__) + os.sep
_NAMED = r"[A-Za-z_][\w.-]*( (of )?\w+)?(\(.*\))?:\s"  # "sum: ", "in-place add: "
_finished: set[type] = set()  # classes whose methods name their errors


def named(function: F, title: str | None = None, respelt: bool = False) -> F:
    """Return the function; its errors begin with ``title``, by default its name.

    If it is ``respelt``, another spelling of some function, with its own name only, not with that
    one's too. Exceptions of other modules' own classes, errors of files, and what a function
    raises that was handed in pass unchanged; where memory runs out the error says what takes most
    of it. Costs 0.1 microseconds a call; the hottest functions call ``refuse`` themselves.
    """
    own = title or function.__name__.strip("_")
    if inspect.isgeneratorfunction(function):
        return _named_generator(function, own)  # type: ignore[return-value]

    @functools.wraps(function)
    def public(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except REFUSALS as error:
            refuse(error, own, given_to(function, args, kwargs), respelt=respelt)
            raise

    return public  # type: ignore[return-value]


def _named_generator(function: Callable[..., Any], title: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def public(*args: Any, **kwargs: Any) -> Any:
        try:
            return (yield from function(*args, **kwargs))
        except REFUSALS as error:
            refuse(error, title, given_to(function, args, kwargs))
            raise

    return public


def named_method(method: F) -> F:
    """Return the method; its errors begin with some name, or with that of the object's class.

    Those of a constructor always begin with the latter.
    """
    is_constructor = method.__name__ == "__init__"
    suffix = "" if is_constructor else f".{method.__name__}"

    @functools.wraps(method)
    def public(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except REFUSALS as error:
            owner = self if isinstance(self, type) else type(self)  # a class: of a classmethod
            title = owner.__name__ + suffix
            refuse(error, title, given_to(method, (self, *args), kwargs), is_constructor)
            raise

    return public  # type: ignore[return-value]


def name_all(namespace: dict[str, Any], own: str, *but: str, respelt: bool = False) -> None:
    """Let the public functions of a module, and the methods of its classes, name their errors.

    They are those whose ``__module__`` starts with ``own``. ``but`` are functions, or modules of
    functions, that do so themselves. ``respelt``: see ``named``.
    """
    made: dict[Any, Any] = {}
    for name, value in list(namespace.items()):
        module = getattr(value, "__module__", None) or ""
        if name[0] == "_" or not module.startswith(own):
            continue
        if isinstance(value, type):
            name_methods(value, own)
        elif isinstance(value, FunctionType) and not {module, value.__name__} & {*but}:
            made[value] = namespace[name] = made.get(value) or named(value, respelt=respelt)


def name_methods(cls: type, own: str, *methods: str) -> None:
    """Let the public methods of a class (or only those given) name their errors.

    Also those of the classes of ``own`` modules that it inherits from.
    """
    if issubclass(cls, (Exception, tuple)):
        return
    for base in cls.__mro__:
        if not base.__module__.startswith(own) or base in _finished:
            continue
        if not methods:
            _finished.add(base)
        for name, method in list(vars(base).items()):
            is_public = name in methods if methods else name == "__init__" or name[0] != "_"
            of_class = isinstance(method, classmethod)
            function = method.__func__ if of_class else method
            if (
                is_public
                and isinstance(function, FunctionType)
                and not hasattr(function, "__wrapped__")
            ):
                public = named_method(function)
                setattr(base, name, classmethod(public) if of_class else public)


def refuse(
    error: Exception,
    title: str,
    given: dict[str, Any],
    strict: bool = True,
    respelt: bool = False,
) -> None:
    """Raise an error that was caught anew, with its function's name; return if it says all.

    Unless ``strict`` an error that begins with some name says all; ``respelt`` takes such off.
    """
    told = _told(error, title, given, strict, respelt)
    if told is None:
        return
    try:
        raise told from (error.__cause__ or error)
    finally:
        del error, told  # or each would hold this frame, which holds it


def _told(
    error: Exception, title: str, given: dict[str, Any], strict: bool, respelt: bool
) -> Exception | None:
    module = type(error).__module__.partition(".")[0]
    if module not in _RAISING or isinstance(error, NotImplementedError):
        return None
    if _passed_through_other_code(error):
        return None
    if isinstance(error, MemoryError):
        told: Exception = registry.out_of_memory(error, f"{title} ({_listed(given)})")
        return told
    kind = next(_KINDS[base] for base in _KINDS if isinstance(error, base))
    message = str(error)
    if isinstance(error, KeyError) and error.args:
        key = error.args[0]
        message = key if isinstance(key, str) and " " in key else f"{key!r} is missing"
    own = rf"([\w.]+\.)?{re.escape(title)}(_?:|\.|\()"  # "sum:", "random.normal:", "zeros_:"
    if re.match(own if strict else _NAMED, message):
        return None
    if respelt:
        message = re.sub(f"^({_NAMED})+", "", message)
    shown = _listed(given)
    return kind(f"{title}: {message}" + f" ({shown})" * bool(shown and error.__cause__ is None))


def _passed_through_other_code(error: Exception) -> bool:
    """Return whether a function that was handed in, a module's forward say, raised it."""
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
        file = trace.tb_frame.f_code.co_filename
        is_python = name in sys.stdlib_module_names and file.startswith((_PYTHON, "<"))
        if not is_python and name not in _LIBRARIES:
            return True
        trace = trace.tb_next
    return False


def given_to(function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by their names."""
    try:
        given = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError:
        return {**{str(i): value for i, value in enumerate(args)}, **kwargs}
    return {name: value for name, value in given.items() if name not in ("self", "cls")}


def _listed(given: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_shown(value)}" for name, value in given.items())


def _shown(value: Any) -> str:
    """Return an argument as a message shows it, an array by its dtype and shape."""
    try:
        text = " ".join(describe(value).split())
    except Exception:  # whatever somebody's repr raises
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
