"""Any callable as a call of a plain function, which is what a job names and a store keeps once."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from qnb.task import Task

__all__ = ["Each", "Plain", "name_of", "plain"]

_OPEN = getattr(functools, "Placeholder", object())  #: a gap in a partial, from Python 3.14 on


class Plain(NamedTuple):
    """A call whose function holds nothing that may change: that travels as arguments."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def plain(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plain:
    """The call ``fn(*args, **kwargs)`` with partials, methods and callable objects unfolded.

    What they hold is read now, for this call, and the function below them is stored once.
    """
    held: Any = fn
    while not isinstance(held, Task | FunctionType | BuiltinFunctionType | type):
        if type(held) is functools.partial and not any(given is _OPEN for given in held.args):
            args, kwargs = (*held.args, *args), {**held.keywords, **kwargs}
            held = held.func
        elif isinstance(held, MethodType):
            held, args = held.__func__, (held.__self__, *args)
        elif isinstance(called := type(held).__call__, FunctionType):
            held, args = called, (held, *args)
        else:  # compiled, as a ufunc is
            held, args = operator.call, (held, *args)
    if isinstance(held, BuiltinFunctionType) and not isinstance(held.__self__, ModuleType | None):
        held, args = operator.call, (held, *args)  # a method of a list, of a dict
    return Plain(held, args, kwargs)


def name_of(fn: Any) -> str:
    """A callable's name, as tables and views show it.

    >>> name_of(functools.partial(max, 1)), name_of(lambda: 0), name_of("a-b".split)
    ('max', '<lambda>', 'split')
    """
    while isinstance(fn, functools.partial):
        fn = fn.func
    if isinstance(fn, Task):
        return fn.name
    name = getattr(fn, "__name__", None) or type(fn).__name__
    if isinstance(fn, MethodType):
        owner = fn.__self__ if isinstance(fn.__self__, type) else type(fn.__self__)
        name = f"{owner.__name__}.{name}"
    name = "".join(letter if letter.isprintable() else "?" for letter in str(name))
    return name[:256].strip() or "call"


class Each:
    """Calls a function once for each row of arguments: many calls in one job."""

    def __init__(self, name: str, fn: Callable[..., Any]) -> None:
        self.__name__ = name
        self.fn = fn

    def __call__(self, rows: list[tuple[Any, ...]]) -> list[Any]:
        """What it returns for each, in order."""
        return [self.fn(*row) for row in rows]
