"""The guardian: a small process that stops the embedded server when nobody uses it.

The server has no such feature of its own, and the kernel that started it may be long gone. So
each server has one guardian, in a session of its own too. It keeps one connection, looks from
time to time who else is connected, and shuts the server down (its data stays on disk) after a
while of nobody. If the guardian is killed the server lives on, and the next ``ensure`` gives it
another.

``server.py`` runs this file as a plain script (``python -I -S guardian.py SOCKET IDLE LOCK``), so
it needs nothing but the standard library and stays near 10 MB. It speaks the server's protocol
by hand for the same reason; ``server.py``, which must not wait for redis-py to load, borrows that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import sys
import time
from typing import Self

__all__ = ["GUARDIAN", "Link", "Refused"]

GUARDIAN = "qnb-guardian"  #: its connection's name, by which it is told from a user's
_POLL = 10.0  # seconds between two looks


class Refused(Exception):
    """The server answered with an error."""


class Link:
    """One connection to the server that listens at ``path``.

    Whatever goes wrong with the connection is an ``OSError``: ``TimeoutError`` where the server is
    silent for ``timeout`` seconds, ``ConnectionError`` where it is gone.
    """

    def __init__(self, path: str, timeout: float | None = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(path)
        except BaseException:
            self._socket.close()
            raise
        self._replies = self._socket.makefile("rb")

    def call(self, *words: str) -> str:
        """The server's answer to a command, if it is one string or number."""
        parts = [word.encode() for word in words]
        request = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        self._socket.sendall(b"*%d\r\n%s" % (len(parts), request))
        line = self._whole(self._replies.readline())
        if line.startswith("-"):
            raise Refused(line[1:])
        if line.startswith("$"):
            return self._whole(self._replies.read(int(line[1:]) + 2))
        return line[1:]

    def _whole(self, received: bytes) -> str:
        if not received.endswith(b"\r\n"):
            raise ConnectionResetError("the server closed the connection")
        return received[:-2].decode(errors="replace")

    def info(self) -> dict[str, str]:
        """What INFO says: everything the server knows about itself."""
        lines = (line.partition(":") for line in self.call("INFO").splitlines())
        return {key: value for key, colon, value in lines if colon}

    def shut_down(self) -> None:
        """Ask the server to end; returns when it has, with all its data on disk."""
        with contextlib.suppress(ConnectionError):  # the only answer to a SHUTDOWN that worked
            self.call("SHUTDOWN")

    def closes_within(self, seconds: float) -> bool:
        """Wait ``seconds``, or less if the server closes the connection."""
        readable, _, _ = select.select([self._socket], [], [], seconds)
        return bool(readable)  # it has nothing to say unasked, so this is the end of the stream

    def close(self) -> None:
        self._replies.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _alone(link: Link) -> int | None:
    """How many connections the server has ever had; None if there is another one now."""
    try:
        info = link.info()
    except Refused:  # it runs a long script, for somebody
        return None
    return int(info["total_connections_received"]) if info["connected_clients"] == "1" else None


def _watch(link: Link, idle: float, lock: str) -> None:
    """Return when the server has ended; end it when nobody has been connected for ``idle`` s."""
    seen, since = _alone(link), time.monotonic()
    while not link.closes_within(min(_POLL, idle / 4)):
        now = _alone(link)
        if now is None or now != seen:  # somebody is there, or came and went
            seen, since = now, time.monotonic()
        elif time.monotonic() - since >= idle:
            # `ensure` holds this lock while it looks whether the server is up. Either it came
            # first, and its connection shows below, or it finds the server gone.
            turn = os.open(lock, os.O_RDWR)
            fcntl.flock(turn, fcntl.LOCK_EX)
            if _alone(link) == seen:
                link.shut_down()
                return
            os.close(turn)


def _main(path: str, idle: str, lock: str) -> None:
    # The lock that says "this server has a guardian" is an open file inherited from `ensure`:
    # nothing here touches it, and the kernel lets go of it when this process ends, however.
    # Where the server is gone, from the start or later on, nothing is left to do.
    with contextlib.suppress(FileNotFoundError, ConnectionError), Link(path) as link:
        link.call("CLIENT", "SETNAME", GUARDIAN)
        if os.fork():
            os._exit(0)  # whoever started us goes on; the child is nobody's zombie
        _watch(link, float(idle), lock)


if __name__ == "__main__":
    _main(*sys.argv[1:])
