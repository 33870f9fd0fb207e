"""The Lua scripts, one typed method each: callers never count KEYS and ARGV.

A script is sent by its digest and, where the server does not know it (yet, or after
``SCRIPT FLUSH``), by its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from qnb.storage.keys import GROUP
from qnb.storage.records import MAX_LOST_STARTS

__all__ = ["INLINE", "Scripts"]

#: most bytes of a call that ride in the lane's entry; a larger one is fetched from the record
INLINE = 16 * 1024

#: an unfinished job's record lives this long
UNFINISHED_TTL_MS = 30 * 24 * 3600 * 1000

Bytes = bytes | bytearray | memoryview


@cache
def _source(name: str) -> tuple[str, str]:
    text = files("qnb.storage").joinpath("lua", f"{name}.lua").read_bytes()
    return text.decode(), sha1(text, usedforsecurity=False).hexdigest()


class Scripts:
    """Runs the scripts on one connection."""

    __slots__ = ("_redis",)

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def _run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        text, digest = _source(name)
        try:
            return await self._redis.evalsha(digest, len(keys), *keys, *args)
        except NoScriptError:
            return await self._redis.eval(text, len(keys), *keys, *args)

    async def enqueue(
        self,
        index: str,
        lanes: Sequence[str],
        jobs: Sequence[str],
        calls: Sequence[tuple[int, str, Bytes, Bytes]],
    ) -> list[int]:
        """Store ``calls`` of (lane number from 1, job hex, spec, call) under the keys ``jobs``."""
        args: list[Any] = [len(lanes), UNFINISHED_TTL_MS, INLINE]
        for call in calls:
            args += call
        reply: list[int] = await self._run("enqueue", [index, *lanes, *jobs], args)
        return reply

    async def claim(self, lanes: Sequence[str], consumer: str, count: int) -> list[Any]:
        """Lease up to ``count`` waiting jobs of ``lanes`` (highest first) to ``consumer``."""
        reply: list[Any] = await self._run("claim", lanes, [GROUP, consumer, count])
        return reply

    async def start(
        self,
        jobs: Sequence[str],
        worker: str,
        channels: Sequence[str],
        marks: Sequence[tuple[int, int, int, int, bytes]],
    ) -> int:
        """Mark ``jobs`` as running: (attempt, starts, start, channel from 1, notice) of each."""
        args: list[Any] = [worker, len(channels), *channels]
        for mark in marks:
            args += mark
        reply: int = await self._run("start", jobs, args)
        return reply

    async def finish(
        self,
        lanes: Sequence[str],
        jobs: Sequence[str],
        ttl_ms: int,
        channels: Sequence[str],
        ends: Sequence[tuple[int, str, int, int, bytes, Bytes, int, bytes]],
    ) -> list[int]:
        """End attempts: (lane from 1, entry, attempt, starts, outcome, result, channel, notice)."""
        args: list[Any] = [len(lanes), GROUP, ttl_ms, len(channels), *channels]
        for end in ends:
            args += end
        reply: list[int] = await self._run("finish", [*lanes, *jobs], args)
        return reply

    async def recover(  # noqa: PLR0913 - the script's own arguments, by name
        self,
        lane: str,
        job: str,
        entry: str,
        *,
        idle_ms: int,
        begun: bool,
        outcome: bytes,
        ttl_ms: int,
        channel: str,
        notice: bytes,
    ) -> int:
        """Put a held job back (1) or end it with ``outcome`` (2); 0 if there is nothing to do."""
        args: list[Any] = [GROUP, entry, idle_ms, int(begun), MAX_LOST_STARTS]
        args += [outcome, ttl_ms, INLINE, channel, notice]
        reply: int = await self._run("recover", [lane, job], args)
        return reply

    async def leave(self, lanes: Sequence[str], consumer: str) -> int:
        """Forget ``consumer``, except on lanes where it still holds jobs; how many those are."""
        reply: int = await self._run("leave", lanes, [GROUP, consumer])
        return reply

    async def size(self, delayed: str, lanes: Sequence[str]) -> int:
        """How many jobs wait."""
        reply: int = await self._run("size", [delayed, *lanes], [GROUP])
        return reply
