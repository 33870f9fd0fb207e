"""One queue on one server, for one event loop: what clients ask of it.

Bytes and models in and out; values stay bytes. What workers ask is :mod:`qnb.storage.leases`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from qnb.models import Ending, Failure, JobRecord, JobSpec, JobState, Outcome
from qnb.options import AppOptions
from qnb.storage.connection import Connection
from qnb.storage.keys import UNFINISHED_TTL_MS, KeySpace, is_hex, job_hex
from qnb.storage.records import (
    FIELDS,
    Call,
    Notice,
    Unreadable,
    pack,
    pack_outcome,
    pack_spec,
    read_int,
    unpack_notices,
    unpack_record,
    unpack_spec,
    unpack_worker,
    unreadable,
)

__all__ = ["Store", "aborted", "expired", "is_due", "skipped"]

log = logging.getLogger("qnb.store")

#: most jobs, and bytes, of one script call
CHUNK_JOBS = 500
CHUNK_BYTES = 4 * 1024 * 1024

#: most due jobs that are dealt with at a time, of each kind and lane
DUE = 200

#: the longest delay that a script counts
EVER_MS = 10**14


#: turns of the loop in which a call gets from redis-py to its socket
TURNS = 4

#: lanes, jobs, rows of the script, and how long each function is needed
_Chunk = tuple[
    list[str], list[str], list[tuple[int, str, bytes, bytes, str, int | str]], dict[str, int]
]


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

    async def enqueue(
        self,
        calls: Sequence[Call],
        missing: Callable[[str], Awaitable[None]] | None = None,
        *,
        fresh: bool = True,
    ) -> list[int]:
        """Store ``calls``; the enqueue time of each, 0 where it was there already.

        What is complete is run afresh, or left alone too.

        Functions that they bring are kept for as long as their jobs may wait. One that the store
        does not have is given to ``missing``.
        """
        stored: list[int] = []
        sent: asyncio.Task[list[int]] | None = None
        try:
            for chunk in _chunks(calls):
                packed = self._pack(chunk, keep=missing is not None)  # the server is busy meanwhile
                if len(chunk) == len(calls):
                    return await self._send(packed, missing, fresh=fresh)
                if sent is not None:
                    stored += await sent
                sent = asyncio.create_task(self._send(packed, missing, fresh=fresh))
                for _ in range(TURNS):
                    await asyncio.sleep(0)
            return stored + await sent if sent is not None else stored
        finally:
            if sent is not None:
                sent.cancel()

    def _pack(self, calls: Sequence[Call], *, keep: bool) -> _Chunk:
        lanes = list(dict.fromkeys(call.spec.lane for call in calls))
        number = {lane: at for at, lane in enumerate(lanes, 1)}
        hexes = [job_hex(call.spec.task_id) for call in calls]
        rows = [
            (
                number[call.spec.lane], hex_, pack_spec(call.spec), call.payload, call.due,
                call.expire_ms or "",
            )
            for hex_, call in zip(hexes, calls, strict=True)
        ]  # fmt: skip
        return lanes, list(map(self.keys.job_of, hexes)), rows, self._lives(calls) if keep else {}

    async def _send(
        self, chunk: _Chunk, missing: Callable[[str], Awaitable[None]] | None, *, fresh: bool
    ) -> list[int]:
        lanes, jobs, rows, lives = chunk
        functions = {self.keys.function(digest): ms for digest, ms in lives.items()}
        enqueued, kept = await self.server.run(
            lambda: self.server.scripts.enqueue(lanes, jobs, rows, functions, fresh=fresh)
        )
        for digest, there in zip(lives, kept, strict=True):
            if missing and not there:
                await missing(digest)
        return enqueued

    def _lives(self, calls: Sequence[Call]) -> dict[str, int]:
        """How long the functions that ``calls`` bring are needed, by digest."""
        lives: dict[str, int] = {}
        for call in calls:
            if call.code is not None:
                digest, needed = call.spec.function, self.function_ttl_ms(call)
                if needed > lives.get(digest, 0):
                    lives[digest] = needed
        return lives

    async def put_function(self, digest: str, blob: bytes, ttl_ms: int = 0) -> None:
        """Keep a signed function for the workers, for 30 days from now, or longer if asked."""
        lives = max(UNFINISHED_TTL_MS, ttl_ms)
        await self.server.call("SET", self.keys.function(digest), blob, "PX", lives)

    def function_ttl_ms(self, call: Call) -> int:
        """How long the function of ``call`` is needed: as long as its job may wait."""
        if not (call.delay_ms or call.schedule_ms):
            return UNFINISHED_TTL_MS
        wait = max(call.delay_ms, call.schedule_ms - self.clock.now_ms(), 0)
        return UNFINISHED_TTL_MS + min(wait, EVER_MS)

    async def keep_functions(self, lives: Mapping[str, int]) -> list[str]:
        """Have functions live so many milliseconds at least; those that are no longer stored."""
        digests = list(lives)
        kept = await self.server.run(
            lambda: self.server.scripts.keep(
                [self.keys.function(digest) for digest in digests], list(lives.values())
            )
        )
        return [digest for digest, there in zip(digests, kept, strict=True) if not there]

    async def function(self, digest: str) -> bytes | None:
        """A signed function that was shipped by value, None if it is gone."""
        for pause in (0.05, 0.2, 0.5, None):  # where the store had lost it, it is on its way
            code: bytes | None = await self.server.call("GET", self.keys.function(digest))
            if code is not None or pause is None:
                return code
            await asyncio.sleep(pause)
        return None

    # -- commands ------------------------------------------------------------------------------

    async def abort(self, record: JobRecord, who: str) -> int:
        """End a waiting job (1) or ask its worker to stop it (2); 0 if unknown or finished."""
        now = self.clock.now_ms()
        outcome = pack_outcome(aborted(record.task_id, record.tries, now, f"aborted by {who}"))
        spec = await self.spec(record.task_id)
        end = (record.task_id, outcome, spec.channel if spec else "", pack([record.task_id, "c"]))
        [answer] = await self.server.run(
            lambda: self.server.scripts.abort(
                record.priority, self.options.result_ttl_ms, who, [end]
            )
        )
        return answer

    async def rerun(self, spec: JobSpec, call: bytes) -> int:
        """Run a finished job again as ``spec`` and ``call`` say; its enqueue time, or 0."""
        job, packed = self.keys.job(spec.task_id), pack_spec(spec)
        if spec.function and ":" not in spec.function:
            await self.keep_functions({spec.function: UNFINISHED_TTL_MS})
        [enqueued] = await self.server.run(
            lambda: self.server.scripts.rerun(spec.lane, [job], [(packed, call)])
        )
        return enqueued

    async def spec(self, task_id: str) -> JobSpec | None:
        """What a job is, None if it is unknown or unreadable."""
        packed = await self.server.call("HGET", self.keys.job(task_id), "m")
        with contextlib.suppress(Unreadable):
            return unpack_spec(packed) if packed else None
        return None

    async def expire(self, lane: str, hexes: Sequence[str]) -> int:
        """End those jobs of ``lane`` whose expiry is over and that nobody has started; how many."""
        rows = await self.server.read(("HMGET", self.keys.job_of(hex_), "m", "n") for hex_ in hexes)
        now, ends = self.clock.now_ms(), []
        for hex_, row in zip(hexes, rows, strict=True):
            packed, starts = row or (None, None)
            try:
                spec = unpack_spec(packed or b"")
                outcome = pack_outcome(expired(spec.task_id, read_int(starts), now))
                ends.append((hex_, outcome, spec.channel, pack([spec.task_id, "c"])))
            except Unreadable as error:  # or gone; either way the script takes it off its index
                if packed:
                    skipped(f"job {hex_} of lane {lane!r}: {error}; it ends as expired")
                ends.append((hex_, pack_outcome(expired(hex_, 0, now)), "", b""))
        reply = await self.server.run(
            lambda: self.server.scripts.expire(lane, self.options.result_ttl_ms, ends)
        )
        return sum(reply)

    async def expire_due(self, lane: str, most: float) -> float:
        """End what has expired in ``lane``; seconds until more may have, ``most`` at most.

        For clients whose jobs may expire while no worker is there to see to it.
        """
        until, [(_, over)] = await self.server.run(lambda: self.server.scripts.due([lane], DUE))
        if hexes := [member.decode() for member in over if is_hex(member)]:
            await self.expire(lane, hexes)
        return 0.0 if len(over) == DUE else most if until < 0 else min(most, until / 1000)

    # -- looking -------------------------------------------------------------------------------

    async def records(
        self, task_ids: Sequence[str], *, call: bool = False, result: bool = False
    ) -> list[JobRecord | None]:
        """What is known of each job, None where nothing is; with call or result if asked.

        One that is unreadable is shown as failed, its failure of type ``JobLost``.
        """
        found = await self._records([self.keys.job(id_) for id_ in task_ids], call, result)
        return [
            unreadable(id_, str(record)) if isinstance(record, Unreadable) else record
            for id_, record in zip(task_ids, found, strict=True)
        ]

    async def _records(
        self, keys: Sequence[str], call: bool, result: bool
    ) -> list[JobRecord | Unreadable | None]:
        wanted = [*FIELDS, *(["p"] if call else []), *(["r"] if result else [])]
        records: list[JobRecord | Unreadable | None] = []
        for at in range(0, len(keys), CHUNK_JOBS):
            part = keys[at : at + CHUNK_JOBS]
            for row in await self.server.read(("HMGET", key, *wanted) for key in part):
                fields = dict(zip(wanted, row or [None] * len(wanted), strict=True))
                try:
                    records.append(unpack_record(fields) if fields["s"] else None)
                except Unreadable as error:
                    records.append(error)
        return records

    async def ended(self, task_ids: Sequence[str]) -> list[JobRecord | None]:
        """As :meth:`records`, with the result of those that have ended, and no call."""
        records = await self.records(task_ids)
        over = [at for at, record in enumerate(records) if record and record.outcome]
        if over:
            whole = await self.records([task_ids[at] for at in over], result=True)
            for at, record in zip(over, whole, strict=True):
                records[at] = record
        return records

    async def index(self) -> list[str]:
        """The keys of all jobs the queue knows, in order of enqueue time."""
        hexes = await self.server.call("ZRANGE", self.keys.jobs, 0, -1)
        return [self.keys.job_of(hex_.decode()) for hex_ in hexes if is_hex(hex_)]

    async def call_nbytes(self, task_id: str) -> int:
        """How many bytes the signed arguments of a job have here."""
        return int(await self.server.call("HSTRLEN", self.keys.job(task_id), "p"))

    async def log(self, record: JobRecord, since: int = 0) -> tuple[str, int]:
        """The output of a job's body from byte ``since`` on, and where it ends now."""
        start, text = await self.server.run(
            lambda: self.server.scripts.log(record.task_id, record.enqueue_time, since)
        )
        note = ""
        if since < start:
            note = f"[{start - since:,} bytes of earlier output were dropped]\n"
        return note + text.decode(errors="replace"), max(since, start) + len(text)

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

    async def workers(self, most: int = 0) -> dict[str, dict[str, Any]]:
        """What each living worker last said of itself; with ``most``, those last heard of."""
        names = await self.server.call("ZREVRANGE", self.keys.workers, 0, most - 1)
        names.reverse()
        ids = [name.decode("utf-8", "replace") for name in names]
        found = {}
        says = await self.server.read(("GET", self.keys.worker(id_)) for id_ in ids)
        for id_, said in zip(ids, says, strict=True):
            if said:
                try:
                    found[id_] = unpack_worker(said)
                except Unreadable as error:
                    skipped(f"worker {id_!r}: {error}")
        return found

    async def count_workers(self) -> int:
        """How many workers are on the list of all."""
        found: int = await self.server.call("ZCARD", self.keys.workers)
        return found

    async def overview(self) -> dict[str, Any]:
        """The queue at a glance: what waits, what runs, and who serves it."""
        waiting, delayed = await self.sizes()
        workers = await self.workers()
        return {
            "queue": self.options.queue_name,
            "lanes": waiting,
            "delayed": delayed,
            "running": sum(says["running"] for says in workers.values()),
            "workers": workers,
        }

    async def environment(self, digest: str) -> bytes | None:
        """A worker's description of its Python and packages, if it is still known."""
        said: bytes | None = await self.server.call("GET", self.keys.environment(digest))
        return said

    # -- hearing -------------------------------------------------------------------------------

    async def notices(
        self, client: str, subscribed: Callable[[], None], wanted: Callable[[str], bool]
    ) -> AsyncIterator[list[Notice]]:
        """News of those jobs of ``client`` that are ``wanted``, for ever.

        ``subscribed`` is told of each (re)connect.
        """
        async for data in self.hear(self.keys.channel(client), subscribed):
            try:
                notices = unpack_notices(data, wanted)
            except Unreadable as error:
                skipped(f"{self.keys.channel(client)}: {error}")
            else:
                yield notices

    def hear(self, channel: str, subscribed: Callable[[], None]) -> AsyncIterator[bytes]:
        """What is said on ``channel``, for ever; ``subscribed`` is told of each (re)connect.

        A server that does not permit it is :class:`BrokerError`.
        """
        return self.server.hear(channel, subscribed)


@lru_cache(256)
def skipped(what: str) -> None:
    """Tell, once, of something in the store that cannot be read."""
    log.warning("%s", what)


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
