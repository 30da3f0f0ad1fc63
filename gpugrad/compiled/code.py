"""What is written in some code: names, the attributes that follow them, strings, lines."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR", "DELETE_ATTR", "IMPORT_FROM")
_BETWEEN = ("COPY", "DUP_TOP", "PUSH_NULL")  # what may stand between a name and its attribute
_CALL = ("CALL", "PRECALL", "CALL_FUNCTION", "CALL_METHOD")
_GLOBAL = ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME")
ITEM = "[]"  # among attributes: what an index leads to


class Chain(NamedTuple):
    """A name in some code, None for what has none, and the attributes that follow it."""

    name: str | None
    is_global: bool
    attributes: tuple[str, ...]


def chains(code: types.CodeType, scope: Iterable[str]) -> Iterator[Chain]:
    """Yield the names in some code, each with the attributes that follow; those in scope only."""
    before = chain = Chain(None, False, ())
    cells = {*code.co_cellvars, *code.co_freevars}
    for one in dis.get_instructions(code):
        if one.opname in _ATTRIBUTE:
            chain = chain._replace(attributes=(*chain.attributes, one.argval))
        elif one.opname == "BINARY_SUBSCR" or one.argrepr == ITEM:
            yield chain
            chain = before._replace(attributes=(*before.attributes, ITEM))
            before = Chain(None, False, ())
        elif one.opname not in _BETWEEN:
            yield before
            before = chain
            several = isinstance(one.argval, tuple) and one.argval  # () may be a constant
            name = one.argval[-1] if several else one.argval
            is_global = one.opname in _GLOBAL
            is_local = "LOAD" in one.opname and "CONST" not in one.opname and name in scope
            if name in cells and "DEREF" not in one.opname:
                is_local = False  # the cell itself, for a function inside
            chain = Chain(name if is_global or is_local else None, is_global, ())
        if isinstance(one.argval, types.CodeType):
            yield from chains(one.argval, {*scope} & {*one.argval.co_freevars})
    yield from (before, chain)


def imports(code: types.CodeType) -> Iterator[str]:
    """Yield the modules that some code imports, with a dot ahead for each level up."""
    before: Any = (None, None)  # what is loaded ahead of an import: the level, and a list of names
    for one in dis.get_instructions(code):
        if one.opname == "IMPORT_NAME":
            level, names = before
            module = "." * level + one.argval
            yield module
            yield from (module + "." * bool(one.argval) + name for name in names or ())
        elif isinstance(one.argval, types.CodeType):
            yield from imports(one.argval)
        before = before[1], one.argval


def bare_calls(code: types.CodeType) -> Iterator[tuple[str, bool]]:
    """Yield the names that some code calls without arguments, and whether they are attributes."""
    before, is_attribute = None, False
    for one in dis.get_instructions(code):
        if one.opname in _CALL and one.arg == 0 and isinstance(before, str):
            yield before, is_attribute
        if isinstance(one.argval, types.CodeType):
            yield from bare_calls(one.argval)
        if one.opname not in _BETWEEN:
            before, is_attribute = one.argval, one.opname in _ATTRIBUTE


def matches_classes(code: types.CodeType) -> bool:
    """Return whether some code matches attributes of objects: ``case Point(x=0)``."""
    return any(
        one.opname == "MATCH_CLASS"
        or (isinstance(one.argval, types.CodeType) and matches_classes(one.argval))
        for one in dis.get_instructions(code)
    )


def words(code: types.CodeType) -> tuple[set[str], set[str]]:
    """Return the names in some code, and the strings that could be names."""
    names, strings, constants = {*code.co_names}, set[str](), [*code.co_consts]
    while constants:
        one = constants.pop()
        if isinstance(one, types.CodeType):
            more, some = words(one)
            names, strings = names | more, strings | some
        elif isinstance(one, (tuple, frozenset)):
            constants += one
        elif isinstance(one, str) and one.isidentifier():
            strings.add(one)
    return names, strings


def lines(code: types.CodeType, name: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that use a name, after 0 where it is set and 1 where not."""
    starts, line = dict(dis.findlinestarts(code)), code.co_firstlineno
    for one in dis.get_instructions(code):
        line = starts.get(one.offset) or line
        if one.argval == name:
            is_set = one.opname.startswith(("STORE", "DELETE"))
            yield 1 - is_set, f"{code.co_filename}:{line}"
        elif isinstance(one.argval, types.CodeType):
            yield from lines(one.argval, name)
