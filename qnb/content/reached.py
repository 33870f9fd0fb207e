"""Values that are code in another dress: methods, what decorators make, qnb's own handles."""

from __future__ import annotations

from contextlib import suppress
from contextvars import Context, ContextVar
from functools import cached_property
from threading import Lock, RLock
from types import FunctionType, MethodType, ModuleType
from typing import Any, NewType, TypeVar

from qnb.content.packages import module_of
from qnb.content.text import text_of
from qnb.content.values import Node
from qnb.wire.origins import is_handle

__all__ = ["METHODS", "node_of"]

#: what a class holds its code in
METHODS = (FunctionType, property, classmethod, staticmethod, cached_property)

_LOCKS = (type(Lock()), type(RLock()))

#: modules whose objects stand for something at the queue
_HANDLES = frozenset(
    [
        "qnb.app", "qnb.task", "qnb.job", "qnb.client", "qnb.pool", "qnb.registry",
        "qnb.sweeps.sweep",
    ]
)  # fmt: skip


def node_of(value: Any) -> Node | None:
    """What ``value`` is, if it is code in another dress."""
    if isinstance(value, classmethod | staticmethod):
        return Node(type(value).__name__, (value.__func__,))
    if isinstance(value, property):
        return Node("property", (value.fget, value.fset, value.fdel))
    if isinstance(value, cached_property):
        return Node("cached_property", (value.func,))
    if isinstance(value, TypeVar | ContextVar | NewType):
        return _named(value)
    if isinstance(value, _LOCKS):
        return Node("lock")
    if value is type(None):  # builtins do not name it
        return Node("NoneType")
    if type(value).__name__.endswith("InteractiveShell") and module_of(value):
        return Node("shell")  # that get_ipython is a method of; it holds all that was ever run
    if is_handle(value) and type(value).__module__ in _HANDLES:
        ids = [getattr(value, name, None) for name in ("name", "id", "prefix")]
        return Node("handle", (type(value).__name__, [text for text in ids if type(text) is str]))
    return _wrapped(value)


def _named(value: TypeVar | ContextVar[Any] | NewType) -> Node:
    if isinstance(value, TypeVar):
        return Node("variable", (value.__name__,))
    if isinstance(value, NewType):
        return Node("new type", (value.__name__, value.__supertype__))
    default = []  # what it has where nobody has set it
    with suppress(LookupError):
        default.append(Context().run(value.get))
    return Node("variable", (value.name, *default))


def _wrapped(value: Any) -> Node | None:
    """What a decorator of an installed package has made of a function.

    The line above that function says how, and the package's version the rest.
    """
    inner = getattr(value, "__wrapped__", None) if callable(value) else None
    if not isinstance(inner, FunctionType) or isinstance(value, type | MethodType):
        return None
    kind = type(value).__qualname__
    if hasattr(value, "cache_parameters"):  # functools.lru_cache, however it was applied
        return Node(kind, (inner, sorted(value.cache_parameters().items())))
    module = module_of(value)
    if module is None or not _is_from_line(inner, module):
        return None
    added = getattr(value, "registry", {})  # what functools.singledispatch chooses from
    return Node("wrapped", (kind, module, inner, frozenset(added.items())))


def _is_from_line(inner: FunctionType, module: str) -> bool:
    """Whether a line above the innermost function is of the package that ``module`` is in."""
    while isinstance(below := getattr(inner, "__wrapped__", None), FunctionType):
        inner = below
    package = module.partition(".")[0]
    for line in text_of(inner.__code__).decorators:
        for name in line.names:
            found = inner.__globals__.get(name)
            home = found.__name__ if isinstance(found, ModuleType) else module_of(found)
            if home and home.partition(".")[0] == package:
                return True
    return False
