"""Source text that travels with functions by value.

A worker has no file behind ``Cell In[3]``. With the text of every file that a function's code
comes from, its tracebacks show lines there and ``inspect.getsource`` works.
"""

from __future__ import annotations

import linecache
import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

from qnb.clock import now_ms

__all__ = ["ROOM", "Sources", "collect", "label", "prime"]

#: file name as code objects have it → its label and its text
Sources: TypeAlias = dict[str, tuple[str, str]]

#: bytes that packed sources may take; with more of them a function travels without
ROOM = 2 << 20

_MOST = 1 << 20  #: characters of all sources of one function; what does not fit stays at home

#: files of other processes whose text is kept, those that came last
KEPT = 256

#: File name → label and time (epoch ms) of what came from another process, the oldest first; its
#: lines are in ``linecache``.
_arrived: OrderedDict[str, tuple[str, int]] = OrderedDict()


def label(filename: str) -> str:
    """How a person knows ``filename``: ``"Cell In[3]"``, here or where it came from, or the path.

    >>> label("/home/ann/scan.py")
    '/home/ann/scan.py'
    """
    return _cell(filename) or _arrived.get(filename, (filename,))[0]


def collect(filenames: Iterable[str]) -> Sources:
    """The sources of ``filenames``, as far as they are known and not too long."""
    found: Sources = {}
    left = _MOST
    for filename in sorted(filenames):
        if filename in _arrived and (_is_module(filename) or _is_newer_here(filename)):
            _forget(filename)
        linecache.checkcache(filename)
        text = "".join(linecache.getlines(filename))
        if text and len(text) <= left:
            left -= len(text)
            found[filename] = (label(filename), text)
    return found


def prime(sources: Mapping[str, tuple[str, str]]) -> None:
    """Make ``sources``, which came from another process, known to tracebacks and ``inspect``.

    A file that this process knows by itself keeps its own text.
    """
    for filename, (name, text) in sources.items():
        if filename not in _arrived and _known_here(filename):
            continue
        _arrived[filename] = name, now_ms()
        _arrived.move_to_end(filename)
        lines = StringIO(text).readlines()  # as files have lines: str.splitlines knows more ends
        # With no time of change, ``linecache.checkcache`` leaves the entry alone.
        linecache.cache[filename] = (len(text), None, lines, filename)
    while len(_arrived) > KEPT:
        _forget(next(iter(_arrived)))


def _forget(filename: str) -> None:
    """From here on, ``filename`` is what is found on this machine."""
    del _arrived[filename]
    linecache.cache.pop(filename, None)


def _cell(filename: str) -> str | None:
    """``"Cell In[3]"`` if ``filename`` is that of a cell of this kernel."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    with suppress(Exception):  # its compiler may be anybody's
        if found := shell.compile.format_code_name(filename):
            return " ".join(found)
    return None


def _known_here(filename: str) -> bool:
    return filename in linecache.cache or _is_module(filename)


def _is_module(filename: str) -> bool:
    return any(
        getattr(module, "__file__", None) == filename for module in list(sys.modules.values())
    )


def _is_newer_here(filename: str) -> bool:
    """Whether the file was written on this machine since a text of that name has arrived."""
    try:
        return Path(filename).stat().st_mtime * 1000 > _arrived[filename][1]
    except (OSError, ValueError):  # not a path, as "<string>"
        return False
