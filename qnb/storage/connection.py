"""The link to one server, for one event loop: reach it, make sure it is safe, wait for it.

A server that goes away is waited for: a command is sent again on a new connection for ``PATIENCE``
seconds, then :class:`BrokerError`; the embedded one is started again meanwhile. A server that
answers and does not let us in is :class:`Refused` at once. Every script may be sent twice without
harm. A link on which nothing moves for ``SILENCE`` seconds is taken for dead, though nobody has
closed it: a laptop that slept, or a router that forgot it, leaves such links behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from weakref import WeakSet

from qnb.clock import ServerClock, backoff
from qnb.errors import BrokerError, InvalidOption, ServerError, StoreFull, UnsafeStore
from qnb.storage import links, server
from qnb.storage.blobs import is_loopback
from qnb.storage.crashpoints import watched
from qnb.storage.keys import KeySpace
from qnb.storage.links import cancellable, heard, keepalive, masked, steady

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from qnb.storage.scripts import Scripts

__all__ = ["Connection", "Refused", "cancellable", "check_url", "masked"]

#: seconds for which a command waits for a server that was there before: 10 of an outage, and some
#: for its start; of one that loads its data; of the embedded one that cannot be started again
PATIENCE = 12.0
LOADING = 30.0
HOPELESS = 2.0

#: seconds to reach a server
CONNECT_TIMEOUT = 3.0

#: commands whose replies are taken as the server sends them
_AS_SENT = ("XREADGROUP", "XPENDING", "XRANGE", "XCLAIM")

T = TypeVar("T")


class Refused(BrokerError):
    """The server answers, and does not let this user do what a queue needs: waiting is no use."""


def check_url(url: str, *, insecure: bool = False) -> str:
    """``url``, if a queue may use it: ``redis://``, ``rediss://`` or ``unix://``; else an error."""
    schemes = "redis://host:port/db, rediss://host:port/db (TLS) or unix:///path"
    if not isinstance(url, str):
        raise InvalidOption(
            f"redis_url is a {type(url).__name__}: expected a URL such as {schemes}"
        )
    shown = f"redis_url={masked(url)!r}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # its own words may hold a part of the password
        host, port, parts = None, None, urlsplit("redis:")
    if parts.scheme == "unix":
        if not parts.path:
            raise InvalidOption(f"{shown}: names no socket; expected unix:///path")
        return url
    if parts.scheme not in ("redis", "rediss"):
        raise InvalidOption(f"{shown}: expected {schemes}")
    if not host or "@" in parts.path + parts.fragment:
        raise InvalidOption(
            f"{shown}: names no host; expected {schemes}, the port a number, and in a password "
            "'%2F' for '/', '%23' for '#', '%3F' for '?', '%40' for '@' and '%5B' for '['"
        )
    if parts.scheme == "redis" and not insecure and not is_loopback(host):
        raise InvalidOption(
            f"{shown}: host {host!r} is another machine and the connection is not encrypted. Use "
            f"rediss://, or App(..., insecure=True) on a network you trust"
            f"{'' if port else ' (and name the port)'}"
        )
    return url


