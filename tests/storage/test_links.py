"""A link is given up when nothing moves on it, and not because a lot has to."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from qnb.errors import BrokerError
from qnb.storage import connection, links
from qnb.storage.connection import Connection
from qnb.storage.keys import KeySpace

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

SILENCE = 0.3


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "SILENCE", SILENCE)
    monkeypatch.setattr(connection, "PATIENCE", 1.0)


@contextlib.asynccontextmanager
async def link(serve: Serve) -> AsyncIterator[Connection]:
    """A link to something that answers as ``serve`` does, and has been reached before."""
    over = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.ensure_future(serve(reader, writer))
        await over.wait()
        serving.cancel()
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        there = Connection(f"redis://127.0.0.1:{port}", KeySpace("q"))
        there._redis = there.client()
        there._reached = True
        try:
            yield there
        finally:
            await there.close()
            over.set()
            await asyncio.sleep(0)


async def _handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What redis-py says first."""
    for _ in range(2):
        while b"LIB-" not in await reader.readline():
            pass
        await reader.readline()
        await reader.readline()
        writer.write(b"+OK\r\n")


def test_a_large_reply_may_take_long_as_long_as_it_moves() -> None:
    piece, count = 8192, 20

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _handshake(reader, writer)
        await reader.read(100)
        writer.write(b"$%d\r\n" % (piece * count))
        for _ in range(count):
            await asyncio.sleep(SILENCE / 6)
            writer.write(b"x" * piece)
            await writer.drain()
        writer.write(b"\r\n")

    async def main() -> None:
        async with link(serve) as there:
            since = time.monotonic()
            assert len(await there.call("GET", "k")) == piece * count
            assert time.monotonic() - since > 2 * SILENCE

    asyncio.run(main())


def test_a_large_command_is_given_the_time_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "SLOWEST", 1_000_000)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _handshake(reader, writer)
        await asyncio.sleep(3 * SILENCE)  # what it takes to get through
        while not (await reader.read(1 << 20)).endswith(b"end\r\n"):
            pass
        writer.write(b"+OK\r\n")

    async def main() -> None:
        async with link(serve) as there:
            assert await there.call("SET", "k", b"x" * 1_000_000 + b"end")

    asyncio.run(main())


def test_a_server_that_never_answers_is_given_up_within_the_patience() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _handshake(reader, writer)

    async def main() -> None:
        async with link(serve) as there:
            since = time.monotonic()
            with pytest.raises(BrokerError, match=r"no server answers at redis://127\.0\.0\.1"):
                await there.call("GET", "k")
            assert SILENCE + 1.0 <= time.monotonic() - since < 4

    asyncio.run(main())


def test_a_subscription_that_does_not_answer_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "IDLE", 0.1)
    subscribed = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _handshake(reader, writer)
        await reader.read(100)
        writer.write(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n")

    def told() -> None:
        nonlocal subscribed
        subscribed += 1

    async def main() -> None:
        async with link(serve) as there, asyncio.timeout(10):
            news = there.hear("c", told)
            hearing = asyncio.ensure_future(anext(news))
            while subscribed < 3:  # noqa: ASYNC110 - it has no event of its own
                await asyncio.sleep(0.01)
            hearing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hearing

    asyncio.run(main())


def test_a_cancellation_is_kept_whatever_comes_of_what_was_awaited() -> None:
    async def forgets(error: Exception | None) -> int:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        if error:
            raise error
        return 1

    async def main() -> None:
        for error in (None, OSError("lost")):
            task = asyncio.ensure_future(links.cancellable(forgets(error)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())


def test_a_link_that_nobody_holds_any_more_is_closed(server_url: str) -> None:
    async def leave_open() -> None:
        client = Connection(server_url, KeySpace("left")).client()
        await client.ping()

    asyncio.run(leave_open())
    gc.collect()  # an unclosed one would be a warning, which is an error here
