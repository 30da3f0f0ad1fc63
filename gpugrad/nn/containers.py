"""Modules that hold modules: one after the other, by position, by name."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from itertools import count, groupby
from typing import Any

from .module import Module


class _Container(Module):
    """Modules in an order, each under a name."""

    def __init__(self) -> None:
        super().__init__()
        self._items: dict[str, Module] = {}

    def _put(self, name: str, module: Any) -> None:
        kind = type(self).__name__
        if not isinstance(module, Module):
            raise TypeError(f"{kind}: {name!r} must be a Module, got {type(module).__name__}")
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"{kind}: a name is a string without dots, not {name!r}")
        self._items[name] = module
        Module.changes += 1

    def held(self) -> dict[str, Any]:
        """Return what a recorded step depends on: attributes, parts and mode."""
        return {**super().held(), "_items": tuple(self._items.items())}

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, module): those that are attributes, then those held."""
        yield from super().named_children()
        yield from self._items.items()

    def __len__(self) -> int:
        return len(self._items)


class _Sequence(_Container):
    """What Sequential and ModuleList share: access by position."""

    def __iter__(self) -> Iterator[Module]:
        return iter(self._items.values())

    def _name(self, index: int) -> str:
        names = list(self._items)
        if not -len(names) <= index < len(names):
            raise IndexError(f"{type(self).__name__}: no module {index}, there are {len(names)}")
        return names[index]

    def __getitem__(self, index: int) -> Any:
        return self._items[self._name(index)]

    def __setitem__(self, index: int, module: Module) -> None:
        self._put(self._name(index), module)

    def append(self, module: Module) -> Any:
        """Add a module at the end and return the container.

        Its name is the position, or the next number where a slice or dict has that name already.
        """
        free = next(n for n in count(len(self)) if str(n) not in self._items)
        self._put(str(free), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Any:
        """Add modules at the end and return the container."""
        for module in modules:
            self.append(module)
        return self


class Sequential(_Sequence):
    """Modules that each take the result of the one before; or one dict of named modules."""

    def __init__(self, *modules: Any) -> None:
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, module in modules[0].items():
                self._put(name, module)
        else:
            self.extend(modules)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Sequential(dict(list(self._items.items())[index]))
        return super().__getitem__(index)

    def forward(self, input: Any) -> Any:
        """Return the result of the last module."""
        for module in self:
            input = module(input)
        return input


class ModuleList(_Sequence):
    """Modules by position, for a forward that calls them itself.

    Modules in a plain list would not be found by parameters().
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return ModuleList(list(self)[index])
        return super().__getitem__(index)

    def _child_lines(self) -> Iterator[str]:
        """Yield equal neighbours once, as ``(0-11): 12 x TransformerBlock(...)``."""
        for text, group in groupby(self.named_children(), key=lambda item: repr(item[1])):
            names = [name for name, _ in group]
            many = f"({names[0]}-{names[-1]}): {len(names)} x {text}"
            yield many if len(names) > 1 else f"({names[0]}): {text}"


class ModuleDict(_Container):
    """Modules by name, as items or attributes, for a forward that calls them itself.

    Modules in a plain dict would not be found by parameters().
    """

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] = ()) -> None:
        super().__init__()
        self.update(modules)

    def update(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """Add modules, replacing those of the same name."""
        for name, module in modules.items() if isinstance(modules, Mapping) else modules:
            self[name] = module

    def __getitem__(self, name: str) -> Any:
        if name not in self._items:
            raise KeyError(f"ModuleDict: no module {name!r}, there are {', '.join(self._items)}")
        return self._items[name]

    def __getattr__(self, name: str) -> Any:
        items = self.__dict__.get("_items", {})
        if name not in items:
            raise AttributeError(f"'ModuleDict' object has no attribute or module {name!r}")
        return items[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_items", {}):
            self[name] = value
        else:
            super().__setattr__(name, value)

    def __setitem__(self, name: str, module: Module) -> None:
        self._put(name, module)

    def __delitem__(self, name: str) -> None:
        del self._items[name]
        Module.changes += 1

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def keys(self) -> KeysView[str]:
        """Return the names."""
        return self._items.keys()

    def values(self) -> ValuesView[Module]:
        """Return the modules."""
        return self._items.values()

    def items(self) -> ItemsView[str, Module]:
        """Return (name, module) pairs."""
        return self._items.items()
