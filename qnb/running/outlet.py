"""The pipe through which a child process's stdout and stderr are read."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from typing import Protocol

__all__ = ["PIPE", "Listener", "Outlet", "read_all"]

#: bytes of output that a child can write while nobody reads; bytes read in one go
PIPE = 256 * 1024
CHUNK = 64 * 1024

#: seconds between two looks at a pipe that has little in it
LOOK = 0.02

#: bytes of a child's last output that its death is told with, and lines
LAST_BYTES = 1000
LAST_LINES = 10

_F_SETPIPE_SZ = 1031


class Listener(Protocol):
    """Who hears what comes out."""

    def may_read(self) -> bool:
        """Is it known now whose output the pipe holds?"""

    def hear(self, output: bytes) -> None:
        """This has come out."""


class Outlet:
    """Reads on the loop that makes it, as soon as the child writes."""

    def __init__(self, listener: Listener) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self.fd, self.theirs = os.pipe()  #: to read from; for the child to write to
        os.set_blocking(self.fd, False)
        with contextlib.suppress(OSError):  # not Linux, or the user has too many large pipes
            fcntl.fcntl(self.theirs, _F_SETPIPE_SZ, PIPE)
        self._last = b""

    def open(self) -> None:
        """The child has its end: begin to read."""
        self._loop.add_reader(self.fd, self._ready)

    def _ready(self) -> None:
        if self._listener.may_read() and self._read() >= CHUNK // 4:
            return
        if self.fd >= 0:  # little by little is dear: let some more come together
            self._loop.remove_reader(self.fd)
            self._loop.call_later(LOOK, self._look_again)

    def _look_again(self) -> None:
        if self.fd >= 0:
            self._loop.add_reader(self.fd, self._ready)

    def _read(self) -> int:
        try:
            data = os.read(self.fd, CHUNK)
        except OSError:
            return 0
        if not data:
            self.close()
            return 0
        self.hear(data)
        return len(data)

    def hear(self, output: bytes) -> None:
        """Take what the child itself has read, or told otherwise."""
        self.remember(output)
        self._listener.hear(output)

    def drain(self) -> None:
        """Read all that is there."""
        left = PIPE
        while left > 0 and self.fd >= 0 and (got := self._read()):
            left -= got

    def remember(self, output: bytes) -> None:
        """Keep the end of it, to tell the child's death with."""
        self._last = (self._last + output[-LAST_BYTES:])[-LAST_BYTES:]

    def forget(self) -> None:
        """Read and forget what is there: the next body begins."""
        self.drain()
        self._last = b""

    def last_lines(self) -> str:
        """The last lines that were put out."""
        return "\n".join(self._last.decode("utf-8", "replace").splitlines()[-LAST_LINES:])

    def close(self) -> None:
        """Read no more."""
        if self.fd >= 0:
            self._loop.remove_reader(self.fd)
            os.close(self.fd)
            self.fd = -1


def read_all(fd: int) -> bytes:
    """All that a pipe holds which nobody else reads."""
    data = b""
    with contextlib.suppress(OSError):
        while len(data) < PIPE and (piece := os.read(fd, CHUNK)):
            data += piece
    return data
