"""Which part of a value cannot be sent, found once sending it has failed."""

from __future__ import annotations

import reprlib
import time
from collections.abc import Iterator
from contextlib import suppress
from types import FunctionType
from typing import Any

from qnb.errors import ArgumentError, BrokerError, EncodingError, PayloadTooLarge
from qnb.wire.forms import Form

__all__ = ["argument_error", "blame", "type_name"]

_SEARCH = 0.25  #: seconds that the search may take


def argument_error(
    args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception, form: Form
) -> EncodingError | BrokerError:
    """The error that names the argument which cannot be sent; of a store that failed, its own."""
    if isinstance(error, BrokerError):
        return error  # no argument is to blame
    named = [(f"args[{at}]", value) for at, value in enumerate(args)]
    named += [(f"kwargs[{name!r}]", value) for name, value in kwargs.items()]
    if isinstance(error, PayloadTooLarge):
        path, value = _largest(named, form)
        return PayloadTooLarge(
            f"argument {path}, of type {type_name(value)}, is too large: {error}"
        )
    for path, value in named:
        try:
            form.size(value)
        except Exception as cause:  # noqa: BLE001 - that is what we are looking for
            where, culprit, why = blame(value, path, cause, form)
            inside = "it" if culprit is value else where
            return ArgumentError(
                f"argument {path} cannot be sent to a worker: {inside} is of type "
                f"{type_name(culprit)}: {why}. {form.remedy}"
            )
    return ArgumentError(f"the arguments cannot be sent to a worker: {error}. {form.remedy}")


def _largest(named: list[tuple[str, Any]], form: Form) -> tuple[str, Any]:
    def size(entry: tuple[str, Any]) -> float:
        try:
            return form.size(entry[1])
        except Exception:  # noqa: BLE001 - too large by itself
            return float("inf")

    return max(named, key=size)


def blame(value: Any, path: str, error: Exception, form: Form) -> tuple[str, Any, str]:
    """The innermost part of ``value`` that cannot be sent: its path, itself, and why."""
    until = time.monotonic() + _SEARCH
    seen = {id(value)}
    found = True
    while found:
        found = False
        for suffix, child in _parts(value) if form.parts(value) else ():
            if id(child) in seen or time.monotonic() > until:
                continue
            seen.add(id(child))
            try:
                form.size(child)
            except Exception as cause:  # noqa: BLE001 - that is what we are looking for
                value, path, error, found = child, path + suffix, cause, True
                break
    return path, value, str(error) or type(error).__name__


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a pickle of ``value`` holds, and how one would write the way to it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"[{reprlib.repr(key)}]", item
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield f"[{at}]", item
    elif isinstance(value, FunctionType):
        yield from _reached(value)
    else:
        for name, item in _state(value).items():
            yield f".{name}", item


def _reached(fn: FunctionType) -> Iterator[tuple[str, Any]]:
    """The globals, outer variables and defaults of a function."""
    for name in fn.__code__.co_names:
        if name in fn.__globals__:
            yield f" → global {name!r}", fn.__globals__[name]
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False):
        with suppress(ValueError):  # not assigned yet
            yield f" → variable {name!r}", cell.cell_contents
    for item in fn.__defaults__ or ():
        yield " → a default", item


def _state(value: Any) -> dict[Any, Any]:
    """The attributes that a pickle of an object holds."""
    try:
        reduced = value.__reduce_ex__(5)
    except Exception:  # noqa: BLE001 - a user's __reduce__ may raise anything
        return {}
    state = reduced[2] if isinstance(reduced, tuple) and len(reduced) > 2 else None
    if isinstance(state, tuple) and len(state) == 2:  # attributes and slots
        return {**(state[0] or {}), **(state[1] or {})}
    return state if isinstance(state, dict) else {}


def type_name(value: Any) -> str:
    """The class of ``value`` as a message names it."""
    kind = type(value)
    home = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return home + kind.__qualname__
