"""Names and the functions they stand for. A worker needs this, not the app."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from qnb.errors import InvalidName, NameTaken

__all__ = ["Registry"]

Function = Callable[..., Any]


def _home(fn: Function) -> str:
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', repr(fn))}"


class Registry:
    """The tasks of one app by name.

    A name belongs to the first function that takes it. The same function defined again (a cell run
    twice, a module reloaded) replaces it; another one is refused.
    """

    __slots__ = ("_functions",)

    def __init__(self) -> None:
        self._functions: dict[str, Function] = {}

    def add(self, name: str, fn: Function) -> None:
        """Let ``name`` stand for ``fn``."""
        if not isinstance(name, str) or not 0 < len(name) <= 256 or not name.isprintable():
            raise InvalidName(
                f"task name {name!r} is not allowed: use 1 to 256 printable characters"
            )
        owner = self._functions.get(name)
        if owner is not None and _home(owner) != _home(fn):
            where = inspect.getsourcefile(owner) if inspect.isfunction(owner) else None
            raise NameTaken(
                f"task name {name!r} belongs to {_home(owner)}{f' ({where})' if where else ''}; "
                f"{_home(fn)} cannot take it. Give one of them another with @app.task(name=...)"
            )
        self._functions[name] = fn

    def get(self, name: str) -> Function | None:
        """The function ``name`` stands for, None if nobody has registered it here."""
        return self._functions.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)
