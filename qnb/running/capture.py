"""What bodies print and log: collected per job, carried on some twenty times a second.

A body with a process of its own is read through that process's stdout and stderr. Bodies that
share a process are told apart by a context variable that stand-ins for ``sys.stdout`` and
``sys.stderr``, and a logging handler, look at.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TextIO

__all__ = ["Feed", "Ring", "capture", "capturing", "divert", "restore"]

#: bytes of one job that may be on their way; the middle of more is dropped
RING = 1024 * 1024

_decoder = codecs.getincrementaldecoder("utf-8")

#: seconds between two deliveries
EVERY = 0.05


class Ring:
    """Bytes that wait to be delivered as text. Any thread may put some."""

    def __init__(self, limit: int = RING) -> None:
        self._half = limit // 2
        self._lock = threading.Lock()
        self._decoder = _decoder("replace")
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._dropped = 0

    def put(self, data: bytes) -> None:
        with self._lock:
            if not self._tail:
                room = self._half - len(self._head)
                self._head += data[:room]
                data = data[room:]
                if not data:
                    return
            self._tail.append(data)
            self._tail_size += len(data)
            while self._tail_size > self._half:
                first = self._tail.popleft()
                over = min(self._tail_size - self._half, len(first))
                if over < len(first):
                    self._tail.appendleft(first[over:])
                self._tail_size -= over
                self._dropped += over

    def take(self, *, final: bool = False) -> str:
        """All that waits, as text; what was dropped is told in its place."""
        with self._lock:
            text = self._decoder.decode(bytes(self._head), final and not self._tail)
            if self._dropped:
                text += f"\n[… {self._dropped:,} bytes of output dropped …]\n"
            if self._tail:
                text += self._decoder.decode(b"".join(self._tail), final)
            self._head.clear()
            self._tail.clear()
            self._tail_size = self._dropped = 0
        return text


class Feed:
    """Carries the output of one body to ``tell``, on the loop, until it is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tell: Callable[[str], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._ring = Ring()
        self._due = False
        self._used = False  # most bodies are silent
        self._closed = False

    def put(self, data: bytes) -> None:
        """Add output. Any thread may."""
        if self._closed:
            return
        self._used = True
        self._ring.put(data)
        if not self._due:
            self._due = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._loop.call_later, EVERY, self._flush)

    def _flush(self) -> None:
        self._due = False
        if not self._closed and (text := self._ring.take()):
            self._tell(text)

    def close(self) -> None:
        """Deliver the rest now; on the loop."""
        if not self._closed:
            self._closed = True
            if self._used and (text := self._ring.take(final=True)):
                self._tell(text)


# --- bodies that share a process -------------------------------------------------------------

_feed: ContextVar[Feed | Ring | None] = ContextVar("qnb_feed", default=None)


def capture(feed: Feed | Ring) -> None:
    """What the calling task prints and logs from now on goes to ``feed``."""
    _feed.set(feed)


@contextlib.contextmanager
def capturing(feed: Feed | Ring) -> Iterator[None]:
    """What the block prints and logs goes to ``feed``."""
    token = _feed.set(feed)
    try:
        yield
    finally:
        _feed.reset(token)


class _Stream:
    """Stands for ``sys.stdout`` or ``sys.stderr``: a body's writes go to its feed."""

    def __init__(self, original: TextIO, through: bool) -> None:
        self._original = original
        self._through = through

    def write(self, text: str) -> int:
        feed = _feed.get()
        if feed is not None:
            feed.put(text.encode("utf-8", "replace"))
            if not self._through:
                return len(text)
        return self._original.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __iter__(self) -> Iterator[str]:
        return iter(self._original)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


class _Handler(logging.Handler):
    """Brings log records to a body's feed, where no other handler writes them to it already."""

    def emit(self, record: logging.LogRecord) -> None:
        feed = _feed.get()
        if feed is None or any(
            isinstance(getattr(handler, "stream", None), _Stream)
            for handler in logging.getLogger().handlers
        ):
            return
        with contextlib.suppress(Exception):  # as logging itself: never the caller's problem
            feed.put(f"{self.format(record)}\n".encode("utf-8", "replace"))


_handler = _Handler()
_handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
_users = 0


def divert(*, through: bool) -> None:
    """Let feeds see what bodies print and log; with ``through``, the original streams as well.

    Log handlers that were there before write to the original streams only; so with them comes
    one of ours.
    """
    global _users
    _users += 1
    if through:
        logging.getLogger().addHandler(_handler)
    for name in ("stdout", "stderr"):  # somebody may have put in another one since last time
        stream = getattr(sys, name)
        if not isinstance(stream, _Stream):
            setattr(sys, name, _Stream(stream, through))


def restore() -> None:
    """Undo :func:`divert`."""
    global _users
    _users -= 1
    if _users:
        return
    logging.getLogger().removeHandler(_handler)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, _Stream):
            setattr(sys, name, stream._original)
