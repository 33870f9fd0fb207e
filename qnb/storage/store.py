"""One queue on one server, for one event loop: what clients ask of it.

Bytes and models in and out; values stay bytes. What workers ask is :mod:`qnb.storage.leases`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgpack

from qnb.clock import backoff
from qnb.models import Ending, Failure, JobRecord, JobSpec, JobState, Outcome
from qnb.options import AppOptions
from qnb.storage.connection import Connection, cancellable
from qnb.storage.keys import KeySpace, job_hex
from qnb.storage.records import (
    FIELDS,
    Call,
    Notice,
    pack,
    pack_outcome,
    pack_spec,
    unpack_notices,
    unpack_record,
    unpack_spec,
)

if TYPE_CHECKING:
    from redis.asyncio.client import PubSub

__all__ = ["Store", "aborted", "expired", "is_due"]

#: most jobs, and bytes, of one script call
CHUNK_JOBS = 500
CHUNK_BYTES = 4 * 1024 * 1024

FUNCTION_TTL_MS = 30 * 24 * 3600 * 1000


def _chunks(calls: Sequence[Call]) -> Iterable[Sequence[Call]]:
    """Consecutive parts of ``calls``, bounded in number and bytes, none with the same id twice."""
    start, size, seen = 0, 0, set[str]()
    for at, call in enumerate(calls):
        full = at - start >= CHUNK_JOBS or size + len(call.payload) > CHUNK_BYTES
        if at > start and (full or call.spec.task_id in seen):
            yield calls[start:at]
            start, size, seen = at, 0, set()
        size += len(call.payload)
        seen.add(call.spec.task_id)
    if start < len(calls):
        yield calls[start:]


class Store:
    """The queue ``options.queue_name`` on the server at ``url``."""

    def __init__(self, url: str, options: AppOptions) -> None:
        self.keys = KeySpace(options.queue_name)
        self.options = options
        self.server = Connection(url, self.keys, allow_volatile=options.allow_volatile)
        self.clock = self.server.clock

    async def open(self) -> None:
        """Reach the server and make sure that it may hold a queue."""
        await self.server.open()

    async def close(self) -> None:
        await self.server.close()

    # -- sending -------------------------------------------------------------------------------

    async def enqueue(self, calls: Sequence[Call]) -> list[int]:
        """Store ``calls``; the enqueue time of each, 0 where it was there already."""
        stored: list[int] = []
        for chunk in _chunks(calls):
            lanes = list(dict.fromkeys(call.spec.lane for call in chunk))
            number = {lane: at for at, lane in enumerate(lanes, 1)}
            hexes = [job_hex(call.spec.task_id) for call in chunk]
            rows = [
                (
                    number[call.spec.lane], hex_, pack_spec(call.spec), call.payload, call.due,
                    call.expire_ms or "",
                )
                for hex_, call in zip(hexes, chunk, strict=True)
            ]  # fmt: skip
            jobs = [self.keys.job_of(hex_) for hex_ in hexes]
            reply = await self.server.run(
                lambda lanes=lanes, jobs=jobs, rows=rows: self.server.scripts.enqueue(  # type: ignore[misc]
                    lanes, jobs, rows
                )
            )
            stored += reply
        return stored

    async def put_function(self, digest: str, blob: bytes) -> None:
        """Keep a signed function for the workers, for 30 days from now."""
        await self.server.call("SET", self.keys.function(digest), blob, "PX", FUNCTION_TTL_MS)

    async def function(self, digest: str) -> bytes | None:
        """A signed function that was shipped by value, None if it is gone."""
        code: bytes | None = await self.server.call("GET", self.keys.function(digest))
        return code

    # -- commands ------------------------------------------------------------------------------

    async def abort(self, record: JobRecord, who: str) -> int:
        """End a waiting job (1) or ask its worker to stop it (2); 0 if unknown or finished."""
        now = self.clock.now_ms()
        outcome = pack_outcome(aborted(record.task_id, record.tries, now, f"aborted by {who}"))
        spec = await self.spec(record.task_id)
        channel = self.keys.channel(spec.channel) if spec and spec.channel else ""
        return await self.server.run(
            lambda: self.server.scripts.abort(
                record.task_id, record.priority, outcome, self.options.result_ttl_ms, channel,
                pack([record.task_id, "c"]), who,
            )
        )  # fmt: skip

    async def rerun(self, spec: JobSpec) -> int:
        """Run the finished job ``spec.task_id`` again; its enqueue time, 0 if it cannot be."""
        packed = pack_spec(spec)
        return await self.server.run(
            lambda: self.server.scripts.rerun(spec.task_id, spec.lane, packed)
        )

    async def spec(self, task_id: str) -> JobSpec | None:
        """What a job is, None if it is unknown."""
        packed = await self.server.call("HGET", self.keys.job(task_id), "m")
        return unpack_spec(packed) if packed else None

    async def expire(self, lane: str, hexes: Sequence[str]) -> int:
        """End those jobs of ``lane`` whose expiry is over and that nobody has started; how many."""
        rows = await self.server.pipeline(
            ("HMGET", self.keys.job_of(hex_), "m", "n") for hex_ in hexes
        )
        now, ends = self.clock.now_ms(), []
        for hex_, (packed, starts) in zip(hexes, rows, strict=True):
            if packed is None:  # the record is gone; the script takes it off its index
                ends.append((hex_, b"", "", b""))
                continue
            spec = unpack_spec(packed)
            outcome = pack_outcome(expired(spec.task_id, int(starts or 0), now))
            ends.append((hex_, outcome, spec.channel, pack([spec.task_id, "c"])))
        reply = await self.server.run(
            lambda: self.server.scripts.expire(lane, self.options.result_ttl_ms, ends)
        )
        return sum(reply)

    # -- looking -------------------------------------------------------------------------------

    async def records(
        self, task_ids: Sequence[str], *, call: bool = False, result: bool = False
    ) -> list[JobRecord | None]:
        """What is known of each job, None where nothing is; with call or result if asked."""
        return await self._records([self.keys.job(id_) for id_ in task_ids], call, result)

    async def _records(
        self, keys: Sequence[str], call: bool, result: bool
    ) -> list[JobRecord | None]:
        wanted = [*FIELDS, *(["p"] if call else []), *(["r"] if result else [])]
        records: list[JobRecord | None] = []
        for at in range(0, len(keys), CHUNK_JOBS):
            part = keys[at : at + CHUNK_JOBS]
            rows = await self.server.pipeline(("HMGET", key, *wanted) for key in part)
            for row in rows:
                fields = dict(zip(wanted, row, strict=True))
                records.append(unpack_record(fields) if fields["s"] else None)
        return records

    async def index(self) -> list[str]:
        """The keys of all jobs the queue knows, in order of enqueue time."""
        hexes = await self.server.call("ZRANGE", self.keys.jobs, 0, -1)
        return [self.keys.job_of(hex_.decode()) for hex_ in hexes]

    async def all_records(self, *, call: bool = False, result: bool = False) -> list[JobRecord]:
        """Every job whose record is still there, in order of enqueue time."""
        found = await self._records(await self.index(), call, result)
        return [record for record in found if record is not None]

    async def log(self, record: JobRecord, since: int = 0) -> tuple[str, int]:
        """The output of a job's body from byte ``since`` on, and where it ends now."""
        key = self.keys.log(record.task_id, record.enqueue_time)
        pieces, dropped = await self.server.pipeline(
            [("LRANGE", key, 0, -1), ("HGET", self.keys.job(record.task_id), "ld")]
        )
        text, start = b"".join(pieces), int(dropped or 0)
        note = ""
        if since < start:
            note = f"[{start - since:,} bytes of earlier output were dropped]\n"
        end = start + len(text)
        return note + text[max(0, since - start) :].decode(errors="replace"), end

    async def sizes(self) -> tuple[dict[str, int], int]:
        """How many jobs wait in each lane, lowest first, and how many are delayed."""
        lanes = self.options.priorities
        found = await self.server.run(lambda: self.server.scripts.size(lanes))
        waiting = {lane: count for lane, (count, _) in zip(lanes, found, strict=True)}
        return waiting, sum(delayed for _, delayed in found)

    async def queue_size(self) -> int:
        """How many jobs wait: in the lanes and not yet claimed, or delayed."""
        waiting, delayed = await self.sizes()
        return sum(waiting.values()) + delayed

    async def workers(self) -> dict[str, dict[str, Any]]:
        """What each living worker last said of itself."""
        ids = [id_.decode() for id_ in await self.server.call("ZRANGE", self.keys.workers, 0, -1)]
        says = await self.server.pipeline(("GET", self.keys.worker(id_)) for id_ in ids)
        return {id_: msgpack.unpackb(said) for id_, said in zip(ids, says, strict=True) if said}

    async def overview(self) -> dict[str, Any]:
        """The queue at a glance: what waits, what runs, and who serves it."""
        waiting, delayed = await self.sizes()
        workers = await self.workers()
        return {
            "queue": self.options.queue_name,
            "lanes": waiting,
            "delayed": delayed,
            "running": sum(int(says["running"]) for says in workers.values()),
            "workers": workers,
        }

    async def environment(self, digest: str) -> bytes | None:
        """A worker's description of its Python and packages, if it is still known."""
        said: bytes | None = await self.server.call("GET", self.keys.environment(digest))
        return said

    # -- hearing -------------------------------------------------------------------------------

    async def notices(
        self, client: str, subscribed: Callable[[], None]
    ) -> AsyncIterator[list[Notice]]:
        """News of the jobs of ``client``, for ever; ``subscribed`` is told of each (re)connect."""
        async for data in self.hear(self.keys.channel(client), subscribed):
            yield unpack_notices(data)

    async def hear(self, channel: str, subscribed: Callable[[], None]) -> AsyncIterator[bytes]:
        """What is said on ``channel``, for ever; ``subscribed`` is told of each (re)connect."""
        from redis import exceptions as refused

        attempt = 0
        while True:
            link = self.server.client(timeout=30.0)
            pubsub: PubSub = link.pubsub(ignore_subscribe_messages=False)
            try:
                await cancellable(pubsub.subscribe(channel))
                while True:
                    message = await cancellable(pubsub.get_message(timeout=10.0))
                    if message is None:
                        await cancellable(pubsub.ping())
                    elif message["type"] == "subscribe":
                        attempt = 0
                        subscribed()
                    elif message["type"] == "message":
                        yield message["data"]
            except (refused.ConnectionError, refused.TimeoutError, OSError):
                await asyncio.sleep(backoff(attempt))
                attempt += 1
            finally:
                with contextlib.suppress(Exception):
                    await pubsub.aclose()  # type: ignore[no-untyped-call]
                    await link.aclose()


# -- endings that the store itself gives to jobs that nobody runs ---------------------------------


def aborted(task_id: str, tries: int, now: int, how: str, start: int | None = None) -> Outcome:
    """How a job ends that was aborted; ``how`` says by whom and what became of its body."""
    failure = _failure("JobAborted", f"job {task_id!r} was {how}")
    return Outcome(Ending.ABORTED, tries, now if start is None else start, now, failure=failure)


def expired(task_id: str, tries: int, now: int) -> Outcome:
    """How a job ends that nobody started in time."""
    failure = _failure(
        "JobExpired", f"job {task_id!r} was not started before its expiry (expire_ms=...)"
    )
    return Outcome(Ending.EXPIRED, tries, now, now, failure=failure)


def _failure(type_: str, message: str) -> Failure:
    return Failure(type_, message, f"{type_}({message!r})")


def is_due(record: JobRecord, now: int) -> bool:
    """Whether an unstarted job's expiry is over."""
    return (
        record.expires_at is not None
        and record.expires_at <= now
        and record.status in (JobState.QUEUED, JobState.SCHEDULED)
    )
