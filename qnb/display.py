"""How an object shows itself in a notebook, without knowing who draws it, and text as it is shown.

A handle derives from :class:`Displayed`; the drawing code is named by :func:`register` as
``"module:function"`` and imported when the first one is shown, so that a worker never loads it.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any, Protocol, cast

__all__ = ["Displayed", "Renderer", "duration", "register", "tidy"]


class Renderer(Protocol):
    """Draws one kind of object."""

    def html(self, thing: Any) -> str:
        """Its last known state as static, escaped HTML. No I/O."""

    def show(self, thing: Any) -> bool:
        """Display it live; false where the front end cannot, so that IPython falls back."""


_sources: dict[str, str] = {}


def register(class_name: str, source: str) -> None:
    """Let the renderer ``source`` ("module:attribute") draw objects of the class ``class_name``."""
    _sources[class_name] = source


def _renderer(thing: object) -> Renderer | None:
    for cls in type(thing).__mro__:
        if source := _sources.get(cls.__name__):
            module, _, attribute = source.partition(":")
            return cast("Renderer", getattr(import_module(module), attribute))
    return None


class Displayed:
    """Shows itself live in a notebook, as static HTML where that cannot be, else as text."""

    __slots__ = ()

    def _repr_html_(self) -> str | None:
        renderer = _renderer(self)
        return renderer.html(self) if renderer else None

    def _ipython_display_(self) -> None:
        renderer = _renderer(self)
        if renderer is None or not renderer.show(self):
            raise NotImplementedError  # IPython then asks for the plain representations


# -- text ---------------------------------------------------------------------------------------

# Control characters could drive a terminal or vanish; direction marks could make a text read
# otherwise than it is; a lone surrogate cannot be sent at all.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def _code(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def tidy(text: object) -> str:
    r"""``text`` with its invisible characters spelled out, tabs and newlines kept.

    >>> tidy("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return _UNSEEN.sub(_code, str(text).replace("\r\n", "\n"))


def duration(seconds: float) -> str:
    """A length of time as a person says it.

    >>> duration(0.04), duration(9.5), duration(75), duration(8040)
    ('40 ms', '9.5 s', '1 min 15 s', '2 h 14 min')
    """
    if seconds < 0.9995:
        return f"{round(max(0.0, seconds) * 1000)} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400:,} d {whole % 86400 // 3600} h"
