"""name -> thing; a duplicate is an error, an unknown name suggests near ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from kawara.errors import InternalError, UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Hold the things of one kind by name, in the order they were added."""

    def __init__(self, kind: str):
        self.kind = kind
        self._things: dict[str, T] = {}

    def add(self, name: str, thing: T) -> T:
        """Add `thing` under `name`. Raises InternalError if the name is taken."""
        if name in self._things:
            raise InternalError(f"Two {self.kind}s want the name {name!r}.")
        self._things[name] = thing
        return thing

    def __getitem__(self, name: str) -> T:
        """Return the thing named `name`. Raises UnknownNameError with near names."""
        if name not in self._things:
            raise UnknownNameError(self.kind, name, self._things)
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)
