"""The link to one server, for one event loop: reach it, make sure it is safe, wait for it.

A server that goes away is waited for: a command is sent again on a new connection for ``PATIENCE``
seconds, then :class:`BrokerError`. Every script may be sent twice without harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from qnb.clock import ServerClock, backoff
from qnb.errors import BrokerError, InvalidOption, StoreFull, UnsafeStore
from qnb.storage.keys import KeySpace

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from qnb.storage.scripts import Scripts

__all__ = ["Connection", "cancellable", "check_url", "masked"]

#: seconds for which a command waits for a server that was there before
PATIENCE = 10.0

#: seconds to reach a server
CONNECT_TIMEOUT = 0.8

#: commands whose replies are taken as the server sends them
_AS_SENT = ("XREADGROUP", "XPENDING", "XRANGE", "XCLAIM")

T = TypeVar("T")


def masked(url: str) -> str:
    """``url`` fit for eyes: its password is ``***``.

    >>> masked("redis://me:secret@host:6379/0")
    'redis://me:***@host:6379/0'
    """
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_url(url: str, *, insecure: bool = False) -> str:
    """``url``, if a queue may use it: ``redis://``, ``rediss://`` or ``unix://``; else an error."""
    schemes = "redis://host:port/db, rediss://host:port/db (TLS) or unix:///path"
    if not isinstance(url, str):
        raise InvalidOption(f"redis_url={url!r}: expected a URL such as {schemes}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidOption(f"redis_url={url!r}: {error}; expected {schemes}") from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise InvalidOption(f"redis_url={masked(url)!r}: expected {schemes}")
    if parts.scheme == "unix":
        if not parts.path:
            raise InvalidOption(
                f"redis_url={masked(url)!r}: names no socket; expected unix:///path"
            )
    elif not parts.hostname:
        raise InvalidOption(f"redis_url={masked(url)!r}: names no host; expected {schemes}")
    elif parts.scheme == "redis" and not insecure and not _is_local(parts.hostname):
        raise InvalidOption(
            f"redis_url={masked(url)!r}: host {parts.hostname!r} is another machine and the "
            "connection is not encrypted. Use rediss://, or App(..., insecure=True) on a network "
            f"you trust{'' if port else ' (and name the port)'}"
        )
    return url


async def cancellable(work: Awaitable[T]) -> T:
    """``await work``, and be cancelled by it if that was asked for meanwhile.

    redis-py sends with ``asyncio.wait_for``, which on Python 3.11 may forget a cancellation; a loop
    that forgets one would never end.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    done = await work
    if task and task.cancelling() > before:
        raise asyncio.CancelledError
    return done


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
        self._reached = False  # has this server ever answered?

    def client(self, *, timeout: float) -> Redis:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        options: dict[str, Any] = {}
        if not self.url.startswith("unix:"):
            options["socket_keepalive"] = True
        client = Redis.from_url(
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
        return client

    async def open(self) -> None:
        """Reach the server and make sure that it may hold a queue."""
        async with self._opening:
            if self._redis is not None:
                return
            from qnb.storage.scripts import Scripts

            client = self.client(timeout=15.0)
            try:
                await self.run(lambda: self._check(client))
            except BaseException:
                with contextlib.suppress(Exception):
                    await client.aclose()
                raise
            self._redis = client
            self._scripts = Scripts(client, self._keys)
            self._reached = True

    async def _check(self, client: Redis) -> None:
        from redis.exceptions import ResponseError

        await self.sync_clock(client)
        server = await client.info("server")
        version = str(server.get("redis_version", "0"))
        if tuple(int(part) for part in version.split(".")[:2]) < (6, 2):
            raise BrokerError(
                f"the server at {masked(self.url)} is Redis {version}; qnb needs Redis ≥ 6.2 or "
                "Valkey ≥ 7.2"
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
        if client is not None:
            with contextlib.suppress(Exception):
                await client.aclose()

    async def sync_clock(self, client: Redis | None = None) -> None:
        """Take a reading of the server's clock."""
        at = client or self.redis
        seconds, micros = await at.time()
        self.clock.set(seconds * 1000 + micros / 1000)

    async def run(self, command: Callable[[], Awaitable[T]], patience: float | None = None) -> T:
        """Run ``command``; wait for a server that has gone away, and say what is wrong."""
        from redis import exceptions as refused

        loop = asyncio.get_running_loop()
        deadline = loop.time() + (PATIENCE if patience is None else patience)
        attempt = 0
        while True:
            try:
                return await cancellable(command())
            except (refused.ConnectionError, refused.TimeoutError, OSError) as error:
                if isinstance(error, refused.AuthenticationError | refused.AuthorizationError):
                    raise BrokerError(
                        f"the server at {masked(self.url)} refused the login; check user and "
                        "password in redis_url"
                    ) from None
                loading = isinstance(error, refused.BusyLoadingError)
                if (not self._reached and not loading) or loop.time() >= deadline:
                    raise BrokerError(
                        f"no server answers at {masked(self.url)} ({_reason(error)}). Start it, "
                        "correct redis_url or $QNB_REDIS_URL, or leave both out for the "
                        "embedded server"
                    ) from None
            except refused.OutOfMemoryError:
                raise StoreFull(
                    f"the server at {masked(self.url)} has reached its maxmemory and stores "
                    "nothing more; raise the limit or forget finished work"
                ) from None
            except refused.ReadOnlyError:
                raise BrokerError(
                    f"the server at {masked(self.url)} is a read-only replica; use its primary"
                ) from None
            except refused.NoPermissionError as error:
                raise BrokerError(
                    f"the server at {masked(self.url)} does not permit this: {error}"
                ) from None
            except refused.ResponseError as error:
                raise BrokerError(f"the server at {masked(self.url)} says: {error}") from error
            await asyncio.sleep(backoff(attempt))
            attempt += 1

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


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error).partition(". ")[0].rstrip(".") or type(error).__name__