class Connection:
    """The server at ``url``, for one event loop."""

    def __init__(self, url: str, keys: KeySpace, *, allow_volatile: bool = False) -> None:
        self.url = url
        self._keys = keys
        self.clock = ServerClock()
        self._allow_volatile = allow_volatile
        self._redis: Redis | None = None
        self._scripts: Scripts | None = None
        self._opening = asyncio.Lock()
        self._send = watched(cancellable)
        self._clients: WeakSet[Redis] = WeakSet()
        self._is_closed = False  # what is still under way may open a link anew
        self._reached = False  # has this server ever answered?
        self._reviving: asyncio.Task[bool] | None = None
        self._why_down = ""  # why the embedded server could not be started again

    def client(self, *, timeout: float | None = None) -> Redis:
        """A connection; ``timeout`` is ``SILENCE`` where nothing is waited for by a command."""
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        timeout = links.SILENCE if timeout is None else timeout
        options: dict[str, Any] = {}
        if not self.url.startswith("unix:"):
            options["socket_keepalive"] = True
            options["socket_keepalive_options"] = keepalive()
        client = links.closing().from_url(
            self.url,
            single_connection_client=True,
            socket_connect_timeout=CONNECT_TIMEOUT,
            socket_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            **options,
        )
        for command in _AS_SENT:
            client.response_callbacks.pop(command, None)
        pool = client.connection_pool
        pool.connection_class = steady(pool.connection_class, timeout)
        self._clients.add(client)
        return client

    async def open(self) -> None:
        """Reach the server and make sure that it may hold a queue."""
        async with self._opening:
            if self._redis is not None:
                return
            from qnb.storage.scripts import Scripts

            self._is_closed = False

            client = self.client()
            try:
                await self.run(lambda: self._check(client))
            except BaseException:
                await _close(client)
                raise
            self._redis = client
            self._scripts = Scripts(client, self._keys)
            self._reached = True

    async def _check(self, client: Redis) -> None:
        from redis.exceptions import NoPermissionError, ResponseError

        await self.sync_clock(client)
        with contextlib.suppress(NoPermissionError):
            version = await _version(client)
            if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < (6, 2):
                raise Refused(
                    f"the server at {masked(self.url)} is of version {version}; qnb needs Redis ≥ "
                    "6.2 or Valkey ≥ 7.2"
                )
        try:
            policy = (await client.config_get("maxmemory-policy")).get("maxmemory-policy")
            aof = (await client.config_get("appendonly")).get("appendonly")
            rdb = (await client.config_get("save")).get("save")
        except ResponseError:  # not permitted: a managed server; its operator has chosen
            return
        if policy not in (None, "noeviction"):
            raise UnsafeStore(
                f"the server at {masked(self.url)} has maxmemory-policy {policy!r}: it would drop "
                "waiting jobs without a word. Set 'CONFIG SET maxmemory-policy noeviction', or "
                "give qnb a server of its own"
            )
        if aof == "no" and not rdb and not self._allow_volatile:
            raise UnsafeStore(
                f"the server at {masked(self.url)} keeps nothing on disk (appendonly 'no', save "
                "''): a restart would lose the queue. Set 'CONFIG SET appendonly yes', or accept "
                "that with App(..., allow_volatile=True)"
            )

    async def close(self) -> None:
        """Let go of the connection."""
        client, self._redis, self._scripts = self._redis, None, None
        self._is_closed = True
        if client is not None:
            await _close(client)

    async def sync_clock(self, client: Redis | None = None) -> None:
        """Take a reading of the server's clock."""
        at = client or self.redis
        self.clock.told(await at.time())

    async def renew_clock(self) -> None:
        """Read the server's clock anew if that was long ago."""
        if self.clock.is_old:
            await self.run(self.sync_clock, 0)

    async def run(self, command: Callable[[], Awaitable[T]], patience: float | None = None) -> T:
        """Run ``command``; wait for a server that has gone away, and say what is wrong."""
        from redis.exceptions import RedisError

        loop = asyncio.get_running_loop()
        attempt, since = 0, None
        while True:
            try:
                reply: T = await self._send(command())
                return reply
            except (RedisError, OSError) as error:
                if self._is_closed:
                    raise BrokerError(f"the link to {masked(self.url)} was closed") from None
                if (refusal := self.refusal(error)) is not None:
                    raise refusal from None
                lost = error
            finally:
                if self._is_closed:  # it may have opened its link again
                    for client in tuple(self._clients):
                        await _close(client)
            await self._hang_up()
            since = since or loop.time()  # a link that fell silent has cost its time before
            up = bool(patience != 0 and await self.revive())
            left = since + self._patience(lost, patience, up=up) - loop.time()
            if left <= 0:
                raise self._away(lost)
            await asyncio.sleep(min(backoff(attempt), left))
            attempt += 1

    async def _hang_up(self) -> None:
        """Close the links that nobody uses just now: what has ended one has ended them, too."""
        for client in tuple(self._clients):
            with contextlib.suppress(Exception):
                await client.connection_pool.disconnect(inuse_connections=False)
                if client.connection is not None and not client._single_conn_lock.locked():
                    await client.connection.disconnect(nowait=True)

    def _patience(self, lost: Exception, most: float | None, *, up: bool) -> float:
        """Seconds for which it is worth to wait for a server that is away."""
        if most is not None:
            return most
        if _is_busy(lost):
            return LOADING
        if self._why_down:
            return HOPELESS
        return PATIENCE if up or self._reached else 0.0

    def refusal(self, error: Exception) -> BrokerError | None:
        """What a server's answer means; None if it is away, and worth another try."""
        from redis import exceptions as said

        at = f"the server at {masked(self.url)}"
        login = (said.AuthenticationError, said.AuthorizationError)
        if isinstance(error.__cause__, (*login, said.ResponseError)):  # as it connected
            error = error.__cause__
        text = str(error)
        if isinstance(error, login) and not isinstance(error, said.NoPermissionError):
            return Refused(f"{at} refused the login; check user and password in redis_url")
        if isinstance(error, said.ConnectionError | said.TimeoutError | OSError) or _is_busy(error):
            return None
        # Servers before 7.0 wrap what a script was told in words of their own.
        if isinstance(error, said.OutOfMemoryError) or "OOM command" in text:
            return StoreFull(
                f"{at} has reached its maxmemory and stores nothing more; raise the limit or "
                "forget finished work"
            )
        if "MISCONF" in text:
            why = text.partition("AOF file: ")[2].partition(" script:")[0] or text
            return StoreFull(
                f"{at} cannot write to its disk ({why}) and stores nothing more until it can; make "
                "room there"
            )
        if isinstance(error, said.ReadOnlyError) or "READONLY" in text:
            return Refused(f"{at} is a read-only replica; use its primary")
        if isinstance(error, said.NoPermissionError):
            return Refused(
                f"{at} does not permit this: {text}. Its user needs the keys "
                f"'~{self._keys.prefix}*' and the channels '&{self._keys.prefix}*'"
            )
        return BrokerError(f"{at} says: {text}")

    def _away(self, error: Exception) -> BrokerError:
        where, reason = f"no server answers at {masked(self.url)}", _reason(error)
        if _is_busy(error):
            return BrokerError(
                f"the server at {masked(self.url)} takes no commands yet ({reason}): try again in "
                "a while"
            )
        if self._why_down:
            return BrokerError(
                f"{where} ({reason}), and it was not started again: {self._why_down}"
            )
        return BrokerError(
            f"{where} ({reason}). Start it, correct redis_url or $QNB_REDIS_URL, or leave both out "
            "for the embedded server"
        )

    async def revive(self) -> bool:
        """Start the server again if it is the embedded one and has died; is it up?

        Whoever asks meanwhile waits for the same start.
        """
        if not self.url.startswith("unix:"):
            return False
        if self._reviving is None or self._reviving.done():
            self._reviving = asyncio.create_task(self._start_again(), name="qnb-revive")
        return await cancellable(asyncio.shield(self._reviving))

    async def _start_again(self) -> bool:
        self._why_down = ""
        try:
            return await asyncio.to_thread(server.revive, self.url)
        except ServerError as error:
            self._why_down = str(error)
            return False

    @property
    def redis(self) -> Redis:
        if self._redis is None:
            raise BrokerError(f"the link to {masked(self.url)} is not open")
        return self._redis

    @property
    def scripts(self) -> Scripts:
        if self._scripts is None:
            raise BrokerError(f"the link to {masked(self.url)} is not open")
        return self._scripts

    async def call(self, *command: Any) -> Any:
        """One command."""
        return await self.run(lambda: self.redis.execute_command(*command))  # type: ignore[no-untyped-call]

    async def pipeline(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        sent = list(commands)

        async def send() -> list[Any]:
            pipe = self.redis.pipeline(transaction=False)
            for command in sent:
                pipe.execute_command(*command)
            return await pipe.execute()

        return await self.run(send) if sent else []

    async def read(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        """As :meth:`pipeline`; None where a key is of another type: it holds nothing of ours."""
        sent = list(commands)

        async def send() -> list[Any]:
            pipe = self.redis.pipeline(transaction=False)
            for command in sent:
                pipe.execute_command(*command)
            replies = await pipe.execute(raise_on_error=False)
            for reply in replies:
                if isinstance(reply, Exception) and not _is_foreign(reply):
                    raise reply
            return [None if isinstance(reply, Exception) else reply for reply in replies]

        return await self.run(send) if sent else []

    async def hear(self, channel: str, subscribed: Callable[[], None]) -> AsyncIterator[bytes]:
        """What is said on ``channel``, for ever; ``subscribed`` is told of each (re)connect.

        A server that does not permit it is :class:`BrokerError`.
        """
        from redis.exceptions import RedisError

        attempt = 0
        while True:
            link = self.client()
            pubsub = link.pubsub(ignore_subscribe_messages=False)
            try:
                await cancellable(pubsub.subscribe(channel))
                message = await heard(pubsub, links.SILENCE)
                while True:
                    if message["type"] == "subscribe":
                        attempt = 0
                        subscribed()
                    elif message["type"] == "message":
                        yield message["data"]
                    message = await heard(pubsub, links.IDLE)
            except (RedisError, OSError) as error:
                if isinstance(refusal := self.refusal(error), Refused):
                    raise refusal from None
                await self.revive()
                await asyncio.sleep(backoff(attempt))
                attempt += 1
            finally:
                try:
                    with contextlib.suppress(Exception):
                        await pubsub.aclose()  # type: ignore[no-untyped-call]
                finally:  # also when it is cancelled just then
                    await _close(link)


async def _close(client: Redis) -> None:
    with contextlib.suppress(Exception):
        await client.aclose()


def _is_busy(error: Exception) -> bool:
    """Does the server answer that it will take commands later?"""
    from redis.exceptions import BusyLoadingError, MasterDownError

    loads = isinstance(error, BusyLoadingError | MasterDownError)
    return loads or str(error).startswith("BUSY ")  # it runs a long script, for somebody


def _is_foreign(error: Exception) -> bool:
    return str(error).startswith(("WRONGTYPE", "Operation against a key"))


async def _version(client: Redis) -> str:
    """The server's version; "0" of one that is too old to say hello."""
    from redis.exceptions import NoPermissionError, ResponseError

    try:
        said: Any = await client.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except NoPermissionError:
        raise
    except ResponseError:
        return "0"
    if not isinstance(said, dict):
        said = dict(zip(said[::2], said[1::2], strict=True))
    version = next((v for k, v in said.items() if k in (b"version", "version")), "0")
    return version.decode() if isinstance(version, bytes) else str(version)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error).partition(". ")[0].rstrip(".") or type(error).__name__
