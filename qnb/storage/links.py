"""One link to a server: when it is taken for dead, and what waiting on it takes care of.

A link on which nothing moves is given up, though nobody has closed it: a laptop that slept, or a
router that forgot it, leaves such links behind. One that moves slowly is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import weakref
from collections.abc import Awaitable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.client import PubSub

__all__ = ["SILENCE", "cancellable", "closing", "heard", "keepalive", "masked", "steady"]

#: seconds after which a link that owes an answer, and carries nothing, is taken for dead
SILENCE = 5.0

#: seconds without news after which a subscription is asked whether it is still there
IDLE = 10.0

#: bytes a second at which a command may go out, at the slowest
SLOWEST = 128 * 1024

#: words of a command beyond which none is large: such ones are bounded as a whole
MANY = 64

#: bytes of a word that is not copied into a command
LARGE = 32 * 1024

#: bytes of a command that are handed to the system at once: that costs a quarter less than waiting
SMALL = 64 * 1024

#: bytes in one piece that make it a part of a large reply
PIECE = 4096

#: seconds of idleness before the system probes a link, between two probes, and how many may fail
KEEPALIVE = (15, 5, 3)

T = TypeVar("T")


def masked(url: str) -> str:
    """``url`` fit for eyes: its password is ``***``, wherever it stands and however it is written.

    >>> masked("redis://me:secret@host:6379/0")
    'redis://me:***@host:6379/0'
    """
    start = "//" if "//" in url else "^"
    shown = re.sub(rf"({start})([\w.-]*:)?.*@", r"\1\2***@", url, flags=re.S)
    return re.sub(r"(password=)[^&]*", r"\1***", shown, flags=re.I)


async def cancellable(work: Awaitable[T]) -> T:
    """``await work``, and be cancelled by it if that was asked for meanwhile.

    redis-py sends with ``asyncio.wait_for``, which on Python 3.11 may forget a cancellation; a loop
    that forgets one would never end.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        return await work
    finally:  # whatever came of it, also an error
        if task and task.cancelling() > before:
            raise asyncio.CancelledError


async def heard(pubsub: PubSub, idle: float) -> dict[str, Any]:
    """The next thing a subscription says, asked for one after ``idle`` seconds of silence.

    ``TimeoutError`` if it does not answer.
    """
    message: dict[str, Any] | None = await cancellable(pubsub.get_message(timeout=idle))
    if message is None:
        await cancellable(pubsub.ping())
        message = await cancellable(pubsub.get_message(timeout=SILENCE))
    if message is None:
        raise TimeoutError(f"a subscription was silent for {SILENCE:g} s when asked")
    return message


@cache
def closing() -> type[Redis]:
    """A client whose link is closed when nobody holds it any more: its loop may be gone by then."""
    from redis.asyncio import Redis

    class Closing(Redis):
        def __del__(self, *_: Any) -> None:
            connection = getattr(self, "connection", None)
            if connection is not None:
                self.connection = None
                with contextlib.suppress(Exception):
                    connection._close()

    return Closing


def steady(kind: type[Any], timeout: float) -> type[Any]:
    """A ``kind`` of connection that gives up after ``timeout`` seconds in which nothing moves.

    Its commands are written by hiredis: a third of the time. Large words are not copied.
    """
    from hiredis import pack_command

    class Steady(kind):  # type: ignore[misc]
        def pack_command(self, *args: Any) -> list[Any]:
            large = len(args) < MANY and [w for w in args if type(w) is bytes and len(w) > LARGE]
            if not large and " " not in str(args[0]):
                with contextlib.suppress(TypeError):  # a word that it does not take
                    return [pack_command(args)]
            packed: list[Any] = super().pack_command(*args)
            return packed

        async def _connect(self) -> None:
            await super()._connect()
            relax = getattr(type(self), "update_current_socket_timeout", None)  # since redis-py 8
            reader, this = self._reader, weakref.ref(self)  # no cycle: see __del__
            feed = reader.feed_data

            def fed(data: bytes) -> None:
                if len(data) > PIECE and relax is not None and (link := this()) is not None:
                    relax(link, -1)
                feed(data)

            reader.feed_data = fed

        def __del__(self) -> None:
            """Who was cancelled while it closed it has left it open."""
            if getattr(self, "_writer", None) is not None:
                with contextlib.suppress(Exception):
                    self._close()

        async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            size = sum(map(len, command))
            # The answer comes only when all is through, so it is given that time, too.
            self.socket_timeout = timeout + size / SLOWEST
            if size < SMALL and self.is_connected:  # nothing to wait for but the answer
                self._writer.writelines(command)
            else:
                await super().send_packed_command(command, check_health=check_health)

    return Steady


def keepalive() -> dict[int, int]:
    """Socket options: the system notices within half a minute that nobody is there any more."""
    idle = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"  # macOS
    names = (idle, "TCP_KEEPINTVL", "TCP_KEEPCNT")
    return {
        getattr(socket, name): value
        for name, value in zip(names, KEEPALIVE, strict=True)
        if hasattr(socket, name)
    }
