"""Both sides of a queue, straight on the store: what clients send, and workers known by name.

Every script that is run here is watched: it may touch the keys it was given and no others (the
server itself refuses, by an ACL user of its own), and whatever it leaves in them expires or is
structural.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from redis.asyncio import Redis

from qnb.models import Ending, Failure, JobRecord, JobSpec, Outcome
from qnb.options import AppOptions
from qnb.storage.keys import STRUCTURAL, job_hex
from qnb.storage.leases import Leases, Overdue
from qnb.storage.records import Call, Claimed, Finished
from qnb.storage.scripts import Scripts
from qnb.storage.store import Store

DONE = Outcome(Ending.DONE, 1, 10, 20, result=b"value", worker="host:1")
FAILED = Outcome(Ending.FAILED, 1, 10, 20, failure=Failure("ValueError", "no", "ValueError('no')"))
LOST = Outcome(Ending.CRASHED, 3, 10, 20, failure=Failure("WorkerCrashed", "gone", "gone"))

#: long enough never to come in a test, in milliseconds
LATER = 3_600_000

_numbers = itertools.count()


def call(
    task_id: str | None = None,
    lane: str = "default",
    payload: bytes = b"call",
    *,
    channel: str = "",
    **when: Any,
) -> Call:
    """A call of its own, of a job of its own unless ``task_id`` says otherwise."""
    number = next(_numbers)
    spec = JobSpec(task_id or f"job {number}", "f", lane, channel=channel, nonce=str(number))
    return Call(spec, payload, **when)


def overdue(claimed: Claimed, lease_ms: int = 0) -> Overdue:
    """``claimed`` as :meth:`Leases.overdue` would tell of it."""
    return claimed.spec, claimed.entry, claimed.back, lease_ms, "silent"


class Watched(Scripts):
    """The scripts, each run by a user who may touch the keys it was given and no others."""

    __slots__ = ("_admin", "_user")

    def __init__(self, store: Store, admin: Redis, link: Redis, user: str) -> None:
        super().__init__(link, store.keys)
        self._admin = admin
        self._user = user

    async def _run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        allowed = [f"~{key}" for key in keys]
        acl: Any = self._admin.execute_command
        await acl("ACL", "SETUSER", self._user, "resetkeys", *allowed)
        reply = await super()._run(name, keys, args)
        for key in keys:
            kind = key.removeprefix(self._keys.prefix).partition(":")[0]
            if kind not in STRUCTURAL:
                assert await self._admin.pttl(key) != -1, f"{name} left {key} for ever"
        return reply


class Desk:
    """One queue: its store as clients use it, and workers by name."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.keys = store.keys
        self._workers: dict[str, Leases] = {}

    def worker(self, name: str = "w", lease_ms: int = LATER) -> Leases:
        """The worker of that name; its leases are ``lease_ms`` long."""
        return self._workers.setdefault(name, Leases(self.store, f"{name}~{lease_ms}"))

    async def put(self, *calls: Call) -> list[str]:
        """Enqueue ``calls``, all of them new; their ids."""
        assert all(await self.store.enqueue(calls))
        return [call.spec.task_id for call in calls]

    async def claim(self, name: str = "w", count: int = 1) -> list[Claimed]:
        return await self.worker(name).claim(count)

    async def held(self, one: Call | None = None, name: str = "w") -> Claimed:
        """A job that ``name`` holds: the given one, alone in the queue, or a new one."""
        await self.put(one or call())
        [claimed] = await self.claim(name)
        return claimed

    async def start(self, claimed: Claimed, name: str = "w", at: int = 5) -> None:
        await self.worker(name).start(name, [(claimed, at)])

    async def finish(
        self, claimed: Claimed, outcome: Outcome = DONE, name: str = "w", *, has_log: bool = False
    ) -> bool:
        [accepted] = await self.worker(name).finish([Finished(claimed, outcome, has_log)])
        return accepted

    async def retry(self, claimed: Claimed, delay_ms: int = 0, name: str = "w") -> int:
        return await self.worker(name).retry(claimed, replace(FAILED, retry_in_ms=delay_ms))

    async def abort(self, task_id: str) -> int:
        """As a client aborts: of what it last knew of the job."""
        record = await self.record(task_id)
        return await self.store.abort(record, "me") if record else 0

    async def record(self, task_id: str) -> JobRecord | None:
        [record] = await self.store.records([task_id], call=True, result=True)
        return record

    async def status(self, task_id: str) -> str | None:
        record = await self.record(task_id)
        return str(record.status) if record else None

    async def ending(self, task_id: str) -> str | None:
        """How the job ended, None while it has not."""
        record = await self.record(task_id)
        return str(record.outcome.ending) if record and record.outcome else None

    async def raw(self, *command: Any) -> Any:
        return await self.store.server.call(*command)

    async def now_ms(self) -> int:
        """The server's clock."""
        seconds, micros = await self.raw("TIME")
        return int(seconds * 1000 + micros // 1000)

    async def field(self, task_id: str, field: str) -> bytes | None:
        """A field of the job's hash as it stands in the store."""
        found: bytes | None = await self.raw("HGET", self.keys.job(task_id), field)
        return found

    async def indexed(self, kind: str, lane: str = "default") -> list[str]:
        """The job hexes among the ``delayed`` or ``expiring`` ones of ``lane``."""
        return [h.decode() for h in await self.raw("ZRANGE", getattr(self.keys, kind)(lane), 0, -1)]

    async def ttl(self, key: str) -> int:
        return int(await self.raw("PTTL", key))

    async def entries(self, lane: str = "default") -> int:
        """How many entries the lane has, held or waiting, with what was handed back to it."""
        return sum([await self.raw("XLEN", key(lane)) for key in (self.keys.lane, self.keys.back)])

    @contextlib.asynccontextmanager
    async def hearing(self, channel: str) -> AsyncIterator[list[bytes]]:
        """What is published on ``channel`` from now on."""
        heard: list[bytes] = []
        ready = asyncio.Event()

        async def hear() -> None:
            async for data in self.store.hear(channel, ready.set):
                heard.append(data)

        task = asyncio.create_task(hear())
        try:
            await ready.wait()
            yield heard
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def is_gone_from(self, task_id: str, lane: str = "default") -> bool:
        """Whether nothing of the job is left but its record."""
        waiting = [*await self.indexed("delayed", lane), *await self.indexed("expiring", lane)]
        return not await self.entries(lane) and job_hex(task_id) not in waiting


@contextlib.asynccontextmanager
async def opened(
    url: str, queue: str, lanes: tuple[str, ...] = ("default",), *, watched: bool = True
) -> AsyncIterator[Desk]:
    """A desk on the server at ``url``; its workers' groups are there."""
    store = Store(url, AppOptions(queue_name=queue, priorities=lanes, lease_ms=100))
    await store.open()
    try:
        desk = Desk(store)
        await desk.worker().join()
        async with _watched(store, queue) if watched else contextlib.nullcontext():
            yield desk
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def _watched(store: Store, user: str) -> AsyncIterator[None]:
    admin, link = store.server.client(timeout=5), store.server.client(timeout=5)
    acl: Any = admin.execute_command
    try:
        await acl("ACL", "SETUSER", user, "reset", "on", "nopass", "&*", "+@all")
        await link.execute_command("AUTH", user, "any")  # type: ignore[no-untyped-call]
        store.server._scripts = Watched(store, admin, link, user)
        yield
    finally:
        await acl("ACL", "DELUSER", user)
        await link.aclose()
        await admin.aclose()
