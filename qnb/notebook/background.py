"""A cell that runs on a worker: its code, the names it needs, and what it shows.

The names travel as the globals of a function by value, so that helpers and classes of the notebook
share one namespace with the cell, as at home. What the cell displays, its figures and its last
expression are turned into HTML, pictures and text where it runs, and kept beside its value.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import CodeType, FunctionType
from typing import Any, TypeAlias

__all__ = ["KINDS", "Bundle", "Cell", "CellValue", "outputs"]

#: one output: what there is of it in each kind
Bundle: TypeAlias = dict[str, str | bytes]

#: the kinds that are kept, the most telling first
KINDS = ("text/html", "image/png", "image/svg+xml", "image/jpeg", "text/plain")

#: bytes of all outputs of one cell; of what comes later, a word is kept
MOST_BYTES = 4_000_000


class Cell:
    """The function of a ``%%qnb`` job. ``names`` is a function whose globals the cell works in."""

    def __init__(
        self, title: str, names: FunctionType, body: CodeType, last: CodeType | None, nonce: str
    ) -> None:
        self.__name__ = self.__qualname__ = title  # what errors call it
        self._names = names
        self._body = body
        self._last = last
        self._nonce = nonce  # no two jobs share what a worker has decoded
        self._fresh: dict[str, Any] | None = None

    def __call__(self) -> Any:
        """Its value, with its outputs; a coroutine of it if it awaits."""
        space = self._names.__globals__
        if self._fresh is None:
            self._fresh = dict(space)
        space.clear()  # another attempt starts from the same names
        space.update(self._fresh)
        codes = [code for code in (self._body, self._last) if code is not None]
        if any(code.co_flags & inspect.CO_COROUTINE for code in codes):
            return self._wait(codes, space)
        with _screen(space) as screen:
            for code in codes:
                value = eval(code, space)  # noqa: S307 - the user's cell
            return _shown(screen, None if self._last is None else value)

    async def _wait(self, codes: list[CodeType], space: dict[str, Any]) -> Any:
        with _screen(space) as screen:
            for code in codes:
                value = eval(code, space)  # noqa: S307 - the user's cell
                if code.co_flags & inspect.CO_COROUTINE:
                    value = await value
            return _shown(screen, None if self._last is None else value)


# -- a value with its outputs -------------------------------------------------------------------

_wanted: ContextVar[list[Bundle] | None] = ContextVar("qnb_outputs", default=None)


class CellValue:
    """A value as it is returned; written down with its outputs, and read as the value alone."""

    def __init__(self, value: object, shown: list[Bundle]) -> None:
        self._parts = value, shown

    def __reduce__(self) -> tuple[Any, ...]:
        # named as state as well, so that an error can tell which part of it cannot be sent
        return _value, self._parts, {"value": self._parts[0]}, None, None, _set_nothing


def _set_nothing(value: object, state: object) -> None:
    """It has been set already."""


def _value(value: object, shown: list[Bundle]) -> object:
    if (wanted := _wanted.get()) is not None:
        wanted += shown
    return value


@contextlib.contextmanager
def outputs() -> Iterator[list[Bundle]]:
    """The outputs of the value that is read in the block."""
    found: list[Bundle] = []
    token = _wanted.set(found)
    try:
        yield found
    finally:
        _wanted.reset(token)


def _shown(screen: _Screen | None, value: object) -> object:
    if screen is None:
        return value
    screen.end(value)
    return CellValue(value, screen.shown) if screen.shown else value


# -- where it is shown --------------------------------------------------------------------------


class _Screen:
    """Takes what a cell displays."""

    def __init__(self) -> None:
        from IPython.core.formatters import DisplayFormatter

        formatter = DisplayFormatter()
        formatter.ipython_display_formatter.enabled = False  # there is no front end to talk to
        formatter.formatters["image/png"].for_type_by_name("matplotlib.figure", "Figure", _png)
        self._format: Any = formatter.format
        self._left = MOST_BYTES
        self._before = set(_figures())
        self.shown: list[Bundle] = []

    def display(self, *things: object, raw: bool = False, **_: object) -> None:
        """Stands for IPython's ``display``."""
        for thing in things:
            self._keep(thing if raw and isinstance(thing, Mapping) else self._format(thing)[0])

    def end(self, value: object) -> None:
        """Take the figures that the cell has left open, and its value."""
        for number, figure in _figures().items():
            if number not in self._before:
                sys.modules["matplotlib.pyplot"].close(figure)
                if figure is not value:
                    self.display(figure)
        if value is not None:
            self.display(value)

    def _keep(self, formats: Mapping[str, Any]) -> None:
        bundle: Bundle = {kind: formats[kind] for kind in KINDS if kind in formats}
        size = sum(map(len, bundle.values()))
        if size > self._left:
            plain = str(bundle.get("text/plain", ""))[:200]
            bundle = {"text/plain": f"{plain}\n[an output of {size:,} bytes was not kept]"}
        self._left -= size if size <= self._left else 0
        if bundle:
            self.shown.append(bundle)


@contextlib.contextmanager
def _screen(space: dict[str, Any]) -> Iterator[_Screen | None]:
    """Where the cell shows things: in a notebook's main thread, the notebook itself."""
    from IPython import display
    from IPython.core.interactiveshell import InteractiveShell

    in_notebook = bool(InteractiveShell.initialized())
    if in_notebook and threading.current_thread() is threading.main_thread():
        space.setdefault("display", display.display)
        yield None
        return
    if not in_notebook:
        _draw_on_paper()
    screen = _Screen()
    if space.get("display") in (None, display.display):
        space["display"] = screen.display
    yield screen


def _draw_on_paper() -> None:
    """Let matplotlib draw without a window, and not for the notebook that started the worker."""
    os.environ["MPLBACKEND"] = "agg"
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].switch_backend("agg")
    elif "matplotlib" in sys.modules:
        sys.modules["matplotlib"].use("agg")
    warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")  # it is shown at home


def _figures() -> dict[int, Any]:
    """The figures that pyplot holds open, by number."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    return {number: pyplot.figure(number) for number in pyplot.get_fignums()} if pyplot else {}


def _png(figure: Any) -> bytes | None:
    from IPython.core.pylabtools import print_figure

    picture: bytes | None = print_figure(figure, "png")  # type: ignore[no-untyped-call]
    return picture
